"""One export, top to bottom: estimate, write aside, verify, name.

No file gets its final name before it has been read back and compared with the adapter; `verified.json` records the
results, of a failure too. Files that are verified already are not written again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError, InputError, ModelError, RenderError, VerificationError
from cot_unsloth.core.progress import bar, note, size
from cot_unsloth.core.results.verification import VERIFIED, Check, Status, Verification, read_verification
from cot_unsloth.core.types import Example
from cot_unsloth.data import load_problems
from cot_unsloth.export import card, hub, layerwise, merge, ollama, plan, verify, weights
from cot_unsloth.export.card import Kind
from cot_unsloth.export.gguf import lora, writer
from cot_unsloth.export.gguf import verify as gguf_checks
from cot_unsloth.export.gguf.tokens import exported_template
from cot_unsloth.export.gguf.writer import Model
from cot_unsloth.export.hub import Repository
from cot_unsloth.export.plan import Existing, Settled
from cot_unsloth.models import llamacpp
from cot_unsloth.models.adapter_files import local_adapter
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.target import as_trained
from cot_unsloth.prompts import tokenizer_files
from cot_unsloth.prompts.render import ChatTemplate, Renderer, open_renderer
from cot_unsloth.storage import atomic, environment, records, run_folder
from cot_unsloth.storage.run_folder import RunDir

PROBES = 20
"""Held-out rows that an export is compared on."""
_SLOTS = 2
"""Answers that llama.cpp writes side by side while a file is verified; each keeps memory for a whole context."""
_SPARE = 1.02
"""Disk asked for beyond the estimate."""
_OF_AN_ADAPTER = (
    "adapter_config.json", "adapter_model.safetensors", *tokenizer_files.FILES, tokenizer_files.TEMPLATE,
)  # fmt: skip
"""The files of an adapter's folder that are pushed; other trainers leave their optimizer there too."""


@dataclass(frozen=True)
class Subject:
    """What is exported, and what it is compared on."""

    config: RunConfig
    fitted: Path | None
    """An adapter, or a model of which every weight was trained; None: the base as it is."""
    renderer: Renderer
    examples: tuple[Example, ...]
    """Held-out rows; a few of them are compared token by token."""
    tuned: dict[str, bool] = field(default_factory=dict)
    """Which of them the tuned model answered right, where it was scored."""
    run: RunDir | None = None

    @property
    def stem(self) -> str:
        """What the files' names begin with."""
        return plan.stem(self.config, tuned=self.fitted is not None)

    @property
    def whole(self) -> bool:
        """Whether every weight was trained."""
        return run_folder.is_full_model(self.fitted)

    @property
    def trained(self) -> bool:
        """Whether a run of ours trained it; this decides how an evaluation of the file reads its answers."""
        return self.fitted is not None and RunDir.of_weights(self.fitted) is not None

    @property
    def adapter(self) -> Path | None:
        """The adapter, if there is one."""
        return None if self.whole else self.fitted

    @property
    def folder(self) -> Path:
        """The folder of the weights that an adapter is folded into."""
        return self.fitted if self.fitted and self.whole else weights.base_folder(self.config)


def check_base(config: RunConfig, chat: ChatTemplate) -> None:
    """Make sure, before hours of training, that the files that the settings ask for can be written from their base.

    Raises:
        ModelError: its weights are stored in few bits, or it cannot be written to GGUF.
        RenderError: the chat template cannot be exported so that other programs render prompts as in training.
    """
    stem = plan.stem(config)
    if plan.names(config, stem):
        _opened(config, weights.base_folder(config), None, chat, stem)
        exported_template(chat)


def _opened(config: RunConfig, folder: Path, adapter: Path | None, chat: ChatTemplate, stem: str) -> Model:
    """A base and an adapter, checked for everything that would prevent the files that the settings ask for."""
    model = writer.open_model(folder, adapter, chat, stem)
    _check_tokens(model)
    if config.export.gguf or config.export.lora_gguf:
        writer.check(model, _context(config))
    if config.export.lora_gguf and model.adapter is not None:
        lora.check(model)
    return model


def _check_tokens(model: Model) -> None:
    """Make sure that the base has an embedding for each token.

    Raises:
        ModelError: it does not.
    """
    last, rows = max(model.chat.tokenizer.get_vocab().values()), model.config.get("vocab_size")
    if isinstance(rows, int) and last >= rows:
        raise ModelError(
            f"the tokenizer has a token {last}, but the base's embedding has {rows} rows",
            where=str(model.chat.files or model.weights.folder),
            hint="give the base that it was trained on, with the resized embedding: --model BASE",
            name="more_tokens_than_rows",
        )


def export_run(run: RunDir, config: RunConfig, out: Path | None = None, existing: Existing = "keep") -> Verification:
    """Write what the settings ask for of a finished run, into its `export/` unless `out` says otherwise.

    Existing files that are verified, unchanged and made from the same model are kept; `existing` can change that.

    Raises:
        InputError: the run has no trained weights; a name is taken; the model cannot be written as asked.
        VerificationError: what was written is not what was trained, or could not be compared.
        OSError: for example, the disk is full. No file has its final name then.
    """
    return export(_subject_of(run, config), out or run.export, existing)


def update_cards(run: RunDir, config: RunConfig) -> None:
    """Write the cards of a run's export again, with what was scored since it was exported."""
    _write_cards(run, config, run.trained_weights, run.export, read_verification(run.export))


def push_run(run: RunDir, config: RunConfig) -> None:
    """Push what a run's export holds, and its adapter.

    Raises:
        VerificationError: something in it was changed since it was verified.
        CotError: the hub refused.
    """
    hub.push(config, _repositories(_subject_of(run, config), run.export, read_verification(run.export)))


def _subject_of(run: RunDir, config: RunConfig) -> Subject:
    rows = records.read_jsonl(run.kept)
    held_out = [row for row in rows if row["split"] == "test"] or rows
    examples = tuple(records.kept_example(row) for row in held_out[: max(PROBES, config.export.export_samples)])
    tuned = {row["id"]: row["correct"] for row in records.read_jsonl(run.completions("tuned"))}
    fitted, config = run.require_trained_weights(), as_trained(run, config)
    renderer = open_renderer(config.model, config.data, fitted)
    return Subject(config, fitted, renderer, examples, tuned, run)


def export_model(config: RunConfig, adapter: Path | None, out: Path, existing: Existing = "keep") -> Verification:
    """The same for a base and an adapter that no run of ours trained, or for an unchanged base.

    The settings are those of `opening.settings_of`. It is compared on the data set that they name, without the
    questions that the adapter was trained on where that is known. Raises as `export_run`.
    """
    if adapter is not None and not run_folder.is_full_model(adapter):
        adapter = local_adapter(adapter)
    renderer = open_renderer(config.model, config.data, adapter)
    trained = RunDir(adapter.resolve().parent).question_ids("train") if adapter is not None else set()
    n = max(PROBES, config.export.export_samples)
    examples = load_problems(
        config.data, eval_samples=n, eval_seed=config.evaluate.eval_seed, without=trained, to_score_on=False
    )
    return export(Subject(config, adapter, renderer, tuple(examples)), out, existing)


def export(subject: Subject, out: Path, existing: Existing = "keep") -> Verification:
    """Write, verify and name; returns what `verified.json` holds. Raises as `export_run`."""
    push = subject.config.export.push_to_hub is not None
    plan.check(subject.config, out, subject.stem, adapter=subject.adapter is not None, existing=existing)
    hub.check_access(subject.config)
    result = read_verification(out)
    if plan.names(subject.config, subject.stem):
        source = _source_of(subject)
        own = subject.run is not None and out.resolve() == subject.run.export.resolve()
        settled = plan.settle(subject.config, out, subject.stem, existing, source, own=own)
        result = _write_what_is_left(subject, out, existing, settled, source)
    if push:
        hub.push(subject.config, _repositories(subject, out, result))
    return result


def _source_of(subject: Subject) -> dict[str, str]:
    base = None if subject.whole else subject.folder
    return plan.source_of(subject.config, base, subject.fitted, str(subject.renderer.chat.tokenizer.chat_template))


def _write_what_is_left(
    subject: Subject, out: Path, existing: Existing, settled: Settled, source: Mapping[str, str]
) -> Verification:
    left = replace(subject, config=settled.config)
    if plan.names(left.config, left.stem):
        return _write_and_verify(left, out, existing, settled, source)
    note("nothing is left to write")
    before = read_verification(out)
    result = before.without(settled.disowned)
    if result.to_json() != before.to_json():
        atomic.write_text(out / VERIFIED, result.to_json())
        _write_cards(subject.run, subject.config, subject.fitted, out, result)
    return result


def _write_and_verify(
    subject: Subject, out: Path, existing: Existing, settled: Settled, source: Mapping[str, str]
) -> Verification:
    """Write aside, verify, name; returns what `verified.json` holds."""
    e, chat = subject.config.export, subject.renderer.chat
    before = read_verification(out)
    model = _opened(subject.config, subject.folder, subject.adapter, chat, subject.stem)
    _check_room(model, subject, out)
    checks: list[Check] = []
    try:
        with atomic.staged_into(out, VERIFIED) as aside:
            _write(model, subject, aside)
            checks = _verify(model, subject, aside)
            unverified = _name_unverified(aside) if (e.gguf or e.lora_gguf) and not llamacpp.available() else []
            status = _status(checks, bool(unverified))
            if status == "failed":
                raise verify.failure(checks, out)
            _write_modelfiles(model, subject, aside, out, existing)
            record = _record(subject, out, checks, status, aside).model_copy(update={"made_from": dict(source)})
            result = record.without(settled.disowned)
            atomic.write_text(aside / VERIFIED, result.to_json())
            _write_cards(subject.run, subject.config, subject.fitted, aside, result)
    except VerificationError:
        if any((out / name).exists() for name in plan.names(subject.config, subject.stem)):
            # The files to be replaced are unchanged, and their recorded checks are still valid.
            kept = before.model_copy(update={"failed_replacement": tuple(checks)})
            atomic.write_text(out / VERIFIED, kept.to_json())
        else:
            failed = _record(subject, out, checks, "failed").without(settled.disowned)
            atomic.write_text(out / VERIFIED, failed.to_json())
        raise
    _tell(out, checks, unverified, allowed=e.allow_unverified)
    return result


def _unchanged(out: Path, name: str, result: Verification) -> dict[str, Path]:
    """The files of something that was exported, by their names in its repository; none where it is gone.

    Raises:
        VerificationError: one of them is not the one that was verified.
    """
    hashes = result.hashes_of(name)
    if not (out / name).exists() or not hashes:
        note(f"{name} is not there, or was exported before hashes were recorded: not pushed")
        return {}
    changed = [
        path for path, digest in hashes.items() if not (out / path).is_file() or plan.hash_of(out / path) != digest
    ]
    if changed:
        raise VerificationError(
            f"changed since it was verified: {', '.join(changed)}",
            where=str(out),
            hint="export it again, to another --out",
        )
    return {path.removeprefix(f"{name}/"): out / path for path in hashes}


def _repositories(subject: Subject, out: Path, result: Verification) -> list[Repository]:
    """What goes to which repository.

    Raises:
        ConfigError: there is nothing.
        VerificationError: something was changed since it was verified.
    """
    found = []
    config = subject.config.replaced(model_name_or_path=result.base or subject.config.model.model_name_or_path)
    files: dict[str, dict[str, Path]] = {"": {}, "-GGUF": {}}
    for name in result.passed_files:
        files["" if name == "merged" else "-GGUF"] |= _unchanged(out, name, result)
    if files["-GGUF"]:
        for path in sorted(out.glob("Modelfile*")):
            files["-GGUF"] |= _unchanged(out, path.name, result)
    kinds: dict[str, Kind] = {"": "transformers", "-GGUF": "gguf"}
    for suffix, kind in kinds.items():
        if files[suffix]:
            text = card.write(subject.run, config, result, kind, subject.fitted, None if suffix else out / "merged")
            found.append(Repository(suffix, files[suffix] | {VERIFIED: out / VERIFIED}, text))
    if subject.adapter is not None:
        kept = {file.name: file for file in subject.adapter.iterdir() if file.name in _OF_AN_ADAPTER}
        text = card.write(subject.run, subject.config, result, "peft", subject.fitted)
        found.append(Repository("-LoRA", kept, text))
    if not found:
        raise ConfigError("there is nothing to push", where=str(out), hint="--merged or --gguf q4_k_m")
    return found


def file_names(config: RunConfig) -> list[str]:
    """The names of the GGUF files that the settings ask for, whole models only."""
    return [plan.file_name(plan.stem(config), quant) for quant in config.export.gguf]


def remaining(run: RunDir, config: RunConfig) -> RunConfig:
    """The settings, asking only for files that are not in the run's folder yet; pushes nothing."""
    stem = plan.stem(config)
    done = {name for name in plan.names(config, stem) if (run.export / name).exists()}
    return plan.without(config, stem, done).replaced(push_to_hub=None)


def _check_room(model: Model, subject: Subject, out: Path) -> None:
    """Say what will be needed, and stop where the disk has less.

    Raises:
        InputError: the disk has less.
    """
    e = subject.config.export
    needed = merge.size(model, e.export_dtype) if e.merged else 0
    needed += sum(writer.size(model, quant) for quant in e.gguf)
    if e.lora_gguf and subject.adapter is not None:  # as large as the adapter, and the base that it is tried on
        needed += writer.size(model, "f16") + sum(file.stat().st_size for file in subject.adapter.iterdir())
    place, free = atomic.free_space(out)
    note(f"needs about {size(needed)} on disk ({size(free)} free)")
    if needed * _SPARE > free:
        raise InputError(f"needs {size(needed)}, the disk has {size(free)} free", where=str(place), hint="--out DIR")


def _device() -> str:
    """Where an export is compared."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _write(model: Model, subject: Subject, aside: Path) -> None:
    e = subject.config.export
    if e.merged:
        (aside / "merged").mkdir()
        dtype = merge.write(model, aside / "merged", e.export_dtype)
        note(f"merged in {dtype}")
    if e.gguf:
        writer.write(model, {quant: aside / plan.file_name(subject.stem, quant) for quant in e.gguf})
    if e.lora_gguf:
        lora.write(model, aside / plan.file_name(subject.stem, "lora"))


def _verify(model: Model, subject: Subject, aside: Path) -> list[Check]:
    """Every check of everything that was written."""
    e = subject.config.export
    rendered = subject.renderer.samples(subject.examples[:PROBES])
    samples = [sample for sample in rendered.samples if len(sample.ids) <= model.context]
    if not samples:
        reasons = [f"{reject.detail} ({reject.where})" for reject in rendered.rejects[:1]]
        reason = "".join(reasons) or f"all are longer than the {model.context:,} tokens that the model was made for"
        raise RenderError(f"no row is left to compare on: {reason}", where=subject.config.data.dataset)
    asked = gguf_checks.places(samples)
    source = layerwise.FolderSource(model.weights)
    network = layerwise.open_network(subject.folder, source, subject.adapter, _device())
    forced = verify.distributions(network, samples) if e.merged else []
    trained = gguf_checks.distributions(network, asked) if e.gguf or e.lora_gguf else []
    del network
    checks: list[Check] = []
    if llamacpp.available():
        if e.lora_gguf:
            checks += _verify_lora(model, subject, aside, asked, trained)
        for quant in e.gguf:
            file = aside / plan.file_name(subject.stem, quant)
            with bar(f"verify {file.name}"):
                found = verify_file(model, subject, file, asked, trained, exact=quant in ("f32", "f16"))
            checks += _of_file(file.name, found)
    if e.merged:
        found = verify.merged(aside / "merged", subject.renderer.chat, forced, samples, _device())
        checks += _of_file("merged", found)
    return checks


def verify_file(
    model: Model,
    subject: Subject,
    file: Path,
    asked: Sequence[gguf_checks.Place],
    trained: Sequence[Any],
    *,
    exact: bool,
) -> list[Check]:
    """All checks of a GGUF file, cheapest first; those of a file that cannot be opened end there."""
    try:
        reader = gguf_checks.read_file(file)
    except ValueError as error:
        return [verify.check("readable", False, error=str(error))]
    checks = [gguf_checks.check_weights(reader, model), *gguf_checks.check_tokens(reader, subject.renderer)]
    try:
        llama = _llama(file, subject.config)
    except InputError as error:
        return [*checks, verify.check("loads", False, error=str(error))]
    try:
        checks += gguf_checks.check_text(llama, subject.renderer, subject.examples[:PROBES])
        source = gguf_checks.GgufSource(reader, model)
        network = layerwise.open_network(subject.folder, source, device=_device())
        expected = gguf_checks.distributions(network, asked)
        found = gguf_checks.found_by(llama, asked, len(expected[0]))
        both = gguf_checks.Compared(asked, trained, expected, found)
        checks += gguf_checks.check_distributions(both, exact)
        first = [place for place in asked if not place.stops][::2][:5]
        checks.append(gguf_checks.check_greedy(llama, network, first, exact))
        checks.append(gguf_checks.check_stop(llama, both, subject.renderer.chat.stops, exact))
        chosen = subject.examples[: subject.config.export.export_samples]
        if chosen:
            checks.append(
                gguf_checks.check_answers(
                    llama, subject.renderer, chosen, subject.tuned, subject.config.sampling_params
                )
            )
    finally:
        llama.close()
    return checks


def _llama(file: Path, config: RunConfig, adapters: Sequence[Path] = ()) -> LlamaCpp:
    """A file in llama.cpp, in as little memory as it can be asked in."""
    return LlamaCpp(file, context=_context(config), slots=_SLOTS, adapters=adapters, repack=False)


def _context(config: RunConfig) -> int:
    """Tokens of the longest prompt and answer."""
    return config.data.max_seq_length + config.evaluate.max_new_tokens


def _verify_lora(
    model: Model, subject: Subject, aside: Path, asked: Sequence[gguf_checks.Place], trained: Sequence[Any]
) -> list[Check]:
    """The adapter's file on a GGUF of its base, which is made for it and removed."""
    file = aside / plan.file_name(subject.stem, "lora")
    base = aside / "base.gguf"
    alone = Model(model.weights, None, model.config, model.chat, model.name, model.context)
    writer.write(alone, {"f16": base})
    llama = _llama(base, subject.config, [file])
    try:
        found = gguf_checks.found_by(llama, asked, len(trained[0]))
    finally:
        llama.close()
        base.unlink()
    both = gguf_checks.Compared(asked, trained, trained, found)
    return _of_file(file.name, gguf_checks.check_distributions(both, exact=False))


def _name_unverified(aside: Path) -> list[str]:
    """Give what could not be compared a name that says so."""
    found = []
    for file in sorted(aside.glob("*.gguf")):
        named = file.with_suffix(".unverified.gguf")
        file.replace(named)
        found.append(named.name)
    return found


def _of_file(name: str, checks: Sequence[Check]) -> list[Check]:
    """The checks, as those of one file."""
    return [check.model_copy(update={"file": name}) for check in checks]


def _status(checks: Sequence[Check], unverified: bool) -> Status:
    if any(not check.passed for check in checks):
        return "failed"
    return "unverified" if unverified else "passed"


def _record(
    subject: Subject, out: Path, checks: Sequence[Check], status: Status, aside: Path | None = None
) -> Verification:
    """These checks beside those of files that were exported before."""
    before = read_verification(out)
    files = {check.file for check in checks}
    kept = [check for check in before.checks if check.file not in files and (out / check.file).exists()]
    hashes = {name: value for name, value in before.sha256.items() if (out / name).exists()}
    if aside is not None:
        written = sorted(path for path in aside.rglob("*") if path.is_file())
        hashes |= {path.relative_to(aside).as_posix(): plan.hash_of(path) for path in written}
    return Verification(
        status=status,
        base=subject.config.model.model_name_or_path,
        system_prompt=subject.config.data.system_prompt,
        thinking_tags=subject.config.data.thinking_tags,
        trained=subject.trained,
        checks=(*kept, *checks),
        sha256=hashes,
        versions=environment.versions(),
    )


def _write_modelfiles(model: Model, subject: Subject, aside: Path, out: Path, existing: Existing) -> None:
    """For Ollama: one for the first full model, one for the adapter alone; an edited one is kept."""
    files = sorted({path.name for path in (*aside.glob("*.gguf"), *out.glob("*.gguf"))})
    models = [name for name in files if not run_folder.is_adapter_gguf(name)]
    chat, config, before = subject.renderer.chat, subject.config, read_verification(out)
    texts = {}
    try:
        if models:
            texts["Modelfile"] = ollama.modelfile(f"./{models[0]}", chat, config, model.context)
        for name in set(files) - set(models):
            base = ollama.base_name(config, out)
            texts["Modelfile.lora"] = ollama.modelfile(base, chat, config, model.context, f"./{name}")
    except RenderError as error:
        note(f"no Modelfile: {error}")
    for name, text in texts.items():
        if existing != "force" and plan.edited(out, name, before):
            note(f"{out / name} is not the file that export wrote: kept (--force writes it again)")
        else:
            atomic.write_text(aside / name, text)


def _write_cards(
    run: RunDir | None, config: RunConfig, fitted: Path | None, folder: Path, result: Verification
) -> None:
    """The model card, and beside the merged folder's own what was verified of it."""
    kind: Kind = "gguf" if any(file != "merged" for file in result.files) else "transformers"
    atomic.write_text(folder / "README.md", card.write(run, config, result, kind, fitted))
    if (folder / "merged").is_dir():
        text = card.write(run, config, result, "transformers", fitted, folder / "merged")
        atomic.write_text(folder / "merged" / "README.md", text)
        atomic.write_text(folder / "merged" / VERIFIED, result.to_json())


def _tell(out: Path, checks: Sequence[Check], unverified: Sequence[str], *, allowed: bool) -> None:
    """What was found, to people.

    Raises:
        VerificationError: there is something that could not be compared, and that was not allowed.
    """
    for name in dict.fromkeys(check.file for check in checks):
        passed = [check.name for check in checks if check.file == name]
        note(f"{out / name}: verified ({', '.join(passed)})")
    if unverified:
        message = f"could not be verified because xllamacpp is not installed: {', '.join(unverified)}"
        if not allowed:
            raise VerificationError(message, where=str(out), hint="pip install xllamacpp, or --allow-unverified")
        note(message)
