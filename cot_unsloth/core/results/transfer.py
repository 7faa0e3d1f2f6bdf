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
    """The data that its own adapter was trained on, where that is not `dataset`."""
    n: int
    """Held-out problems, the same for every adapter."""


class TransferAdapter(Value):
    """A row of the matrix."""

    name: str
    kind: AdapterKind
    """own: trained on the task of its name; joint: on all tasks; combined: of all own adapters; other: one that was named."""
    path: str | None = None
    """Its run or folder; None for the base."""
    method: str | None = None
    """How a combined one was made."""
    weight: float | None = None
    """Of each adapter in a combined one."""
    relative_error: float | None = None
    """Of a combined one against the weighted sum of the adapters' changes."""


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
    """Paired with the task's own adapter; None for that one and the base. Holm's correction is over all such pairs."""


class Transfer(Record):
    """All of it."""

    config: str
    """The hash of the settings that the adapters were trained with, where they were trained here."""
    model: str
    train_seed: int
    eval_seed: int
    decoding: Decoding
    tasks: tuple[TransferTask, ...]
    adapters: tuple[TransferAdapter, ...]
    """The base first, then those of the tasks in their order, joint, combined and other ones."""
    cells: tuple[TransferCell, ...]
    """Adapter by adapter, the tasks in their order."""
    notes: tuple[str, ...] = ()
    """What limits the figures."""
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
