"""`transfer`: scores each task's adapter, one trained on all tasks, and combinations of adapters on every task.

Adapters are trained by `train`, each in a run folder of its own, so that an interrupted command continues and nothing is
trained or scored twice. All are scored on one base that is loaded once, on the same held-out problems of each task.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cot_unsloth import tasks as generated
from cot_unsloth.config import DataConfig, RunConfig
from cot_unsloth.core.errors import ConfigError, ModelError
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import VERSION, Decoding
from cot_unsloth.core.results.combination import read_combination
from cot_unsloth.core.results.transfer import Transfer, TransferAdapter, TransferTask
from cot_unsloth.core.types import Example, Score
from cot_unsloth.data import load_examples
from cot_unsloth.data.layouts.own_samples import row_of
from cot_unsloth.data.sources import find_sources
from cot_unsloth.evaluation.arms import ARM_NAMES, read_scores, score_arm
from cot_unsloth.evaluation.problems import (
    SELECT_ROWS,
    held_out_problems,
    named_problems,
    not_trained_on,
    require_problems,
    trained_questions,
)
from cot_unsloth.lab import combine, matrix, processes
from cot_unsloth.lab.matrix import BASE
from cot_unsloth.lab.transfer_plan import JOINT, Mixture, Options, Task
from cot_unsloth.models.adapter_files import local_adapter, training_runs, weights_of
from cot_unsloth.models.generation import identity
from cot_unsloth.models.switching import SwitchedModel, require_switching, resolve_adapters, switched
from cot_unsloth.models.target import Target
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage import atomic, environment, records
from cot_unsloth.storage.hashes import weights_hash
from cot_unsloth.storage.lock import folder_lock
from cot_unsloth.storage.run_folder import RunDir


def transfer(config: RunConfig, options: Options) -> Transfer:
    """Train the missing adapters, combine them, and score every adapter on every task; continues an interrupted transfer.

    Args:
        config: the settings of each training and of all scores; its data set is not used.
        options: the tasks and adapters.

    Raises:
        ConfigError: names or tasks cannot be used.
        RunDirError: the folder is in use, or has an adapter that was trained with other settings.
        ModelError: an adapter is not one of the base.
        EngineError: a training failed.
    """
    job = _Job(config, options)
    job.check()
    with folder_lock(options.folder):
        result = job.result()
        result.write(options.folder / "transfer.json")
    return result


@dataclass(frozen=True)
class _Model:
    """A model that answers as one of the adapters, or as the base."""

    renderer: Renderer
    engine: SwitchedModel
    config: RunConfig
    weights: Path | None
    trained: bool
    """Whether runs of ours trained it, which decides how its answers are read."""


@dataclass(frozen=True)
class _Job:
    """The work in one folder."""

    config: RunConfig
    options: Options

    def check(self) -> None:
        """Check names, data sets and the adapters that exist, before anything is trained.

        Raises:
            ConfigError: two rows have the same name, a task cannot be trained on, or it is the only one; or nothing stands
                for all tasks together.
            ModelError: an adapter is not one of the base.
        """
        tasks, options = self.options.tasks, self.options
        if len(tasks) < 2:
            raise ConfigError("needs at least two tasks", where="transfer", hint="--dataset A --dataset B")
        if self.config.train.full_finetuning:
            raise ConfigError("transfer trains adapters", where="train.full_finetuning")
        other_adapters = [name for name in options.adapters if name not in self._own_names]
        names = [
            *self._own_names,
            *other_adapters,
            *(mixture.name for mixture in options.mixtures),
            *[JOINT] * options.joint,
        ]
        for name in names:
            if name in ARM_NAMES or names.count(name) > 1:
                hint = "give another: --dataset NAME=DATASET, --adapter NAME=RUN"
                raise ConfigError(f"two are called {name}, or it has a meaning of its own", where="transfer", hint=hint)
        for task in tasks:
            self._check_task(task)
        if options.joint and self._prefix is None and not self.config.needs_traces:
            method = f"train.method {self.config.train.method}"
            message = f"learns from attempts, and these tasks do not form one data set that {JOINT} could attempt"
            raise ConfigError(message, where=method, hint="--no-joint")
        resolve_adapters(self._target, options.adapters, {}, use="score")

    def _check_task(self, task: Task) -> None:
        for config in (self._task_config(task), *([self._run_config(task.rows)] if task.rows is not None else [])):
            if generated.is_task_dataset(config.data.dataset):
                generated.names_of(config.data.dataset)
            else:
                list(find_sources(config.data))
        given = self.options.adapters.get(task.name)
        if given is None and task.trained_on.startswith(generated.gym.PREFIX) and self.config.needs_traces:
            hint = f"--rows {task.name}=FILE with solutions, --method rft or grpo, or --adapter {task.name}=RUN"
            raise ConfigError("its problems have no solutions to imitate", where=f"dataset {task.dataset}", hint=hint)
        if self.options.joint and given is not None and not RunDir(given).config.is_file():
            message = f"{given} is not a run, so the rows to train {JOINT} on are not known"
            raise ConfigError(message, where=f"--adapter {task.name}", hint="--no-joint")

    @property
    def _own_names(self) -> list[str]:
        return [task.name for task in self.options.tasks]

    @cached_property
    def _target(self) -> Target:
        """The base that all adapters are scored on; the hf engine switches between them."""
        return Target(self.config.replaced(engine="hf", fast_inference=False), trained=False)

    @cached_property
    def _prefix(self) -> str | None:
        """That of the one data set which all tasks together are; None where none has the very rows of their runs."""
        kinds = {task.trained_on.partition(":")[0] + ":" for task in self.options.tasks}
        (first, *others) = kinds
        one = not others and generated.is_task_dataset(first) and not self.options.adapters.keys() & self._own_names
        # A data set is divided evenly among its generators, and `max_train_samples` is drawn from all of its rows.
        several = any("," in task.trained_on for task in self.options.tasks)
        drawn = self.config.data.max_train_samples is not None and self.config.needs_traces
        return first if one and not several and not drawn else None

    @property
    def _has_curriculum(self) -> bool:
        """Whether the rows of some task are trained on in their order, which a file's are not."""
        tasks = any(generated.is_task_dataset(task.trained_on) for task in self.options.tasks)
        return tasks and self.config.train.method == "sft" and self.config.data.world_clean_first > 0

    def result(self) -> Transfer:
        """The matrix, after training and scoring what is missing."""
        paths = {task.name: self._own(task) for task in self.options.tasks}
        rows = [TransferAdapter(name=BASE, kind="base")]
        rows += [TransferAdapter(name=name, kind="own", path=str(path)) for name, path in paths.items()]
        if self.options.joint:
            rows.append(TransferAdapter(name=JOINT, kind="joint", path=str(self._joint(paths))))
        mixed, notes = self._mixed(paths)
        if self.options.joint and self._prefix is None and self._has_curriculum:
            notes.append(
                f"{JOINT} was trained on shuffled rows, the adapters of generated tasks on theirs in order (world_clean_first)"
            )
        others = {name: path for name, path in self.options.adapters.items() if name not in paths}
        rows += [*mixed, *(TransferAdapter(name=n, kind="other", path=str(p)) for n, p in others.items())]
        problems = {task.name: self._problems(task, rows) for task in self.options.tasks}
        scores = self._scores(rows, problems)
        decoding = self.config.evaluate
        return Transfer(
            version=VERSION,
            config=self.config.without_export().fingerprint(),
            model=self.config.model.model_name_or_path,
            train_seed=self.config.train.seed,
            eval_seed=decoding.eval_seed,
            decoding=Decoding(
                temperature=decoding.temperature, top_p=decoding.top_p, max_new_tokens=decoding.max_new_tokens
            ),
            tasks=tuple(
                TransferTask(name=task.name, dataset=task.dataset, rows=task.rows, n=len(problems[task.name]))
                for task in self.options.tasks
            ),
            adapters=tuple(rows),
            cells=matrix.cells(scores, {name: name for name in paths}),
            notes=tuple(notes),
            environment=environment.environment(),
        )

    def _run_config(self, dataset: str) -> RunConfig:
        """The settings of a run: scored on its own problems alone, without the base, which is scored once for all."""
        return self.config.without_export().replaced(
            dataset=dataset, run_dir=None, arms=("tuned",), forgetting=None, recovery=False, gate=False,
            score_on="held_out", eval_steps=None, benchmark=None, benchmark_path=None,
        )  # fmt: skip

    def _task_config(self, task: Task) -> RunConfig:
        """The settings to score a task under; its data set is read as its existing run has read it."""
        return self._run_config(task.dataset).replaced(**task.reading)

    def _own(self, task: Task) -> Path:
        """The run of a task's own adapter."""
        given = self.options.adapters.get(task.name)
        return given or self._trained(self._run_config(task.trained_on), task.name)

    def _trained(self, config: RunConfig, name: str) -> Path:
        folder = self.options.folder / "runs" / name
        note(f"adapter {name}: trained on {config.data.dataset}")
        try:
            return processes.train(config, folder).path
        except processes.OtherSettingsError as error:
            hint = "name another --out; the same command continues a transfer, and --adapter NAME=RUN takes this run"
            raise processes.OtherSettingsError(error.message, where=error.where, hint=hint) from error

    def _joint(self, runs: Mapping[str, Path]) -> Path:
        """One adapter, trained on the rows of all tasks."""
        return self._trained(self._joint_config(runs).replaced(eval_samples=0), JOINT)

    def _joint_config(self, runs: Mapping[str, Path]) -> RunConfig:
        """All tasks as one data set; where no name stands for that, the rows that their runs were trained on, in a file."""
        if self._prefix is not None:
            n, data = len(self.options.tasks), self.config.data
            spec = ",".join(task.trained_on.removeprefix(self._prefix) for task in self.options.tasks)
            most = data.max_train_samples
            # The same problems as those of the single runs: each task draws its share with the same seed.
            return self._run_config(self._prefix + spec).replaced(
                world_samples=n * data.world_samples, max_train_samples=None if most is None else n * most
            )
        rows = [row_of(example) for example in _interleaved([_rows(RunDir(path)) for path in runs.values()])]
        # Its name has a hash of the rows: other rows are another data set, and so another run.
        name = environment.hash_of(map(str, rows))[:12]
        file = self.options.folder / "joint" / f"rows-{name}.jsonl"
        if not file.is_file():
            records.write_jsonl(file, rows)
        # The settings for the rows of the tasks, such as --question-column, are not those of this file.
        plain = {leaf: getattr(DataConfig(), leaf) for leaf in SELECT_ROWS if leaf != "dataset"}
        return self._run_config(str(file)).replaced(
            **{**plain, "data_format": "own_samples", "max_train_samples": None}
        )

    def _mixed(self, paths: Mapping[str, Path]) -> tuple[list[TransferAdapter], list[str]]:
        """The combined adapters, and why one could not be made."""
        made, notes = [], []
        for mixture in self.options.mixtures:
            try:
                made.append(self._combined(mixture, paths))
            except ModelError as error:
                notes.append(f"{mixture.name} could not be combined: {error.where or ''} {error.message}")
                note(notes[-1])
        return made, notes

    def _combined(self, mixture: Mixture, paths: Mapping[str, Path]) -> TransferAdapter:
        parts = [weights_hash(local_adapter(weights_of(path))) for path in paths.values()]
        key = environment.text_hash(repr(mixture), *parts)[:8]
        folder = self.options.folder / "combined" / f"{mixture.name}-{key}"
        record = read_combination(folder) if folder.is_dir() else None
        if record is None:
            record = combine.combine(list(paths.values()), [mixture.weight] * len(paths), mixture.recipe, folder)
        return TransferAdapter(
            name=mixture.name,
            kind="combined",
            path=str(folder),
            method=mixture.recipe.method,
            weight=mixture.weight,
            relative_error=record.relative_error,
        )

    def _problems(self, task: Task, rows: Sequence[TransferAdapter]) -> list[Example]:
        """The held-out problems of a task that no adapter was trained on.

        Raises:
            DataError: there are none.
        """
        config = self._task_config(task)
        path = next(row.path for row in rows if row.name == task.name)
        run = RunDir(str(path))
        trained = run.config.is_file()
        problems = held_out_problems(run, run.read_config(), config) if trained else named_problems(config)
        runs = {run.path: run for row in rows if row.path for run in training_runs(weights_of(Path(row.path)))}
        left = not_trained_on(problems, trained_questions(runs.values()))
        if len(left) < len(problems):
            note(
                f"{task.name}: {len(problems) - len(left)} problems are left out, because an adapter was trained on them"
            )
        require_problems(left, config)
        return left

    def _scores(
        self, rows: Sequence[TransferAdapter], problems: Mapping[str, Sequence[Example]]
    ) -> dict[str, dict[str, list[Score]]]:
        """The scores of every adapter on every task, by task; those of an earlier command are read."""
        weights = {row.name: weights_of(Path(row.path)) if row.path else None for row in rows}
        known = {
            (task, name): self._known(task, name, weights[name], problems[task])
            for task in problems
            for name in weights
        }
        if any(scores is None for scores in known.values()):
            models = self._load(rows)
            for (task, name), scores in known.items():
                if scores is None:
                    note(f"{name} on {task}")
                    known[task, name] = self._score(task, name, models[name], problems[task])
        return {task: {name: known[task, name] or [] for name in weights} for task in problems}

    def _cell(self, task: str, name: str, weights: Path | None) -> RunDir:
        """The folder of a cell; another for weights that were trained again, or scores of other settings."""
        config = self._task_config(next(one for one in self.options.tasks if one.name == task))
        key = environment.text_hash(identity(config, weights), config.fingerprint("data", "evaluate"))
        return RunDir(self.options.folder / "scores" / task / f"{name}-{key[:8]}")

    def _known(self, task: str, name: str, weights: Path | None, problems: Sequence[Example]) -> list[Score] | None:
        """The scores that an earlier command made; for a task's own adapter, those of the run that was made here."""
        cell = self._cell(task, name, weights)
        scores = read_scores(cell.completions(_arm(name)), problems)
        if scores is not None:
            atomic.remove_tree(cell.unfinished)  # a killed process may have left it
        if scores is None and name == task and name not in self.options.adapters:
            scores = read_scores(RunDir(self.options.folder / "runs" / name / "run").completions("tuned"), problems)
        return scores

    def _load(self, rows: Sequence[TransferAdapter]) -> dict[str, _Model]:
        """The base, and all adapters on it."""
        target = self._target
        adapters = resolve_adapters(target, {row.name: Path(row.path) for row in rows if row.path}, {}, use="score")
        renderer, loaded = target.load()
        engine = require_switching(loaded)
        base = _Model(renderer, SwitchedModel(engine, None, renderer.chat), target.config, None, trained=False)
        models = {BASE: base}
        for name, adapter in adapters.items():
            models[name] = _Model(*switched(engine, adapter, name), adapter.config, adapter.weights, adapter.trained)
        return models

    def _score(self, task: str, name: str, model: _Model, problems: Sequence[Example]) -> list[Score]:
        folder, sampling = self._cell(task, name, model.weights), self.config.sampling_params
        key = identity(model.config, model.weights)
        scores = score_arm(model.engine, model.renderer, problems, _arm(name), sampling, folder, key, model.trained)
        atomic.remove_tree(folder.unfinished)
        return scores


def _arm(name: str) -> str:
    """The arm that a row is asked as: the base under the system prompt of training, as the adapters."""
    return "base_tags" if name == BASE else name


def _rows(run: RunDir) -> list[Example]:
    """The rows that a run was trained on, with marks on corrupted steps, which its kept.jsonl has not."""
    config = run.read_config()
    # By their places: of a question's rows, some may not have been drawn (max_train_samples).
    trained = {(row["id"], row["where"]) for row in records.iter_jsonl(run.kept) if row["split"] == "train"}
    loaded = load_examples(config.data, seed=config.train.seed, eval_samples=0, eval_seed=0, to_train_on=True)
    return [example for example in loaded.examples if (example.id, example.where) in trained]


def _interleaved(groups: Sequence[Sequence[Example]]) -> Iterator[Example]:
    """The first row of each, the second of each, and so on."""
    for rows in itertools.zip_longest(*groups):
        yield from (row for row in rows if row is not None)
