"""Training on a CPU: batches without padding, and LoRA layers and attention with backward passes written for it.

`faster_training` changes how a model of the `hf` engine computes, within a context; nothing of it is left on the model
afterwards, so that what is scored is what is saved. The numbers stay those of PEFT and transformers: equal within
rounding, which tests hold. Measured on the embedded base: see bench/NOTES.md.
"""

from cot_unsloth.models.cpu.attention import takes_joined_rows
from cot_unsloth.models.cpu.training import faster_training

__all__ = ["faster_training", "takes_joined_rows"]
