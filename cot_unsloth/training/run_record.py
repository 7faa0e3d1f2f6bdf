"""Records that a run writes before and after its stages: template, rows kept and rejected, manifest."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.results import VERSION, EngineChoice, Manifest, Resumption, RowCounts
from cot_unsloth.models.registry import Choice
from cot_unsloth.storage import atomic, checkpoints, environment, records, run_folder
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.preparation import Prepared


def write(run: RunDir, config: RunConfig, prepared: Prepared, facts: Manifest, *, resume: bool) -> None:
    """Write template, rows, manifest and, if a run is resumed, its changed settings."""
    if not run.template.is_file():
        atomic.write_text(run.template, str(prepared.renderer.chat.tokenizer.chat_template))
    _write_rows(run, prepared, config)
    # Before the settings: after a kill in between, a change may be recorded but not made, never made but not recorded.
    _with_history(run, config, facts).write(run.manifest)
    if resume:
        run.write_config(config)


def write_finished(run: RunDir) -> None:
    """Note in the manifest that the run is complete."""
    manifest = run.read_manifest() or Manifest()
    manifest.model_copy(update={"finished": environment.now()}).write(run.manifest)


def write_resumed_from(run: RunDir) -> None:
    """Note in the manifest which step the last command resumes from, after a checkpoint was removed."""
    manifest = run.read_manifest()
    if manifest is not None and manifest.resumed:
        *earlier, last = manifest.resumed
        last = last.model_copy(update={"from_step": _newest_step(run)})
        manifest.model_copy(update={"resumed": (*earlier, last)}).write(run.manifest)


def _write_rows(run: RunDir, prepared: Prepared, config: RunConfig) -> None:
    layout = config.data.trace_layout
    counts = zip(map(int, prepared.samples.lengths), map(int, prepared.samples.supervised), strict=True)
    kept = (
        records.kept_row(example, layout, tokens=tokens, supervised=supervised)
        for example, (tokens, supervised) in zip(prepared.train, counts, strict=True)
    )
    held_out = (records.kept_row(example, layout) for example in prepared.test)
    records.write_jsonl(run.kept, itertools.chain(kept, held_out))
    records.write_jsonl(run.rejected, map(records.reject_row, prepared.rejects))


def identity(prepared: Prepared) -> dict[str, str]:
    """Hashes of the training rows and the scored problems: if one changes, it is another run."""
    tokenizer = prepared.renderer.chat.tokenizer
    rows = (f"{s.id}{s.ids}{s.labels}" for s in prepared.samples)
    problems = (f"{e.id}{e.question}{e.answer}{e.system}{e.history}" for e in prepared.test)
    return {
        "data_hash": environment.hash_of(itertools.chain(rows, problems)),
        "template_hash": environment.text_hash(str(tokenizer.chat_template)),
        "tokenizer_hash": environment.text_hash(tokenizer.backend_tokenizer.to_str()),
    }


def manifest(config: RunConfig, prepared: Prepared, choice: Choice, hashes: Mapping[str, str]) -> Manifest:
    """The manifest: the facts needed to reproduce the run's figures."""
    machine = environment.environment()
    return Manifest(
        version=VERSION,
        started=environment.now(),
        cot_unsloth=machine.cot_unsloth,
        python=machine.python,
        platform=machine.platform,
        cpu=machine.cpu,
        cpu_count=machine.cpu_count,
        versions=machine.versions,
        git=machine.git,
        command=(Path(sys.argv[0]).name, *sys.argv[1:]),
        engine=EngineChoice(engine=choice.engine, why=choice.why),
        seed=config.train.seed,
        eval_seed=config.evaluate.eval_seed,
        config_hash=config.fingerprint(),
        date_string=config.model.date_string,
        contamination=prepared.contamination,
        rows=RowCounts(
            read=prepared.loaded.rows,
            train=len(prepared.train),
            test=len(prepared.test),
            rejected=len(prepared.rejects),
        ),
        **hashes,
    )


def _with_history(run: RunDir, config: RunConfig, facts: Manifest) -> Manifest:
    """The manifest of a run that starts or resumes: the first command's facts are kept, later commands are appended.

    For a later command, only differences from the first are recorded, so that every figure can be traced to its versions.
    """
    before = run.read_manifest()
    if before is None:
        return facts
    old, new = before.as_json(), facts.as_json()
    differing = {name: value for name, value in new.items() if old.get(name) != value}
    for name in ("started", "command", "version"):  # `started` is equal where both began within the same second
        differing.pop(name, None)
    if "versions" in differing:
        names = {**before.versions, **facts.versions}
        differing["versions"] = {
            name: facts.versions.get(name) for name in names if before.versions.get(name) != facts.versions.get(name)
        }
    resumption = Resumption(
        at=facts.started or "",
        command=facts.command,
        from_step=None if run.trained_weights else _newest_step(run),
        changed={name: (old, new) for name, (old, new) in run.changed(config).items()},
        environment=differing,
    )
    return before.without("finished").model_copy(update={"resumed": (*before.resumed, resumption)})


def _newest_step(run: RunDir) -> int:
    """The step that resumed training continues from."""
    newest = checkpoints.newest_whole(run)
    return 0 if newest is None else run_folder.checkpoint_step(newest)
