"""The model card of every export: what the model is, how it was made, and what was measured.

Each repository kind has its own card, because a card says which library loads the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from cot_unsloth.config import TINY_BASE, RunConfig
from cot_unsloth.core import arm_names, trace, verdict
from cot_unsloth.core.results import FitReport, Manifest, Scorecard
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.core.statistics import percent
from cot_unsloth.export.hub import Library
from cot_unsloth.export.public_names import public_data, public_name
from cot_unsloth.models.adapter_files import read_config, trained_here
from cot_unsloth.models.target import as_trained
from cot_unsloth.models.techniques import TABLE
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import RunDir, is_full_model

_RELATIONS: Mapping[Library, str] = {"transformers": "finetune", "gguf": "quantized", "peft": "adapter"}


def write(
    run: RunDir | None,
    config: RunConfig,
    verified: Verification,
    library: Library,
    trained_weights: Path | None,
    section: str = "",
) -> str:
    """The text of README.md.

    Args:
        run: where it was trained and scored, if a run of cot_unsloth is known.
        config: the settings.
        verified: the record of the export; an empty one if there is none.
        library: what loads the files that the card goes with.
        trained_weights: the folder of an adapter or of a fully fine-tuned model; None: the base is exported unchanged.
        section: a paragraph of the target's own.
    """
    tuned = trained_weights is not None
    manifest = run.read_manifest() if run else None
    scores = Scorecard.read_if_there(run.scorecard) if run else None
    fit = FitReport.read_if_there(run.fit_report) if run else None
    bits = fit.extra.weight_bits if fit else 16
    base = config.model.model_name_or_path
    ours = run is not None or (trained_weights is not None and trained_here(trained_weights))
    if run is not None:
        config = as_trained(run, config)
    sections = [
        f"---\n{yaml.safe_dump(_front_matter(base, library, trained_weights, ours=ours), sort_keys=False)}---",
        f"# {Path(base).name} with a chain of thought" if ours else f"# {Path(base).name}{', fine-tuned' * tuned}",
        _introduction(config, trained_weights, ours=ours, reflects=_reflects(scores)),
        f"Licence: that of the base ({licence_of(base) or 'see there'}).",
        section,
        _scores(scores, bits) if tuned else "",
        _recipe(config, manifest, fit, trained_weights) if run else _system_prompt(verified, tuned=tuned),
        "" if verified.is_empty else _verified(verified),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(
    base: str, library: Library, trained_weights: Path | None, *, ours: bool
) -> dict[str, str | list[str]]:
    """The metadata that the hub indexes a model by (its "model card metadata" documentation)."""
    lora = trained_weights is not None and not is_full_model(trained_weights)
    tags = ["cot-unsloth", *["reasoning"] * ours, *["lora"] * lora]
    front: dict[str, str | list[str]] = {"library_name": library, "tags": tags}
    front |= {"license": licence} if (licence := licence_of(base)) else {}
    if base != TINY_BASE and not Path(base).is_dir():  # a local path would be a broken link
        front |= {"base_model": base, "base_model_relation": _RELATIONS[library]}
    return front


def _reflects(scores: Scorecard | None) -> bool:
    """Whether the model was observed to write reflections; if it was not scored, its trace format decides."""
    found = scores.reflection.get("tuned") if scores else None
    return found is None or found.n > 0


def _introduction(config: RunConfig, trained_weights: Path | None, *, ours: bool, reflects: bool) -> str:
    """One sentence: what it is, and what it writes between tags."""
    base = public_name(config.model.model_name_or_path)
    how = "fine-tune of every weight" if is_full_model(trained_weights) else "LoRA fine-tune"
    if ours:
        thinking = trace.tags("thinking", config.data.thinking_tags)[0]
        corrects = "corrects its errors between `<reflection>` tags, " if reflects else ""
        return (
            f"A {how} of `{base}` by cot_unsloth: it thinks between `{thinking}` tags, {corrects}and answers between "
            "`<output>` tags."
        )
    if trained_weights is not None:
        return f"A {how} of `{base}` that was not trained by cot_unsloth, only exported by it."
    return f"`{base}`, exported unchanged by cot_unsloth."


def licence_of(base: str) -> str | None:
    """The licence that the base's own card names; None without a card in its folder."""
    readme = Path(model_path(base)) / "README.md"
    if not readme.is_file():
        return None
    # Front matter is YAML between two lines of three dashes at the beginning of the file.
    parts = readme.read_text(encoding="utf-8").split("---", 2)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    licence = front.get("license") if isinstance(front, dict) else None
    return str(licence) if licence else None


def _scores(card: Scorecard | None, bits: int) -> str:
    if card is None or not card.arms:
        return "## Scores\n\nThe model was not scored."
    rows = [
        f"| {arm_names.title(name)} | {percent(arm.accuracy)} [{arm.ci95[0]:.1%}, {arm.ci95[1]:.1%}] | {percent(arm.format_valid)} "
        f"| {percent(arm.truncated)} | {arm.mean_tokens:.0f} |"
        for name, arm in card.arms.items()
    ]
    settings = (
        f"`{public_data(card.dataset)}`, n = {card.n}, seed {card.seed}, temperature {card.decoding.temperature:g}, "
        f"at most {card.decoding.max_new_tokens} new tokens; Wilson's 95% intervals."
    )
    head = "| arm | accuracy | format valid | cut off | tokens |\n| --- | --- | --- | --- | --- |"
    lines = ["## Scores", "", f"{verdict.problems(card).capitalize()} of {settings}", "", head, *rows]
    if "tuned" in card.arms:
        lines += ["", verdict.of(card).sentence]
    if card.forgetting:
        lines += ["", verdict.forgetting(card.forgetting)]
    if bits < 16:
        exported = ", but for the GGUF file, which is on its 16-bit weights" * ("gguf" in card.arms)
        lines += ["", f"The base was held in {bits} bits for these{exported}."]
    return "\n".join(lines)


def _recipe(config: RunConfig, manifest: Manifest | None, fit: FitReport | None, trained_weights: Path | None) -> str:
    train, bits = config.train, fit.extra.weight_bits if fit else 16
    what = _adapter(config, trained_weights)
    data_hash = (manifest and manifest.data_hash) or "not known"
    lines = [
        f"- data: `{public_data(config.data.dataset)}`, hash `{data_hash}`",
        f"- {'every weight, in float32' if train.full_finetuning else what}"
        + (f"; the base held in {bits} bits" if bits < 16 else ""),
        f"- {_schedule(config, fit)}, learning rate {train.learning_rate:g}, seed {train.seed}",
        f"- system prompt: {config.data.system_prompt!r}",
        f"- date in the prompt, where the template has one: {config.model.date_string}",
    ]
    return "\n".join(["## Recipe", "", *lines])


def _schedule(config: RunConfig, fit: FitReport | None) -> str:
    """What a step learns from, and how many there were; for imitation of given traces, which is the usual method, not named."""
    train = config.train
    epochs = f"{train.num_train_epochs:g} epoch" + "s" * (train.num_train_epochs != 1)
    length = f"{train.max_steps} steps" if train.max_steps > 0 else epochs
    if train.method == "grpo":
        attempts = f"{config.grpo.problems_per_step} problems with {config.grpo.num_generations} attempts each"
        return f"reinforcement learning (grpo): {f'{fit.steps} steps' if fit else length}, a step of {attempts}"
    batch = f"{length}, batch {train.rows_per_step}"
    return (
        f"its own right answers (rft), at most {config.sample.rounds} rounds of {batch}"
        if train.method == "rft"
        else batch
    )


def _adapter(config: RunConfig, trained_weights: Path | None) -> str:
    """The adapter's kind and size: those of the settings, or of the adapter itself if it continued another, which keeps its own."""
    lora, start = config.lora, config.train.init_adapter
    names = [name for name in config.techniques if name not in ("qlora", "full")]
    # These say how LoRA is trained, and are no other kind of adapter.
    names = ["lora", *names] if names and set(names) <= {"neftune", "layers"} else names
    kinds = " + ".join(TABLE[name].title for name in names)
    if start is None or trained_weights is None or is_full_model(trained_weights):
        return f"{kinds or 'LoRA'}: rank {lora.lora_r}, alpha {lora.lora_alpha}, on {', '.join(lora.target_modules)}"
    own = read_config(trained_weights)
    targets = own.get("target_modules")
    modules = ", ".join(sorted(targets)) if isinstance(targets, list) else str(targets)
    own_kinds = [title for setting, title in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")) if own.get(setting)]
    return (
        f"the adapter `{public_name(start)}`, trained further; {' + '.join(own_kinds) or 'LoRA'}: rank {own.get('r')}, "
        f"alpha {own.get('lora_alpha')}, on {modules}"
    )


def _system_prompt(verified: Verification, *, tuned: bool) -> str:
    """For weights without a run: the system prompt that they were exported with."""
    if not tuned or verified.is_empty:
        return ""
    prompt = verified.system_prompt
    return (
        f"System prompt: {prompt!r}."
        if prompt
        else "System prompt: none; the one that it was trained with is not known."
    )


def _verified(verified: Verification) -> str:
    rows = [f"| {check.file} | {check.name} | {'passed' if check.passed else 'FAILED'} |" for check in verified.checks]
    head = "| file | check | |\n| --- | --- | --- |"
    return "\n".join(["## Verification", "", f"Status: {verified.status}.", "", head, *rows])
