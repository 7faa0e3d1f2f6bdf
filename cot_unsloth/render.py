"""Turn an Example into token ids and labels, and an arm into a prompt.

The only place that decides which tokens carry loss: the assistant's last turn and the token that
ends it, and of these not the steps that were made wrong on purpose (unless the settings say so).
Owns chat templates, the system prompt and the prompts of the arms, and checks, for every row, that
the prompt is a prefix of the whole, that the last supervised id is one that generation stops at, and
that no section of the source is lost in the template.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth import trace
from cot_unsloth.config import ASSETS, TINY_BASE, AnyArm, DataConfig, ModelConfig
from cot_unsloth.errors import ModelError, RenderError
from cot_unsloth.values import IGNORE, Example, Message, Prompt, Reject, Sample

ANSWER_ONLY = "\n\nGive only the final answer."
STEP_BY_STEP = "\n\nThink step by step, then give the final answer on a last line that starts with Answer:"

_KNOWN_PADS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "<|vision_pad|>")
"""Tokens of known vocabularies that are there to pad with and never end a turn."""


def labels_for(prompt_ids: Sequence[int], full_ids: Sequence[int], silent: Collection[int] = ()) -> list[int]:
    """Train on the completion only, and not on the positions in `silent`.

    >>> labels_for([1, 2], [1, 2, 7, 8, 9], silent={3})
    [-100, -100, 7, -100, 9]
    """
    asked = len(prompt_ids)
    return [IGNORE if at < asked or at in silent else id_ for at, id_ in enumerate(full_ids)]


def model_path(name_or_path: str) -> str:
    """Where a model is loaded from: the embedded base goes by its name."""
    return str(ASSETS / TINY_BASE) if name_or_path == TINY_BASE else name_or_path


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer, with the template and the padding token the settings ask for.

    Raises:
        ModelError: it cannot be loaded, has no chat template, or no padding token is known for it.
    """
    from transformers import AutoTokenizer

    name = model_path(model.model_name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=model.model_revision)
    except Exception as error:  # hub, file and format faults share no base class
        raise ModelError(
            f"its tokenizer cannot be loaded: {_first_line(error)}",
            where=model.model_name_or_path,
            hint="give a folder that holds a model, or a hub id (gated ones need `hf auth login`)",
        ) from error
    if model.chat_template:
        tokenizer.chat_template = _read_template(model.chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            "it has no chat template",
            where=model.model_name_or_path,
            hint="take the Instruct model, or set --chat-template FILE",
        )
    _set_pad(tokenizer, model)
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the chat template cannot be read: {error}", where=f"chat_template {path}") from error


def _set_pad(tokenizer: Any, model: ModelConfig) -> None:
    vocabulary = tokenizer.get_vocab()
    wanted = [model.pad_token] if model.pad_token else [tokenizer.pad_token, *_KNOWN_PADS]
    for token in wanted:
        # Padding with the token that ends a turn hides a missing stop; Trainer's collators mask both.
        if token and token in vocabulary and (model.pad_token or token != tokenizer.eos_token):
            tokenizer.pad_token = token
            return
    what = f"pad_token {model.pad_token!r} is not in its vocabulary" if model.pad_token else "it has no padding token"
    raise ModelError(what, where=model.model_name_or_path, hint="set --pad-token to a token that never ends a turn")


def stop_ids(model: ModelConfig, tokenizer: Any) -> frozenset[int]:
    """The ids that generation stops at: the tokenizer's and the generation config's."""
    from transformers import GenerationConfig

    found = {tokenizer.eos_token_id}
    try:
        config = GenerationConfig.from_pretrained(model_path(model.model_name_or_path), revision=model.model_revision)
        listed = config.eos_token_id
        found |= set(listed) if isinstance(listed, list) else {listed}
    except OSError:
        pass  # models need not have a generation config
    return frozenset(id_ for id_ in found if id_ is not None)


class ChatTemplate:
    """A tokenizer's template, with everything that would change from day to day frozen."""

    def __init__(self, tokenizer: Any, *, date_string: str, stops: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.date_string = date_string
        self.stops = stops
        specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._control = re.compile("|".join(map(re.escape, specials)) or r"(?!)")

    def text(self, messages: Sequence[Message], *, ask: bool) -> str:
        """A conversation as text; `ask` ends it where the assistant is to speak.

        Raises:
            RenderError: the template refuses the conversation.
        """
        import jinja2

        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=ask,
                date_string=self.date_string,
                strftime_now=lambda form: self.date_string,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RenderError(
                f"the chat template refuses a conversation of {roles}: {error}",
                hint="if it takes no system turn, set --system-prompt ''; else set --chat-template FILE",
            ) from error
        return str(rendered)

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text (the template has written BOS where there is one)."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def positions(self, text: str, spans: Sequence[tuple[int, int]]) -> frozenset[int]:
        """Which tokens of rendered text stand, in whole or in part, in one of the spans of characters.

        Raises:
            RenderError: the tokenizer does not tell which characters its tokens stand for.
        """
        return frozenset(
            at
            for at, (begin, end) in enumerate(self.offsets(text))
            if any(begin < span_end and end > span_begin for span_begin, span_end in spans)
        )

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Of each token of rendered text, the characters that it stands for.

        Raises:
            RenderError: the tokenizer does not tell.
        """
        try:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        except NotImplementedError as error:
            raise RenderError(
                "the tokenizer does not tell which characters its tokens stand for, so no step can be masked",
                hint="take a fast tokenizer (tokenizer.json), or set --no-mask-wrong-steps",
            ) from error
        return [(int(begin), int(end)) for begin, end in found]

    def prompt_text(self, prompt: Prompt) -> str:
        """What a model is given to go on from."""
        return self.text(prompt.messages, ask=True) + prompt.prefix

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens included and nothing tidied."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def control_token(self, text: str) -> str | None:
        """The first control token written out in a text, if any: it would be read as control."""
        found = self._control.search(text)
        return found[0] if found else None


@dataclass(frozen=True)
class Rendered:
    """What rendering made of a list of Examples: rows in = kept + rejects."""

    kept: tuple[Example, ...]
    samples: tuple[Sample, ...]
    """One for each of `kept`, in its order."""
    rejects: tuple[Reject, ...]


def opening(system: str | None) -> tuple[Message, ...]:
    """What a conversation begins with: the system turn, where there is a prompt for one."""
    return ({"role": "system", "content": system},) if system else ()


class Prompter:
    """Examples to Prompts, for one data configuration: what every kind of model is asked."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    def prompt(self, example: Example, arm: AnyArm) -> Prompt:
        """What an arm is asked. The base is asked in three ways, the tuned model as it was trained."""
        match arm:
            case "base_direct":
                return self._ask(example, example.system, example.question + ANSWER_ONLY)
            case "base_cot":
                return self._ask(example, example.system, example.question + STEP_BY_STEP)
            case "base_tags" | "tuned" | "gguf":
                return self._ask(example, self._system(example), example.question)

    def _system(self, example: Example) -> str | None:
        return example.system if example.system is not None else self.data.system_prompt

    def _ask(self, example: Example, system: str | None, question: str) -> Prompt:
        return Prompt(example.id, (*opening(system), *example.history, {"role": "user", "content": question}))


class Renderer(Prompter):
    """Examples to Samples too, for one model."""

    def __init__(self, chat: ChatTemplate, data: DataConfig) -> None:
        super().__init__(data)
        self.chat = chat

    def samples(self, examples: Iterable[Example], advance: Callable[[int], None] = lambda n: None) -> Rendered:
        """Render all; over-long rows and rows with control tokens are rejected, never cut.

        Raises:
            RenderError: the template breaks a law, so no row can be trusted.
        """
        kept: list[Example] = []
        samples: list[Sample] = []
        rejects: list[Reject] = []
        for example in examples:
            made = self.sample(example)
            if isinstance(made, Reject):
                rejects.append(made)
            else:
                kept.append(example)
                samples.append(made)
            advance(1)
        return Rendered(tuple(kept), tuple(samples), tuple(rejects))

    def sample(self, example: Example) -> Sample | Reject:
        """One row as ids and labels, or the reason why not.

        Raises:
            RenderError: the prompt is no prefix of the row, the row does not end in a token that
                generation stops at, or a section is lost.
        """
        prompt = self.prompt(example, "tuned")
        answer = trace.render(example.trace, self.data.trace_layout)
        control = self.chat.control_token("\n".join([*(m["content"] for m in prompt.messages), answer]))
        if control:
            return Reject(
                example.where, "control_token", f"the text holds {control}, which the tokenizer takes for control"
            )
        asked = self.chat.prompt_text(prompt)
        whole = self.chat.text([*prompt.messages, {"role": "assistant", "content": answer}], ask=False)
        self._check_sections(example, answer, whole)
        prompt_ids, ids = self.chat.ids(asked), self.chat.ids(whole)
        if not whole.startswith(asked) or ids[: len(prompt_ids)] != prompt_ids:
            raise RenderError(
                "the prompt is not a prefix of the rendered example",
                where=example.where,
                hint="the chat template rewrites earlier turns, or its tokenizer joins prompt and answer; "
                f"set --chat-template to a training template. Prompt ends {asked[-40:]!r}",
            )
        ids = self._to_stop(ids, len(prompt_ids), example)
        self._check_text(example, answer, ids[len(prompt_ids) :])
        if len(ids) > self.data.max_seq_length:
            lost = self._section_cut(ids, len(prompt_ids))
            return Reject(
                example.where,
                "too_long",
                f"{len(ids)} tokens, max_seq_length is {self.data.max_seq_length}: the cut would fall in the {lost}",
            )
        silent = self._wrong_tokens(example, answer, whole, len(asked)) if self.data.mask_wrong_steps else frozenset()
        return Sample(tuple(ids), tuple(labels_for(prompt_ids, ids, silent)), example.id)

    def sections(self, example: Example, sample: Sample) -> list[trace.Section | None]:
        """Of each token of a sample, the section that it stands in; None in the prompt, and for the stop token.

        Raises:
            RenderError: the tokenizer does not tell which characters its tokens stand for.
        """
        prompt = self.prompt(example, "tuned")
        answer = trace.render(example.trace, self.data.trace_layout)
        whole = self.chat.text([*prompt.messages, {"role": "assistant", "content": answer}], ask=False)
        start = whole.index(answer, len(self.chat.prompt_text(prompt)))
        spans = [(section, start + begin, start + end) for section, begin, end in trace.section_spans(answer)]
        found: list[trace.Section | None] = []
        for begin, _ in self.chat.offsets(whole)[: len(sample.ids)]:
            while len(spans) > 1 and spans[0][2] <= begin:
                spans.pop(0)
            section, first, last = spans[0]
            found.append(section if first <= begin < last else None)
        return found

    def _wrong_tokens(self, example: Example, answer: str, whole: str, asked: int) -> frozenset[int]:
        """Positions of the tokens that write out a step made wrong on purpose."""
        spans = trace.wrong_spans(example.trace, self.data.trace_layout)
        if not spans:
            return frozenset()
        start = whole.index(answer, asked)
        return self.chat.positions(whole, [(start + begin, start + end) for begin, end in spans])

    def _check_sections(self, example: Example, answer: str, whole: str) -> None:
        if answer in whole:
            return
        pieces = [("reflection" if p.kind == "reflect" else "thinking", p.text) for p in example.trace.parts]
        lost = next((name for name, text in [*pieces, ("output", example.trace.output)] if text not in whole), "tags")
        raise RenderError(
            f"the chat template drops or rewrites the assistant's {lost}",
            where=example.where,
            hint="training on it would teach answers without reasoning; set --chat-template to one that keeps the content as it is",
        )

    def _to_stop(self, ids: list[int], start: int, example: Example) -> list[int]:
        """Cut what the template writes after the token that ends the turn (a line break, often)."""
        ends = [at for at in range(start, len(ids)) if ids[at] in self.chat.stops]
        if not ends:
            names = ", ".join(repr(self.chat.decode([id_])) for id_ in sorted(self.chat.stops))
            raise RenderError(
                f"the chat template does not end the assistant's turn with a token that generation stops at ({names})",
                where=example.where,
                hint="the model would never learn to stop; set --chat-template to one that does",
            )
        rest = self.chat.decode(ids[ends[0] + 1 :])
        if rest.strip():
            raise RenderError(f"the chat template writes {rest!r} after the assistant's turn", where=example.where)
        return ids[: ends[0] + 1]

    def _check_text(self, example: Example, answer: str, supervised: Sequence[int]) -> None:
        """What carries loss, decoded, is the answer; tokenizers may normalise Unicode."""
        said = self.chat.decode(supervised[:-1])
        if unicodedata.normalize("NFKC", said).split() != unicodedata.normalize("NFKC", answer).split():
            raise RenderError(
                f"the supervised tokens decode to {said[:80]!r}, not to the answer {answer[:80]!r}", where=example.where
            )

    def _section_cut(self, ids: Sequence[int], prompt_length: int) -> str:
        """In which section a cut at max_seq_length would fall."""
        limit = self.data.max_seq_length
        if prompt_length >= limit:
            return "prompt"
        if limit == len(ids) - 1:
            return "stop token"
        scanner = trace.Scanner()
        seen = [event.section for event in scanner.feed(self.chat.decode(ids[prompt_length:limit]))]
        return scanner.section or ("output" if seen else "thinking")


def open_renderer(model: ModelConfig, data: DataConfig) -> Renderer:
    """The renderer of a run: its tokenizer and template, frozen as the settings say.

    Raises:
        ModelError: the tokenizer cannot be used.
    """
    tokenizer = load_tokenizer(model)
    chat = ChatTemplate(tokenizer, date_string=model.date_string, stops=stop_ids(model, tokenizer))
    return Renderer(chat, data)
