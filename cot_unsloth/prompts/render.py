"""Turn an Example into token ids and labels, and an arm into a prompt.

The only place that decides which tokens carry loss: the assistant's last turn and the token that
ends it (with `loss_on: all` its earlier turns too), and of these not the steps that were made wrong
on purpose (unless the settings say so). Owns the system prompt and the prompts of the arms, and
checks, for every row, that the prompt is a prefix of the whole, that the last supervised id is one
that generation stops at, and that no section of the source is lost in the template. A row that breaks
one of these is rejected by name. A template that breaks one on the simplest conversation stops the run,
or, where it is the model's own, is replaced by a training template of its family.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cot_unsloth.config import ASSETS, TINY_BASE, AnyArm, DataConfig, ModelConfig
from cot_unsloth.core import progress, trace
from cot_unsloth.core.errors import ModelError, RenderError, cannot_load
from cot_unsloth.core.types import IGNORE, Example, Message, Part, Prompt, Reject, Sample, ThinkingTags, Trace
from cot_unsloth.prompts import dates, templates, tokenizer_files
from cot_unsloth.storage.run_folder import RunDir, is_full_model

ANSWER_ONLY = "\n\nGive only the final answer."
STEP_BY_STEP = "\n\nThink step by step, then give the final answer on a last line that starts with Answer:"

_KNOWN_PADS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "<|vision_pad|>")
"""Tokens of known vocabularies that are there to pad with and never end a turn."""


def labels_for(ids: Sequence[int], turns: Iterable[tuple[int, int]], masked: Collection[int] = ()) -> list[int]:
    """Train on the turns given as (first, end) positions, and not on the positions in `masked`.

    >>> labels_for([1, 2, 7, 8, 9], [(2, 5)], masked={3})
    [-100, -100, 7, -100, 9]
    """
    trained = {at for first, end in turns for at in range(first, end)} - set(masked)
    return [id_ if at in trained else IGNORE for at, id_ in enumerate(ids)]


class TemplateError(RenderError):
    """A template cannot write a conversation so that it can be trained on; `reason` names why, for the row's reject."""

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


def model_path(name_or_path: str) -> str:
    """Where a model is loaded from: the embedded base goes by its name."""
    return str(ASSETS / TINY_BASE) if name_or_path == TINY_BASE else name_or_path


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer, with the template and the padding token the settings ask for.

    Raises:
        ModelError: it cannot be loaded, has no chat template, or no padding token is known for it.
    """
    return _load_tokenizer(model, None, None).tokenizer


@dataclass(frozen=True)
class _Loaded:
    """A tokenizer, its template set, and where both came from."""

    tokenizer: Any
    files: Path | None
    """The folder with its files; None where it is not known."""
    template: templates.Named
    own: str
    """The template that the base's tokenizer has by itself."""


def _load_tokenizer(model: ModelConfig, trained: Path | None, begun: Path | None) -> _Loaded:
    base = _from_pretrained(model_path(model.model_name_or_path), model)
    files = tokenizer_files.folder_of(model_path(model.model_name_or_path), model.model_revision)
    tokenizer = base
    if (
        trained
        and tokenizer_files.holds_tokenizer(trained)
        and not (files and tokenizer_files.are_alike(trained, files))
    ):
        tokenizer, files = _beside_weights(trained, base, model) or (base, files)
    template = _trained_template(model, trained, begun)
    if template is None:
        template = templates.named(tokenizer, model.chat_template, model.model_name_or_path)
        beside = templates.from_weights(trained) if trained and model.chat_template else None
        if beside and beside.text != template.text:
            _note_once(f"{template.origin} is taken, for it was asked for; {beside.origin} is another")
    elif trained and template.text not in templates.known(base):
        _note_once(f"{template.origin} is taken, for it lies beside the trained weights; its base has another")
    _check_template(template, tokenizer, model)
    own = templates.own_text(base)
    tokenizer.chat_template = template.text
    # It would warn of rows that are longer than the model was made for; they are counted and named as too_long.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    _set_pad(tokenizer, model)
    return _Loaded(tokenizer, files, template, own)


def _from_pretrained(name: str, model: ModelConfig, **settings: Any) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=model.model_revision, trust_remote_code=False, **settings)
    except Exception as error:  # hub, file and format faults share no base class
        own = name == model_path(model.model_name_or_path)
        raise cannot_load(
            f"its tokenizer cannot be loaded: {_first_line(error)}",
            error,
            where=model.model_name_or_path if own else name,
            hint="give a folder that holds a model, or a hub id (gated ones need `hf auth login`)" if own else None,
            name="no_tokenizer",
        ) from error


def _beside_weights(trained: Path, base: Any, model: ModelConfig) -> tuple[Any, Path] | None:
    """The tokenizer that lies beside trained weights and its folder; None where it is that of the base, saved again."""
    settings: dict[str, Any] = {}
    if "tokenizer_class" not in tokenizer_files.read_settings(trained) and not is_full_model(trained):
        from transformers import AutoConfig  # says which class it is where its own files do not

        settings["config"] = AutoConfig.from_pretrained(
            model_path(model.model_name_or_path), revision=model.model_revision, trust_remote_code=False
        )
    own = _from_pretrained(str(trained), model, **settings)
    different = list(tokenizer_files.differences(own, base))
    for line in different:
        _note_once(f"the tokenizer in {trained} is taken, for it lies beside the trained weights: {line}")
    return (own, trained) if different else None


def _trained_template(model: ModelConfig, trained: Path | None, begun: Path | None) -> templates.Named | None:
    """The template that weights were trained with, or that a run was begun with; None where that is not known.

    One that was named when they were trained has become of no matter: the file may be another by now.
    """
    if begun is not None and begun.is_file():
        return templates.kept(begun, model.chat_template)
    if trained is None:
        return None
    run = RunDir.of_weights(trained)
    if model.chat_template and (run is None or run.read_config().model.chat_template != model.chat_template):
        return None  # asked for now
    found = templates.from_weights(trained)
    return found or (templates.kept(run.template, None) if run and run.template.is_file() else None)


def _check_template(template: templates.Named, tokenizer: Any, model: ModelConfig) -> None:
    if not template.text:
        fitting = templates.fitting(tokenizer, "")
        raise ModelError(
            "it has no chat template",
            where=model.model_name_or_path,
            hint="take the Instruct model, or set --chat-template "
            + (f"{fitting}, a training template that its tokenizer has the tokens for" if fitting else "FILE"),
            name="no_chat_template",
        )
    if "strftime_now" in template.text:
        dates.parse(model.date_string)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _set_pad(tokenizer: Any, model: ModelConfig) -> None:
    vocabulary = tokenizer.get_vocab()
    wanted = [model.pad_token] if model.pad_token else [tokenizer.pad_token, *_KNOWN_PADS]
    for token in wanted:
        # Padding with the token that ends a turn hides a missing stop; Trainer's collators mask both.
        if token and token in vocabulary and (model.pad_token or token != tokenizer.eos_token):
            tokenizer.pad_token = token
            return
    what = f"pad_token {model.pad_token!r} is not in its vocabulary" if model.pad_token else "it has no padding token"
    hint = "set --pad-token to a token that never ends a turn"
    raise ModelError(what, where=model.model_name_or_path, hint=hint, name="no_padding_token")


def stop_ids(model: ModelConfig, tokenizer: Any, trained: Path | None = None) -> frozenset[int]:
    """The ids that generation stops at: the tokenizer's and the generation config's, that of a whole trained model before its base's.

    What the generation config lists and is no token of the tokenizer is left out.

    Raises:
        ModelError: there is a generation config, and it cannot be read.
    """
    from transformers import GenerationConfig

    own = trained if trained is not None and (trained / "generation_config.json").is_file() else None
    name = str(own or model_path(model.model_name_or_path))
    listed: Any = None
    try:
        listed = GenerationConfig.from_pretrained(
            name, revision=model.model_revision, trust_remote_code=False
        ).eos_token_id
    except Exception as error:  # one that is no JSON object fails in several ways
        if not isinstance(error, OSError) or Path(name, "generation_config.json").is_file():
            raise ModelError(
                f"its generation_config.json cannot be read: {_first_line(error)}",
                where=name,
                hint="fetch it again, or remove it: a model need not have one",
                name="damaged_generation_config",
            ) from error
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    tokens = set(tokenizer.get_vocab().values())
    unknown = [id_ for id_ in listed if id_ not in tokens]
    if unknown:
        shown = ", ".join(map(repr, unknown))
        _note_once(f"{name}: eos_token_id {shown} of generation_config.json is no token of its tokenizer, and left out")
    return frozenset({tokenizer.eos_token_id, *listed} - {None, *unknown})


class ChatTemplate:
    """A tokenizer's template, with everything that would change from day to day frozen."""

    def __init__(
        self, tokenizer: Any, *, date_string: str, stops: frozenset[int], thinking_tags: ThinkingTags = "thinking"
    ) -> None:
        self.tokenizer = tokenizer
        self.thinking_tags = thinking_tags
        """What the assistant's turns are written with, for an exported template that puts reasoning into them again."""
        self.base_opening = ""
        """What the model's own template begins an answer with and this one does not: `<think>`, of a reasoning model."""
        self.files: Path | None = None
        """The folder that holds the tokenizer's files, where it is known: what is written copies them."""
        self.saved_beside_weights = False
        """Whether that is a folder of trained weights, and not the base's."""
        self.date_string = date_string
        self.stops = stops
        specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._control = re.compile("|".join(map(re.escape, specials)) or r"(?!)")

    def text(self, messages: Sequence[Message], *, ask: bool) -> str:
        """A conversation as text; `ask` ends it where the assistant is to speak.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=ask,
                date_string=self.date_string,
                strftime_now=lambda form: dates.strftime(self.date_string, form),
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise self._refused(messages, error) from error
        return str(rendered)

    def _refused(self, messages: Sequence[Message], error: Exception) -> TemplateError:
        import jinja2

        if isinstance(error, jinja2.TemplateSyntaxError):
            what, other = f"is not Jinja: line {error.lineno}: {error.message}", ""
        else:
            roles = [message["role"] for message in messages]
            what = f"refuses a conversation of {', '.join(roles)}: {_first_line(error)}"
            other = "if it takes no system turn, set --system-prompt ''; else " if "system" in roles else ""
        return TemplateError("template_refused", f"the chat template {what}", hint=other + self.template_hint)

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text (the template has written BOS where there is one)."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        # A third of the time goes into what the tokenizer's own call wraps around this. Its file may ask to cut or pad.
        if backend.truncation is not None or backend.padding is not None:
            backend.no_truncation()
            backend.no_padding()
        return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

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
                name="no_offsets",
            ) from error
        return [(int(begin), int(end)) for begin, end in found]

    def prompt_text(self, prompt: Prompt) -> str:
        """What a model is given to go on from."""
        return self.text(prompt.messages, ask=True) + prompt.prefix

    def use(self, template: str) -> None:
        """Write conversations with another template."""
        self.tokenizer.chat_template = template
        for derived in ("template_hint", "turn_end"):
            self.__dict__.pop(derived, None)

    @functools.cached_property
    def template_hint(self) -> str:
        """Which template to name in place of this one, for hints."""
        own = str(self.tokenizer.chat_template)
        name = templates.fitting(self.tokenizer, own) or templates.fitting(self.tokenizer, "")
        if name is None or templates.text(name, self.tokenizer) == own:
            return "set --chat-template FILE"
        return f"set --chat-template {name}, a training template that comes with cot_unsloth"

    @functools.cached_property
    def turn_end(self) -> int | None:
        """The token that the template ends an answer with: the first control token after it; None where there is none."""
        answer = "It is so."
        try:
            whole = self.text(
                [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}], ask=False
            )
        except TemplateError:
            return None
        token = self.control_token(whole.rpartition(answer)[2])
        return None if token is None else int(self.tokenizer.convert_tokens_to_ids(token))

    @property
    def stop_tokens(self) -> str:
        """The tokens that generation stops at, for people."""
        return ", ".join(repr(self.decode([id_])) for id_ in sorted(self.stops))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens included and nothing tidied."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def without_control(self, text: str) -> str:
        """A text without the control tokens in it."""
        return self._control.sub("", text)

    def control_token(self, text: str) -> str | None:
        """The first control token written out in a text, if any: it would be read as control."""
        found = self._control.search(text)
        return found[0] if found else None


def save_tokenizer(chat: ChatTemplate, out: Path, template: str | None = None) -> None:
    """Write a tokenizer as it came, with the template that is used, or another.

    What lay beside trained weights, and other trainers saved with transformers 5, is written so that 4.57 reads it too.
    """
    tokenizer_files.write(chat.tokenizer, chat.files, template or str(chat.tokenizer.chat_template), out)
    if chat.files is None or chat.saved_beside_weights:
        tokenizer_files.make_readable_by_4(out)


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
        history = (self._earlier(turn) for turn in example.history)
        return Prompt(example.id, (*opening(system), *history, {"role": "user", "content": question}))

    def _earlier(self, turn: Message) -> Message:
        """An earlier turn as this run writes it: the data holds them in the nested layout, with the default tags."""
        if turn["role"] != "assistant":
            return turn
        written = trace.rewrite_turn(turn["content"], self.data.trace_layout, self.data.thinking_tags)
        return {**turn, "content": written}

    def answer(self, example: Example) -> str:
        """A row's solution as this run writes it."""
        return trace.render(example.trace, self.data.trace_layout, self.data.thinking_tags)


@dataclass(frozen=True)
class Turn:
    """A turn of the assistant that carries loss."""

    asked: str
    """The rendered conversation up to where the turn's content begins."""
    first: int
    """Position of its first token."""
    end: int
    """Position after the stop token that ends it."""


class Renderer(Prompter):
    """Examples to Samples too, for one model."""

    def __init__(self, chat: ChatTemplate, data: DataConfig) -> None:
        super().__init__(data)
        self.chat = chat

    def samples(self, examples: Iterable[Example], advance: Callable[[int], None] = lambda n: None) -> Rendered:
        """Render all; a row that cannot be trained on is rejected with its reason, never cut.

        Raises:
            RenderError: steps are to be masked, and the tokenizer does not tell where they are.
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

    def prompt(self, example: Example, arm: AnyArm) -> Prompt:
        """As of a Prompter; a reasoning model that is asked as a base begins its answer as its own template has it."""
        prompt = super().prompt(example, arm)
        own = arm in ("base_direct", "base_cot") and self.chat.base_opening
        return replace(prompt, prefix=self.chat.base_opening) if own else prompt

    def sample(self, example: Example) -> Sample | Reject:
        """One row as ids and labels, or the reason why not.

        Raises:
            RenderError: steps are to be masked, and the tokenizer does not tell where they are.
        """
        try:
            return self.checked(example)
        except TemplateError as error:
            hint = f" ({error.hint})" if error.hint else ""
            return Reject(example.where, error.reason, error.message + hint)

    def checked(self, example: Example) -> Sample | Reject:
        """As `sample`, but what is the template's fault is raised.

        Raises:
            TemplateError: the template refuses the row, or breaks a rule on it.
        """
        prompt = self.prompt(example, "tuned")
        answer = self.answer(example)
        control = self.chat.control_token("\n".join([*(m["content"] for m in prompt.messages), answer]))
        if control:
            return Reject(
                example.where, "control_token", f"the text holds {control}, which the tokenizer takes for control"
            )
        if held := self._tag_in(example):
            return Reject(example.where, "misnested", f"the row's own text holds {held}; take the tag out")
        conversation: list[Message] = [*prompt.messages, {"role": "assistant", "content": answer}]
        whole = self.chat.text(conversation, ask=False)
        ids = self.chat.ids(whole)
        self._check_sections(example, answer, whole)
        self._check_messages(prompt.messages, whole)
        turns = [self._turn(conversation, at, whole, ids) for at in self._trained_turns(example, conversation)]
        last = turns[-1]
        self._check_end(ids[last.end :])
        ids = ids[: last.end]
        if len(ids) > self.data.max_seq_length:
            lost = self._section_cut(ids, last.first)
            return Reject(
                example.where,
                "too_long",
                f"{len(ids)} tokens, max_seq_length is {self.data.max_seq_length}: the cut would fall in the {lost}",
            )
        wrong = self._wrong_tokens(example, answer, whole, len(last.asked)) if self.data.mask_wrong_steps else ()
        return Sample(tuple(ids), tuple(labels_for(ids, ((t.first, t.end) for t in turns), wrong)), example.id)

    def _tag_in(self, example: Example) -> str | None:
        """A tag of thinking in the text of a solution, which would be read as the end of its thinking.

        Readers look for the default tags alone, for only a run says which ones it writes.
        """
        text = "\n".join([*(part.text for part in example.trace.parts), example.trace.output])
        return next((tag for tag in trace.tags("thinking", self.data.thinking_tags) if tag in text), None)

    def _trained_turns(self, example: Example, conversation: Sequence[Message]) -> Iterator[int]:
        """Which messages carry loss: with `loss_on: all` every turn of the assistant's that the data does not exempt.

        A turn without text would teach to say nothing, and is left out.
        """
        start = len(conversation) - 2 - len(example.history)
        for at, turn in enumerate(example.history if self.data.loss_on == "all" else ()):
            exempt = at < len(example.history_loss) and not example.history_loss[at]
            if turn["role"] == "assistant" and turn["content"].strip() and not exempt:
                yield start + at
        yield len(conversation) - 1

    def _turn(self, conversation: Sequence[Message], at: int, whole: str, ids: Sequence[int]) -> Turn:
        """Where a turn of the assistant's stands in the rendered conversation.

        Raises:
            TemplateError: it does not follow on its own prompt, is not there as it was given, or does not end in a token
                that generation stops at.
        """
        content = conversation[at]["content"]
        role = "assistant's turn" if at == len(conversation) - 1 else f"assistant's earlier turn (message {at + 1})"
        asked = self.chat.text(conversation[:at], ask=True)
        self._check_prefix(asked, whole, content)
        prompt_ids = self.chat.ids(asked)
        if list(ids[: len(prompt_ids)]) != prompt_ids:
            raise TemplateError(
                "not_a_prefix",
                f"the chat template ends the prompt in {asked[-20:]!r}, which the tokenizer joins with what follows, so the "
                "prompt is not a prefix of the rendered example",
                hint=self.chat.template_hint,
            )
        first = len(prompt_ids)
        end = next((place + 1 for place in range(first, len(ids)) if ids[place] in self.chat.stops), None)
        if end is None:
            raise self._no_stop(role, "")
        self._check_text(role, content, ids[first : end - 1])
        return Turn(asked, first, end)

    def _check_prefix(self, asked: str, whole: str, content: str) -> None:
        if not whole.startswith(asked):
            raise TemplateError(
                "not_a_prefix",
                f"the chat template {_prefix_problem(asked, whole)}",
                hint=self.chat.template_hint,
            )
        before, found, _ = whole[len(asked) :].partition(content.strip())
        if found and before.strip():
            raise TemplateError(
                "text_before_answer",
                f"the chat template {_text_before_problem(before)}, which is not in the prompt",
                hint=self.chat.template_hint,
            )

    def written(self, example: Example) -> tuple[str, int]:
        """The rendered conversation of a row, and the character at which the answer begins that is trained on."""
        prompt = self.prompt(example, "tuned")
        answer = self.answer(example)
        whole = self.chat.text([*prompt.messages, {"role": "assistant", "content": answer}], ask=False)
        return whole, whole.index(answer, len(self.chat.prompt_text(prompt)))

    def sections(self, example: Example, sample: Sample) -> list[trace.Section | None]:
        """Of each token of a sample, the section that it stands in; None in the prompt, and for the stop token.

        Raises:
            RenderError: the tokenizer does not tell which characters its tokens stand for.
        """
        whole, start = self.written(example)
        answer = self.answer(example)
        spans = [
            (section, start + begin, start + end)
            for section, begin, end in trace.section_spans(answer, self.data.thinking_tags)
        ]
        found: list[trace.Section | None] = []
        for begin, _ in self.chat.offsets(whole)[: len(sample.ids)]:
            while len(spans) > 1 and spans[0][2] <= begin:
                spans.pop(0)
            section, first, last = spans[0]
            found.append(section if first <= begin < last else None)
        return found

    def _wrong_tokens(self, example: Example, answer: str, whole: str, asked: int) -> frozenset[int]:
        """Positions of the tokens that write out a step made wrong on purpose."""
        spans = trace.corrupted_spans(example.trace, self.data.trace_layout, self.data.thinking_tags)
        if not spans:
            return frozenset()
        start = whole.index(answer, asked)
        return self.chat.positions(whole, [(start + begin, start + end) for begin, end in spans])

    def _check_sections(self, example: Example, answer: str, whole: str) -> None:
        if answer in whole:
            return
        pieces = [("reflection" if p.kind == "reflect" else "thinking", p.text) for p in example.trace.parts]
        lost = next((name for name, text in [*pieces, ("output", example.trace.output)] if text not in whole), "tags")
        raise TemplateError(
            "section_lost",
            f"the chat template drops or rewrites the assistant's {lost}",
            hint=f"training on it would teach answers without reasoning; {self.chat.template_hint}",
        )

    def _check_messages(self, messages: Sequence[Message], whole: str) -> None:
        """Every turn before the answer is there; many templates trim white space, which changes nothing."""
        for at, message in enumerate(messages, start=1):
            if message["content"].strip() not in whole:
                raise TemplateError(
                    "section_lost",
                    f"the chat template drops or rewrites message {at}, of the {message['role']}",
                    hint=self.chat.template_hint,
                )

    def _check_end(self, rest_ids: Sequence[int]) -> None:
        """What the template writes after the token that ends the last turn is cut off: a line break or a control token."""
        rest = self.chat.decode(rest_ids)
        if self.chat.without_control(rest).strip():
            raise TemplateError(
                "text_after_answer",
                f"the chat template writes {rest[:80]!r} after the assistant's turn",
                hint=self.chat.template_hint,
            )

    def _check_text(self, role: str, content: str, supervised: Sequence[int]) -> None:
        """What carries loss, decoded, is the turn's content; tokenizers may normalise Unicode."""
        said = self.chat.decode(supervised)
        written, expected = (" ".join(unicodedata.normalize("NFKC", text).split()) for text in (said, content))
        if written.startswith(expected) and written != expected:
            raise self._no_stop(role, said.partition(content.strip())[2])
        if written != expected:
            raise TemplateError(
                "text_changed",
                f"the chat template writes the {role} so that its tokens decode to {said[:80]!r}, not to {content[:80]!r}",
                hint=self.chat.template_hint,
            )

    def _no_stop(self, role: str, written: str) -> TemplateError:
        instead = f" but with {written.strip()[:40]!r}" if written.strip() else ""
        return TemplateError(
            "no_stop",
            f"the chat template does not end the {role} with a token that generation stops at "
            f"({self.chat.stop_tokens}){instead}",
            hint="the model would never learn to stop; "
            + (
                f"add it to eos_token_id in generation_config.json, or {self.chat.template_hint}"
                if instead
                else self.chat.template_hint
            ),
        )

    def _section_cut(self, ids: Sequence[int], prompt_length: int) -> str:
        """In which section a cut at max_seq_length would fall."""
        limit = self.data.max_seq_length
        if prompt_length >= limit:
            return "prompt"
        if limit == len(ids) - 1:
            return "stop token"
        scanner = trace.Scanner(self.data.thinking_tags)
        seen = [event.section for event in scanner.feed(self.chat.decode(ids[prompt_length:limit]))]
        return scanner.section or ("output" if seen else "thinking")


def _shared_length(a: str, b: str) -> int:
    """Characters at the beginning that two texts have in common."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _prefix_problem(asked: str, whole: str) -> str:
    """What a template does to make a prompt no prefix of the conversation that follows on it."""
    shared = _shared_length(asked, whole)
    # Our own answers begin with `<think` too, so what the two share may end in the middle of the tag.
    if "<think>" in asked[max(0, shared - len("<think>")) :]:
        return "opens a <think> block in the prompt, so the prompt is not a prefix of the rendered example"
    ends, goes_on = asked[shared : shared + 40], whole[shared : shared + 40]
    return f"writes {ends!r} in the prompt and {goes_on!r} in the example, so the prompt is not a prefix of the rendered example"


def _text_before_problem(text: str) -> str:
    """What a template adds before an answer."""
    if "<think>" in text:
        return "adds an empty <think> block before the answer"
    if "</think>" in text:
        return "opens a <think> block in the prompt and closes it before the answer"
    return f"adds {text[:80]!r} before the answer"


def open_renderer(
    model: ModelConfig,
    data: DataConfig,
    trained: Path | None = None,
    *,
    begun: Path | None = None,
    prompts_only: bool = False,
) -> Renderer:
    """The renderer of a run: its tokenizer and template, frozen as the settings say.

    Where the model's own template breaks a rule that training needs, the training template of its family is taken,
    and said to be; one that was asked for is never replaced.

    Args:
        model: the model's settings.
        data: the data's.
        trained: a folder of trained weights; the tokenizer and the template in it, if any, are what they were trained with,
            and outrank their base's. Where the two differ, that is said.
        begun: the file in which a run keeps the template that it was begun with.
        prompts_only: no row is rendered to be trained on, so a template may break the rules for those.

    Raises:
        ModelError: the tokenizer cannot be used.
        RenderError: the template cannot be trained with.
    """
    loaded = _load_tokenizer(model, trained, begun)
    tokenizer, template = loaded.tokenizer, loaded.template
    stops = stop_ids(model, tokenizer, trained)
    chat = ChatTemplate(tokenizer, date_string=model.date_string, stops=stops, thinking_tags=data.thinking_tags)
    chat.files, chat.saved_beside_weights = loaded.files, trained is not None and loaded.files == trained
    if trained is not None and chat.turn_end is not None:
        chat.stops |= {chat.turn_end}  # it was trained to write that, whatever its base stops at
    control = chat.control_token("".join(trace.tags("thinking", data.thinking_tags)))
    if control and not prompts_only:
        raise RenderError(
            f"its tokenizer takes {control} for a control token, which no text shows, so no row can be trained on",
            where=model.model_name_or_path,
            hint=f"set --thinking-tags {'think' if data.thinking_tags == 'thinking' else 'thinking'}",
            name="control_token",
        )
    renderer = Renderer(chat, data)
    if template.note:
        _note_once(template.note)
    problems = probe(renderer)
    replaced = problems.any and template.replaceable and _replaced(renderer, problems)
    chat.base_opening = _own_opening(chat, loaded.own)
    if replaced:
        return renderer
    if prompts_only:
        return renderer
    problem = problems.first(with_system=bool(data.system_prompt))
    if problem:
        raise RenderError(_without_subject(problem), where=template.origin, hint=problem.hint)
    for kind, problem in (("a system turn", problems.system), ("earlier turns", problems.history)):
        if problem:
            _note_once(f"{template.origin}: rows with {kind} will be rejected, for it {_without_subject(problem)}")
    return renderer


@functools.cache
def _note_once(text: str) -> None:
    """A run opens its renderer more than once; what is worth saying is said once."""
    progress.note(text)


@dataclass(frozen=True)
class Problems:
    """How a template breaks the rules, by the kind of conversation; None where it keeps them."""

    plain: TemplateError | None
    """A question and its answer."""
    system: TemplateError | None
    """The same with a system turn."""
    history: TemplateError | None
    """With earlier turns."""

    @property
    def any(self) -> bool:
        """Whether there is one at all."""
        return self.first(with_system=True) is not None or self.history is not None

    def first(self, *, with_system: bool) -> TemplateError | None:
        """What stops a run, whose rows may all have a system turn."""
        return self.plain or (self.system if with_system else None)


_PROBE = Example(
    id="probe",
    question="How many are 3 and 4?",
    trace=Trace((Part("think", "3 + 4 = 8"), Part("reflect", "3 + 4 is 7, not 8."), Part("think", "3 + 4 = 7")), "7"),
    answer="7",
    where="a short conversation",
    system="",
)
_PROBE_HISTORY: tuple[Message, ...] = (
    {"role": "user", "content": "How many are 1 and 1?"},
    {"role": "assistant", "content": trace.render(Trace((Part("think", "1 + 1 = 2"),), "2"))},
)
_PROBE_SYSTEM = "Think before you answer."


def probe(renderer: Renderer) -> Problems:
    """Try a template on short conversations, in both layouts of a trace."""
    with_history = replace(_PROBE, history=_PROBE_HISTORY)
    history = [with_history, replace(with_history, system=_PROBE_SYSTEM)]
    plain = _broken_by(renderer, [_PROBE])
    system = None if plain else _broken_by(renderer, [replace(_PROBE, system=_PROBE_SYSTEM)])
    if plain or system:
        history = history[:1]
    return Problems(plain, system, None if plain else _broken_by(renderer, history))


def _broken_by(renderer: Renderer, examples: Sequence[Example]) -> TemplateError | None:
    for layout in ("nested", "sequential"):
        settings = renderer.data.model_copy(update={"trace_layout": layout, "max_seq_length": 10**6})
        for example in examples:
            try:
                Renderer(renderer.chat, settings).checked(example)
            except TemplateError as error:
                return error
    return None


def _replaced(renderer: Renderer, problems: Problems) -> bool:
    """Give a renderer the training template of its family, where there is one that keeps the rules."""
    tokenizer = renderer.chat.tokenizer
    own = tokenizer.chat_template
    name = templates.fitting(tokenizer, own)
    if name is None:
        return False
    renderer.chat.use(templates.text(name, tokenizer))
    if probe(renderer).any:
        renderer.chat.use(own)
        return False
    problem = problems.plain or problems.system or problems.history
    assert problem is not None
    _note_once(
        f"chat template: taking the training template {name}, for the model's own {_without_subject(problem)}\n"
        "  --chat-template FILE or NAME takes another"
    )
    return True


def _own_opening(chat: ChatTemplate, own: str) -> str:
    """What a model's own template begins an answer with, beyond the one that is used."""
    used = str(chat.tokenizer.chat_template)
    if own in ("", used):
        return ""
    question: list[Message] = [{"role": "user", "content": _PROBE.question}]
    try:
        asked = chat.text(question, ask=True)
        chat.use(own)
        asked_by_own = chat.text(question, ask=True)
    except TemplateError:
        return ""
    finally:
        chat.use(used)
    return asked_by_own.removeprefix(asked) if asked_by_own.startswith(asked) else ""


def _without_subject(problem: TemplateError) -> str:
    """A problem without its subject, which is named another way."""
    return problem.message.removeprefix("the chat template ")
