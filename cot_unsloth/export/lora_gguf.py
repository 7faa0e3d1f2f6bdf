"""An adapter as a GGUF file, to be loaded beside any GGUF of its base.

llama.cpp scales each projection by alpha over its rank, with one alpha for the file; so a projection with a
scale of its own (rsLoRA, a pattern) has the difference written into its second factor.
"""

from __future__ import annotations

from pathlib import Path

import gguf

from cot_unsloth.export.gguf_file import Model, tensors, to_pairs


def write(model: Model, file: Path) -> None:
    """Write the adapter in float32: it is small, and nothing is lost."""
    assert model.adapter is not None
    alpha = float(model.adapter.config["lora_alpha"]) or 1.0
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[model.arch])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name(model.name)
    for tensor in tensors(model):
        delta = model.adapter.delta(tensor.source)
        if delta is None:
            continue
        b = delta.b * (delta.scale * delta.a.shape[0] / alpha)
        b = to_pairs(b, model.head_dim) if tensor.heads else b
        writer.add_tensor(f"{tensor.name}.lora_a", delta.a.numpy())
        writer.add_tensor(f"{tensor.name}.lora_b", b.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
