"""An adapter as a GGUF file, to be loaded beside any GGUF of its base.

llama.cpp multiplies each projection by alpha over its rank, with one alpha for the file (`adapter.lora.alpha`). If a
projection has another scale (rsLoRA: alpha / sqrt(r), or a pattern's own), the ratio is multiplied into its factor B.
"""

from __future__ import annotations

from pathlib import Path

import gguf

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export.gguf.writer import tensors, to_pairs
from cot_unsloth.export.model import Model


def check(model: Model) -> None:
    """Make sure that the adapter can be written.

    Raises:
        ModelError: it contains something that a llama.cpp adapter cannot represent, which is named.
    """
    assert model.adapter is not None
    unsupported = [f"{kind} ({module})" for kind, module in model.adapter.kinds().items()]
    if not unsupported and (fixed := model.adapter.untied_modules()):
        unsupported = [f"LoRA of {fixed[0]}, whose weight the base ties to another layer"]
    if unsupported:
        raise ModelError(
            f"a GGUF adapter cannot hold {', '.join(unsupported)}",
            where=str(model.adapter.folder),
            hint="use --gguf q8_0 or --merged",
            name="not_for_lora_gguf",
        )


def write(model: Model, file: Path) -> None:
    """Write the adapter in float32: it is small, and nothing is rounded."""
    assert model.adapter is not None
    alpha = model.adapter.settings.lora_alpha or 1.0  # llama.cpp reads an alpha of 0 as a scale of 1
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[model.arch])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name(model.name)
    for tensor in tensors(model):
        low = model.adapter.low_rank(tensor.source)
        if low is None:
            continue
        # llama.cpp computes alpha / rank * B @ A; with this B it is scale * B @ A.
        a, b = low.a, low.b * (low.scale * low.a.shape[0] / alpha)
        # Rows of B are rows of the weight, which a full GGUF permutes; A has the weight's columns, which keep their
        # order.
        b = to_pairs(b, model.head_dim) if tensor.heads else b
        if tensor.name == "token_embd.weight":  # llama.cpp looks up rows of A and multiplies them by B
            a, b = b, a.T
        writer.add_tensor(f"{tensor.name}.lora_a", a.contiguous().numpy())
        writer.add_tensor(f"{tensor.name}.lora_b", b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
