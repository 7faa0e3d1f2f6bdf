"""A Hugging Face tokenizer as the keys of a GGUF file.

Owns which byte-level BPE tokenizers llama.cpp can follow exactly, told by how they split text and
never by a model's name; the type of every token; and the chat template that goes along: the one that
was trained with, its date frozen, and with a branch that writes earlier reasoning between our tags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, TokenType

from cot_unsloth import trace
from cot_unsloth.errors import ModelError, RenderError
from cot_unsloth.render import ChatTemplate
from cot_unsloth.values import Part, ThinkingTags, Trace

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SINGLE_DIGITS = "each digit by itself, the rest as GPT-2 does"
_PRE = {
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "dbrx",
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (None, False): "gpt-2",
    (_SINGLE_DIGITS, False): "smollm",
}
"""By the expression that splits text (None: that of GPT-2), and whether a word of the vocabulary is taken
whole before merges are tried: what llama.cpp calls it."""


def pre_tokenizer(tokenizer: Any) -> str:
    """The name that llama.cpp has for how a tokenizer splits text.

    Raises:
        ModelError: it is no byte-level BPE, changes text in a way of its own, or splits it in a way that
            llama.cpp is not known to have.
    """
    return _pre_tokenizer(_tree(tokenizer))


def _pre_tokenizer(tree: Mapping[str, Any]) -> str:
    model, normalizer = tree["model"], tree.get("normalizer")
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise _unsupported(f"a {model['type']} tokenizer{' with byte fallback' * bool(model.get('byte_fallback'))}")
    if normalizer and normalizer["type"] != "NFC":
        raise _unsupported(f"a tokenizer that normalizes text by {normalizer['type']}")
    found = _PRE.get((_expression(tree["pre_tokenizer"]), bool(model.get("ignore_merges"))))
    if found is None:
        raise _unsupported(f"a tokenizer that splits text by {json.dumps(tree['pre_tokenizer'])[:300]}")
    return found


def _unsupported(what: str) -> ModelError:
    return ModelError(
        f"{what} cannot be written to GGUF",
        where="tokenizer.json",
        hint="--merged writes it as it is",
        name="not_for_gguf",
    )


def _tree(tokenizer: Any) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return tree


def _expression(pre: Mapping[str, Any] | None) -> str | None:
    """The expression that text is split by; None for the one that is built into ByteLevel; "" where it is another way."""
    steps = (pre or {}).get("pretokenizers", [pre] if pre else [])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space"):
        return None
    if (
        kinds == ["Digits", "ByteLevel"]
        and steps[0].get("individual_digits")
        and steps[1].get("use_regex", True)
        and not steps[1].get("add_prefix_space")
    ):
        return _SINGLE_DIGITS
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True) and not steps[1].get("add_prefix_space"):
        return str(steps[0]["pattern"].get("Regex", ""))
    return ""


def add_tokens(writer: GGUFWriter, chat: ChatTemplate, vocabulary: int) -> None:
    """Write the vocabulary, filled up to `vocabulary` with tokens that are never used, and the template.

    Raises:
        ModelError: as `pre_tokenizer`; or the tokenizer has more tokens than the model has rows.
    """
    tokenizer = chat.tokenizer
    tree = _tree(tokenizer)
    names: list[str] = [f"[PAD{i}]" for i in range(vocabulary)]
    kinds = [TokenType.UNUSED] * vocabulary
    for text, id_ in tree["model"]["vocab"].items():
        names[id_], kinds[id_] = text, TokenType.NORMAL
    for token in tree["added_tokens"]:
        if token["id"] >= vocabulary:
            raise ModelError(f"its tokenizer has a token {token['id']}, its embedding {vocabulary} rows", where="base")
        names[token["id"]] = token["content"]
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tree["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(tree))
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_eot_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_chat_template(exported_template(chat))


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer writes a token before any text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def exported_template(chat: ChatTemplate) -> str:
    """The template that was trained with, for others to use.

    Its date is frozen, so that the prompt is the same on every day; and where it does not write earlier
    turns as training did by itself, a branch before it does: reasoning that a client keeps apart goes between
    our tags again, and so does an answer that it has taken out of them. By that branch llama.cpp knows how to
    split reasoning from content.

    Raises:
        RenderError: the template does not write earlier turns so even then.
    """
    template = str(chat.tokenizer.chat_template)
    if "date_string" in template:
        template = f"{{%- set date_string = {json.dumps(chat.date_string)} %}}{template}"
    for candidate in (template, _earlier_turns(chat.thinking_tags) + template):
        if _writes_earlier_turns(chat, candidate):
            return candidate
    raise RenderError("the chat template does not write the reasoning of earlier turns", where="chat_template")


def _writes_earlier_turns(chat: ChatTemplate, template: str) -> bool:
    """Whether a template makes of the turns that clients keep what training made of them, whole."""
    tags = chat.thinking_tags
    reasoning, content = split_reasoning(
        trace.render(Trace((Part("think", "a step"),), "12"), thinking_tags=tags), tags
    )
    turns: list[dict[str, str]] = [
        {"content": content, "reasoning_content": reasoning},
        {"content": "12", "reasoning_content": reasoning},
        {"content": "12", "reasoning_content": ""},
        {"content": "12"},
    ]
    ask, again = {"role": "user", "content": "How many?"}, {"role": "user", "content": "And then?"}
    other = ChatTemplate(_With(chat.tokenizer, template), date_string=chat.date_string, stops=chat.stops)
    try:
        for turn in turns:
            whole = trace.assistant_turn(turn["content"], turn.get("reasoning_content"), tags)
            said = other.text([ask, {"role": "assistant", **turn}, again], ask=True)
            if said != chat.text([ask, {"role": "assistant", "content": whole}, again], ask=True):
                return False
    except RenderError:
        return False
    return True


class _With:
    """A tokenizer with another template."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer, self.chat_template = tokenizer, template
        self.added_tokens_decoder = tokenizer.added_tokens_decoder

    def apply_chat_template(self, messages: Any, **settings: Any) -> Any:
        return self._tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **settings)


def split_reasoning(text: str, thinking_tags: ThinkingTags = "thinking") -> tuple[str, str]:
    """Reasoning and content of a text as `trace.render` writes it.

    >>> split_reasoning(trace.render(Trace((Part("think", "a"),), "1")))[0]
    'a'
    """
    opening, closing = trace.tags("thinking", thinking_tags)
    reasoning, _, content = text.removeprefix(opening).partition(closing)
    return reasoning.strip("\n"), content.lstrip("\n")


def _earlier_turns(thinking_tags: ThinkingTags) -> str:
    """What `trace.assistant_turn` does, in Jinja; calls of tools have no place in it and pass as they are."""
    opening, closing = trace.tags("thinking", thinking_tags)
    output, end_output = trace.tags("output")
    tags = (tag for section in trace.SECTIONS for tag in trace.tags(section, thinking_tags))
    taken_out = " and ".join(f"'{tag}' not in said.text" for tag in tags)
    # The last turn gets no output tags: llama.cpp (2026-10) renders one to learn the format of answers, and would then
    # refuse each answer without the tags ("does not match the expected peg-native format", status 500), where today it
    # gives it as it is.
    return (
        "{%- set turns = namespace(all=[]) %}"
        "{%- for message in messages %}"
        "{%- if message['role'] == 'assistant' and message['content'] is string and not message['tool_calls'] %}"
        "{%- set said = namespace(text=message['content']) %}"
        f"{{%- if not loop.last and {taken_out} %}}{{%- set said.text = '{output}' + said.text + '{end_output}' %}}"
        "{%- endif %}"
        "{%- if message['reasoning_content'] and message['reasoning_content'] | trim %}"
        f"{{%- set said.text = '{opening}\\n' + (message['reasoning_content'] | trim) + '\\n{closing}\\n' + said.text %}}"
        "{%- endif %}"
        "{%- set turns.all = turns.all + [{'role': 'assistant', 'content': said.text}] %}"
        "{%- else %}{%- set turns.all = turns.all + [message] %}{%- endif %}"
        "{%- endfor %}"
        "{%- set messages = turns.all %}"
    )
