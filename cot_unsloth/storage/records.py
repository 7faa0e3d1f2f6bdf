"""Rows on disk: JSON Lines files, and the rows of a data set that a run kept or rejected."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from cot_unsloth.core import trace
from cot_unsloth.core.atomic_files import require_in_place
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.types import Example, Message, Reject, Score, Trace, TraceLayout
from cot_unsloth.storage.atomic import write_text

JsonObject: TypeAlias = dict[str, Any]
"""One line of a JSON Lines file."""


class KeptRow(TypedDict):
    """A line of `data/kept.jsonl`."""

    id: str
    where: str
    split: str
    task: str
    question: str
    answer: str
    system: str | None
    history: list[Message]
    history_loss: list[bool]
    text: str
    injected: int
    """Steps that a task corrupted."""
    tokens: int | None
    supervised: int | None
    """Tokens of the sample and those with a loss; None for rows held out for scoring."""


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a JSON Lines file completely or not at all, like `write_text`."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows to a file; they are on the disk when this returns. `read_appended` reads them back.

    Raises:
        RunDirError: as `require_in_place`.
    """
    require_in_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        # One write for all rows: a killed process leaves at most the last line incomplete.
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def read_appended(path: Path) -> list[JsonObject]:
    """The complete rows of a file that was appended to; a last line that a killed process left incomplete is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    # Cut off in the file as well: the next row would otherwise be appended to half a line.
    if len(complete) < len(content):
        with path.open("rb+") as file:
            file.truncate(len(complete))
    # Not splitlines(): JSON texts may hold U+2028 and U+0085, which it takes for line ends.
    return [_row(line, path, number) for number, line in enumerate(complete.split(b"\n"), start=1) if line.strip()]


def _row(line: bytes, path: Path, number: int) -> JsonObject:
    """One line of a file that we wrote.

    Raises:
        RunDirError: it is damaged.
    """
    try:
        row = parse_json(line)
        if not isinstance(row, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise _damaged(path, number, str(error)) from error
    return row


def _damaged(path: Path, number: int, reason: str) -> RunDirError:
    return RunDirError(
        f"is damaged: {reason}",
        where=f"{path}:{number}",
        hint="restore the file from a copy; or remove it, and repeat the command that wrote it (train: --resume)",
        name="damaged_rows",
    )


def iter_jsonl(path: Path) -> Iterator[JsonObject]:
    """The rows of a JSON Lines file, one at a time; a file that does not exist has none.

    Raises:
        RunDirError: a row is damaged.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        yield from (_row(line, path, number) for number, line in enumerate(lines, start=1) if line.strip())


def read_jsonl(path: Path) -> list[JsonObject]:
    """All rows of a JSON Lines file as a list; see `iter_jsonl`."""
    return list(iter_jsonl(path))


def read_completions(path: Path) -> list[Score]:
    """The lines of a file in `completions/`; a file that does not exist has none.

    Raises:
        RunDirError: one is damaged.
    """
    try:
        return [Score(**row) for row in read_jsonl(path)]
    except TypeError as error:
        raise _damaged(path, 1, f"a line is not a score: {error}") from error


def kept_row(
    example: Example, layout: TraceLayout, *, tokens: int | None = None, supervised: int | None = None
) -> KeptRow:
    """An Example as a line of `kept.jsonl`; tokens are counted for rows that are trained on.

    The text has the default tags whichever the run trains on, so that a line can be parsed without the run's settings.
    """
    return {
        "id": example.id,
        "where": example.where,
        "split": example.split,
        "task": example.task,
        "question": example.question,
        "answer": example.answer,
        "system": example.system,
        "history": list(example.history),
        "history_loss": list(example.history_loss),
        "text": trace.render(example.trace, layout),
        "injected": example.trace.injected,
        "tokens": tokens,
        "supervised": supervised,
    }


def kept_example(row: JsonObject) -> Example:
    """A line of `kept.jsonl` as an Example. The file does not say which steps were corrupted, so none is marked."""
    parsed = trace.parse(row["text"])
    return Example(
        id=row["id"],
        question=row["question"],
        trace=Trace(parsed.parts, parsed.output or ""),
        answer=row["answer"],
        task=row["task"],
        split=row["split"],
        where=row["where"],
        system=row["system"],
        history=tuple(row["history"]),
        history_loss=tuple(row.get("history_loss", ())),
    )


def reject_row(reject: Reject) -> JsonObject:
    """A Reject as a line of `rejected.jsonl`."""
    return dataclasses.asdict(reject)
