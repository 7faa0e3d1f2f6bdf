"""The `unsloth` engine: FastLanguageModel's fused LoRA kernels under the same interface.

Everything but loading, attaching the adapter and a few trainer fields is the `hf` engine's: same
labels, same counts held against ours, same staged checkpoints. Unsloth must be imported before
transformers, trl and peft, which it patches; `import_unsloth` does it, quietly and without
telemetry. What was really fused is reported from the model, not from the banner.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SWITCHES = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # its telemetry
    "UNSLOTH_AUTO_INSTALL": "0",  # it would run apt-get and git clone by itself
}


def import_unsloth() -> Any:
    """Import unsloth with our switches set; call before transformers is imported."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(tempfile.gettempdir()) / "unsloth_compiled_cache"))
    import unsloth

    return unsloth


import_unsloth()

from cot_unsloth.engines.base import Advance  # noqa: E402  (unsloth comes first)
from cot_unsloth.engines.hf import HfEngine  # noqa: E402
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
            max_seq_length=self.config.data.max_seq_length,
            dtype=self.dtype,
            load_in_4bit=wanted.load_in_4bit,
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
        return import_unsloth().FastLanguageModel.get_peft_model(
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

    def _arguments(self, samples: Sequence[Sample], plan: Any) -> Any:
        arguments = super()._arguments(samples, plan)
        # The model was loaded with Unsloth's own checkpointing; the Trainer must not add its kind.
        arguments.gradient_checkpointing = False
        return arguments

    def generate(
        self, prompts: Sequence[Prompt], plan: Plan, advance: Advance = lambda n, tokens: None
    ) -> list[Completion]:
        """As the `hf` engine, with Unsloth's inference kernels switched on for the while."""
        fast = import_unsloth().FastLanguageModel
        fast.for_inference(self.model)
        try:
            return super().generate(prompts, plan, advance)
        finally:
            fast.for_training(self.model)

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {"fused": fused(self.model)}


def fused(model: Any) -> dict[str, int]:
    """How many layers run which function for QKV, output and MLP, by the function's name."""
    names: Counter[str] = Counter()
    for module in model.modules():
        for attribute in ("apply_qkv", "apply_o"):
            function = getattr(module, attribute, None)
            if function is not None:
                names[f"{attribute}: {getattr(function, '__name__', type(function).__name__)}"] += 1
        if hasattr(module, "gate_proj"):
            names[f"mlp: {getattr(module.forward, '__name__', type(module.forward).__name__)}"] += 1
    return dict(names)
