"""Opening the renderer of a run: loading the tokenizer, trying its template, and replacing one that breaks a rule.

A template is tried on short conversations before any row is rendered. If the model's own template breaks a rule on the
simplest of them, the training template of its family is taken instead, which is noted; a template that the user asked for
is never replaced but stops the run. A template that only fails on system turns or earlier turns is kept: rows that have
these are rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import RenderError
from cot_unsloth.core.types import Example, Message, Part, Trace
from cot_unsloth.prompts import templates
from cot_unsloth.prompts.chat_template import ChatTemplate, TemplateError
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import load_tokenizer, note_once, stop_ids


def open_renderer(
    model: ModelConfig,
    data: DataConfig,
    trained: Path | None = None,
    *,
    run_template: Path | None = None,
    prompts_only: bool = False,
) -> Renderer:
    """The renderer of a run.

    Args:
        model: the model's settings.
        data: the data's.
        trained: a folder of trained weights, whose tokenizer and template, if any, outrank those of the base.
        run_template: the file in which a run keeps the template that it started with.
        prompts_only: no row is rendered for training, so the template may break the rules for those.

    Raises:
        ModelError: the tokenizer cannot be used.
        RenderError: the template cannot be trained with.
    """
    loaded = load_tokenizer(model, trained, run_template)
    stops = stop_ids(model, loaded.tokenizer, trained)
    chat = ChatTemplate(loaded.tokenizer, date_string=model.date_string, stops=stops, thinking_tags=data.thinking_tags)
    chat.files, chat.saved_beside_weights = loaded.files, trained is not None and loaded.files == trained
    if trained is not None and chat.turn_end is not None:
        chat.stops |= {chat.turn_end}  # trained to end its turns so, whatever its base stops at
    if not prompts_only:
        _check_tags(chat, model, data)
    renderer = Renderer(chat, data)
    if loaded.template.note:
        note_once(loaded.template.note)
    problems = probe(renderer)
    replaced = problems.any and loaded.template.replaceable and _replace_template(renderer, problems)
    chat.base_opening = _own_opening(chat, loaded.own_template)
    if not (replaced or prompts_only):
        _report(problems, loaded.template.origin, bool(data.system_prompt))
    return renderer


def _check_tags(chat: ChatTemplate, model: ModelConfig, data: DataConfig) -> None:
    """A thinking tag that is a special token would vanish from decoded completions (skip_special_tokens)."""
    control = chat.control_token("".join(trace.tags("thinking", data.thinking_tags)))
    if control:
        raise RenderError(
            f"its tokenizer treats {control} as a control token, which decoded text does not show, so no row can be trained on",
            where=model.model_name_or_path,
            hint=f"set --thinking-tags {'think' if data.thinking_tags == 'thinking' else 'thinking'}",
            name="control_token",
        )


def _report(problems: Problems, origin: str, with_system: bool) -> None:
    """Stop the run for a problem that every row would have; note those that some rows would have."""
    problem = problems.first(with_system=with_system)
    if problem:
        raise RenderError(_without_subject(problem), where=origin, hint=problem.hint)
    for kind, problem in (("a system turn", problems.system), ("earlier turns", problems.history)):
        if problem:
            note_once(f"{origin}: rows with {kind} will be rejected, because it {_without_subject(problem)}")


def _without_subject(problem: TemplateError) -> str:
    """The message of a problem without "the chat template", where the sentence names the template otherwise."""
    return problem.message.removeprefix("the chat template ")


@dataclass(frozen=True)
class Problems:
    """How a template breaks the rules, by kind of conversation; None where it does not."""

    plain: TemplateError | None
    """A question and its answer."""
    system: TemplateError | None
    """The same with a system turn."""
    history: TemplateError | None
    """With earlier turns."""

    @property
    def any(self) -> bool:
        """Whether it breaks a rule at all."""
        return self.first(with_system=True) is not None or self.history is not None

    def first(self, *, with_system: bool) -> TemplateError | None:
        """The problem of every row, given whether the run has a system prompt."""
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
    # With and without a system turn, because templates move it into the first user turn, which differs with history.
    history = [with_history, replace(with_history, system=_PROBE_SYSTEM)]
    plain = _first_error(renderer, [_PROBE])
    system = None if plain else _first_error(renderer, [replace(_PROBE, system=_PROBE_SYSTEM)])
    if plain or system:
        history = history[:1]
    return Problems(plain, system, None if plain else _first_error(renderer, history))


def _first_error(renderer: Renderer, examples: Sequence[Example]) -> TemplateError | None:
    for layout in ("nested", "sequential"):
        # A tiny max_seq_length would reject the probe as too long before any rule is checked.
        settings = renderer.data.model_copy(update={"trace_layout": layout, "max_seq_length": 10**6})
        for example in examples:
            try:
                Renderer(renderer.chat, settings).sample_or_raise(example)
            except TemplateError as error:
                return error
    return None


def _replace_template(renderer: Renderer, problems: Problems) -> bool:
    """Give a renderer the training template of its family; False if there is none that keeps the rules."""
    tokenizer = renderer.chat.tokenizer
    own = tokenizer.chat_template
    name = templates.fitting(tokenizer, own)
    if name is None:
        return False
    renderer.chat.use(templates.text(name, tokenizer))
    # It must keep every rule itself: a tokenizer may have the family's tokens and still differ.
    if probe(renderer).any:
        renderer.chat.use(own)
        return False
    problem = problems.plain or problems.system or problems.history
    assert problem is not None
    note_once(
        f"chat template: using the training template {name}, because the model's own {_without_subject(problem)}\n"
        "  choose another with --chat-template FILE or NAME"
    )
    return True


def _own_opening(chat: ChatTemplate, own: str) -> str:
    """What a model's own template begins an answer with, beyond the template in use.

    Without it a reasoning model would be scored below its ability: DeepSeek-R1 tends to skip its reasoning unless the
    answer is made to start with `<think>` (its model card, usage recommendations).
    """
    used = str(chat.tokenizer.chat_template)
    if own in ("", used):
        return ""
    question: list[Message] = [{"role": "user", "content": _PROBE.question}]
    try:
        prompt = chat.text(question, ask=True)
        chat.use(own)
        own_prompt = chat.text(question, ask=True)
    except TemplateError:
        return ""
    finally:
        chat.use(used)
    return own_prompt.removeprefix(prompt) if own_prompt.startswith(prompt) else ""
