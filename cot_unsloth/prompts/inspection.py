"""`inspect`: rows as the model sees them.

Chooses which rows to show (one with masked steps, the longest, the shortest, ...) and splits each into segments of
equal kind: with or without loss, section, control token or text, corrupted step or not. Only chosen rows are rendered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import ASSETS, RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import IGNORE, Example, Reject, Sample
from cot_unsloth.data import load_examples
from cot_unsloth.prompts import labels
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.records import iter_jsonl, kept_example
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.storage.stored_rows import StoredRows

TEMPLATE = ASSETS / "inspect.html.j2"


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of the same kind."""

    text: str
    tokens: int
    loss: bool
    """Whether the model is trained on them."""
    section: trace.Section | None
    """None in the prompt, and for the token that ends the turn."""
    control: bool
    """Whether these are control tokens, such as the one that ends a turn."""
    corrupted: bool
    """Whether this is a step that a task corrupted on purpose."""


@dataclass(frozen=True)
class InspectedRow:
    """One row as the model sees it."""

    where: str
    why: str
    """Why this row was chosen."""
    segments: tuple[Segment, ...]
    """Empty if the row is rejected."""
    rejected: str = ""
    """Why the row is not trained on; empty if it is."""

    @property
    def tokens(self) -> int:
        """Number of tokens in the row."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def supervised(self) -> int:
        """Number of tokens with loss."""
        return sum(segment.tokens for segment in self.segments if segment.loss)

    def as_blocks(self) -> str:
        """The row as plain text, in blocks titled "loss on" or "no loss on"."""
        blocks: list[tuple[str, str]] = []
        for segment in self.segments:
            title = ("loss on" if segment.loss else "no loss on") + " (a corrupted step)" * segment.corrupted
            if blocks and (blocks[-1][0] == title or not segment.text.strip()):
                blocks[-1] = (blocks[-1][0], blocks[-1][1] + segment.text)
            else:
                blocks.append((title, segment.text))
        return "\n".join(f"  {title}:\n" + _indented(text) for title, text in blocks)


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.strip("\n").split("\n"))


def rows_of_settings(config: RunConfig, n: int, run_template: Path | None = None) -> list[InspectedRow]:
    """Up to n rows of the data set that the settings name.

    Args:
        config: the settings.
        n: how many rows at most.
        run_template: the chat template stored in a run folder, see `open_renderer`.

    Raises:
        InputError: data, tokenizer or template cannot be used.
    """
    loaded = load_examples(config.data, seed=config.train.seed, eval_samples=0, eval_seed=config.evaluate.eval_seed)
    if loaded.columns is not None:
        note(str(loaded.columns))
    return inspect_rows(open_renderer(config.model, config.data, run_template=run_template), loaded.examples, n)


def rows_of_run(run: RunDir, n: int) -> list[InspectedRow]:
    """Up to n rows that a run was trained on.

    The kept rows do not record which steps were corrupted, so rows of a task are generated again from their seed.

    Raises:
        DataError: the run folder keeps no training rows.
    """
    config = run.read_config()
    if tasks.is_task_dataset(config.data.dataset):
        return rows_of_settings(config, n, run.template)
    examples = StoredRows(kept_example(row) for row in iter_jsonl(run.kept) if row["split"] == "train")
    if not examples:
        raise DataError("keeps no rows that it was trained on", where=str(run.path))
    return inspect_rows(
        open_renderer(config.model, config.data, run.trained_weights, run_template=run.template), examples, n
    )


def inspect_rows(renderer: Renderer, examples: Sequence[Example], n: int) -> list[InspectedRow]:
    """Choose and render at most n rows."""
    return [_inspect_row(renderer, examples[index], why) for index, why in choose_rows(examples, n)]


def choose_rows(examples: Sequence[Example], n: int) -> list[tuple[int, str]]:
    """Indices of the rows most worth looking at, each with the reason: masking first, then the longest and the shortest.

    Length is that of the text, so that nothing has to be rendered to choose.
    """
    sizes = [len(e.question) + len(e.trace.output) + sum(len(part.text) for part in e.trace.parts) for e in examples]
    by_size = sorted(range(len(examples)), key=sizes.__getitem__)
    candidates = [
        (_first(examples, lambda e: e.trace.injected > 0), "a corrupted step"),
        (by_size[-1], "the longest"),
        (by_size[0], "the shortest"),
        (_first(examples, lambda e: bool(e.history)), "earlier turns"),
        (_first(examples, lambda e: any(part.kind == "reflect" for part in e.trace.parts)), "a reflection"),
        (0, "the first"),
    ]
    # Spread over the file, because neighbouring rows are often alike.
    evenly_spaced = ((index * len(examples) // n, "one of the others") for index in range(n))
    reasons: dict[int, str] = {}
    for index, why in itertools.chain(candidates, evenly_spaced):
        if index is not None and index not in reasons and len(reasons) < n:
            reasons[index] = why
    return list(reasons.items())


def _first(examples: Sequence[Example], condition: Callable[[Example], bool]) -> int | None:
    return next((index for index, example in enumerate(examples) if condition(example)), None)


def _inspect_row(renderer: Renderer, example: Example, why: str) -> InspectedRow:
    sample = renderer.sample(example)
    if isinstance(sample, Reject):
        return InspectedRow(example.where, why, (), f"{sample.reason}: {sample.detail}")
    return InspectedRow(example.where, why, tuple(_segments(renderer, example, sample)))


def _segments(renderer: Renderer, example: Example, sample: Sample) -> Iterator[Segment]:
    text, start = renderer.conversation(example)
    offsets = renderer.chat.offsets(text)[: len(sample.ids)]
    sections = renderer.sections(example, sample)
    corrupted = labels.positions_in(offsets, labels.corrupted_spans(example, renderer.data, start))
    # `tokenizer.all_special_ids` holds only tokens with a role (eos, pad, ...): it misses <|im_start|> and <|eot_id|>.
    added = renderer.chat.tokenizer.added_tokens_decoder
    control = {id_ for id_, token in added.items() if token.special} | renderer.chat.stops
    kinds = [
        (sample.labels[at] != IGNORE, sections[at], id_ in control, at in corrupted)
        for at, id_ in enumerate(sample.ids)
    ]
    groups = [list(group) for _, group in itertools.groupby(range(len(sample.ids)), key=kinds.__getitem__)]
    # From the beginning of one to that of the next: one character may span several byte-level tokens, and a tokenizer that
    # composes characters (NFC, in Qwen's) gives only the first of e and its accent as the place of the é that it made.
    begins = [offsets[positions[0]][0] for positions in groups[1:]]
    for positions, begin, end in zip(groups, [0, *begins], [*begins, offsets[-1][1]], strict=True):
        yield Segment(text[begin:end], len(positions), *kinds[positions[0]])


def render_page(rows: Sequence[InspectedRow], title: str) -> str:
    """The rows as one HTML page, without scripts and without anything to fetch."""
    import jinja2

    env = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return env.from_string(TEMPLATE.read_text(encoding="utf-8")).render(rows=rows, title=title)


def page_title(target: str | None) -> str:
    """The title of a page about `target`."""
    return Path(target).name if target else "the embedded demo"
