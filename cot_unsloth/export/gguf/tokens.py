"""A Hugging Face tokenizer as the keys of a GGUF file.

The type of every token (how a tokenizer splits text is in `tokenizers`), and the chat template: the one that was trained
with, its date frozen, and with a branch that writes the reasoning of earlier turns between our tags.
"""

from __future__ import annotations

from typing import Any

from gguf import GGUFWriter, TokenType

from cot_unsloth.core import trace
from cot_unsloth.core.errors import ModelError, RenderError
from cot_unsloth.core.types import Message, Part, ThinkingTags, Trace
from cot_unsloth.export.gguf import tokenizers
from cot_unsloth.export.gguf.tokenizers import Split
from cot_unsloth.export.refusal import not_for_gguf
from cot_unsloth.prompts import dates
from cot_unsloth.prompts.chat_template import ChatTemplate

_NEVER_MERGED = -1e9
"""Score of a token that no merge makes; llama.cpp merges the best score first."""


def add_tokens(writer: GGUFWriter, chat: ChatTemplate, vocabulary: int) -> None:
    """Write the vocabulary, filled up to `vocabulary` with tokens that are never used, and the template.

    Raises:
        ModelError: llama.cpp does not split text as the tokenizer does; or it has more tokens than the model has rows.
    """
    tokenizer = chat.tokenizer
    tree, split = tokenizers.tree(tokenizer), tokenizers.split_of(tokenizer)
    _check_beginning(chat, split)
    names, kinds = _tokens(tree, split, vocabulary)
    writer.add_tokenizer_model(split.model)
    writer.add_tokenizer_pre(split.pre)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    if split.model == "llama":
        writer.add_token_scores([split.scores.get(name, _NEVER_MERGED) for name in names])
        # Without the key llama.cpp adds a space for every SentencePiece tokenizer, which is wrong for Gemma's.
        writer.add_add_space_prefix(split.space_prefix)
        if tree["model"].get("unk_token") is not None:
            writer.add_unk_token_id(names.index(tree["model"]["unk_token"]))
    else:
        # tokenizers stores a merge as [left, right] since 0.20, before it as "left right", which is also GGUF's form.
        writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]])
    # GGUF has one eos key. Llama 3 has three tokens that end: <|eot_id|>, after a turn, is the one that chats need.
    end = tokenizer.eos_token_id if chat.turn_end is None else chat.turn_end
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    # Without the key llama.cpp decides by the kind of tokenizer, and adds BOS to every SentencePiece text.
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_chat_template(exported_template(chat))


def _tokens(tree: tokenizers.Tree, split: Split, vocabulary: int) -> tuple[list[str], list[TokenType]]:
    """Each token's text and type.

    Ids beyond the tokenizer's own, up to the rows of the embedding, become `UNUSED` (Qwen2.5 has 151,936 rows for 151,665
    tokens). Added tokens that are not special become `USER_DEFINED`, whose text llama.cpp prints; it drops that of
    `CONTROL` tokens, so our tags would vanish from answers if they were control tokens.
    """
    names: list[str] = [f"[PAD{i}]" for i in range(vocabulary)]
    kinds = [TokenType.UNUSED] * vocabulary
    bytes_ = tokenizers.BYTES if split.model == "llama" else frozenset()
    listed = [
        (id_, text, TokenType.BYTE if text in bytes_ else TokenType.NORMAL)
        for text, id_ in tree["model"]["vocab"].items()
    ]
    # After the vocabulary, because an added token replaces the vocabulary's entry of the same id.
    for token in tree["added_tokens"]:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        listed.append((token["id"], token["content"], kind))
    for id_, text, kind in listed:
        if id_ >= vocabulary:
            raise ModelError(f"its tokenizer has a token {id_}, but its embedding has {vocabulary} rows", where="base")
        names[id_] = text
        kinds[id_] = TokenType.UNKNOWN if split.model == "llama" and text == tree["model"].get("unk_token") else kind
    return names, kinds


def _check_beginning(chat: ChatTemplate, split: Split) -> None:
    """Make sure that a conversation begins with a control token, if the tokenizer adds a space to text at the beginning.

    Raises:
        ModelError: it begins with text; llama.cpp adds that space nowhere, or after each control token.
    """
    if split.in_turns:
        rendered = chat.text([{"role": "user", "content": "Hello"}], ask=True)
        if not rendered.startswith(chat.control_token(rendered) or "\0"):
            raise not_for_gguf(
                "a tokenizer that adds a space only before the first word, with a chat template that begins with a word,",
                "tokenizer.json",
            )


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a beginning-of-text token before any text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


ANOTHER_DAY = "1 Jan 2001"
"""The date with which an exported template is tested: the template must not use it."""


def exported_template(chat: ChatTemplate) -> str:
    """The template that was trained with, for other programs.

    Its date is frozen, so that the prompt is the same on every day. If it does not write earlier turns as in training, a
    branch before it does: reasoning that a client stores separately goes between our tags again, and so does an answer
    that the client has taken out of its tags. By that branch llama.cpp also knows how to split reasoning from content: it
    renders a turn with `reasoning_content` and looks at the text around it.

    Raises:
        RenderError: the template does not write earlier turns as in training even then.
    """
    template = dates.frozen(str(chat.tokenizer.chat_template), chat.date_string)
    for candidate in (template, _earlier_turns(chat.thinking_tags) + template):
        if _writes_earlier_turns(chat, candidate):
            return candidate
    raise RenderError("the chat template does not write the reasoning of earlier turns", where="chat_template")


def _writes_earlier_turns(chat: ChatTemplate, template: str) -> bool:
    """Whether a template renders the turns that clients store as training rendered the complete turns."""
    tags = chat.thinking_tags
    reasoning, content = split_reasoning(
        trace.render(Trace((Part("think", "a step"),), "12"), thinking_tags=tags), tags
    )
    # As clients store an answer: with its output tags, without them, with empty reasoning, and with none.
    turns: list[Message] = [
        {"role": "assistant", "content": content, "reasoning_content": reasoning},
        {"role": "assistant", "content": "12", "reasoning_content": reasoning},
        {"role": "assistant", "content": "12", "reasoning_content": ""},
        {"role": "assistant", "content": "12"},
    ]
    ask: Message = {"role": "user", "content": "How many?"}
    again: Message = {"role": "user", "content": "And then?"}
    other = ChatTemplate(_WithTemplate(chat.tokenizer, template), date_string=ANOTHER_DAY, stops=chat.stops)
    try:
        for turn in turns:
            complete = trace.assistant_turn(turn["content"], turn.get("reasoning_content"), tags)
            rendered = other.text([ask, turn, again], ask=True)
            if rendered != chat.text([ask, {"role": "assistant", "content": complete}, again], ask=True):
                return False
    except RenderError:
        return False
    return True


class _WithTemplate:
    """A tokenizer with another template."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer, self.chat_template = tokenizer, template
        self.added_tokens_decoder = tokenizer.added_tokens_decoder

    def apply_chat_template(self, messages: Any, **settings: Any) -> Any:
        return self._tokenizer.apply_chat_template(messages, **{"chat_template": self.chat_template, **settings})


def split_reasoning(text: str, thinking_tags: ThinkingTags = "thinking") -> tuple[str, str]:
    """Reasoning and content of a text as `trace.render` writes it.

    >>> split_reasoning(trace.render(Trace((Part("think", "a"),), "1")))[0]
    'a'
    """
    opening, closing = trace.tags("thinking", thinking_tags)
    reasoning, _, content = text.removeprefix(opening).partition(closing)
    return reasoning.strip("\n"), content.lstrip("\n")


def _earlier_turns(thinking_tags: ThinkingTags) -> str:
    """What `trace.assistant_turn` does, in Jinja; turns with tool calls are left unchanged.

    Jinja forgets what is assigned inside a loop when the loop ends, except in a `namespace`.
    """
    opening, closing = trace.tags("thinking", thinking_tags)
    output, end_output = trace.tags("output")
    tags = (tag for section in trace.SECTIONS for tag in trace.tags(section, thinking_tags))
    taken_out = " and ".join(f"'{tag}' not in said.text" for tag in tags)
    # The last turn gets no output tags: llama.cpp (2026-10) renders one to learn the format of answers, and would then
    # refuse each answer without the tags ("does not match the expected peg-native format", status 500) instead of
    # returning it unchanged.
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
