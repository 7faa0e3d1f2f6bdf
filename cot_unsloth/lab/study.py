"""Trials of a sweep in an Optuna study, which several processes and machines may work on.

All trials of a sweep are queued at its start, so that processes that share the study take from one queue and no trial is counted
twice. A process sends a heartbeat every few seconds. If heartbeats stop, Optuna fails its trial and queues it again with the same
settings, and the process that takes it continues the run in its folder. The silent process may still be alive, on a machine that
is overloaded or was suspended: its late result is not counted, and it goes on to the next trial.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, cast

from cot_unsloth.core.errors import ConfigError, CotError, EngineError, RunDirError
from cot_unsloth.core.progress import note
from cot_unsloth.lab.processes import OtherSettingsError, StoppedError
from cot_unsloth.lab.space import Choices, Combination, Dimension, count, of_values

if TYPE_CHECKING:
    import optuna

Objective = Callable[["Attempt"], float]
_PLANNED, _FIXED, _IDENTITY, _DATA, _REASON, _REPEATED = "planned", "fixed", "identity", "data", "reason", "repeated"
_RETRIES = 10
"""How often a trial is continued after its process died; a trial that kills every process must not be retried forever."""
_STARTUP = 5
"""Random trials before TPE, and complete trials before pruning: fewer than Optuna's 10, as sweeps here are small."""
_WAIT = 1.0
"""Seconds between checks of other processes' trials."""
_WAIT_FOR_VALUES = 0.05
"""The same while another trial's values are drawn, which takes a few hundredths of a second."""


@dataclass(frozen=True)
class Attempt:
    """A trial that this process works on."""

    number: int
    """Of the trial in the sweep; the same when it is continued."""
    values: Choices
    trial: optuna.Trial
    reported: set[int] = field(default_factory=set)
    """Steps that were reported."""

    def keep(self, name: str, value: object) -> None:
        """Keep a fact with the trial, where every process finds it."""
        self.trial.set_user_attr(name, value)

    def report(self, step: int, value: float) -> bool:
        """Report an intermediate value (higher is better); returns whether the trial should be stopped."""
        if step in self.reported:
            return False
        self.reported.add(step)
        self.trial.report(value, step)
        return self.trial.should_prune()


class Facts(TypedDict, total=False):
    """The facts stored with a trial."""

    right: str
    """A 1 for each development problem that was solved, a 0 for the others."""
    problems: str
    """A hash of their ids."""
    loss: float | None
    reason: str
    """Why it failed."""


@dataclass(frozen=True)
class Known:
    """A trial as stored in the study."""

    number: int
    state: str
    value: float | None
    values: Choices
    facts: Facts
    resumed: int


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Within the context, errors of the database are ours.

    Args:
        url: of the database.

    Raises:
        EngineError: it cannot be read or written.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("optuna.", "sqlalchemy.")):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:  # the driver's own words
            cause = cause.__cause__
        reason = str(cause).splitlines()[0]
        hint = "the same command continues the sweep once it can be"
        raise EngineError(f"cannot be read or written: {reason}", where=f"--study {url}", hint=hint) from error


class TrialFailedError(Exception):
    """A trial had no result; the sweep continues."""


class Study:
    """A study with its queue of trials."""

    def __init__(
        self, url: str, name: str, space: Sequence[Dimension], *, seed: int, prune: bool, heartbeat: int
    ) -> None:
        """Open or create it.

        Args:
            url: of the database.
            name: of the study in it.
            space: what is varied.
            seed: of the sampler.
            prune: whether to give up trials whose intermediate value is below the median.
            heartbeat: seconds between signs of life; a process that gives none for three times as long is dead.

        Raises:
            ConfigError: Optuna is not installed, or the database cannot be opened.
        """
        if importlib.util.find_spec("optuna") is None:
            raise ConfigError("Optuna is not installed", where="sweep", hint="pip install 'cot-unsloth[lab]'")
        import warnings

        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # reasons of failed trials are in the results
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.space, self.seed, self.heartbeat = space, seed, heartbeat
        self._continue = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES)
        # Several processes write to one SQLite file: wait for the others instead of an error after five seconds.
        patience = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else None
        try:
            storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs=patience,
                heartbeat_interval=heartbeat,
                grace_period=3 * heartbeat,
                heartbeat_stale_trial_callback=self._continue,
            )
        except Exception as error:  # of SQLAlchemy, of a driver, or an import of it
            hint = "such as sqlite:///FILE, or postgresql://HOST/NAME"
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"cannot be opened: {reason}", where=f"--study {url}", hint=hint) from error
        pruner = optuna.pruners.MedianPruner(_STARTUP, 0) if prune else optuna.pruners.NopPruner()
        self.study = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
        )

    def plan(self, identity: str, choices: Iterable[Choices], trials: int, data: str = "") -> None:
        """Queue the trials up to a number, those that are not there yet; not more than there are combinations.

        Args:
            identity: of config and space; a study holds one sweep.
            choices: the settings of the first trials; the others are drawn.
            trials: how many in all.
            data: a hash of the data.

        Raises:
            RunDirError: the study holds another sweep.
        """
        for name, value, what in ((_IDENTITY, identity, "settings or another space"), (_DATA, data, "data")):
            if self.study.user_attrs.get(name) not in (None, value):
                hint = "name another --name or --out; the same command continues a sweep"
                raise RunDirError(f"holds a sweep of other {what}", where=self.study.study_name, hint=hint)
            self.study.set_user_attr(name, value)
        planned = set()
        for number, trial in self._newest().items():
            planned.add(number)
            if trial.state.name == "FAIL" and _REASON not in trial.user_attrs:
                # Not by its settings: the system refused something, and then the database that it should be queued again.
                self._continue(self.study, trial)
        fixed = dict(enumerate(choices))
        for number in range(trials):
            if number not in planned and (number in fixed or self._has_room()):
                values = dict(fixed.get(number, {}))
                self.study.enqueue_trial(values, {_PLANNED: number, _FIXED: list(values)})

    def _has_room(self) -> bool:
        """Whether a combination is left for a further trial."""
        combinations = count(self.space)
        if combinations is None:
            return True
        asked = self._combinations()
        # Trials without values will each have a combination of their own; but not trial 0, whose settings may be outside.
        undrawn = sum(number != 0 and not made for number, made in asked.items())
        return len(set().union(*asked.values())) + undrawn < combinations

    def _combinations(self) -> dict[int, set[Combination]]:
        """By number of a trial, its combination; none where it has no values yet, or some outside of the space.

        Not of `known`, which has only the last of two trials of one number that two processes have queued.
        """
        combinations: dict[int, set[Combination]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if _PLANNED in trial.user_attrs and _REPEATED not in trial.user_attrs:
                made = of_values(_values(trial), self.space)
                combinations.setdefault(trial.user_attrs[_PLANNED], set()).update([made] if made else [])
        return combinations

    def work(self, objective: Objective) -> None:
        """Take trials from the queue until none is left, then wait for those of other processes.

        Raises:
            KeyboardInterrupt: it was interrupted; the trial is queued again.
            OSError: the disk is full, for example; the same.
            OtherSettingsError: a trial's folder holds a run of another sweep; the same.
        """
        import optuna

        waited = False
        while True:
            optuna.storages.fail_stale_trials(self.study)
            states = {trial.state for trial in self.known()}
            if "waiting" in states:
                self._take_one(objective)
                waited = False
            elif "running" in states:
                if not waited:
                    note(
                        "waiting for the trials of other processes; if a process has died, its trial is continued here"
                    )
                waited = True
                time.sleep(_WAIT)
            else:
                return

    def _take_one(self, objective: Objective) -> None:
        """Take a trial from the queue and work on it; its result counts unless another process has taken the trial over."""
        import optuna

        trial_numbers: list[int] = []
        errors: list[BaseException] = []

        def attempt(trial: optuna.Trial) -> float:
            trial_numbers.append(trial.number)
            try:
                return self._attempt(trial, objective)
            except (optuna.TrialPruned, TrialFailedError, optuna.exceptions.UpdateFinishedTrialError):
                raise
            except BaseException as error:
                errors.append(error)
                raise

        try:
            self.study.optimize(attempt, 1, catch=(TrialFailedError,))
        except Exception:
            if errors:
                raise errors[0] from None
            # Optuna 5 cannot end a trial that another process has ended: tell raises ValueError, and optimize turns that
            # into an AssertionError where the objective came to a value. Another process ends a trial of ours where this one
            # was silent, or where both took it from the queue at one moment, which SQLite does not prevent.
            if not trial_numbers or not self._frozen(trial_numbers[0]).state.is_finished():
                raise
            note("a trial was ended by another process; its result here is not counted")

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        """A trial as it is in the database, by Optuna's number."""
        return self.study.get_trials(deepcopy=True)[number]

    def _attempt(self, trial: optuna.Trial, objective: Objective) -> float:
        import optuna

        from cot_unsloth.lab.sampler import NothingLeftError, UntriedSampler

        number = trial.user_attrs.get(_PLANNED)
        if number is None:  # another process took the last trial of the queue first, and Optuna made one more
            raise TrialFailedError
        if self._is_repeated(trial, number):
            trial.set_user_attr(_REPEATED, True)
            raise TrialFailedError
        if number:
            self._wait_for_earlier(trial.number)
        tried = set().union(
            *(combinations for other_number, combinations in self._combinations().items() if other_number != number)
        )
        # A sampler of its own for each trial, so that a sweep that was killed draws what it would have drawn.
        trial.study.sampler = UntriedSampler(
            self.space, tried, seed=(self.seed * 10_007 + number) % 2**32, startup=_STARTUP
        )
        # Trial 0 has the settings of the config file, which may be outside of the space.
        space = self.space if number else [one for one in self.space if one.leaf in trial.user_attrs[_FIXED]]
        try:
            values = {dimension.leaf: dimension.suggest(trial) for dimension in space}
            return objective(Attempt(number, values if number else {}, trial))
        except NothingLeftError:
            trial.set_user_attr(_REPEATED, True)
            raise TrialFailedError from None
        except StoppedError:
            raise optuna.TrialPruned from None
        except (KeyboardInterrupt, OSError, OtherSettingsError):
            # The system's errors, such as a full disk, and a folder that is taken say nothing of the settings: the sweep ends,
            # and continues with this trial.
            frozen = self._frozen(trial.number)
            if not frozen.state.is_finished():  # else another process has queued it again
                self._continue(self.study, frozen)
            raise
        except CotError as error:
            trial.set_user_attr(_REASON, str(error.message))
            raise TrialFailedError from error

    def _wait_for_earlier(self, number: int) -> None:
        """Wait until running trials that were queued before have values, so that no two draw the same at one moment.

        Trials are taken in the order of Optuna's numbers, so that none with a lower number begins later. A process that died
        before its first sign of life is never found silent: the wait ends after the time in which others are.
        """
        import optuna

        running = optuna.trial.TrialState.RUNNING
        until = time.monotonic() + 4 * self.heartbeat
        while count(self.space) is not None and time.monotonic() < until:
            earlier = self.study.get_trials(deepcopy=False, states=(running,))
            if not any(
                trial.number < number
                and trial.user_attrs.get(_PLANNED)  # 0 draws nothing
                and _REPEATED not in trial.user_attrs
                and of_values(_values(trial), self.space) is None
                for trial in earlier
            ):
                return
            optuna.storages.fail_stale_trials(self.study)
            time.sleep(_WAIT_FOR_VALUES)

    def _is_repeated(self, trial: optuna.Trial, number: int) -> bool:
        """Whether it was queued twice, by two processes that planned at the same moment; the first of the two counts."""
        continues = self._frozen(trial.number).system_attrs.get("retry_history", [])
        return any(
            other.user_attrs.get(_PLANNED) == number
            and other.number not in continues
            and _REPEATED not in other.user_attrs
            for other in self.study.get_trials(deepcopy=False)[: trial.number]
        )

    def _newest(self) -> dict[int, optuna.trial.FrozenTrial]:
        newest = {}
        for trial in self.study.get_trials(deepcopy=False):
            if _PLANNED in trial.user_attrs and _REPEATED not in trial.user_attrs:
                newest[trial.user_attrs[_PLANNED]] = trial
        return newest

    def known(self) -> list[Known]:
        """Every trial by its number: of those that were continued, the last."""
        newest = self._newest()
        names = {
            "COMPLETE": "complete",
            "PRUNED": "pruned",
            "FAIL": "failed",
            "RUNNING": "running",
            "WAITING": "waiting",
        }
        return [
            Known(
                number,
                names[trial.state.name],
                trial.value if trial.state.name == "COMPLETE" else None,
                _values(trial),
                cast("Facts", trial.user_attrs),
                len(trial.system_attrs.get("retry_history", [])),
            )
            for number, trial in sorted(newest.items())
        ]

    def importance(self) -> dict[str, float]:
        """How much each setting explains the difference between good and other trials: PED-ANOVA, which needs no scikit-learn."""
        import optuna

        if sum(known.state == "complete" for known in self.known()) < 2 * _STARTUP:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # all trials are equal, or a setting is missing from some
            return {}
        return {name: float(share) for name, share in shares.items()}


def _values(trial: optuna.trial.FrozenTrial) -> Choices:
    """A trial's settings; those that were given to it, where it has not begun."""
    values: Choices = trial.params or trial.system_attrs.get("fixed_params", {})
    return values
