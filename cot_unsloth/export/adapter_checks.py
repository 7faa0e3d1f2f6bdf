"""Checks that an adapter fits its base. Anything that PEFT would ignore, or load as another model, is an error here."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cot_unsloth.core.errors import ModelError
from cot_unsloth.export.adapter_tensors import TOKENS, ModuleTensors
from cot_unsloth.export.adapters import Adapter, is_named, module_of
from cot_unsloth.export.weights import Weights, blocks


def attach_to_base(adapter: Adapter, weights: Weights) -> None:
    """Make sure that the adapter fits this base, and untie the output layer if the adapter does.

    Raises:
        ModelError: it changes a weight that the base does not have, has in another shape, or has only quantized; or it
            lacks one that its settings name.
    """
    adapter.attach(weights)
    _check_saved(adapter, weights)
    _forget_copies(adapter, weights)
    # An output layer of its own: the merged folder then has lm_head.weight and tie_word_embeddings false.
    if weights.tied and adapter.unties():
        weights.untie()
    for name in sorted(adapter.names):
        module, _, of = name.rpartition(".")
        tensors = adapter.tensors.of(module)
        if name not in weights.shapes and tensors.has("lora_B.bias") and of == "bias":
            raise adapter.tensors.cannot(f"lora_bias on {module}, which has no bias in the base: no weight can hold it")
        if name not in weights.shapes:
            raise ModelError(f"the base has no {name}: the adapter belongs to another base", where=str(weights.folder))
        if not weights.is_float(name):
            raise ModelError(
                f"{name} is stored in 4 or 8 bits, so nothing can be merged into it exactly",
                where=str(weights.folder),
                hint="export with the 16-bit base: --model BASE",
            )
        _check_shapes(adapter, module, of, tensors, weights.shapes[name])
    _check_targets(adapter, weights)


def _check_targets(adapter: Adapter, weights: Weights) -> None:
    """Check that exactly the matrices that the settings target have factors: PEFT saves them all, and loads no others."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    try:
        settings = LoraConfig(**adapter.settings.targets)
        check_target_module_exists(settings, "")
    except (ValueError, TypeError, re.error) as error:
        raise adapter.tensors.cannot(f"its target_modules cannot be used: {error}") from error
    if settings.target_modules == "all-linear":  # when it saves, PEFT replaces this by the modules' names
        return
    # Embeddings too: PEFT targets any module that it can wrap, if it is named.
    for module in (module_of(name) for name, shape in weights.shapes.items() if len(shape) == 2):
        has_factors = adapter.tensors.of(module).has_factors
        # PEFT wraps a module only once, for `modules_to_save` if it is named there too.
        saved = adapter.tensors.of(module).has("weight") and is_named(module, adapter.settings.modules_to_save)
        targeted = check_target_module_exists(settings, module) and not saved
        if targeted and not has_factors:
            raise adapter.tensors.cannot(
                f"targets {module} of the base but has no LoRA factors for it",
                "is this the base that it was trained on?",
            )
        if has_factors and not targeted:
            raise adapter.tensors.cannot(
                f"has LoRA factors for {module}, which PEFT ignores: target_modules does not include it"
            )


def _check_saved(adapter: Adapter, weights: Weights) -> None:
    """Check that trained tokens, biases and `modules_to_save` that the settings name are there."""
    if adapter.settings.trainable_token_indices and not any(
        tensors.has(TOKENS) for tensors in adapter.tensors.modules.values()
    ):
        raise adapter.tensors.cannot("names trainable_token_indices but has no trained tokens")
    _check_tied_dora(adapter, weights)
    trained = adapter.settings.bias
    modules = [name.removesuffix(".bias") for name in weights.shapes if name.endswith(".bias")]
    biased = [m for m in modules if trained == "all" or adapter.tensors.of(m).has("lora_A")]
    if trained != "none" and biased and not any(tensors.has("bias") for tensors in adapter.tensors.modules.values()):
        raise adapter.tensors.cannot(f"bias is {trained}, but it has no biases, for example none of {biased[0]}")
    for saved in adapter.settings.modules_to_save:
        in_base = any(is_named(module_of(name), [saved]) for name in weights.shapes)
        if in_base and not any(
            is_named(m, [saved]) and tensors.has("weight") for m, tensors in adapter.tensors.modules.items()
        ):
            raise adapter.tensors.cannot(f"names {saved} in modules_to_save but has no weights for it")


def _check_tied_dora(adapter: Adapter, weights: Weights) -> None:
    """Refuse DoRA that PEFT computes from another weight than the one that it is applied to."""
    ends = [adapter.tensors.of(module_of(name)) for name in (weights.embedding, weights.output)]
    if not weights.tied or not any(tensors.has("lora_magnitude_vector") for tensors in ends):
        return
    # PEFT ties the factors of the two, but each has magnitudes of its own: of columns in the one, of rows in the other.
    if adapter.settings.ensure_weight_tying:
        raise adapter.tensors.cannot(
            "cannot be merged: DoRA of a tied embedding or output layer with ensure_weight_tying"
        )
    # The lengths of the rows are those of the base, whose tokens were not trained.
    if adapter.follows_tokens() and ends[1].has_factors:
        raise adapter.tensors.cannot("cannot be merged: DoRA of an output layer that follows trained tokens")


def _forget_copies(adapter: Adapter, weights: Weights) -> None:
    """Drop weights that equal the base's: PEFT also saves an embedding that has LoRA, and every bias."""
    for module, tensors in adapter.tensors.modules.items():
        for of in ("weight", "bias"):
            name = f"{module}.{of}"
            if name == weights.output and weights.tied and weights.embedding is not None:
                name = weights.embedding
            if not tensors.has(of) or name not in weights.shapes or not weights.is_float(name):
                continue
            tensor = tensors.parts[of]
            if adapter.tensors.shape(tensor) == weights.shapes[name] and all(
                bool((adapter.tensors.rows(tensor, *block).float() == weights.rows(name, *block).float()).all())
                for block in blocks(weights, name)
            ):
                del tensors.parts[of]


def _check_shapes(adapter: Adapter, module: str, of: str, tensors: ModuleTensors, shape: tuple[int, ...]) -> None:
    for part, expected in _expected(adapter, module, of, tensors, shape):
        stored = adapter.tensors.shape(tensors.parts[part])
        if stored != expected:
            resized = " or its vocabulary was resized" if of == "weight" and "embed" in module else ""
            change = _change(adapter, tensors, of, stored)
            raise ModelError(
                f"the adapter belongs to another base{resized}: it changes {change}, but the weight of {module} is {shape}",
                where=str(adapter.folder),
            )
    if of == "weight" and tensors.has(TOKENS) and not all(0 <= i < shape[0] for i in adapter.token_rows(module)):
        raise adapter.tensors.cannot(f"trainable_token_indices of {module} go beyond its {shape[0]} rows")


def _expected(
    adapter: Adapter, module: str, of: str, tensors: ModuleTensors, shape: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The shape of each part, given that of the weight."""
    rank = adapter.settings.rank(module)
    rows, columns = shape[0], shape[-1]
    if adapter.is_transposed(module):
        rows, columns = columns, rows
    shapes: dict[str, tuple[int, ...]] = {of: shape}
    if of == "bias":
        shapes["lora_B.bias"] = shape
    else:
        embedding = tensors.has("lora_embedding_A")
        # Of an embedding, PEFT stores factors as (r, tokens) and (width, r), and DoRA's magnitude by column.
        shapes |= {
            "lora_A": (rank, columns), "lora_B": (rows, rank), "lora_embedding_A": (rank, rows),
            "lora_embedding_B": (columns, rank), "lora_magnitude_vector": (columns if embedding else rows,),
        }  # fmt: skip
        if tensors.has(TOKENS):
            shapes[TOKENS] = (len(adapter.token_rows(module)), columns)
    yield from ((part, expected) for part, expected in shapes.items() if tensors.has(part))


def _change(adapter: Adapter, tensors: ModuleTensors, of: str, stored: tuple[int, ...]) -> tuple[int, ...]:
    if of == "weight" and tensors.has("lora_A"):
        return adapter.tensors.shape(tensors.parts["lora_B"])[0], adapter.tensors.shape(tensors.parts["lora_A"])[1]
    return stored
