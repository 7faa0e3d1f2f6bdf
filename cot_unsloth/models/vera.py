"""VeRA (Kopiczko et al. 2024, arXiv 2310.11454): two random matrices for all layers, and trained scales of their directions.

W becomes W + diag(b) B diag(d) A, with A and B drawn once and shared by all layers, and vectors b and d trained for each. That is
LoRA with the factors diag(d) A and diag(b) B, which is what is saved: exact, for every reader of a LoRA, and as large as one of the
rank. What it was made of lies beside it, so that training continues with the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.vera import VeraLayer

from cot_unsloth.config import LoraConfig
from cot_unsloth.models.adapter_files import CONFIG, DEFAULT_ADAPTER, WEIGHTS

PARTS = "vera.safetensors"
"""A and B, and d and b of each layer."""


def settings(lora: LoraConfig, targets: str | list[str], layers: list[int] | None, seed: int) -> peft.VeraConfig:
    """PEFT's settings; A and B are drawn from the seed."""
    return peft.VeraConfig(
        r=lora.lora_r,
        vera_dropout=lora.lora_dropout,
        projection_prng_key=seed,
        target_modules=targets,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )


@dataclass(frozen=True)
class SharedProjections:
    """A VeRA adapter in training; see `AdapterStart`."""

    model: Any

    def _layers(self) -> Iterator[tuple[str, Any]]:
        """The layers of the adapter, each with its name."""
        for name, module in self.model.named_modules():
            if isinstance(module, VeraLayer) and DEFAULT_ADAPTER in module.vera_lambda_d:
                yield name, module

    def _parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """A (rank, most inputs), B (most outputs, rank), and of each layer d (rank,) and b (outputs,)."""
        for number, (name, layer) in enumerate(self._layers()):
            if number == 0:
                yield from (("A", layer.vera_A[DEFAULT_ADAPTER]), ("B", layer.vera_B[DEFAULT_ADAPTER]))
            yield f"{name}.d", layer.vera_lambda_d[DEFAULT_ADAPTER]
            yield f"{name}.b", layer.vera_lambda_b[DEFAULT_ADAPTER]

    def write_plain(self, folder: Path) -> None:
        """Replace what PEFT saved by a LoRA of the same change, with the trained vectors beside it."""
        from safetensors.torch import save_file

        parts = {name: part.detach().cpu().clone().contiguous() for name, part in self._parts()}
        tensors = {}
        for name, layer in self._layers():
            down, up = parts["A"][:, : layer.in_features], parts["B"][: layer.out_features]
            tensors[f"{name}.lora_A.weight"] = (parts[f"{name}.d"][:, None] * down).contiguous()
            tensors[f"{name}.lora_B.weight"] = (parts[f"{name}.b"][:, None] * up).contiguous()
        used = self.model.peft_config[DEFAULT_ADAPTER]
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        save_file(parts, folder / PARTS)
        (folder / CONFIG).unlink()
        peft.LoraConfig(
            r=used.r,
            lora_alpha=used.r,
            target_modules=used.target_modules,
            layers_to_transform=used.layers_to_transform,
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=used.base_model_name_or_path,
            revision=used.revision,
        ).save_pretrained(str(folder))

    def resume(self, checkpoint: Path) -> None:
        """Set matrices and vectors to those of a checkpoint: another version of torch may draw others from the seed."""
        from safetensors.torch import load_file

        stored = load_file(checkpoint / PARTS)
        with torch.no_grad():
            for name, part in self._parts():
                part.copy_(stored[name])
