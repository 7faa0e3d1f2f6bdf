"""`train.method: rft`: rejection-sampling fine-tuning, in rounds.

A round samples the training problems with the current model, trains on the accepted attempts and corrected mistakes of all
rounds so far, and measures the result on development problems: training problems that are never sampled. Each round trains
from the run's starting point (the base, or `init_adapter`), as in ReST-EM (arXiv 2312.06585), whose authors found this as good
on the task, and better on other tasks, than continuing from the previous round; `continue_rounds` does the latter. Rounds end
when one is not significantly better than the best before it. The best round's adapter becomes the run's; with `init_adapter`,
that may be the starting adapter.

RUN/rounds/N is laid out as a run folder is, with the samples that the round was trained on in `samples/`.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cot_unsloth import tasks
from cot_unsloth.config import Arm, RunConfig
from cot_unsloth.core.errors import InvariantError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import VERSION, FitReport, RoundResult, Rounds
from cot_unsloth.core.statistics import SIGNIFICANT
from cot_unsloth.core.types import Example, Score
from cot_unsloth.data import count_reasons, layouts, with_comparable_answers
from cot_unsloth.evaluation.arms import read_scores, score_arm
from cot_unsloth.evaluation.scorecard import accuracy_of, paired
from cot_unsloth.models.adapter_files import starting_adapter
from cot_unsloth.models.protocols import Trainable
from cot_unsloth.sampling import records as samples
from cot_unsloth.sampling.records import Attempt, SampleFolder, SampleSummary
from cot_unsloth.sampling.sample import Problems, choose_problems, completed, sample, without_rows
from cot_unsloth.storage import atomic, records
from cot_unsloth.storage.hashes import sha256_of
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.development import held_out
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.preparation import Prepared
from cot_unsloth.training.training_stage import train_weights


class RejectionSamplingFineTuning:
    """Samples, trains and measures in turn; a killed run continues within the stage it was in."""

    name = "rft"

    def train(self, engine: Trainable, data: Prepared, hooks: TrainingHooks) -> FitReport:
        """See `TrainingMethod`. The report is that of the best round; `rounds.json` has them all.

        Raises:
            DataError: no attempt of the first round was accepted.
        """
        job = _Job(engine, data, hooks.run)
        development, problems = job.split()
        note(f"rft: {len(problems.asked)} problems to sample, {len(development)} development problems")
        results, scores = [job.start(development)], {"round 0": job.scores_of(0, development)}
        attempts: list[Attempt] = []
        reason = None
        for number in range(1, engine.config.sample.rounds + 1):
            summary = job.sample(number, problems, attempts)
            attempts += samples.read_attempts(job.samples(number).attempts)
            job.fit(number, summary)
            scores[f"round {number}"] = job.scores_of(number, development)
            results.append(job.result(number, summary, results, scores))
            note(results[-1].described())
            reason = stop_reason(results)
            job.write(results, development, None, None)
            if reason is not None:
                break
        best = best_round(results, begun_trained=job.weights(0) is not None)
        reason = reason or f"all {len(results) - 1} rounds are done"
        note(f"rft: {reason}; the run's adapter is that of round {best}")
        job.write(results, development, best, reason)
        return job.hand_over(best)


def best_round(results: Sequence[RoundResult], *, begun_trained: bool) -> int:
    """The round with the highest development accuracy, the earliest of equal ones.

    Round 0 counts if it was `begun_trained`: then the starting adapter may become the run's.
    """
    return max(results if begun_trained else results[1:], key=lambda one: (one.development.accuracy, -one.round)).round


def stop_reason(results: Sequence[RoundResult]) -> str | None:
    """Why there should be no further round: the last round is not significantly better than the best before it.

    None if there should be another round.
    """
    last = results[-1]
    pair = last.against_best
    if pair is None or (pair.difference > 0 and pair.mcnemar_p < SIGNIFICANT):
        return None
    return (
        f"round {last.round} is not better than {pair.before} beyond noise: {100 * pair.difference:+.1f} points, "
        f"McNemar p = {pair.mcnemar_p:.2g}"
    )


@dataclass(frozen=True)
class _Job:
    """The stages of a round. Each leaves complete files, so that a finished stage is read instead of repeated."""

    engine: Trainable
    data: Prepared
    run: RunDir

    @property
    def config(self) -> RunConfig:
        return self.engine.config

    def folder(self, number: int) -> RunDir:
        return RunDir(self.run.rounds / str(number))

    def samples(self, number: int) -> SampleFolder:
        return SampleFolder(self.folder(number).path / "samples")

    def split(self) -> tuple[list[Example], Problems]:
        """Development problems and problems to sample, both from the training problems."""
        config = self.config
        generated = tasks.is_task_dataset(config.data.dataset)
        rows = with_comparable_answers(self.data.train)
        most = config.sample.development_problems
        _, chosen = held_out(rows, most, config.train.seed, self.data.trained_before)
        ids = {row.id for row in chosen}
        rest = [row for row in self.data.train if row.id not in ids]
        trained = config.train.init_adapter is not None
        tests = [] if generated else self.data.problems
        return chosen, choose_problems(rest, tests, config, trained=trained)

    def weights(self, number: int) -> Path | None:
        """The adapter at the end of a round. Round 0 stands for the run's starting point, with None for the base."""
        return self.folder(number).adapter if number else starting_adapter(self.config)

    def _identity(self, number: int) -> str:
        """A text that identifies the model of a round: by its content, so that a run may be moved before it is resumed."""
        weights = self.weights(number)
        hashes = [sha256_of(file) for file in sorted(weights.glob("*.safetensors"))] if weights else []
        return " ".join([self.config.fingerprint("model"), *hashes])

    @contextlib.contextmanager
    def answering_as(self, number: int) -> Iterator[None]:
        """Within the context, the engine answers as the model at the end of a round."""
        weights = self.weights(number)
        if weights is None:
            with self.engine.as_base():
                yield
        else:
            # From its file, even right after training: a resumed run has nothing else.
            self.engine.use_adapter(weights)
            yield

    def sample(self, number: int, problems: Problems, earlier: Sequence[Attempt]) -> SampleSummary:
        """The samples that a round is trained on, drawn by the model of the previous round."""
        config, folder = self.config, self.samples(number)
        if self.weights(number - 1) is not None:
            problems = replace(problems, shown=())  # it knows the format, and is asked as in training
        seed, model = config.train.seed + number, self._identity(number - 1)
        summary = completed(problems, config, folder, seed=seed, model=model, earlier=earlier)
        if summary is None:
            with self.answering_as(number - 1):
                summary = sample(
                    self.engine, self.data.renderer, problems, config, folder, seed=seed, model=model, earlier=earlier
                )
        note(f"round {number}: {summary.described()[0]}; {summary.described()[-1]}")
        if not summary.rows:
            raise without_rows(summary, folder)
        return summary

    def fit(self, number: int, summary: SampleSummary) -> None:
        """Train on the rows of a round, which include those of all rounds before."""
        folder = self.folder(number)
        if folder.adapter.is_dir():
            return
        rows = self._rows(number)
        rendered = self.data.renderer.samples(rows)
        if rendered.rejects:
            note(
                f"round {number}: {len(rendered.rejects)} of {len(rows)} rows rejected ({count_reasons(rendered.rejects)})"
            )
        if not rendered.kept:
            raise without_rows(summary, self.samples(number))
        own = replace(self.data, train=rendered.kept, samples=rendered.samples)
        with self._starting_from(number - 1):
            train_weights(self.config.replaced(method="sft"), folder, own, self.engine)

    def _rows(self, number: int) -> list[Example]:
        file = self.samples(number).data
        rows = [
            layouts.example(row, "own_samples", f"{file}:{at}")
            for at, row in enumerate(records.read_jsonl(file), start=1)
        ]
        # They come problem by problem, and a run with `world_clean_first` trains on rows in their order.
        random.Random(self.config.train.seed + number).shuffle(rows)
        return rows

    @contextlib.contextmanager
    def _starting_from(self, number: int) -> Iterator[None]:
        """Within the context, training starts from a round's adapter if rounds continue one another."""
        config = self.config
        if number and config.sample.continue_rounds:
            self.engine.config = config.replaced(init_adapter=str(self.weights(number)))
        try:
            yield
        finally:
            self.engine.config = config

    def scores_of(self, number: int, development: Sequence[Example]) -> list[Score]:
        """The scores of a round on the development problems, decoded as in scoring."""
        # The base is read leniently, so that a gain over it never comes from the format alone.
        weights = self.weights(number)
        arm: Arm = "tuned" if weights is not None else "base_tags"
        folder = RunDir(self.folder(number).path / "development")
        scores = read_scores(folder.completions(arm), development)
        if scores is None and development:
            with self.answering_as(number):
                sampling, model = self.config.sampling_params, self._identity(number)
                scores = score_arm(self.engine, self.data.renderer, development, arm, sampling, folder, model)
        atomic.remove_tree(folder.unfinished)  # also if a process was killed right before this
        return scores or []

    def start(self, development: Sequence[Example]) -> RoundResult:
        """Round 0."""
        return RoundResult(round=0, development=accuracy_of(self.scores_of(0, development)))

    def result(
        self, number: int, summary: SampleSummary, before: Sequence[RoundResult], scores: Mapping[str, Sequence[Score]]
    ) -> RoundResult:
        """The result of a round: its score, its rows, and its comparison with the best round before."""
        best = best_round(before, begun_trained=True)
        report = FitReport.read(self.folder(number).fit_report)
        name = f"round {number}"
        return RoundResult(
            round=number,
            development=accuracy_of(scores[name]),
            against_best=paired(f"round {best}", name, scores) if scores[name] else None,
            pass_at=summary.pass_at,
            attempts=summary.attempts,
            always=summary.always,
            sometimes=summary.sometimes,
            never=summary.never,
            rows=report.rows,
            reflections=summary.reflections,
            sampled_tokens=summary.tokens,
            trained_tokens=report.tokens,
            steps=report.steps,
        )

    def write(
        self, results: Sequence[RoundResult], development: Sequence[Example], best: int | None, reason: str | None
    ) -> None:
        """Write `rounds.json`."""
        Rounds(
            version=VERSION,
            development_problems=len(development),
            seed=self.config.train.seed,
            rounds=tuple(results),
            best=best,
            stopped=reason,
        ).write(self.run.rounds_report)

    def hand_over(self, best: int) -> FitReport:
        """Leave the best round's adapter in the engine, and its metrics in the run's folder."""
        weights = self.weights(best)
        if weights is None:
            raise InvariantError("round 0 has no trained weights")
        self.engine.use_adapter(weights)
        records.write_jsonl(self.run.metrics, records.read_jsonl(self.folder(best).metrics))
        if best:
            return FitReport.read(self.folder(best).fit_report)
        return FitReport(
            version=VERSION, steps=0, seconds=0.0, loss_first=None, loss_last=None, rows=0, tokens=0, supervised=0,
            extra=self.engine.facts(),
        )  # fmt: skip
