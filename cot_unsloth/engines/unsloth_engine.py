"""The `unsloth` engine: FastLanguageModel's fused LoRA kernels under the same interface.

Everything but loading, attaching the adapter and a few trainer fields is the `hf` engine's: same
labels, same counts held against ours, same staged checkpoints. Unsloth must be imported before
transformers, trl and peft, which it patches; `import_unsloth` does it or says that it is too late,
without telemetry. What was really fused is reported from the model, not from the banner.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.errors import EngineError

_SWITCHES = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # its telemetry
    "UNSLOTH_AUTO_INSTALL": "0",  # it would run apt-get and git clone by itself
}
_PATCHED = ("transformers", "trl", "peft")
"""What Unsloth changes as it is imported; what was imported before it is not changed whole."""


def import_unsloth() -> Any:
    """Import unsloth with our switches set.

    Raises:
        EngineError: what it patches was imported before it.
    """
    if "unsloth" not in sys.modules:
        early = [name for name in _PATCHED if name in sys.modules]
        if early:
            raise EngineError(
                f"unsloth has to be imported before {' and '.join(early)}, which it patches",
                where="model.engine",
                hint="put `import unsloth` at the top of your program, or --engine hf",
            )
        for name, value in _SWITCHES.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(tempfile.gettempdir()) / "unsloth_compiled_cache"))
    import unsloth

    return unsloth


import_unsloth()

import torch  # noqa: E402  (unsloth comes first)

from cot_unsloth.engines.base import Advance  # noqa: E402
from cot_unsloth.engines.hf import HfEngine  # noqa: E402
from cot_unsloth.progress import note  # noqa: E402
from cot_unsloth.render import model_path  # noqa: E402
from cot_unsloth.values import Completion, Plan, Prompt, Sample  # noqa: E402

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What all-linear means to Unsloth, which fuses only when all of them are adapted."""


class UnslothEngine(HfEngine):
    """A model loaded by FastLanguageModel."""

    name = "unsloth"

    def _from_pretrained(self) -> Any:
        wanted = self.config.model
        model, _ = import_unsloth().FastLanguageModel.from_pretrained(
            model_name=model_path(wanted.model_name_or_path),
            revision=wanted.model_revision,
            use_exact_model_name=True,  # it would take a mirror of its own in its place, and drop the revision
            max_seq_length=self.config.data.max_seq_length,
            dtype=self.dtype,
            load_in_4bit=wanted.load_in_4bit,
            load_in_8bit=wanted.load_in_8bit,
            load_in_16bit=not wanted.quantized and self.dtype != torch.float32,
            use_gradient_checkpointing=self._checkpointing(),
            random_state=self.config.train.seed,
            max_lora_rank=max(64, self.config.lora.lora_r),
        )
        return model

    def _checkpointing(self) -> str | bool:
        return "unsloth" if self.config.train.gradient_checkpointing else False

    def _attach_adapter(self) -> Any:
        lora = self.config.lora
        modules = PROJECTIONS if lora.target_modules == ("all-linear",) else lora.target_modules
        adapted = import_unsloth().FastLanguageModel.get_peft_model(
            self.model,
            r=lora.lora_r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=list(modules),
            bias="none",
            use_rslora=lora.use_rslora,
            use_gradient_checkpointing=self._checkpointing(),
            random_state=self.config.train.seed,
            max_seq_length=self.config.data.max_seq_length,
        )
        _tell_fusion(adapted)
        return adapted

    def _arguments(self, samples: Sequence[Sample], plan: Any) -> Any:
        arguments = super()._arguments(samples, plan)
        # The model was loaded with Unsloth's own checkpointing; the Trainer must not add its kind.
        arguments.gradient_checkpointing = False
        return arguments

    def generate(self, prompts: Sequence[Prompt], plan: Plan, advance: Advance = lambda done: None) -> list[Completion]:
        """As the `hf` engine, with Unsloth's inference kernels switched on for the while."""
        fast = import_unsloth().FastLanguageModel
        fast.for_inference(self.model)
        try:
            return super().generate(prompts, plan, advance)
        finally:
            fast.for_training(self.model)

    def foreseen(self, samples: Sequence[Sample]) -> list[list[bool | None]]:
        """As the `hf` engine; Unsloth makes no logits unless it is told to."""
        before = os.environ.get("UNSLOTH_RETURN_LOGITS")
        os.environ["UNSLOTH_RETURN_LOGITS"] = "1"
        try:
            return super().foreseen(samples)
        finally:
            os.environ.pop("UNSLOTH_RETURN_LOGITS")
            if before is not None:
                os.environ["UNSLOTH_RETURN_LOGITS"] = before

    def _has_flash_attention(self) -> bool:
        # Unsloth keeps the rows of a pack apart by their lengths in every attention that it has for a GPU.
        return self.device == "cuda"

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {"fused": fused(self.model), "unfused_because": why_not_fused(self.model)}


def _layers(model: Any) -> list[Any]:
    """The blocks of a decoder, whatever wraps it."""
    return [module for module in model.modules() if hasattr(module, "self_attn") and hasattr(module, "mlp")]


def _function_of(thing: Any) -> str:
    """The name of a function, of a bound one too."""
    found = getattr(thing, "__func__", thing)
    return str(getattr(getattr(found, "func", found), "__name__", ""))


_FUSED: dict[str, Callable[[Any], bool]] = {
    "qkv": lambda layer: _function_of(getattr(layer.self_attn, "apply_qkv", None)) == "apply_lora_qkv",
    "output": lambda layer: _function_of(getattr(layer.self_attn, "apply_o", None)) == "apply_lora_o",
    "mlp": lambda layer: _function_of(layer.mlp.forward).startswith("apply_lora_mlp"),
}
"""How a layer shows that Unsloth's kernel, and not PEFT's forward, runs one of its three places."""


def fused(model: Any) -> dict[str, tuple[int, int]]:
    """In how many layers each place is fused, of how many there are: `{"qkv": (28, 28), ...}`."""
    layers = _layers(model)
    return {place: (sum(map(is_fused, layers)), len(layers)) for place, is_fused in _FUSED.items()}


_PLACES = {"qkv": ("q_proj", "k_proj", "v_proj"), "output": ("o_proj",), "mlp": ("gate_proj", "up_proj", "down_proj")}


def why_not_fused(model: Any) -> list[str]:
    """What in the settings or in the model keeps PEFT's own forward in place of a fused one."""
    layers = _layers(model)
    config = next(iter(getattr(model, "peft_config", {}).values()), None)
    if config is None or not layers:
        return []
    reasons = []
    if config.use_dora:
        reasons.append("DoRA is not fused")
    if config.bias != "none":
        reasons.append(f"an adapter with bias ({config.bias}) is not fused")
    first = layers[0]
    modules = {name: module for part in (first.self_attn, first.mlp) for name, module in part.named_children()}
    if getattr(modules["q_proj"], "weight", torch.empty(0)).dtype == torch.float32:
        reasons.append("a base in float32 is not fused")
    for names in _PLACES.values():
        bare = [name for name in names if name in modules and not hasattr(modules[name], "lora_A")]
        biased = [name for name in names if getattr(modules.get(name), "bias", None) is not None]
        if bare:
            reasons.append(f"{', '.join(bare)} has no adapter")
        if biased:
            reasons.append(f"{', '.join(biased)} has a bias in the base")
    return reasons


def _tell_fusion(model: Any) -> None:
    """Say what runs fused, and why the rest does not."""
    counts = fused(model)
    note("fused by unsloth: " + ", ".join(f"{place} in {n} of {of} layers" for place, (n, of) in counts.items()))
    if any(n < of for n, of in counts.values()):
        reasons = why_not_fused(model) or ["unsloth does not say why"]
        note(f"not fused, so PEFT's own forward runs there: {'; '.join(reasons)}")
