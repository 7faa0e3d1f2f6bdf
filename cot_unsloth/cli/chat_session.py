"""The conversation of `chat`: its messages, the settings that can be changed during it, and how answers are printed.

In a terminal, thinking is dim and has a bar in front of it, reflections are marked with ↺, and the output is bold. A pipe or a
file gets the answer as the model wrote it, with its tags. Ctrl-C stops an answer and keeps the text so far.
"""

from __future__ import annotations

import functools
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from cot_unsloth.cli.chat_input import Questions
from cot_unsloth.config import RunConfig
from cot_unsloth.core import terminal, trace
from cot_unsloth.core.errors import CotError, InputError
from cot_unsloth.core.types import Completion, Example, Message, Prompt, SamplingParams
from cot_unsloth.models.streaming import TextPiece, Turn
from cot_unsloth.models.switching import NamedModel
from cot_unsloth.prompts.arms import system_turn
from cot_unsloth.storage import records

_EXAMPLE_HELP = """\
/example             ask a problem of the kind it was trained on, and show
                     whether its answer is right; the conversation starts again
"""
_HELP = """\
/retry               answer the last question again
/reset               forget the conversation
/system TEXT         set the system prompt; none leaves it out
/temperature T       0 always gives the same answer; 0.7 gives different ones
/budget N            end the thinking after N tokens; none takes the limit away
/adapter NAME        let another loaded model answer; without NAME: list them
/save FILE           append the conversation to FILE, as a row for --dataset
/exit                end; so do Ctrl-D, and Ctrl-C pressed twice
Enter sends. Alt-Enter, or a \\ at the end of a line, starts a new one; a pasted
text is one question. Arrow keys bring back earlier questions. Ctrl-C stops an
answer."""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_STYLES = {"thinking": "dim", "reflection": "yellow", "output": "bold", None: "default"}
_BAR = "│ "


def chat(
    models: Mapping[str, NamedModel],
    max_thinking: int | None = None,
    question: str | None = None,
    examples: Callable[[int], Example] | None = None,
) -> None:
    """Answer every question, each with the conversation so far.

    Args:
        models: models by name; the first answers until another is chosen.
        max_thinking: the most tokens of thinking in an answer; None for no limit.
        question: the only question; None asks the user.
        examples: returns a problem of the kind that the model was trained on, for a seed.
    """
    questions = Questions(question)
    conversation = Conversation(models, max_thinking, examples)
    if questions.in_conversation:
        conversation.greet()
    for text in questions:
        conversation.stopped = False
        try:
            if not (questions.in_conversation and conversation.obey(text)):
                conversation.ask(text)
        except CotError as error:
            if not questions.in_conversation:
                raise
            _say(f"error: {error}")
        questions.interrupted = conversation.stopped
        if conversation.stopped and not questions.in_conversation:
            raise KeyboardInterrupt


@dataclass
class Conversation:
    """The messages so far, and the settings for the next answer."""

    models: Mapping[str, NamedModel]
    max_thinking: int | None = None
    examples: Callable[[int], Example] | None = None
    messages: list[Message] = field(default_factory=list)
    """The messages so far, without the system prompt."""
    active: str = ""
    """The name of the model that answers."""
    temperature: float | None = None
    """None for the model's own setting, as with `system`."""
    system: str | None = None
    answers: int = 0
    """Number of answers so far. It is added to the seed, so that above temperature 0 a repeated question gets a new answer."""
    stopped: bool = False
    """Whether the user stopped the last answer."""

    def __post_init__(self) -> None:
        self.active = self.active or next(iter(self.models))

    @property
    def _config(self) -> RunConfig:
        return self.models[self.active].config

    @property
    def _system(self) -> tuple[Message, ...]:
        return system_turn(self._config.data.system_prompt if self.system is None else self.system)

    @property
    def _sampling(self) -> SamplingParams:
        own = self._config.sampling_params
        temperature = own.temperature if self.temperature is None else self.temperature
        return replace(own, temperature=temperature, seed=(own.seed + self.answers) % 2**32)

    def greet(self) -> None:
        """Print which model answers, how to get help, and an example question."""
        _say(f"{self.active} answers. /help lists what you can type; Ctrl-D ends.")
        if self.examples is not None:
            _say("/example asks a problem of the kind it was trained on, such as:")
            _say("\n".join(f"    {line}" for line in self.examples(0).question.splitlines()))

    def ask(self, question: str) -> None:
        """Answer a question, until the user stops it.

        Raises:
            CotError: it cannot be answered; the conversation is as it was before.
        """
        config, engine = self._config, self.models[self.active].engine
        messages: tuple[Message, ...] = (*self._system, *self.messages, {"role": "user", "content": question})
        sampling = replace(self._sampling, max_new_tokens=self._room(messages))
        turn = Turn(engine, messages, sampling, self.max_thinking, config.data.thinking_tags)
        self.answers += 1
        try:
            show(turn)
        except KeyboardInterrupt:
            self.stopped = True
            _say("\n(stopped)")
        if turn.finish_reason == "length" and sampling.max_new_tokens < self._sampling.max_new_tokens:
            _say("(the model's context is full: /save keeps the conversation, /reset starts a new one)")
        self.messages.append({"role": "user", "content": question})
        text = trace.strip_partial_tag(turn.text, config.data.thinking_tags) if self.stopped else turn.text
        if not self.stopped and trace.has_tags(text) and (fault := format_fault(text)):
            _say(f"(no valid trace: {fault})\n")
        self.messages.append({"role": "assistant", "content": text})

    def _room(self, messages: Sequence[Message]) -> int:
        """The tokens that the next answer may have, within the model's context. Beyond it a model writes nonsense.

        Raises:
            InputError: there is no room.
        """
        engine, most = self.models[self.active].engine, self._sampling.max_new_tokens
        context = engine.context_length
        if context is None:
            return most
        tokens = engine.prompt_tokens(Prompt("", tuple(messages)))
        if tokens >= context:
            message = f"the conversation has {tokens} tokens, and the model's context is {context}"
            raise InputError(message, hint="/save keeps it, /reset starts a new one")
        return min(most, context - tokens)

    def obey(self, text: str) -> bool:
        """Run a command such as `/reset`; returns whether the text was a command."""
        command = _COMMAND.fullmatch(text)
        if command is None:
            return False
        action = self._actions().get(command[1])
        if action is None:
            _say(f"there is no command /{command[1]}; /help lists them")
        else:
            try:
                action((command[2] or "").strip())
            except (ValueError, OSError, CotError) as error:
                _say(f"/{command[1]}: {error}")
        return True

    def _actions(self) -> Mapping[str, Callable[[str], object]]:
        return {
            "help": lambda _: _say((_EXAMPLE_HELP if self.examples else "") + _HELP),
            "reset": self._reset,
            "system": self._set_system,
            "temperature": self._set_temperature,
            "budget": self._set_budget,
            "retry": self._retry,
            "save": self._save,
            "adapter": self._choose,
            "example": self._example,
        }

    def _reset(self, _: str) -> None:
        self.messages = []
        _say("starting a new conversation")

    def _set_system(self, text: str) -> None:
        if text:
            self.system = "" if text == "none" else text
        _say(f"system prompt: {self._system[0]['content'] if self._system else 'none'}")

    def _set_temperature(self, text: str) -> None:
        value = _number(text, float, "a number, such as 0.7") if text else self._sampling.temperature
        if not 0 <= value <= 2:
            raise ValueError("must be from 0 to 2")
        self.temperature = value
        _say(f"temperature: {value:g}")

    def _set_budget(self, text: str) -> None:
        if text:
            budget = None if text == "none" else _number(text, int, "a whole number, such as 200, or none")
            if budget is not None and budget < 1:
                raise ValueError("must be at least 1, or none")
            self.max_thinking = budget
        _say(f"thinking budget: {self.max_thinking or 'none'}")

    def _retry(self, _: str) -> None:
        if not self.messages:
            raise ValueError("nothing has been asked yet")
        question, before = self.messages[-2]["content"], self.messages
        self.messages = before[:-2]
        if self._sampling.temperature == 0:
            _say("(at temperature 0 the answer stays the same: /temperature 0.7)")
        try:
            self.ask(question)
        except CotError:
            self.messages = before
            raise

    def _save(self, name: str) -> None:
        if not self.messages:
            raise ValueError("there is nothing to save yet")
        path = Path(name or "chat.jsonl").expanduser()
        records.append_jsonl(path, [{"messages": [*self._system, *self.messages]}])
        _say(f"appended to {path}")
        faulty = [
            fault for turn in self.messages if turn["role"] == "assistant" and (fault := format_fault(turn["content"]))
        ]
        if faulty:
            _say(
                f"{len(faulty)} of its answers cannot be trained on ({faulty[-1]}): correct the row, or check will reject it"
            )

    def _choose(self, name: str) -> None:
        if name in self.models:
            self.active = name
            _say(f"{name} answers now; the conversation continues, /reset starts a new one")
            return
        if name:
            _say(f"no adapter is named {name}")
        _say("\n".join(f"{'*' if model == self.active else ' '} {model}" for model in self.models))

    def _example(self, _: str) -> None:
        if self.examples is None:
            raise ValueError("there are no problems of the kind it was trained on to draw from")
        example = self.examples(random.randrange(2**31))
        self.messages = []  # each problem is asked on its own, as in training
        _say(f"{example.question}\n")
        self.ask(example.question)
        if not self.stopped:
            _say(f"({self._judged(example)})\n")

    def _judged(self, example: Example) -> str:
        """A line that says whether the last answer is right, by the rules of scoring."""
        from cot_unsloth.evaluation import score

        answer = Completion(example.id, self.messages[-1]["content"], 0, "stop")
        right = score.judge(example, answer, tagged=True, thinking_tags=self._config.data.thinking_tags).correct
        return (
            f"right; the expected answer: {example.answer}" if right else f"wrong; the right answer: {example.answer}"
        )


def format_fault(text: str) -> str | None:
    """Why an answer cannot be a training row: its tags are broken, or it has no reasoning; None if it can."""
    try:
        trace.from_text(text)
    except trace.TraceError as error:
        return str(error)
    return None


_N = TypeVar("_N", int, float)


def _number(text: str, kind: Callable[[str], _N], what: str) -> _N:
    """A number that is typed after a command.

    Raises:
        ValueError: it is none, in our words instead of Python's.
    """
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {what}") from None


def _say(text: str) -> None:
    print(terminal.printable(text), file=sys.stderr, flush=True)


def show(turn: Turn) -> None:
    """Print a turn while it is generated."""
    console = terminal.console(markup=False, soft_wrap=True)
    if console.is_terminal:
        printer = _Printer(console.print)
        for piece in turn:
            printer.print(piece)
        console.print()
        say: Callable[[str], None] = functools.partial(console.print, style="dim")
    else:
        for text in _as_written(turn):
            print(terminal.printable(text), end="", flush=True)
        print(flush=True)
        say = _say
    if turn.cut:
        say("(thinking was stopped at its budget)")
    if turn.finish_reason == "length":
        say("(cut off at --max-new-tokens)")
    if console.is_terminal:
        console.print()


_LONGEST_TAG = 16
"""Characters; `</reflection>` has 13."""


def _as_written(turn: Turn) -> Iterator[str]:
    """The text of a turn with its tags, in pieces. The beginning of a tag waits for its end: a cut one is taken out again."""
    printed = 0
    for _ in turn:
        tag = turn.text.rfind("<", max(0, len(turn.text) - _LONGEST_TAG))
        end = tag if tag >= 0 and ">" not in turn.text[tag:] else len(turn.text)
        yield turn.text[printed:end]
        printed = max(printed, end)
    yield turn.text[printed:]


class _Printer:
    """Prints the pieces of a turn with the marks and styles of their sections."""

    def __init__(self, write: Callable[..., None]) -> None:
        self._write = write
        self._section: str | None = None
        self._at_line_start = True

    def print(self, piece: TextPiece) -> None:
        text = piece.text
        if piece.section != self._section:
            text = text.lstrip("\n") if piece.section in ("thinking", "output") and not self._section else text
            self._begin(piece.section)
            self._section = piece.section
        if piece.section is None and not text.strip():
            return
        for line in text.splitlines(keepends=True):
            self._bar(piece.section)
            self._put(line, piece.section)

    def _begin(self, section: str | None) -> None:
        if section == "reflection":
            self._bar(section)
            self._put("↺ ", section)
        elif section == "output":
            self._put("\n" if self._at_line_start else "\n\n", section)

    def _bar(self, section: str | None) -> None:
        if self._at_line_start and section in ("thinking", "reflection"):
            self._write(_BAR, end="", style="dim")

    def _put(self, text: str, section: str | None) -> None:
        if text:
            self._write(text, end="", style=_STYLES[section])
            self._at_line_start = text.endswith("\n")
