"""The merged folder: base weights with the adapter folded in, in 16 bits.

W + s·B·A in float32, tensor by tensor from safetensors; the model itself is never instantiated for
it. Refuses, by name, what cannot be folded. The folder gets its name only after it has been read
back by plain transformers and compared with the adapter.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth import rundir
from cot_unsloth.config import RunConfig
from cot_unsloth.engines import registry
from cot_unsloth.errors import ModelError, RunDirError
from cot_unsloth.export import verify
from cot_unsloth.progress import bar, note
from cot_unsloth.render import Renderer, model_path, open_renderer
from cot_unsloth.rundir import RunDir
from cot_unsloth.values import Sample

PROBES = 20
"""Held-out rows that the export is compared on."""
_FOLDABLE = ("lora_A.weight", "lora_B.weight")
_BESIDE = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Delta:
    """One adapted projection: W becomes W + scale * B @ A."""

    a: Any
    """(r, in) float32."""
    b: Any
    """(out, r) float32."""
    scale: float

    def fold(self, weight: Any) -> Any:
        """The merged weight in float32.

        Raises:
            ModelError: the shapes do not fit, so the adapter is of another base.
        """
        if weight.shape != (self.b.shape[0], self.a.shape[1]):
            raise ModelError(
                f"the adapter is of another base: it changes {(self.b.shape[0], self.a.shape[1])}, the weight is {tuple(weight.shape)}"
            )
        return weight.float() + self.scale * (self.b @ self.a)


def read_deltas(adapter: Path) -> dict[str, Delta]:
    """The adapter's changes by the name of the base weight they are of.

    Raises:
        ModelError: there is no adapter, or it holds what cannot be folded into a weight.
    """
    from safetensors import safe_open

    settings, file = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    if not settings.is_file() or not file.is_file():
        raise ModelError(
            "holds no adapter", where=str(adapter), hint="it needs adapter_config.json and adapter_model.safetensors"
        )
    config = json.loads(settings.read_text(encoding="utf-8"))
    with safe_open(file, framework="pt") as tensors:
        names = list(tensors.keys())
        odd = [name for name in names if not name.endswith(_FOLDABLE)]
        if odd or config.get("use_dora") or config.get("bias", "none") != "none":
            raise ModelError(f"cannot be folded: {', '.join(odd[:3]) or 'DoRA or bias'}", where=str(adapter))
        found = {}
        for name in names:
            if name.endswith(_FOLDABLE[0]):
                module = name.removesuffix("." + _FOLDABLE[0])
                a, b = tensors.get_tensor(name).float(), tensors.get_tensor(f"{module}.{_FOLDABLE[1]}").float()
                plain = module.removeprefix("base_model.model.")
                found[f"{plain}.weight"] = Delta(a, b, _scale(config, plain, a.shape[0]))
    return found


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Alpha over rank (or its root, rsLoRA), with a pattern's own alpha where one matches."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def base_folder(config: RunConfig) -> Path:
    """The folder of the base's files; a hub id is taken from the cache, or fetched.

    Raises:
        ModelError: it is not here and cannot be fetched, or has no safetensors.
    """
    name = model_path(config.model.model_name_or_path)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(
                    name, revision=config.model.model_revision, allow_patterns=["*.safetensors*", "*.json"]
                )
            )
        except Exception as error:  # hub and network faults share no base class
            raise ModelError(f"the base cannot be found: {error}", where=name) from error
    if not list(folder.glob("*.safetensors")):
        raise ModelError("holds no safetensors", where=str(folder))
    return folder


def merge(base: Path, deltas: Mapping[str, Delta], out: Path, dtype_name: str) -> str:
    """Write the merged shards into `out`; returns the type they were written in.

    Raises:
        ModelError: the adapter changes weights that the base does not have, or of other shapes.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = sorted(base.glob("*.safetensors"))
    left = set(deltas)
    written = ""
    with bar("merge", len(shards)) as progress:
        for shard in shards:
            merged = {}
            with safe_open(shard, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no dict)
                    weight = tensors.get_tensor(name)
                    dtype = _out_dtype(weight.dtype, dtype_name)
                    written = written or str(dtype).removeprefix("torch.")
                    if name in deltas:
                        weight = deltas[name].fold(weight)
                        left.discard(name)
                    merged[name] = weight.to(dtype) if weight.is_floating_point() else weight
                    if not torch.isfinite(merged[name]).all():
                        raise ModelError(
                            f"{name} does not fit into {dtype}", where=str(shard), hint="--export-dtype bfloat16"
                        )
            save_file(merged, out / shard.name, metadata={"format": "pt"})
            progress.advance(1)
    if left:
        raise ModelError(f"the base has no {sorted(left)[0]}: the adapter is of another base", where=str(base))
    for index in base.glob("*.safetensors.index.json"):
        shutil.copyfile(index, out / index.name)
    for name in _BESIDE:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    _set_dtype(out / "config.json", written)
    return written


def _out_dtype(stored: Any, wanted: str) -> Any:
    import torch

    if wanted != "auto":
        return getattr(torch, wanted)
    return stored if stored in (torch.float16, torch.bfloat16) else torch.bfloat16


def _set_dtype(config: Path, dtype: str) -> None:
    tree = json.loads(config.read_text(encoding="utf-8"))
    tree.pop("torch_dtype", None)
    rundir.write_json(config, {**tree, "dtype": dtype})


def export_merged(
    config: RunConfig, adapter: Path, out: Path, probes: Sequence[Sample], renderer: Renderer
) -> dict[str, Any]:
    """Merge, read back, compare; the folder appears under its name only if it passed.

    Raises:
        ModelError: adapter and base do not belong together.
        RunDirError: something stands under that name already.
        VerificationError: the merged model is not the adapter on its base.
    """
    if out.exists():
        raise RunDirError("exists already", where=str(out), hint="name another --out, or remove it")
    deltas = read_deltas(adapter)
    with rundir.staged(out) as aside:
        dtype = merge(base_folder(config), deltas, aside, config.export.export_dtype)
        renderer.chat.tokenizer.save_pretrained(aside)
        checks = _compare(config, adapter, aside, probes, renderer)
        result = verify.verdict(checks, out) | {"dtype": dtype, "probes": len(probes)}
        rundir.write_json(aside / "verified.json", result)
    note(f"merged into {out} ({dtype}); verified: {', '.join(found['name'] for found in checks)}")
    return result


def _compare(
    config: RunConfig, adapter: Path, merged: Path, probes: Sequence[Sample], renderer: Renderer
) -> list[dict[str, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checks = verify.compare_tokenizers(renderer.chat.tokenizer, AutoTokenizer.from_pretrained(merged))
    whole = config.model_copy(update={"model": config.model.model_copy(update={"load_in_4bit": False})})
    engine: Any = registry.load(whole, renderer.chat, registry.Choice("hf", "comparison"), adapter)
    trained = verify.distributions(engine.model.eval(), probes)
    dtype, device = engine.dtype, engine.device
    del engine
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=dtype).to(device).eval()
    return checks + verify.compare_distributions(trained, verify.distributions(model, probes))


def export_run(run: RunDir, config: RunConfig, out: Path | None = None) -> dict[str, Any]:
    """Write the merged folder of a finished run, `export/merged` unless `out` says otherwise.

    Raises:
        RunDirError: the run has no adapter yet, or the folder exists.
    """
    if not run.adapter.is_dir():
        raise RunDirError("has no adapter yet", where=str(run.path), hint="finish it: train --resume")
    beside = run.merged / "verified.json"
    if out is None and beside.is_file() and not run.verified.is_file():  # killed between the two
        found: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        rundir.write_json(run.verified, found)
        return found
    rows = rundir.read_jsonl(run.kept)
    held_out = [row for row in rows if row["split"] == "test"] or rows
    renderer = open_renderer(config.model, config.data)
    probes = renderer.samples([rundir.kept_example(row) for row in held_out[:PROBES]]).samples
    result = export_merged(config, run.adapter, out or run.merged, probes, renderer)
    if out is None:
        rundir.write_json(run.verified, result)
    return result
