"""Three protocols for loaded models.

A `Generator` answers prompts; a `Streamer` also answers token by token; a `Trainable` also holds weights that can be
trained, scored and saved. Evaluation, chat, server and training use only these, so that every engine fits them.
To add an engine that trains, implement `Trainable` and register it in `config.choices`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cot_unsloth.config import RunConfig
from cot_unsloth.core.results import EngineFacts
from cot_unsloth.core.types import Completion, Prompt, Sample, SamplingParams, StreamedText
from cot_unsloth.prompts.chat_template import ChatTemplate

Advance = Callable[[Sequence[Completion]], None]
"""Called with the completions that were finished since the last call."""


@runtime_checkable
class Generator(Protocol):
    """Answers prompts."""

    name: str
    """The engine's name, as in `model.engine`."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = ...) -> list[Completion]:
        """One completion per prompt, in the order of the prompts.

        Raises:
            EngineError: it cannot answer. Completions passed to `advance` are kept.
        """
        ...


@runtime_checkable
class Streamer(Generator, Protocol):
    """A Generator that gives its answer while it is generated.

    A prompt without messages is its prefix: a text to be continued as it is, without a chat template.
    """

    @property
    def context_length(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None if the model does not say."""
        ...

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        """The completion in pieces, without the prompt's prefix. Closing the iterator stops it.

        A piece is a token; one of another number of tokens is a `CountedText`, so that the end at `max_new_tokens` is known.
        """
        ...

    def prompt_tokens(self, prompt: Prompt) -> int:
        """Number of tokens of a prompt, prefix included."""
        ...


@runtime_checkable
class TokenStreamer(Streamer, Protocol):
    """A Streamer that also gives the log-probability of each token that it writes."""

    @property
    def has_logprobs(self) -> bool:
        """Whether it does so exactly; else `stream_tokens` is not called."""
        ...

    def stream_tokens(self, prompt: Prompt, sampling: SamplingParams, most: int) -> Iterator[StreamedText]:
        """The completion as `stream` gives it, with its tokens but the one that ends the turn.

        Args:
            prompt: as for `stream`.
            sampling: as for `stream`.
            most: number of the likeliest tokens to give in the place of each.

        Raises:
            LogprobsError: of a token of this answer it is not known.
        """
        ...


class AdapterStart(Protocol):
    """The initial state of an adapter in training, if its base differs from the published one; see `models.new_adapter`."""

    def write_plain(self, folder: Path) -> None:
        """Rewrite an adapter saved in a folder so that it fits the base as published."""
        ...

    def resume(self, checkpoint: Path) -> None:
        """Set the adapter in training to one that `write_plain` wrote."""
        ...


@runtime_checkable
class Trainable(Generator, Protocol):
    """A Generator whose weights can be trained.

    Training itself is in `training`: a method takes the model from `attach_trainable_weights`, changes its weights, and
    the engine then holds, scores and saves them.
    """

    config: RunConfig
    chat: ChatTemplate
    """Tokenizer and chat template."""
    device: str
    """cuda or cpu."""
    dtype: Any
    """The torch.dtype that the base computes in."""
    initial_factors: AdapterStart | None
    """Set while an adapter is trained that `save` and checkpoints must write in another form than PEFT has it in memory."""

    def attach_trainable_weights(self, samples: Sequence[Sample] = ()) -> Any:
        """The `torch.nn.Module` to train: the base with a new adapter or `init_adapter`, or, with `full_finetuning`, in float32.

        Draws the adapter's initial weights from torch's global generator: seed it before. Weights of an earlier
        training are dropped.

        Args:
            samples: training rows, for an adapter initialized from them (EVA); empty if a checkpoint is loaded afterwards.

        Raises:
            ModelError: the base cannot take the adapter, or the engine cannot train the technique.
        """
        ...

    def training_context(self, autocast: Any) -> AbstractContextManager[None]:
        """The context to train the model in, which may compute faster than the one that answers.

        Args:
            autocast: the torch.dtype that autocast computes in; None without autocast.
        """
        ...

    def adapt_arguments(self, arguments: Any) -> None:
        """Change the `transformers.TrainingArguments` for things that the engine does itself."""
        ...

    def training_finished(self) -> None:
        """Called when the weights are trained, before the model answers again."""
        ...

    @property
    def default_optimizer(self) -> str:
        """The `optim` of transformers to use for `train.optim: auto`."""
        ...

    @property
    def has_varlen_attention(self) -> bool:
        """Whether attention handles the rows of a pack one by one, so that long packs cost no more than short ones."""
        ...

    def facts(self) -> EngineFacts:
        """How the model is computed (device, types, sizes, fused kernels), for the fit report."""
        ...

    def answer_ids(
        self, prompts: Sequence[Sequence[int]], names: Sequence[str], sampling: SamplingParams
    ) -> list[list[int]]:
        """New token ids after each prompt, up to and with the stop token.

        Args:
            prompts: token ids of each.
            names: distinct for each prompt; with the seed, they decide what is sampled where the engine can do so.
            sampling: how.
        """
        ...

    def completion(self, prompt: Prompt, new: Sequence[int]) -> Completion:
        """The completion that the new token ids after a prompt are."""
        ...

    def next_token_accuracy(self, samples: Sequence[Sample]) -> list[list[bool | None]]:
        """For each token of each sample, whether it is the model's most likely one after those before it.

        None for tokens that carry no loss, and for the first one.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights and the tokenizer, completely or not at all.

        An adapter as PEFT saves it, a full model as transformers does; safetensors in both cases.

        Raises:
            EngineError: a weight is not finite.
        """
        ...

    def close(self) -> None:
        """Free the model's memory. It cannot be used afterwards."""
        ...

    def as_base(self) -> AbstractContextManager[None]:
        """Within the context, the model answers as its base."""
        ...

    def use_adapter(self, folder: Path) -> None:
        """From now on, answer with the adapter in a folder; weights of a training are dropped.

        Raises:
            ModelError: it cannot be loaded.
        """
        ...

    def as_start(self) -> AbstractContextManager[None]:
        """Within the context, the model answers as the adapter that training continues (`train.init_adapter`).

        Raises:
            ModelError: the adapter cannot be loaded.
        """
        ...
