"""Runs all checks on a target, which is a settings file or a data set.

A fault does not hide others: invalid settings are left out and the rest is checked; without a usable model the data are still
read, and vice versa.
"""

from __future__ import annotations

from collections.abc import Iterator

from cot_unsloth import config as settings
from cot_unsloth import tasks
from cot_unsloth.config import RunConfig
from cot_unsloth.core import progress
from cot_unsloth.core.errors import CotError, InputError
from cot_unsloth.core.findings import LEVELS, Finding, faults
from cot_unsloth.data import checks, load_examples
from cot_unsloth.models import estimate, registry
from cot_unsloth.models.adapter_files import starting_adapter
from cot_unsloth.models.estimate import Shape
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.storage.stored_rows import JoinedRows, rows_where
from cot_unsloth.training import preparation
from cot_unsloth.training.checks import setup
from cot_unsloth.training.preparation import Prepared


def check_target(target: str | None, flags: settings.Flags) -> list[Finding]:
    """All findings, faults first.

    Args:
        target: a settings file or a data set; None for the embedded demo.
        flags: settings that override those of the file.
    """
    config, errors = settings.load_target_all(target, flags)
    findings = [setup.fault(error) for error in errors]
    if config is None:
        return findings
    with progress.collected() as notes:
        findings += _check_settings(config)
    messages = {finding.message for finding in findings}
    findings += [Finding("note", "notes", text) for text in dict.fromkeys(notes) if text not in messages]
    return by_level(findings)


def by_level(findings: list[Finding]) -> list[Finding]:
    """Faults first, then warnings, then notes; otherwise in their order."""
    return [finding for level in LEVELS for finding in findings if finding.level == level]


def _check_settings(config: RunConfig) -> list[Finding]:
    findings = [
        *setup.run_folder(config),
        *setup.engine(config),
        *setup.check_model_files(config),
        *setup.forgetting_task(config),
    ]
    shape = estimate.shape_of(config.model)
    if not faults(findings):
        registry.apply_patches(registry.choose(config.model))
    prepared: Prepared | None = None
    try:
        prepared = preparation.prepare(config)
    except CotError as error:
        # Where config.json cannot be read, no tokenizer can be loaded either: one fault, not two.
        if error.name != "no_tokenizer" or not any(f.name == "broken_model_config" for f in findings):
            findings.append(setup.fault(error))
        if not isinstance(error, InputError):
            return findings
    if prepared is None:
        findings += _check_data_only(config, findings)
        findings += check_model_settings(config, shape)
        # Memory estimates do not matter to someone whose run cannot begin.
        return [*findings, *(f for f in setup.check_machine(config, shape, None) if f.level != "note")]
    return [*findings, *check_prepared(config, prepared, shape), *setup.check_machine(config, shape, prepared)]


def _check_data_only(config: RunConfig, findings: list[Finding]) -> Iterator[Finding]:
    """Checks of the data that need no model, used if the model cannot be used."""
    known = {(finding.name, finding.message) for finding in findings}
    e = config.evaluate
    try:
        loaded = load_examples(
            config.data,
            seed=config.train.seed,
            eval_samples=e.eval_samples,
            eval_seed=e.eval_seed,
            to_train_on=config.needs_traces,
        )
    except CotError as error:
        finding = setup.fault(error)
        if (finding.name, finding.message) not in known:
            yield finding
        return
    if loaded.columns is not None:
        yield from checks.layout(loaded.columns)
    yield from checks.rejected(loaded.rejects, loaded.rows)
    if not tasks.is_task_dataset(config.data.dataset):
        yield from checks.duplicates(loaded.examples)
        yield from checks.contradictions(loaded.examples)


def check_model_settings(config: RunConfig, shape: Shape | None) -> Iterator[Finding]:
    """Checks of the settings of model, adapter and optimizer."""
    yield from setup.rates(config, shape)
    yield from setup.modules(config, shape)
    yield from setup.positions(config, shape)


def check_prepared(config: RunConfig, prepared: Prepared, shape: Shape | None) -> Iterator[Finding]:
    """Checks of the rendered data together with the settings; `train` runs these too."""
    if prepared.loaded.columns is not None:
        yield from checks.layout(prepared.loaded.columns)
    kept = len(prepared.train), len(prepared.test)
    yield from checks.counts(prepared.loaded.rows, *kept, len(prepared.rejects))
    yield from checks.rejected(prepared.rejects, prepared.loaded.rows)
    yield from checks.own_system_prompts(prepared.train)
    yield from checks.overlap(prepared.contamination, by_words=config.evaluate.benchmark is not None)
    if not tasks.is_task_dataset(config.data.dataset):
        test = rows_where(prepared.test, lambda row: not row.where.startswith("benchmark:"))
        yield from checks.duplicates(JoinedRows(prepared.train, test))
        yield from checks.contradictions(prepared.train)
    yield from checks.prose_golds(prepared.held_out_questions)
    yield from checks.lengths(prepared.samples, config.evaluate.max_new_tokens)
    yield from checks.stops(prepared.samples, prepared.renderer.chat.stops)
    yield from setup.steps(config, prepared)
    yield from setup.power(config, len(prepared.problems))
    yield from setup.chain_length(shape, prepared)
    yield from check_model_settings(config, shape)
    yield from setup.exports(config, prepared)
    yield from check_start(config, str(prepared.renderer.chat.tokenizer.chat_template))


def check_start(config: RunConfig, template: str) -> Iterator[Finding]:
    """Whether the adapter that training continues was trained in the format of this run, if a run of ours trained it.

    In another one its answers have faults, so that it scores too low as the arm `start`, and training begins with the format.
    """
    try:
        adapter = starting_adapter(config)
        run = RunDir.of_weights(adapter) if adapter is not None else None
        trained = run.read_config() if run is not None else None
    except CotError:  # reported where the adapter is looked for
        return
    if run is None or trained is None:
        return
    leaves = [
        leaf
        for leaf in ("thinking_tags", "trace_layout", "system_prompt")
        if getattr(config.data, leaf) != getattr(trained.data, leaf)
    ]
    if run.template.is_file() and run.template.read_text(encoding="utf-8") != template:
        leaves.append("chat_template")
    if leaves:
        flags = " and ".join(f"--{leaf.replace('_', '-')}" for leaf in leaves)
        yield Finding(
            "warning", "other_format", f"the adapter that training continues was trained with another {', '.join(leaves)}",
            "train.init_adapter", f"give {flags} as in {run.config}",
        )  # fmt: skip
