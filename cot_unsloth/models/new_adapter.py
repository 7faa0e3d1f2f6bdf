"""Puts a new adapter on a base: its settings, its initialization, and what it took out of the base's weights.

PiSSA and OLoRA move the main directions of each weight W into the factors, so that the adapter is trained on W - s·B₀A₀, and
LoftQ begins with the error of 4 bits in them. What such a run has learned is s·(BA - B₀A₀), which is what is saved: factors of
twice the rank, on the base as it was published. The difference needs no knowledge of how A₀ and B₀ came about, so that every
reader of a LoRA takes it: `evaluate`, `chat`, `export`, other programs, and a run that is resumed.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from transformers.pytorch_utils import Conv1D

from cot_unsloth.config import LoraConfig, RunConfig
from cot_unsloth.config.techniques import initialization, layer_numbers
from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import IGNORE, Sample
from cot_unsloth.models import vera
from cot_unsloth.models.adapter_files import CONFIG, WEIGHTS
from cot_unsloth.models.protocols import AdapterStart
from cot_unsloth.prompts.tokenizer import model_path

ADAPTER = "default"
"""PEFT's name of an adapter that is not given one."""
_TAKEN_OUT = ("pissa", "olora", "loftq")
_EVA_ROWS, _EVA_BATCH = 256, 8
"""Training rows whose activations EVA decomposes, and rows at a time; it stops earlier when its directions have converged."""


def attach(model: Any, config: RunConfig, samples: Sequence[Sample] = ()) -> Any:
    """A PEFT model of `model` with a new adapter; the weights of `model` may change.

    Args:
        model: the base, loaded.
        config: the settings.
        samples: training rows, for an adapter that begins with their activations (EVA); without them it begins at random.

    Raises:
        ModelError: the base cannot take it.
    """
    lora, init = config.lora, initialization(config.lora.init_lora_weights)
    if lora.use_vera:
        return _attached(model, vera.settings(lora, *_targets(model, lora), seed=config.train.seed))
    if init in ("pissa", "olora"):
        note(f"{lora.init_lora_weights}: decomposing the base's weights")
    adapted = _attached(model, _peft_settings(model, lora))
    _check_ranks(adapted)
    _check_experts(adapted, config)
    if init == "eva" and samples:
        _begin_with_activations(adapted, samples)
    if init == "loftq":
        _begin_with_error(adapted, config)
    # From here on it is any LoRA: a copy of it, or the same loaded again, must not decompose the base once more.
    adapted.peft_config[ADAPTER].init_lora_weights = True
    adapted.peft_config[ADAPTER].eva_config = None
    return adapted


def _attached(model: Any, settings: peft.PeftConfig) -> Any:
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"cannot take the adapter: {error}", where="lora.target_modules") from error


def linear_names(model: Any) -> set[str]:
    """Last names of the linear modules of a model that can take an adapter."""
    linear = (
        name for name, module in model.named_modules() if hasattr(module, "in_features") or type(module) is Conv1D
    )
    names = {name.rpartition(".")[2] for name in linear}
    # Often tied to the embedding; an export could not merge an adapter into one of the two.
    return names - {"lm_head"}


def check_targets(model: Any, lora: LoraConfig) -> None:
    """Make sure that every target module exists: PEFT only raises if none of them does.

    Raises:
        ModelError: one does not.
    """
    linear = linear_names(model)
    absent = [name for name in lora.target_modules if name != "all-linear" and name.rpartition(".")[2] not in linear]
    if absent:
        raise ModelError(
            f"the model has no module {', '.join(absent)}",
            where="lora.target_modules",
            hint=f"it has {', '.join(sorted(linear))}",
        )


def layers(model: Any, lora: LoraConfig) -> list[int] | None:
    """The numbers of the layers to adapt; None for all.

    Raises:
        ModelError: the model has no such layer.
    """
    if not lora.layers_to_transform:
        return None
    try:
        return layer_numbers(lora.layers_to_transform, model.config.get_text_config().num_hidden_layers)
    except ValueError as error:
        raise ModelError(str(error), where="lora.layers_to_transform", name="no_such_layer") from error


def _targets(model: Any, lora: LoraConfig) -> tuple[str | list[str], list[int] | None]:
    """The modules to adapt, and the numbers of their layers; None for all."""
    all_linear, numbers = lora.target_modules == ("all-linear",), layers(model, lora)
    if all_linear and numbers is None:
        return "all-linear", None
    # PEFT takes all-linear only for all layers.
    return sorted(linear_names(model)) if all_linear else list(lora.target_modules), numbers


def _peft_settings(model: Any, lora: LoraConfig) -> peft.LoraConfig:
    init = lora.init_lora_weights
    targets, numbers = _targets(model, lora)
    return peft.LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        # The error of 4 bits is put in later, into factors that begin as usual.
        init_lora_weights=True if init in ("default", "loftq") else init,
        # rho 1: every module keeps its rank; a resumed run then only needs the factors.
        eva_config=peft.EvaConfig(rho=1.0) if init == "eva" else None,
        target_modules=targets,
        layers_to_transform=numbers,
        bias="none",
        task_type="CAUSAL_LM",
    )


def lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers of the adapter, each with its name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def _check_ranks(model: Any) -> None:
    """A decomposition has no more directions than the smaller side of a weight; PEFT then makes a smaller adapter."""
    for name, layer in lora_layers(model):
        rank = layer.lora_A[ADAPTER].weight.shape[0]
        if rank < layer.r[ADAPTER]:  # of a layer of experts, it is the sum of their ranks
            raise ModelError(
                f"{name.removeprefix('base_model.model.')} has only {rank} directions, fewer than the rank",
                where="lora.lora_r",
                hint=f"--lora-r {rank}",
            )


def _check_experts(model: Any, config: RunConfig) -> None:
    """PEFT adapts the experts of a mixture as one parameter, if `target_modules` names their projections.

    Raises:
        ModelError: it does, and the settings ask for a merged folder, which cannot be written from such an adapter.
    """
    experts = next((name for name, layer in lora_layers(model) if isinstance(layer, ParamWrapper)), None)
    if experts is not None and config.export.merged:
        raise ModelError(
            f"adapts the experts ({experts.removeprefix('base_model.model.')}), which cannot be merged into the base",
            where="lora.target_modules",
            hint="name the modules of attention, --target-modules q_proj,k_proj,v_proj,o_proj; or --no-merged",
            name="adapter_not_folded",
        )


def _begin_with_activations(model: Any, samples: Sequence[Sample]) -> None:
    """EVA (arXiv 2410.07170): A begins as the main directions of each layer's inputs at supervised tokens."""
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    note("eva: decomposing the activations of training rows")
    step = max(1, len(samples) // _EVA_ROWS)
    rows = [samples[i] for i in range(0, len(samples), step)][:_EVA_ROWS]
    device, was_training = model.device, model.training
    batches = [_padded(rows[i : i + _EVA_BATCH], device) for i in range(0, len(rows), _EVA_BATCH)]
    model.eval()
    initialize_lora_eva_weights(
        model,
        batches,
        forward_fn=lambda m, batch: m(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]),
        show_progress_bar=False,
    )
    model.train(was_training)


def _padded(rows: Sequence[Sample], device: Any) -> dict[str, torch.Tensor]:
    """Rows padded on the right: token ids, attention mask and labels, each (rows, longest)."""
    longest = max(len(row.ids) for row in rows)
    columns = {
        "input_ids": [[*row.ids, *[0] * (longest - len(row.ids))] for row in rows],
        "attention_mask": [[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows],
        "labels": [[*row.labels, *[IGNORE] * (longest - len(row.labels))] for row in rows],
    }
    return {name: torch.tensor(values, device=device) for name, values in columns.items()}


def _begin_with_error(model: Any, config: RunConfig) -> None:
    """LoftQ (arXiv 2310.08659), one iteration: s·B₀A₀ is the best approximation of what 4 bits lost of each weight.

    PEFT's `replace_lora_weights_loftq` (0.21) needs a CUDA build of torch, and leaves out the scale s.
    """
    from peft.utils.integrations import dequantize_module_weight

    note("loftq: decomposing what the base's weights lose in 4 bits")
    with _stored_weights(config) as read:
        for name, layer in lora_layers(model):
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            quantized = dequantize_module_weight(layer.get_base_layer()).float()
            stored = read(f"{name.removeprefix('base_model.model.')}.weight").to(quantized)
            if stored.shape != quantized.shape:
                raise ModelError("LoftQ needs a base that is stored in 16 or 32 bits", where="lora.init_lora_weights")
            u, lengths, v = torch.linalg.svd(stored - quantized, full_matrices=False)
            roots = (lengths[: len(a)] / layer.scaling[ADAPTER]).sqrt()
            a.data = (roots[:, None] * v[: len(a)]).contiguous()
            b.data = (u[:, : len(a)] * roots).contiguous()


@contextlib.contextmanager
def _stored_weights(config: RunConfig) -> Iterator[Callable[[str], torch.Tensor]]:
    """Read the weights of the base as they are stored, by name."""
    from huggingface_hub import snapshot_download
    from safetensors import safe_open

    folder = Path(model_path(config.model.model_name_or_path))
    if not folder.is_dir():
        name, revision = config.model.model_name_or_path, config.model.model_revision
        folder = Path(snapshot_download(name, revision=revision, allow_patterns="*.safetensors"))
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(safe_open(f, "pt")) for f in sorted(folder.glob("*.safetensors"))]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (no dictionary)

        def read(name: str) -> torch.Tensor:
            if name not in where:
                raise ModelError(f"its files hold no {name}", where=str(folder))
            tensor: torch.Tensor = where[name].get_tensor(name)
            return tensor

        yield read


def start_of(model: Any, lora: LoraConfig) -> AdapterStart | None:
    """The initial state that saving a newly attached adapter needs; None if PEFT saves it correctly itself."""
    return vera.SharedProjections(model) if lora.use_vera else InitialFactors.of(model, lora.init_lora_weights)


@dataclass(frozen=True)
class InitialFactors:
    """The initial factors of an adapter whose product is subtracted when it is saved."""

    model: Any
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """A₀ (rank, in) and B₀ (out, rank) by the name of the layer."""
    changed_base: bool
    """Whether the base is without their product."""

    @classmethod
    def of(cls, model: Any, init: str) -> InitialFactors | None:
        """The initial factors of a newly attached adapter; None if nothing has to be subtracted for its initialization."""
        kind = initialization(init)
        if kind not in _TAKEN_OUT:
            return None
        factors = {
            name: (layer.lora_A[ADAPTER].weight.detach().clone(), layer.lora_B[ADAPTER].weight.detach().clone())
            for name, layer in lora_layers(model)
        }
        return cls(model, factors, changed_base=kind != "loftq")

    def write_plain(self, folder: Path) -> None:
        """Rewrite an adapter saved by PEFT so that it fits the base as published: factors [A; A₀] and [B, -B₀]."""
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        for name, (a, b) in self.factors.items():
            down, up = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            tensors[down] = torch.cat([tensors[down], a.to(tensors[down])], 0)
            tensors[up] = torch.cat([tensors[up], -b.to(tensors[up])], 1)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        settings = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        settings["r"] *= 2
        # So that the scale, alpha / rank or alpha / sqrt(rank), stays as it is.
        settings["lora_alpha"] *= math.sqrt(2) if settings.get("use_rslora") else 2
        (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")

    def resume(self, checkpoint: Path) -> None:
        """Set the adapter to one that `write_plain` wrote, and the base to the one it was trained on.

        That is this one on the same machine. On another, a decomposition may differ in its last digits or in the signs of its
        directions: then the base gets its own factors back, and is without those of the checkpoint instead.
        """
        from safetensors.torch import load_file

        tensors = load_file(checkpoint / WEIGHTS)
        with torch.no_grad():
            for name, layer in lora_layers(self.model):
                a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                (down, a0), (up, b0) = (
                    tensors[f"{name}.lora_A.weight"].to(a).chunk(2, 0),
                    tensors[f"{name}.lora_B.weight"].to(b).chunk(2, 1),
                )
                a.copy_(down)
                b.copy_(up)
                mine_a, mine_b = self.factors[name]
                if torch.equal(mine_a, a0) and torch.equal(mine_b, -b0):
                    continue
                if self.changed_base:
                    weight, scale = layer.get_base_layer().weight, layer.scaling[ADAPTER]
                    difference = scale * mine_b @ mine_a + scale * b0 @ a0  # b0 is negative
                    # GPT-2 stores its weights as (in, out).
                    difference = difference.T if layer.fan_in_fan_out else difference
                    weight.copy_((weight.float() + difference).to(weight.dtype))
                mine_a.copy_(a0)
                mine_b.copy_(-b0)
