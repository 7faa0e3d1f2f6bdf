"""`inspect`: rows as the model sees them.

Owns which rows are shown (what is masked, the longest, the shortest, ...), and how a row is cut into stretches of one
kind: with or without loss, in which section, control token or text, a wrong step or not. Only what is shown is rendered.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import ASSETS, RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import IGNORE, Example, Reject, Sample
from cot_unsloth.data import load_examples
from cot_unsloth.prompts.render import Renderer, open_renderer
from cot_unsloth.storage.run_folder import RunDir, kept_example, read_jsonl

TEMPLATE = ASSETS / "inspect.html.j2"


@dataclass(frozen=True)
class Stretch:
    """Tokens in a row that are alike."""

    text: str
    tokens: int
    loss: bool
    """Whether the model is trained on them."""
    section: trace.Section | None
    """None in the prompt, and for the token that ends the turn."""
    control: bool
    """Whether it is a control token, such as the one that ends a turn."""
    wrong: bool
    """Whether a step stands here that was made wrong on purpose."""


@dataclass(frozen=True)
class Shown:
    """One row that is shown."""

    where: str
    why: str
    """What it was chosen for."""
    stretches: tuple[Stretch, ...]
    """Empty for a row that is rejected."""
    rejected: str = ""
    """Why it is not trained on."""

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(stretch.tokens for stretch in self.stretches)

    @property
    def supervised(self) -> int:
        """Tokens with loss."""
        return sum(stretch.tokens for stretch in self.stretches if stretch.loss)

    def in_blocks(self) -> str:
        """The row as text without colours: what carries loss and what does not, in blocks, each under a title."""
        blocks: list[tuple[str, str]] = []
        for stretch in self.stretches:
            title = ("loss on" if stretch.loss else "no loss on") + " (a step made wrong on purpose)" * stretch.wrong
            if blocks and (blocks[-1][0] == title or not stretch.text.strip()):
                blocks[-1] = (blocks[-1][0], blocks[-1][1] + stretch.text)
            else:
                blocks.append((title, stretch.text))
        return "\n".join(f"  {title}:\n" + _indented(text) for title, text in blocks)


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.strip("\n").split("\n"))


def of_settings(config: RunConfig, n: int, begun: Path | None = None) -> list[Shown]:
    """Rows of the data set that the settings name; `begun`: the template that a run was begun with, see `open_renderer`.

    Raises:
        InputError: data, tokenizer or template cannot be used.
    """
    loaded = load_examples(config.data, seed=config.train.seed, eval_samples=0, eval_seed=config.evaluate.eval_seed)
    if loaded.layout is not None:
        note(str(loaded.layout))
    return shown(open_renderer(config.model, config.data, begun=begun), loaded.examples, n)


def of_run(run: RunDir, n: int) -> list[Shown]:
    """Rows that a run was trained on. Those of a task are made again, so that wrong steps are known as such.

    Raises:
        DataError: the run keeps none.
    """
    config = run.read_config()
    if tasks.is_world(config.data.dataset):
        return of_settings(config, n, run.template)
    examples = [kept_example(row) for row in read_jsonl(run.kept) if row["split"] == "train"]
    if not examples:
        raise DataError("keeps no rows that it was trained on", where=str(run.path))
    return shown(open_renderer(config.model, config.data, run.fitted, begun=run.template), examples, n)


def shown(renderer: Renderer, examples: Sequence[Example], n: int) -> list[Shown]:
    """At most n rows, rendered."""
    return [_shown(renderer, examples[at], why) for at, why in chosen(examples, n)]


def chosen(examples: Sequence[Example], n: int) -> list[tuple[int, str]]:
    """Which rows are worth looking at, and for what: masking first, then the longest and the shortest.

    Lengths are those of the text, so that nothing needs to be rendered.
    """
    sizes = [len(e.question) + len(e.trace.output) + sum(len(part.text) for part in e.trace.parts) for e in examples]
    by_size = sorted(range(len(examples)), key=sizes.__getitem__)
    wanted = [
        (_first(examples, lambda e: e.trace.injected > 0), "a step made wrong on purpose"),
        (by_size[-1], "the longest"),
        (by_size[0], "the shortest"),
        (_first(examples, lambda e: bool(e.history)), "earlier turns"),
        (_first(examples, lambda e: any(part.kind == "reflect" for part in e.trace.parts)), "a reflection"),
        (0, "the first"),
    ]
    spread = ((at * len(examples) // n, "one of the others") for at in range(n))
    found: dict[int, str] = {}
    for at, why in itertools.chain(wanted, spread):
        if at is not None and at not in found and len(found) < n:
            found[at] = why
    return list(found.items())


def _first(examples: Sequence[Example], fits: object) -> int | None:
    assert callable(fits)
    return next((at for at, example in enumerate(examples) if fits(example)), None)


def _shown(renderer: Renderer, example: Example, why: str) -> Shown:
    made = renderer.sample(example)
    if isinstance(made, Reject):
        return Shown(example.where, why, (), f"{made.reason}: {made.detail}")
    return Shown(example.where, why, tuple(_stretches(renderer, example, made)))


def _stretches(renderer: Renderer, example: Example, sample: Sample) -> Iterator[Stretch]:
    text, start = renderer.written(example)
    offsets = renderer.chat.offsets(text)[: len(sample.ids)]
    sections = renderer.sections(example, sample)
    spans = trace.wrong_spans(example.trace, renderer.data.trace_layout, renderer.data.thinking_tags)
    wrong = (
        renderer.chat.positions(text, [(start + begin, start + end) for begin, end in spans]) if spans else frozenset()
    )
    # `all_special_ids` lists the tokens with a part to play (eos, pad), and not <|im_start|>.
    added = renderer.chat.tokenizer.added_tokens_decoder
    control = {id_ for id_, token in added.items() if token.special} | renderer.chat.stops
    kinds = [
        (sample.labels[at] != IGNORE, sections[at], id_ in control, at in wrong) for at, id_ in enumerate(sample.ids)
    ]
    for kind, group in itertools.groupby(range(len(sample.ids)), key=kinds.__getitem__):
        places = list(group)
        loss, section, is_control, is_wrong = kind
        begin, end = offsets[places[0]][0], offsets[places[-1]][1]
        yield Stretch(text[begin:end], len(places), loss, section, is_control, is_wrong)


def page(rows: Sequence[Shown], title: str) -> str:
    """The rows as one HTML page, without a script or anything to fetch."""
    import jinja2

    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return env.from_string(TEMPLATE.read_text(encoding="utf-8")).render(rows=rows, title=title)


def name_of(target: str | None) -> str:
    """What a page is called."""
    return Path(target).name if target else "the embedded demo"
