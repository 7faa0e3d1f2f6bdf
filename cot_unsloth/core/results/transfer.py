"""`transfer.json`: adapters of several tasks, each scored on the held-out problems of every task."""

from __future__ import annotations

from typing import Literal

from cot_unsloth.core.results.comparison import TestedPair
from cot_unsloth.core.results.environment import Environment
from cot_unsloth.core.results.record import Record, Value
from cot_unsloth.core.results.scorecard import Decoding
from cot_unsloth.core.results.shares import Accuracy

AdapterKind = Literal["base", "own", "joint", "combined", "other"]
Effect = Literal["helps", "harms", "no significant difference"]


class TransferTask(Value):
    """A column of the matrix."""

    name: str
    dataset: str
    rows: str | None = None
    """The data that its own adapter was trained on, if different from `dataset`."""
    n: int
    """Held-out problems, the same for every adapter."""


class TransferAdapter(Value):
    """A row of the matrix."""

    name: str
    kind: AdapterKind
    """own: trained on the task of its name; joint: trained on all tasks; combined: made of all own adapters; other: named by the
    user."""
    path: str | None = None
    """Its run or folder; None for the base."""
    method: str | None = None
    """How a combined adapter was made."""
    weight: float | None = None
    """Weight of each adapter in a combined one."""
    relative_error: float | None = None
    """Error of a combined adapter against the weighted sum of the adapters' weight updates."""


class TransferCell(Accuracy):
    """One adapter on one task."""

    adapter: str
    task: str
    format_valid: float
    mean_tokens: float
    against_base: TestedPair | None = None
    """None for the base. Holm's correction is over all cells that are compared with the base."""
    effect: Effect | None = None
    """What `against_base` shows."""
    against_own: TestedPair | None = None
    """Comparison with the task's own adapter; None for that adapter and the base. Holm's correction is over all such pairs."""


class Transfer(Record):
    """The content of `transfer.json`."""

    config: str
    """Hash of the settings that the adapters were trained with, if they were trained here."""
    model: str
    train_seed: int
    eval_seed: int
    decoding: Decoding
    tasks: tuple[TransferTask, ...]
    adapters: tuple[TransferAdapter, ...]
    """The base, the tasks' own adapters in the order of the tasks, then the joint, combined and other ones."""
    cells: tuple[TransferCell, ...]
    """Adapter by adapter, each with the tasks in order."""
    notes: tuple[str, ...] = ()
    """Remarks on what limits the figures."""
    environment: Environment | None = None

    def cell(self, adapter: str, task: str) -> TransferCell:
        """The cell of an adapter and a task.

        Raises:
            KeyError: there is none.
        """
        for cell in self.cells:
            if (cell.adapter, cell.task) == (adapter, task):
                return cell
        raise KeyError((adapter, task))
