"""The `hf` engine: transformers and PEFT, on a CPU or a GPU.

Loads a model, attaches an adapter, generates, scores tokens, and saves. How weights are trained is decided in `training`,
which gets the model and asks the engine for the few facts that depend on it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import InvariantError, ModelError, cannot_load
from cot_unsloth.core.progress import note
from cot_unsloth.core.results import EngineFacts
from cot_unsloth.core.types import Completion, Prompt, Sample, SamplingParams, StreamedText
from cot_unsloth.models import (
    cpu,
    hf_generation,
    new_adapter,
    next_tokens,
    output_layer,
    peft_adapters,
    quantization,
    techniques,
)
from cot_unsloth.models.adapter_files import base_alone, read_config, starting_adapter
from cot_unsloth.models.devices import free_memory, out_of_memory, pick_device, pick_dtype
from cot_unsloth.models.finite import require_finite
from cot_unsloth.models.position_table import require_positions
from cot_unsloth.models.protocols import AdapterStart, Advance
from cot_unsloth.prompts.chat_template import ChatTemplate, save_tokenizer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.atomic import staged
from cot_unsloth.storage.run_folder import is_full_model

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers_logging.disable_progress_bar()


class HfEngine:
    """A causal language model with at most one adapter on it, or with every weight trained."""

    name = "hf"
    _joins_rows = False
    """Whether the model to train takes batches of joined rows."""
    initial_factors: AdapterStart | None = None
    """The initial factors of the adapter in training, if they are subtracted when it is saved; see `Trainable`."""

    def __init__(self, config: RunConfig, chat: ChatTemplate, trained_weights: Path | None = None) -> None:
        self.config = config
        self.chat = chat
        self.device = pick_device()
        self.dtype = pick_dtype(config.model.dtype, self.device)
        self.trained_weights = trained_weights
        self._is_full_model = is_full_model(trained_weights)
        """Whether every weight was trained, so that the base is not below an adapter but has to be loaded again."""
        self.model = self._load(trained_weights if self._is_full_model else None)
        if not self._is_full_model and not config.train.full_finetuning:
            new_adapter.check_targets(self.model, self.config.lora)
        if trained_weights is not None and not self._is_full_model:
            self.model = self._load_adapter(trained_weights)

    def _load(self, folder: Path | None = None, *, every_weight: bool = False) -> Any:
        """The base, or the full model in `folder`; in float32 if every weight is to be trained."""
        model_config = self.config.model
        name = str(folder or model_config.model_name_or_path)
        revision = None if folder else model_config.model_revision
        try:
            with base_alone(model_path(name)):
                model = self._from_pretrained(model_path(name), revision, every_weight)
        except torch.OutOfMemoryError as error:
            raise out_of_memory("loading the model") from error
        except ModelError:
            raise
        except Exception as error:  # errors of hub, file and format have no common base class
            raise cannot_load(f"cannot be loaded: {error}", error, where=name) from error
        self._check_vocabulary(model, name)
        self._check_bits(model, name)
        quantization.compute_alike(model, self.dtype)
        self._reset_generation_config(model)
        return model

    def _from_pretrained(self, name: str, revision: str | None, every_weight: bool) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32 if every_weight else self.dtype,
            device_map={"": 0} if self.device == "cuda" else None,
            use_safetensors=True,
            trust_remote_code=False,  # by default transformers asks on a terminal whether to run a repository's code
            **quantization.asked_for(self.config.model, self.dtype),
        )

    def _load_adapter(self, adapter: Path, *, trainable: bool = False) -> Any:
        return peft_adapters.load(self.model, adapter, self.config.model.model_name_or_path, trainable=trainable)

    def add_adapter(self, folder: Path, name: str) -> None:
        """Load another adapter beside those that are there; `answering_as` answers with it.

        Raises:
            ModelError: it cannot be loaded, or would change the base below the others.
        """
        own = None if self._is_full_model else self.trained_weights
        for adapter in (folder, own):
            if adapter is not None:
                peft_adapters.check_shares_base(adapter)
        self.model = peft_adapters.load(self.model, folder, self.config.model.model_name_or_path, name=name)

    @contextlib.contextmanager
    def answering_as(self, adapter: str | None, chat: ChatTemplate) -> Iterator[None]:
        """Within the context, the model answers with one of its adapters, or None: as its base; nothing is loaded.

        Args:
            adapter: a name of `add_adapter`, or "default" for the one that it was loaded with.
            chat: the tokenizer, template and stop tokens that go with it.
        """
        before = self.chat
        with peft_adapters.active(self.model, adapter):
            try:
                self._use_chat(chat)
                yield
            finally:
                self._use_chat(before)

    def _use_chat(self, chat: ChatTemplate) -> None:
        if chat is not self.chat:
            self.chat = chat
            self._reset_generation_config(self.model)

    def _check_vocabulary(self, model: Any, name: str) -> None:
        rows, tokens = model.get_input_embeddings().weight.shape[0], len(self.chat.tokenizer)
        if tokens > rows:
            raise ModelError(
                f"its tokenizer has {tokens} tokens, its embedding {rows} rows",
                where=name,
                hint="model and tokenizer do not belong together",
            )

    def _check_bits(self, model: Any, name: str) -> None:
        """Make sure that the weights have the bits of the settings, or those that they are stored in."""
        requested, actual = self.config.model.quantization_bits, quantization.of_weights(model)
        if requested not in (None, actual):
            raise ModelError(
                f"the {self.name} engine loaded it in {actual} bits",
                where=name,
                hint=f"--no-load-in-{requested}bit" + ("" if self.name == "hf" else ", or --engine hf"),
            )
        if self.config.train.full_finetuning and actual < 16:
            raise ModelError(
                f"is stored in {actual} bits, of which every weight cannot be trained",
                where=name,
                hint="name the model that it was made from, or --no-full-finetuning",
            )
        if actual < 16 and self.device == "cpu":
            note(f"{actual}-bit weights on a CPU save memory, but computing with them is slower")

    def _reset_generation_config(self, model: Any) -> None:
        """Replace the sampling that a model brings (Qwen2.5: temperature 0.7, repetition penalty 1.05) by ours alone."""
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(self.chat.stops), pad_token_id=self.chat.tokenizer.pad_token_id
        )
        model.config.pad_token_id = self.chat.tokenizer.pad_token_id

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        """One completion per prompt, in their order; see `hf_generation.answers`."""
        encoded = [self.chat.ids(self.chat.prompt_text(prompt)) for prompt in prompts]
        done: dict[int, Completion] = {}
        for finished in self._answers(encoded, [prompt.id for prompt in prompts], sampling):
            new = {i: self.completion(prompts[i], ids) for i, ids in finished}
            done |= new
            if new:
                advance(list(new.values()))
        return [done[i] for i in range(len(prompts))]

    def answer_ids(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str], sampling: SamplingParams
    ) -> list[list[int]]:
        """New token ids after each prompt, given as ids; see `Trainable`."""
        done: dict[int, list[int]] = {}
        for finished in self._answers([list(prompt) for prompt in prompts], list(names), sampling):
            done |= dict(finished)
        return [done[i] for i in range(len(prompts))]

    def _answers(
        self, prompts: list[list[int]], names: list[str], sampling: SamplingParams
    ) -> Iterator[hf_generation.Finished]:
        return hf_generation.answers(self.model, self.chat, prompts, names, sampling)

    def next_token_accuracy(self, samples: Sequence[Sample]) -> list[list[bool | None]]:
        """Whether each supervised token is the most likely one; row by row, without padding, see `Trainable`."""
        return next_tokens.correct(self.model, samples, self.device)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        return len(self.chat.ids(self.chat.prompt_text(prompt)))

    @property
    def context_length(self) -> int | None:
        """Tokens of a prompt and its answer, as the base's configuration says."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """The completion piece by piece, without the prefix."""
        return hf_generation.stream_text(self.model, self.chat, self.chat.ids(self.chat.prompt_text(prompt)), sampling)

    has_logprobs = True

    def stream_tokens(self, prompt: Prompt, sampling: SamplingParams, most: int) -> Iterator[StreamedText]:
        """As `stream`, with the tokens; see `TokenStreamer`."""
        return hf_generation.stream(self.model, self.chat, self.chat.ids(self.chat.prompt_text(prompt)), sampling, most)

    def completion(self, prompt: Prompt, new: Sequence[int]) -> Completion:
        """The completion that new token ids are; see `Trainable`."""
        stopped = bool(new) and new[-1] in self.chat.stops
        text = self.chat.decode(new[:-1] if stopped else new)
        return Completion(prompt.id, prompt.prefix + text, len(new), "stop" if stopped else "length")

    def attach_trainable_weights(self, samples: Sequence[Sample] = ()) -> Any:
        """A new adapter on the base, or `init_adapter`; with `full_finetuning` the base in float32. See `Trainable`."""
        longest = max((len(sample.ids) for sample in samples), default=0)
        require_positions(self.model, longest, "the rows", "--max-seq-length leaves out longer ones")
        self._drop_adapter()  # of a training run that diverged and was given up, or of an earlier round
        start = starting_adapter(self.config)
        if start is not None:
            self.model = self._continue_adapter(start)
        else:
            self.model = self._load_every_weight() if self.config.train.full_finetuning else self._new_adapter(samples)
        # NEFTune's noise depends on the length of a row: on that of all joined ones, it would be too weak.
        self._joins_rows = self.config.train.neftune_noise_alpha is None and self._takes_joined_rows()
        return self.model

    def use_adapter(self, folder: Path) -> None:
        """Answer with another adapter; see `Trainable`."""
        self._drop_adapter()
        self.model = self._load_adapter(folder)

    def _drop_adapter(self) -> None:
        # By loading the base again: what training did to its modules (4-bit weights prepared, layers replaced) is undone.
        if isinstance(self.model, peft.PeftModel):
            self.close()
            self.model = self._load()
        self.initial_factors = None

    def _takes_joined_rows(self) -> bool:
        return self.device == "cpu" and cpu.takes_joined_rows(self.model, self.config.data.max_seq_length)

    def training_context(self, autocast: torch.dtype | None) -> AbstractContextManager[None]:
        """On a CPU with faster LoRA layers and attention; see `Trainable`."""
        if self.device != "cpu":
            return contextlib.nullcontext()
        return cpu.faster_training(self.model, autocast, joined=self._joins_rows)

    def _load_every_weight(self) -> Any:
        """The base in float32.

        bfloat16 has 8 significant bits, so an update below 0.2% of a weight rounds to nothing; and the loss scaler of
        fp16 refuses 16-bit gradients.
        """
        self._is_full_model = True
        self.close()  # first, so that memory never holds the model twice
        return self._load(every_weight=True)

    def _continue_adapter(self, folder: Path) -> Any:
        settings = read_config(folder)
        note(f"training continues the adapter in {folder} (rank {settings.get('r')}), with its own lora settings")
        self._prepare_quantized()
        return self._load_adapter(folder, trainable=True)

    def _prepare_quantized(self) -> None:
        if quantization.of_weights(self.model) < 16:
            self.model = peft.prepare_model_for_kbit_training(
                self.model, use_gradient_checkpointing=self.config.train.gradient_checkpointing
            )

    def _new_adapter(self, samples: Sequence[Sample]) -> Any:
        techniques.check(self.config, self.name, quantization.of_weights(self.model))
        model = self._attach_adapter(samples)
        self.initial_factors = new_adapter.start_of(model, self.config.lora)
        return model

    def _attach_adapter(self, samples: Sequence[Sample]) -> Any:
        self._prepare_quantized()
        return new_adapter.attach(self.model, self.config, samples)

    @property
    def default_optimizer(self) -> str:
        """Adam: as one operation on a CPU; with its moments in 8 bits on a GPU if the base is quantized."""
        on_gpu = "adamw_8bit" if quantization.of_weights(self.model) < 16 else "adamw_torch"
        return "adamw_torch_fused" if self.device == "cpu" else on_gpu

    def adapt_arguments(self, arguments: Any) -> None:
        """Have the loss computed from the model's own logits, if TRL's default loss would compute others."""
        if getattr(arguments, "loss_type", None) == "chunked_nll" and not output_layer.is_plain(self.model):
            arguments.loss_type = "nll"
            note("the loss is computed from all logits at once: this model has more than a matrix after its last layer")

    def training_finished(self) -> None:
        """Nothing: the model that was trained answers."""

    @property
    def has_varlen_attention(self) -> bool:
        """Whether attention costs the sum of the rows' squared lengths, not the square of the pack's length."""
        return self._joins_rows or "flash" in str(getattr(self.model.config, "_attn_implementation", ""))

    def facts(self) -> EngineFacts:
        """How the model is computed: engine, device, types and sizes."""
        facts = EngineFacts(
            engine=self.name,
            device=self.device,
            dtype=str(self.dtype).removeprefix("torch."),
            weight_bits=quantization.of_weights(self.model),
            trainable_parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        )
        if self.device == "cpu":
            return facts.model_copy(update={"threads": torch.get_num_threads()})
        gpu, peak = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
        return facts.model_copy(update={"gpu": gpu, "peak_gpu_bytes": peak})

    def save(self, folder: Path) -> None:
        """Write the trained weights and the tokenizer; a full model in float32, as it was trained. See `Trainable`."""
        require_finite(
            self.model, "at the end", "there is no checkpoint: start again with --resume and a lower --learning-rate"
        )
        # The Trainer turns it off for gradient checkpointing and it is saved with the config: whoever loads the model
        # would generate without a key-value cache, recomputing the whole prefix for every token.
        self.model.config.use_cache = True
        with staged(folder) as aside:
            self.model.save_pretrained(aside, safe_serialization=True)
            if self.initial_factors is not None:
                self.initial_factors.write_plain(aside)
            save_tokenizer(self.chat, aside)
        if self.initial_factors is not None:
            self.use_adapter(folder)  # on the base as published, so that it is scored as others will run it
        if self._is_full_model:
            self.model.to(self.dtype)  # the type that it will be loaded in, so that it is scored as others will run it

    def close(self) -> None:
        """Give back the memory of the model."""
        self.model = None
        free_memory()

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """Within the context, the model answers as its base, which is loaded again if its weights were changed."""
        if self.initial_factors is not None:
            raise InvariantError("the base below the adapter in training is not the base: save the adapter first")
        adapted = isinstance(self.model, peft.PeftModel)
        if adapted and not peft_adapters.base_is_changed(self.model):
            with self.model.disable_adapter():
                yield
        elif adapted or self._is_full_model:
            with self._apart():
                yield
        else:
            yield

    @contextlib.contextmanager
    def _apart(self, adapter: Path | None = None) -> Iterator[None]:
        """Within the context, the model is the base, loaded again, with an adapter or without."""
        # A GPU with memory for one model may have none for two. bitsandbytes cannot move its weights.
        tuned = self.model if quantization.of_weights(self.model) < 16 else self.model.to("cpu")
        try:
            self.model = self._load()
            self.model = self.model if adapter is None else self._load_adapter(adapter)
            yield
        finally:
            self.close()
            self.model = tuned if quantization.of_weights(tuned) < 16 else tuned.to(self.device)

    @contextlib.contextmanager
    def as_start(self) -> Iterator[None]:
        """Within the context, the model answers as the adapter that training continues (`train.init_adapter`)."""
        folder = starting_adapter(self.config)
        if folder is None:
            raise InvariantError("there is no adapter that training continues")
        if peft_adapters.changes_base(folder) or peft_adapters.base_is_changed(self.model):
            with self._apart(folder):
                yield
        elif isinstance(self.model, peft.PeftModel):  # of a finished run, which is scored again
            with peft_adapters.beside(self.model, folder, self.config.model.model_name_or_path):
                yield
        else:
            self.model = self._load_adapter(folder)
            try:
                yield
            finally:
                self.model = self.model.unload()
