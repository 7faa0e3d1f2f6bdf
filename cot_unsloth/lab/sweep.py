"""`sweep`: runs `train` with many settings, ranks them on development problems, and compares the best on held-out problems.

A trial answers problems that are set aside from the training rows (`score_on: development`). The held-out problems are used
once, for the default and the best settings, which are trained again on all training rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError, EngineError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import VERSION, Accuracy, Paired, Scorecard
from cot_unsloth.core.results.comparison import TestedPair
from cot_unsloth.core.results.sweep import Sweep, TrialResult
from cot_unsloth.core.statistics import percent, rounded, wilson
from cot_unsloth.evaluation.scorecard import paired_counts
from cot_unsloth.lab import compare, pairs, processes
from cot_unsloth.lab.space import Choices, Dimension, count, grid, require_valid, values_in
from cot_unsloth.lab.study import Attempt, Known, Study, storage_errors
from cot_unsloth.storage import atomic, environment, records
from cot_unsloth.storage.run_folder import RunDir

MEASUREMENTS = 5
"""Number of loss measurements during a trial; all but the last may stop it."""


@dataclass(frozen=True)
class Options:
    """The options of a sweep."""

    name: str
    folder: Path
    """Trials, final runs and results."""
    study: str
    """The database's address."""
    trials: int
    seed: int
    grid: bool = False
    prune: bool = True
    final: bool = True
    """Whether the default and the best settings are trained again and compared on held-out problems."""
    heartbeat: int = 15
    """Seconds between a process's signs of life."""


def sweep(config: RunConfig, space: Sequence[Dimension], options: Options) -> Sweep:
    """Run a sweep, or continue it, alone or together with other processes.

    Raises:
        ConfigError: a value cannot be set, a setting is varied twice, Optuna is not installed, or the study cannot be opened.
        RunDirError: the study or the folder holds another sweep.
        EngineError: the study cannot be read or written any more.
        OSError: the disk is full, for example.
    """
    if options.trials < 1:
        raise ConfigError("must be at least 1", where=f"--trials {options.trials}")
    if len({dimension.leaf for dimension in space}) < len(space):
        raise ConfigError("a setting is varied twice", where="--vary")
    job = _Job(config, tuple(space), options)
    require_valid(config, space)
    options.folder.mkdir(parents=True, exist_ok=True)
    points = list(grid(space)) if options.grid else []
    default = values_in(config, space)
    first = [default, *(point for point in points if point != default)]
    from filelock import FileLock

    with storage_errors(options.study):
        # The tables of a new database are made by one process: two at once fail.
        with FileLock(options.folder / ".planning"):
            study = Study(
                options.study,
                options.name,
                space,
                seed=options.seed,
                prune=options.prune,
                heartbeat=options.heartbeat,
            )
            trials = len(first) if options.grid else options.trials
            study.plan(job.identity, first, trials, processes.data_hash(config))
        study.work(job.run)
        # One of the processes compares and writes; the others find it done.
        with FileLock(options.folder / ".finishing"):
            result = job.result(study)
            result.write(options.folder / "sweep.json")
            if result.best is not None:
                best = config.overridden(dict(_values(result, result.best)))
                atomic.write_text(options.folder / "best.yaml", best.replaced(run_dir=None).to_yaml())
    return result


@dataclass(frozen=True)
class _Job:
    """The trials and final runs of a sweep, in its folder."""

    config: RunConfig
    space: tuple[Dimension, ...]
    options: Options

    @property
    def identity(self) -> str:
        """A hash of what all trials of a study must have in common."""
        space = {dimension.leaf: str(dimension) for dimension in self.space}
        facts = [self.config.without_export().fingerprint(), space, self.options.seed, self.options.grid]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def run(self, attempt: Attempt) -> float:
        """Train and score one trial; returns its share of development problems that are right."""
        prunes = self.options.prune and self.config.train.method == "sft"
        # Set as by flags, which convert and check; what the trial is for is set afterwards.
        config = self.config.without_export().overridden(dict(attempt.values))
        config = config.replaced(
            score_on="development", eval_steps=1 / MEASUREMENTS if prunes else None,
            arms=("tuned",), forgetting=None, recovery=False, gate=False,
        )  # fmt: skip
        folder = self.options.folder / "trials" / f"{attempt.number:03d}"
        run = RunDir(folder / "run")
        note(f"trial {attempt.number}: {_shown(attempt.values) or 'the settings of the config'}")

        def should_stop() -> bool:
            return prunes and attempt.number > 0 and _pruned(attempt, _losses(run)[: MEASUREMENTS - 1])

        processes.train(config, folder, should_stop)
        scores = records.read_completions(run.completions("tuned"))
        losses = _losses(run)
        attempt.keep("loss", losses[-1] if losses else None)
        # In the study, so that machines that do not share a folder can compare trials.
        attempt.keep("right", "".join("01"[score.correct] for score in scores))
        attempt.keep("problems", hashlib.sha256("".join(score.id for score in scores).encode()).hexdigest()[:16])
        accuracy = Scorecard.read(run.scorecard).arms["tuned"].accuracy
        note(f"trial {attempt.number}: {percent(accuracy)} of {len(scores)} development problems")
        return accuracy

    def result(self, study: Study) -> Sweep:
        """Ranks of all trials; and of the best, whether it is better than the default."""
        known = study.known()
        default = next(trial for trial in known if trial.number == 0)
        ranked = sorted(known, key=lambda trial: (_answered_others(trial, default), *_rank(trial)))
        against = _against(default, [trial for trial in ranked if trial.value is not None and trial.number])
        trials = tuple(_result(trial, against.get(trial.number)) for trial in ranked)
        best = ranked[0].number if ranked[0].value is not None else None
        if best is None:
            note("no trial is complete; see the reasons")
        final, final_failed = None, ""
        if self.options.final and best and self.config.evaluate.eval_samples:
            try:
                final = self._final(dict(ranked[0].values))
            except (EngineError, ConfigError) as error:  # the default may not fit into memory; the trials still count
                final_failed = error.message
                note(f"the comparison on held-out problems failed: {error}")
        return Sweep(
            version=VERSION,
            name=self.options.name,
            config=self.config.fingerprint(),
            space={dimension.leaf: str(dimension) for dimension in self.space},
            combinations=count(self.space),
            method="grid" if self.options.grid else "tpe",
            seed=self.options.seed,
            n=max((len(trial.facts.get("right", "")) for trial in known), default=0),
            trials=trials,
            importance=study.importance(),
            best=best,
            final=final,
            final_failed=final_failed,
            environment=environment.environment(),
        )

    def _final(self, best: Choices) -> compare.Comparison:
        """Train the default and the best settings on all training rows, and compare them on the held-out problems."""
        runs = []
        for name, values in (("default", {}), ("best", best)):
            note(f"{name} settings: trained on all training rows, scored on the held-out problems")
            config = self.config.without_export().overridden(dict(values))
            arms = tuple(dict.fromkeys((*config.evaluate.arms, "tuned")))
            config = config.replaced(gate=False, score_on="held_out", arms=arms)
            folder = self.options.folder / "final" / name
            if (run := RunDir(folder / "run")).config.is_file() and not processes.has_settings(run, config):
                # More trials have found better settings since: the run there is of the former best.
                folder = folder.with_name(f"{name}-{config.fingerprint()[:8]}")
            runs.append(processes.train(config, folder).path)
        return compare.compare(runs, "tuned", names=("default", "best"))


def _losses(run: RunDir) -> list[float]:
    return [row["eval_loss"] for row in records.read_jsonl(run.metrics) if "eval_loss" in row]


def _pruned(attempt: Attempt, losses: Sequence[float]) -> bool:
    # The number of the measurement, not its step: trials with other batches have other steps.
    return any(attempt.report(number, -loss) for number, loss in enumerate(losses))


def _answered_others(trial: Known, default: Known) -> bool:
    """Whether a trial answered other development problems than the default, as with another share held out: it is not ranked."""
    problems = default.facts.get("problems")
    return trial.value is not None and problems is not None and trial.facts.get("problems") != problems


def _rank(trial: Known) -> tuple[bool, float, float, int]:
    loss = trial.facts.get("loss")
    return trial.value is None, -(trial.value or 0.0), float("inf") if loss is None else loss, trial.number


def _against(default: Known, trials: Sequence[Known]) -> dict[int, TestedPair]:
    """Each trial paired with the default, where both answered the same problems."""
    plain: dict[int, Paired] = {}
    before = default.facts.get("right")
    for trial in trials:
        after = trial.facts.get("right")
        if before and after and trial.facts.get("problems") == default.facts.get("problems"):
            both = list(zip(before, after, strict=True))
            gained, lost = both.count(("0", "1")), both.count(("1", "0"))
            plain[trial.number] = paired_counts("trial 0", f"trial {trial.number}", len(both), gained, lost)
    return dict(zip(plain, pairs.corrected(list(plain.values())), strict=True))


def _result(trial: Known, pair: TestedPair | None) -> TrialResult:
    right = trial.facts.get("right", "")
    share = None
    if trial.value is not None:
        share = Accuracy(accuracy=trial.value, ci95=rounded(wilson(right.count("1"), len(right))))
    return TrialResult(
        number=trial.number,
        state=trial.state,
        settings=dict(trial.values),
        development=share,
        loss=trial.facts.get("loss"),
        against_default=pair,
        reason=trial.facts.get("reason", "") if trial.state == "failed" else "",
        resumed=trial.resumed,
    )


def _values(result: Sweep, number: int) -> Choices:
    """The settings of a trial; the default's are those of the config file."""
    trial = next(trial for trial in result.trials if trial.number == number)
    return (
        {}
        if number == 0
        else {leaf: value for leaf, value in trial.settings.items() if not isinstance(value, list | dict)}
    )


def _shown(values: Choices) -> str:
    return " ".join(
        f"{leaf}={value:.3g}" if isinstance(value, float) else f"{leaf}={value}" for leaf, value in values.items()
    )


def default_study(folder: Path) -> str:
    """The database in a sweep's own folder."""
    # SQLAlchemy reads what follows a ? as options, and decodes %XX.
    path = str((folder / "study.db").resolve()).replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def require_name(name: str) -> str:
    """Check a name that becomes a folder.

    Raises:
        ConfigError: it cannot.
    """
    if not name or name.startswith(".") or any(char in name for char in "/\\:"):
        raise ConfigError("cannot be the name of a folder", where=f"--name {name}")
    return name
