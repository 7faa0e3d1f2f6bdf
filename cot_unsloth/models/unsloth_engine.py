"""The `unsloth` engine: FastLanguageModel's fused LoRA kernels under the same interface.

Only loading, attaching the adapter and switching to inference differ from the `hf` engine. Unsloth must be imported
before transformers, trl and peft, which it patches; `import_unsloth` does so without telemetry, or raises if it is too
late.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import EngineError, ModelError
from cot_unsloth.core.json_text import parse_json

_SWITCHES = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # its telemetry
    "UNSLOTH_AUTO_INSTALL": "0",  # otherwise its GGUF export runs apt-get and git clone without asking
}
_PATCHED = ("transformers", "trl", "peft")
"""What Unsloth patches on import; a library imported earlier is patched only in part."""


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

from cot_unsloth.core.results import EngineFacts  # noqa: E402
from cot_unsloth.core.types import Completion, Prompt, Sample, SamplingParams  # noqa: E402
from cot_unsloth.models import hf_generation  # noqa: E402
from cot_unsloth.models.adapter_files import local_adapter, starting_adapter  # noqa: E402
from cot_unsloth.models.fusion import fused, note_fusion, why_not_fused  # noqa: E402
from cot_unsloth.models.hf import HfEngine  # noqa: E402
from cot_unsloth.models.new_adapter import layers  # noqa: E402
from cot_unsloth.models.protocols import Advance  # noqa: E402

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What all-linear means to Unsloth, whose kernels need an adapter on each of them."""
VLLM_BATCH = 256
"""Prompts given to vLLM at once. It batches them itself; a killed process loses the answers of one batch."""
_ADAPTER_IDS = itertools.count(1)
"""vLLM identifies adapters by a positive number."""


class UnslothEngine(HfEngine):
    """A model loaded by FastLanguageModel."""

    name = "unsloth"
    has_logprobs = False  # its fast generation was not compared with the model's own probabilities

    _max_length = 0
    """Tokens that the model was loaded for, prompt and answer."""
    _vllm: Any = None
    """The engine that shares the model's weights, with `fast_inference`."""
    _served: Any = None
    """The adapter that vLLM answers with; None for the base."""

    @property
    def _fast(self) -> Any:
        """Unsloth's loader: FastLanguageModel, with fused LoRA kernels, or FastModel if every weight is trained."""
        unsloth = import_unsloth()
        return unsloth.FastModel if self.config.train.full_finetuning else unsloth.FastLanguageModel

    def _from_pretrained(self, name: str, revision: str | None, every_weight: bool) -> Any:
        from transformers import AutoConfig

        settings, dtype = self.config.model, torch.float32 if every_weight else self.dtype
        stored = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        # A model that is stored quantized must be requested as such: the CPU backend loads another model otherwise.
        already = getattr(stored, "quantization_config", None) or {}
        four = settings.load_in_4bit or bool(already.get("load_in_4bit"))
        eight = settings.load_in_8bit or bool(already.get("load_in_8bit"))
        model, _ = self._fast.from_pretrained(
            model_name=name,
            revision=revision,
            trust_remote_code=False,
            use_exact_model_name=True,  # by default it loads its own mirror of the model, and ignores the revision
            max_seq_length=self._load_length(stored.max_position_embeddings),
            dtype=dtype,
            load_in_4bit=four,
            load_in_8bit=eight,
            load_in_16bit=not (four or eight) and dtype != torch.float32,
            full_finetuning=every_weight,
            use_gradient_checkpointing=self._checkpointing(),
            random_state=self.config.train.seed,
            **self._inference(),
        )
        if settings.fast_inference:
            self._vllm = getattr(model, "vllm_engine", None)
            if self._vllm is None:
                raise ModelError("unsloth loaded it without vLLM", where=name, hint="--no-fast-inference")
        return model

    def _load_length(self, positions: int) -> int:
        """max_seq_length to load with: Unsloth cuts off what is longer, in generation too.

        That is a training row, or a prompt of that length with the beginning of an answer and the rest of it; but no
        more than the positions the model has, unless rows are longer, because Unsloth would rescale its RoPE.
        """
        rows, answer = self.config.data.max_seq_length, self.config.evaluate.max_new_tokens
        self._max_length = max(rows, min(rows + 2 * answer, positions))
        return self._max_length

    def _check_lengths(self, lengths: Iterable[tuple[str, int]], sampling: SamplingParams) -> None:
        positions, new = self.context_length or sys.maxsize, sampling.max_new_tokens
        for name, length in lengths:
            if length >= self._max_length:
                raise EngineError(
                    f"{name}: {length} tokens of prompt, the model was loaded for {self._max_length}",
                    hint="--max-seq-length N, or --engine hf",
                )
            if length + new > positions:  # Unsloth's `generate` refuses it too, without a setting to change
                raise EngineError(
                    f"{name}: {length} tokens of prompt and {new} of an answer, the model has {positions} positions",
                    hint="lower --max-new-tokens, or --engine hf",
                )

    def _inference(self) -> dict[str, bool | int | float]:
        """Arguments for vLLM. It reserves memory for adapters up to max_lora_rank, and refuses larger ones."""
        settings, rank = self.config.model, max(64, self.config.lora.lora_r)
        if not settings.fast_inference:
            return {}
        for folder in filter(None, (self.trained_weights, starting_adapter(self.config))):
            adapter = parse_json((folder / "adapter_config.json").read_text(encoding="utf-8"))
            rank = max(rank, adapter["r"], *adapter.get("rank_pattern", {}).values())
        share = settings.gpu_memory_utilization
        return {"fast_inference": True, "gpu_memory_utilization": share, "max_lora_rank": rank}

    def _checkpointing(self) -> str | bool:
        return "unsloth" if self.config.train.gradient_checkpointing else False

    def _attach_adapter(self, samples: Sequence[Sample]) -> Any:
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
            use_dora=lora.use_dora,
            init_lora_weights=lora.init_lora_weights == "default" or lora.init_lora_weights,
            layers_to_transform=layers(self.model, lora),
            use_gradient_checkpointing=self._checkpointing(),
            random_state=self.config.train.seed,
            max_seq_length=self.config.data.max_seq_length,
        )
        note_fusion(adapted)
        return adapted

    def _prepare_quantized(self) -> None:
        """Nothing: Unsloth prepares 4-bit weights itself. PEFT would copy the embedding to float32, in twice its memory."""

    def _continue_adapter(self, folder: Path) -> Any:
        model, checkpointing = super()._continue_adapter(folder), self._checkpointing()
        # As Unsloth itself does with an adapter that it loads: without this, nothing is fused, and its trainers switch
        # gradient checkpointing off. Its CPU backend has nothing to patch.
        patch = getattr(self._fast, "patch_peft_model", None)
        model = model if patch is None else patch(model, use_gradient_checkpointing=checkpointing)
        note_fusion(model)
        return self._fast.for_training(model, use_gradient_checkpointing=checkpointing)

    def adapt_arguments(self, arguments: Any) -> None:
        """Turn the Trainer's gradient checkpointing off: the model was loaded with Unsloth's own, and would do both.

        And keep float32, if that is the type, in float32.
        """
        arguments.gradient_checkpointing = False
        if self.dtype == torch.float32:
            # Read by its trainers alone: by default they switch autocast to 16 bits on where none was asked for.
            os.environ["UNSLOTH_MIXED_PRECISION"] = "no"

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        """As the `hf` engine, with Unsloth's inference kernels switched on; or in vLLM.

        Raises:
            EngineError: a prompt is longer than the model was loaded for, and would be cut; or it leaves no room for an
                answer.
        """
        self._check_lengths(((prompt.id, self.prompt_tokens(prompt)) for prompt in prompts), sampling)
        if self._vllm is not None:
            return self._generate_in_vllm(prompts, sampling, advance)
        self._fast.for_inference(self.model)
        try:
            return super().generate(prompts, sampling, advance)
        finally:
            self._fast.for_training(self.model)

    def answer_ids(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str], sampling: SamplingParams
    ) -> list[list[int]]:
        """As the `hf` engine, with Unsloth's inference kernels switched on; raises as `generate`."""
        self._check_lengths(zip(names, map(len, prompts), strict=True), sampling)
        self._fast.for_inference(self.model)
        try:
            return super().answer_ids(prompts, names, sampling)
        finally:
            self._fast.for_training(self.model)

    def _answers(
        self, prompts: list[list[int]], names: list[str], sampling: SamplingParams
    ) -> Iterator[hf_generation.Finished]:
        return hf_generation.batches(self.model, self.chat, prompts, names, sampling)  # with Unsloth's own `generate`

    def _generate_in_vllm(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance
    ) -> list[Completion]:
        """Generate in vLLM; each prompt has a seed of its own, so that answers do not depend on the batch.

        One that continues a beginning has another, so that budget forcing does not draw the same numbers again.
        """
        import vllm

        done: list[Completion] = []
        for start in range(0, len(prompts), VLLM_BATCH):
            batch = prompts[start : start + VLLM_BATCH]
            outputs = self._vllm.generate(
                [{"prompt_token_ids": self.chat.ids(self.chat.prompt_text(prompt))} for prompt in batch],
                [
                    vllm.SamplingParams(
                        temperature=sampling.temperature,
                        top_p=sampling.top_p if sampling.temperature else 1.0,
                        max_tokens=sampling.max_new_tokens,
                        seed=sampling.seed_of(prompt.id + f"|{len(prompt.prefix)}" * bool(prompt.prefix)),
                        stop_token_ids=sorted(self.chat.stops),
                        detokenize=False,
                    )
                    for prompt in batch
                ],
                use_tqdm=False,
                lora_request=self._served,
            )
            new = [
                self.completion(p, hf_generation.to_stop(list(output.outputs[0].token_ids), self.chat))
                for p, output in zip(batch, outputs, strict=True)
            ]
            done += new
            advance(new)
        return done

    def training_finished(self) -> None:
        """Give vLLM the trained adapter: it shares only the weights of the base."""
        if self._vllm is not None:
            self._adapter_folder = tempfile.TemporaryDirectory(prefix="cot_unsloth-")
            self.model.save_pretrained(self._adapter_folder.name, safe_serialization=True)
            self._serve(Path(self._adapter_folder.name))

    def _load_adapter(self, adapter: Path, *, trainable: bool = False) -> Any:
        folder = local_adapter(adapter)
        if self._vllm is not None:
            self._serve(folder)
        return super()._load_adapter(folder, trainable=trainable)

    @contextlib.contextmanager
    def as_start(self) -> Iterator[None]:
        """As the `hf` engine, also for answers from vLLM."""
        served = self._served
        try:
            with super().as_start():
                start = starting_adapter(self.config)
                if self._vllm is not None and start is not None:
                    self._serve(start)
                yield
        finally:
            self._served = served

    def _serve(self, adapter: Path) -> None:
        from vllm.lora.request import LoRARequest

        self._served = LoRARequest("tuned", next(_ADAPTER_IDS), str(adapter))

    def close(self) -> None:
        """As the `hf` engine; ends vLLM."""
        if self._vllm is not None:
            from unsloth_zoo.vllm_utils import delete_vllm

            self.model, vllm, self._vllm = None, self._vllm, None
            delete_vllm(vllm)
        super().close()

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """As the `hf` engine, also for answers from vLLM."""
        served, self._served = self._served, None
        try:
            with super().as_base():
                yield
        finally:
            self._served = served

    def next_token_accuracy(self, samples: Sequence[Sample]) -> list[list[bool | None]]:
        """As the `hf` engine; Unsloth computes no logits (it fuses them into the loss) unless this variable is set."""
        before = os.environ.get("UNSLOTH_RETURN_LOGITS")
        os.environ["UNSLOTH_RETURN_LOGITS"] = "1"
        try:
            return super().next_token_accuracy(samples)
        finally:
            os.environ.pop("UNSLOTH_RETURN_LOGITS")
            if before is not None:
                os.environ["UNSLOTH_RETURN_LOGITS"] = before

    def _takes_joined_rows(self) -> bool:
        """No: on a GPU Unsloth joins rows itself, and its CPU backend pads them."""
        return False

    def training_context(self, autocast: Any) -> contextlib.AbstractContextManager[None]:
        """None: Unsloth has changed the model as it was loaded."""
        return contextlib.nullcontext()

    @property
    def has_varlen_attention(self) -> bool:
        """Unsloth passes the rows' lengths to every attention that it has for a GPU (FlashAttention, xformers, SDPA)."""
        return self.device == "cuda"

    def facts(self) -> EngineFacts:
        """As the `hf` engine, and which parts of a layer run fused."""
        if self.config.train.full_finetuning:
            return super().facts()  # Unsloth fuses the forward and backward of an adapter
        update = {"fused": fused(self.model), "unfused_because": tuple(why_not_fused(self.model))}
        return super().facts().model_copy(update=update)
