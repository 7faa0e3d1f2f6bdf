"""The files of a folder of samples, and their types: every attempt, the pass rate of each problem, and a summary.

`data.jsonl`, the rows to train on, is read by the layout `own_samples`, as any data set is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cot_unsloth.core.errors import DataError
from cot_unsloth.core.results import PassPoint
from cot_unsloth.core.results.record import Record
from cot_unsloth.core.statistics import percent
from cot_unsloth.storage import records


@dataclass(frozen=True)
class Attempt:
    """One attempt at a problem: a line of `attempts.jsonl`."""

    id: str
    """The problem's id."""
    number: int
    """From 0 to k - 1."""
    text: str
    tokens: int
    stopped: str
    answer: str | None
    """The answer in its last `<output>`; None without one."""
    correct: bool
    """Whether the checker accepts that answer."""
    fault: str | None
    """The first fault of its format; None if it is a valid trace."""

    @property
    def accepted(self) -> bool:
        """Whether the attempt may become a row: right, in our format, and ended by the model itself."""
        return self.correct and self.fault is None and self.stopped == "stop"


@dataclass(frozen=True)
class ProblemRate:
    """How often a problem was solved: a line of `problems.jsonl`."""

    id: str
    question: str
    answer: str
    """The gold answer."""
    task: str
    attempts: int
    """Attempts that were made."""
    correct: int
    """Attempts with a right answer in `<output>`, even if their format has other faults."""

    @property
    def rate(self) -> float:
        """The share of attempts that are right; 0 without any."""
        return self.correct / self.attempts if self.attempts else 0.0


class SampleSummary(Record):
    """`summary.json`: the attempts drawn, the attempts accepted, and the rows made from them."""

    described_as = "summary of samples"

    model: str
    dataset: str
    seed: int
    problems: int
    """Problems that were asked."""
    attempts: int
    correct: int
    """Attempts with a right answer."""
    accepted: int
    """How many of these are valid traces."""
    tokens: int
    """Tokens of all attempts."""
    truncated: int
    """Attempts that reached the token limit."""
    always: int
    """Problems of which every attempt is right."""
    sometimes: int
    never: int
    pass_at: tuple[PassPoint, ...]
    rows: int
    """Rows of `data.jsonl`: `kept` + `reflections`."""
    kept: int
    """Accepted attempts among them."""
    reflections: int
    """Rows with a reflection on one of the model's own wrong steps."""
    duplicates: int
    """Accepted attempts that repeat another attempt at their problem."""
    surplus: int
    """Accepted attempts beyond the limit per problem."""
    unsound: int
    """Accepted attempts with an error that no reflection follows: right by luck. Only tasks can check this."""
    leaked: int
    """Rows dropped because they overlap with the test problems."""
    sample: dict[str, JsonValue]
    """The settings of section `sample`."""
    versions: dict[str, str]

    def described(self) -> list[str]:
        """The main figures, in a few lines for the user."""
        k = round(self.attempts / self.problems) if self.problems else 0
        dropped = {
            "repeated": self.duplicates, "more than one problem may have": self.surplus,
            "right in spite of an error": self.unsound, "like a test problem": self.leaked,
        }  # fmt: skip
        left_out = ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n)
        points = ", ".join(
            f"{p.k} attempt{'s' * (p.k != 1)} {percent(p.rate)} [{100 * p.ci95[0]:.1f}, {100 * p.ci95[1]:.1f}]"
            for p in self.pass_at
        )
        return [
            f"{self.attempts} attempts at temperature {self.sample['sample_temperature']} ({self.problems} problems, {k} each): "
            f"{self.correct} right, {self.accepted} of them complete and in our format; {self.truncated} cut at the token limit",
            f"problems: {self.always} solved in every attempt, {self.sometimes} in some, {self.never} in none",
            f"solved at least once in {points} (pass@k, 95% intervals over problems)",
            f"{self.rows} rows: {self.kept} attempts, {self.reflections} corrections of its own mistakes"
            + (f"; left out: {left_out}" if left_out else ""),
        ]


class SampleFolder:
    """A folder of samples, with the names of its files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.attempts = self.path / "attempts.jsonl"
        self.problems = self.path / "problems.jsonl"
        self.data = self.path / "data.jsonl"
        self.summary = self.path / "summary.json"
        """Written last: a folder that has it is complete."""
        self.plot = self.path / "pass_rates.png"
        self.settings = self.path / "settings"
        """A hash of the settings the attempts were drawn with; a folder with other settings is not continued."""
        self.unfinished = self.path / "unfinished"
        """Answers of a command that has not written its attempts yet."""


def write_attempts(path: Path, attempts: Iterable[Attempt]) -> None:
    """Write `attempts.jsonl`."""
    records.write_jsonl(path, map(dataclasses.asdict, attempts))


def read_attempts(path: Path) -> list[Attempt]:
    """Read `attempts.jsonl`; a file that does not exist has none."""
    return [Attempt(**row) for row in records.read_jsonl(path)]


def write_rates(path: Path, rates: Iterable[ProblemRate]) -> None:
    """Write `problems.jsonl`."""
    records.write_jsonl(path, map(dataclasses.asdict, rates))


def read_rates(path: str | Path) -> list[ProblemRate]:
    """The pass rates in a folder of samples, or in its `problems.jsonl`.

    Raises:
        DataError: there is no such file, or it is of another kind.
    """
    file = Path(path) if Path(path).is_file() else SampleFolder(path).problems
    if not file.is_file():
        hint = "give a folder that `sample` wrote, or its problems.jsonl"
        raise DataError("holds no pass rates", where=str(path), hint=hint, name="no_pass_rates")
    try:
        return [ProblemRate(**row) for row in records.read_jsonl(file)]
    except (TypeError, ValueError) as error:
        raise DataError(f"is not a file of pass rates: {error}", where=str(file), name="no_pass_rates") from error
