"""The model card that goes with every export: what it is, how it was made, and what was measured.

One for each kind of thing that is exported, for a card says how the thing is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from cot_unsloth.config import HUB_ID, TINY_BASE, RunConfig, split_sources
from cot_unsloth.core import trace, verdict
from cot_unsloth.core.results import FitReport, Manifest, Scorecard
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.models.target import as_trained
from cot_unsloth.prompts import tokenizer_files
from cot_unsloth.prompts.render import model_path
from cot_unsloth.storage.run_folder import RunDir, is_full_model
from cot_unsloth.tasks import is_task_dataset

Kind = Literal["transformers", "gguf", "peft"]
"""The library that loads what a card goes with: a merged folder, GGUF files, or an adapter."""
_RELATIONS: Mapping[Kind, str] = {"transformers": "finetune", "gguf": "quantized", "peft": "adapter"}


def write(
    run: RunDir | None,
    config: RunConfig,
    verified: Verification,
    kind: Kind,
    fitted: Path | None,
    folder: Path | None = None,
) -> str:
    """The text of README.md.

    Args:
        run: where it was trained and scored, if a run of ours is known.
        config: the settings.
        verified: the record of the export; an empty one if there is none.
        kind: what the card goes with.
        fitted: the adapter, or the model of which every weight was trained; None where the base is exported as it is.
        folder: a merged folder, with its tokenizer.
    """
    tuned, whole = fitted is not None, is_full_model(fitted)
    manifest = run.read_manifest() if run else None
    scores = Scorecard.read_if_there(run.scorecard) if run else None
    fit = FitReport.read_if_there(run.fit_report) if run else None
    bits = fit.extra.weight_bits if fit else 16
    base = config.model.model_name_or_path
    how = "fine-tune of every weight" if whole else "LoRA fine-tune"
    own = run is not None or (fitted is not None and RunDir.of_weights(fitted) is not None)
    tags = ["cot-unsloth", *["reasoning"] * own, *["lora"] * (tuned and not whole)]
    thinking = trace.tags("thinking", config.data.thinking_tags)[0]
    front: dict[str, Any] = {"library_name": kind, "tags": tags}
    front |= {"license": found} if (found := licence_of(base)) else {}
    if base != TINY_BASE and not Path(base).is_dir():
        front |= {"base_model": base, "base_model_relation": _RELATIONS[kind]}
    if run is not None:
        config = as_trained(run, config)
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {Path(base).name} with a chain of thought" if own else f"# {Path(base).name}{', fine-tuned' * tuned}",
        f"A {how} of `{_public(base)}` by cot_unsloth: it thinks between `{thinking}` tags, corrects its errors between "
        "`<reflection>` tags, and answers between `<output>` tags."
        if own
        else f"A {how} of `{_public(base)}` that was not trained by cot_unsloth, only exported by it."
        if tuned
        else f"`{_public(base)}`, exported unchanged by cot_unsloth.",
        f"Licence: that of the base ({licence_of(base) or 'see there'}).",
        "Its tokenizer files are those of the base: transformers 5 reads them, earlier versions do not."
        if folder is not None and tokenizer_files.needs_transformers_5(folder)
        else "",
        _scores(scores, bits) if tuned else "",
        _recipe(config, manifest, bits) if run else _asked(verified, tuned=tuned),
        "" if verified.is_empty else _verified(verified),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _public(name: str) -> str:
    """A name as it is on the hub, or the last part of a path: where things lie on this machine is nobody's business."""
    return Path(name).name if Path(name).exists() else name


def _public_data(dataset: str) -> str:
    """A data set as it is named on the hub, or the last parts of its files, folders or patterns.

    >>> _public_data("world:chains,words"), _public_data("/home/me/data/*.jsonl,openai/gsm8k")
    ('world:chains,words', '*.jsonl, openai/gsm8k')
    """
    if is_task_dataset(dataset):
        return dataset
    sources = split_sources(dataset)
    return ", ".join(
        source if HUB_ID.fullmatch(source) and not Path(source).exists() else Path(source).name for source in sources
    )


def licence_of(base: str) -> str | None:
    """The licence that a base's own card names, where the card is here to be read."""
    readme = Path(model_path(base)) / "README.md"
    if not readme.is_file():
        return None
    parts = readme.read_text(encoding="utf-8").split("---", 2)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None
    found = front.get("license") if isinstance(front, dict) else None
    return str(found) if found else None


def _scores(card: Scorecard | None, bits: int) -> str:
    if card is None or not card.arms:
        return "## Scores\n\nIt was not scored."
    rows = [
        f"| {name} | {arm.accuracy:.1%} [{arm.ci95[0]:.1%}, {arm.ci95[1]:.1%}] | {arm.format_valid:.1%} "
        f"| {arm.truncated:.1%} | {arm.mean_tokens:.0f} |"
        for name, arm in card.arms.items()
    ]
    settings = (
        f"`{_public_data(card.dataset)}`, n = {card.n}, seed {card.seed}, temperature {card.decoding.temperature:g}, "
        f"at most {card.decoding.max_new_tokens} new tokens; Wilson's 95% intervals."
    )
    head = "| arm | accuracy | format valid | cut off | tokens |\n| --- | --- | --- | --- | --- |"
    lines = ["## Scores", "", f"Held-out problems of {settings}", "", head, *rows]
    if "tuned" in card.arms:
        lines += ["", verdict.of(card).sentence]
    if bits < 16:
        exported = ", but for `gguf`, which is the exported file on its 16-bit weights" * ("gguf" in card.arms)
        lines += ["", f"The base was held in {bits} bits for these{exported}."]
    return "\n".join(lines)


def _recipe(config: RunConfig, manifest: Manifest | None, bits: int) -> str:
    lora, train = config.lora, config.train
    what = f"LoRA: rank {lora.lora_r}, alpha {lora.lora_alpha}, on {', '.join(lora.target_modules)}"
    data_hash = (manifest and manifest.data_hash) or "not known"
    batch = train.rows_per_step
    epochs = f"{train.num_train_epochs:g} epoch" + "s" * (train.num_train_epochs != 1)
    length = f"{train.max_steps} steps" if train.max_steps > 0 else epochs
    lines = [
        f"- data: `{_public_data(config.data.dataset)}`, hash `{data_hash}`",
        f"- {'every weight, in float32' if train.full_finetuning else what}"
        + (f"; the base held in {bits} bits" if bits < 16 else ""),
        f"- {length}, batch {batch}, learning rate {train.learning_rate:g}, seed {train.seed}",
        f"- system prompt: {config.data.system_prompt!r}",
        f"- date in the prompt, where the template has one: {config.model.date_string}",
    ]
    return "\n".join(["## Recipe", "", *lines])


def _asked(verified: Verification, *, tuned: bool) -> str:
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
