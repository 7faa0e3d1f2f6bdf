"""A model's next-token distributions, computed with one layer's weights in memory at a time.

How an export is compared without loading the full model: transformers (and PEFT, if there is an adapter) build the
network with weights that take no memory; those of a decoder layer are read as float32 when the layer runs, and released
after it has processed every row. Only the rows of the embedding that occur are read, and the output layer is applied to
a block of the vocabulary at a time. So memory grows with the largest layer and not with the model: in float32 a 7B model
would take 28 GB, and one of its layers takes 0.9 GB. A model whose parameters do not have the names in its files is
loaded in one piece instead.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from cot_unsloth.core.errors import cannot_load
from cot_unsloth.core.progress import note
from cot_unsloth.export.weights import Weights
from cot_unsloth.models.adapter_files import base_alone

TOKENS_AT_ONCE = 8192
"""Tokens, padding included, that go through the layers together; the remaining rows need another pass over the weights."""
VOCABULARY_AT_ONCE = 1 << 24
"""Weights of the output layer that are in memory at once (64 MiB in float32)."""
_PEFT_PARTS = (".base_layer", ".token_adapter")
"""Parts of a parameter's name that PEFT puts between a module of the base and its weight."""
_UNUSED = ".original_module."
"""In the name of the original that PEFT keeps of a module replaced by `modules_to_save`; it is never run."""

Rows = Sequence[Sequence[int]]
"""Token ids of each row."""


class Source(Protocol):
    """A source of weights, by their names in transformers."""

    def has(self, name: str) -> bool:
        """Whether there is such a weight."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Its rows, or elements of a vector."""


class Network(Protocol):
    """A model that gives next-token log-probabilities."""

    def logprobs(self, rows: Rows, positions: Rows) -> list[torch.Tensor]:
        """Log-probabilities of the token after each of the positions of each row.

        Returns:
            One (positions, vocabulary) float32 tensor a row, on the CPU.
        """


class FolderSource:
    """Weights of a folder of safetensors."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def has(self, name: str) -> bool:
        """Whether the folder holds it unquantized."""
        return name in self._weights.shapes and self._weights.is_float(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape."""
        return self._weights.shapes[name]

    def rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows of it."""
        read: torch.Tensor = self._weights.rows(name, begin, end)
        return read


class LoadedNetwork:
    """A model that is in memory in one piece."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    def logprobs(self, rows: Rows, positions: Rows) -> list[torch.Tensor]:
        """As `Network`; a row at a time."""
        with torch.inference_mode():
            return [
                self._model(input_ids=torch.tensor([row], device=self._model.device), use_cache=False)
                .logits[0, list(at)]
                .float()
                .log_softmax(-1)
                .cpu()
                for row, at in zip(rows, positions, strict=True)
            ]


class LayerwiseNetwork:
    """A causal language model whose weights are read layer by layer."""

    def __init__(self, model: Any, source: Source, device: str) -> None:
        """Prepare a network that `empty_network` built, with or without an adapter.

        Args:
            model: the network; PEFT's wrapper is removed, its layers stay.
            source: where the base's weights are read; if it has no output layer, the embedding is used.
            device: where it computes.

        Raises:
            KeyError: a parameter's name is not in the source.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._model, self._source, self._device = base.eval(), source, device
        self._embedding, self._output = base.get_input_embeddings(), base.get_output_embeddings()
        self._weights = _weight_names(base, source)
        """By module: the name of the weight of each parameter that takes no memory, by the parameter's name."""
        self._chosen: list[tuple[int, int]] = []
        """Row and position of the hidden states that the output layer is applied to."""
        # forward is replaced on the instance, so that transformers' own loop over the layers is used.
        for layer in base.get_decoder().layers:
            self._stream(layer, _row_by_row(layer.forward))
        for module, plain, sparse in (
            (self._embedding, nn.Embedding, self._embed),
            (self._output, nn.Linear, self._project),
        ):
            if isinstance(module, plain) and "weight" in self._weights.get(module, {}):
                module.forward = sparse(module, module.forward)
            else:  # wrapped by PEFT, or of another class: streamed like a layer
                forward = module.forward if module is self._embedding else self._at_chosen(module.forward)
                self._stream(module, forward)
        streamed = self._streamed()
        for module in base.modules():
            if id(module) not in streamed:
                self._fill(module)
            module._apply(lambda value: value if _is_empty(value) else value.to(device), recurse=False)

    def logprobs(self, rows: Rows, positions: Rows) -> list[torch.Tensor]:
        """As `Network`; as many rows at a time as `TOKENS_AT_ONCE` allows."""
        by_row: dict[int, torch.Tensor] = {}
        for batch in _batches(rows):
            width = max(len(rows[i]) for i in batch)
            # Causal attention never sees what is padded to the right of a row, so no attention mask is needed.
            ids = torch.tensor([[*rows[i], *[0] * (width - len(rows[i]))] for i in batch], device=self._device)
            self._chosen = [(at, position) for at, i in enumerate(batch) for position in positions[i]]
            with torch.inference_mode():
                logits = self._model(input_ids=ids, use_cache=False).logits[0].float()
            parts = logits.log_softmax(-1).cpu().split([len(positions[i]) for i in batch])
            by_row |= dict(zip(batch, parts, strict=True))
        return [by_row[i] for i in range(len(rows))]

    def _streamed(self) -> set[int]:
        """Modules whose weights are read when they run."""
        streamed = [*self._model.get_decoder().layers, self._embedding, self._output]
        return {id(part) for module in streamed for part in module.modules()}

    def _stream(self, module: Any, forward: Callable[..., Any]) -> None:
        """Read a module's weights when it runs, and release them afterwards."""
        placeholders = [(part, dict(part._parameters)) for part in module.modules()]

        def run(*args: Any, **kwargs: Any) -> Any:
            for part, _ in placeholders:
                self._fill(part)
            try:
                return forward(*args, **kwargs)
            finally:
                for part, before in placeholders:
                    part._parameters.update(before)

        module.forward = run

    def _fill(self, module: Any) -> None:
        """Read the parameters of one module, without those of its children."""
        for name, weight in self._weights.get(module, {}).items():
            shape = self._source.shape(weight)
            values = self._source.rows(weight, 0, shape[0] if shape else 1)
            module._parameters[name] = self._parameter(values.reshape(module._parameters[name].shape))

    def _parameter(self, values: torch.Tensor) -> nn.Parameter:
        return nn.Parameter(values.to(self._device).float(), requires_grad=False)

    def _embed(self, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The embedding, with a table of only those tokens that occur."""
        name = self._weights[module]["weight"]

        def run(ids: torch.Tensor) -> Any:
            tokens, indices = ids.unique(return_inverse=True)
            table = torch.cat([self._source.rows(name, token, token + 1) for token in tokens.tolist()])
            before, padding = module._parameters["weight"], module.padding_idx
            # The table has rows of other tokens, so its row `padding_idx` is not the padding token's.
            module._parameters["weight"], module.padding_idx = self._parameter(table), None
            try:
                return forward(indices)
            finally:
                module._parameters["weight"], module.padding_idx = before, padding

        return run

    def _project(self, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The output layer at the chosen positions, a block of the vocabulary at a time."""
        name = self._weights[module]["weight"]
        size, width = self._source.shape(name)
        # Of a model 4,096 wide, 4,096 rows at a time.
        step = max(1, VOCABULARY_AT_ONCE // width)

        def run(hidden: torch.Tensor) -> Any:
            before, bias = module._parameters["weight"], module.bias
            module.bias = None
            parts = []
            try:
                for begin in range(0, size, step):
                    rows = self._source.rows(name, begin, min(begin + step, size))
                    module._parameters["weight"] = self._parameter(rows)
                    parts.append(forward(hidden))
            finally:
                module._parameters["weight"], module.bias = before, bias
            # A bias of the output layer is added once, after all blocks.
            logits = torch.cat(parts, -1)
            return logits if bias is None else logits + bias

        return self._at_chosen(run)

    def _at_chosen(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Hidden states of all rows in, logits of one row out, with the chosen positions of all of them."""

        def run(hidden: torch.Tensor) -> Any:
            rows, positions = zip(*self._chosen, strict=True)
            return forward(hidden[list(rows), list(positions)].unsqueeze(0))

        return run


def _weight_names(base: Any, source: Source) -> dict[Any, dict[str, str]]:
    """The names of the weights of all parameters that take no memory, by module and the parameter's name there.

    Raises:
        KeyError: the source has no weight of that name.
    """
    names: dict[Any, dict[str, str]] = {}
    paths = {id(module): name for name, module in base.named_modules()}
    table, output = (f"{paths[id(m)]}.weight" for m in (base.get_input_embeddings(), base.get_output_embeddings()))
    for prefix, module in base.named_modules():
        for name, parameter in module._parameters.items():
            weight = f"{prefix}.{name}"
            if parameter is None or not _is_empty(parameter) or _UNUSED in weight:
                continue
            # model.layers.0.self_attn.q_proj.base_layer.weight is q_proj.weight in the file.
            for part in _PEFT_PARTS:
                weight = weight.replace(part, "")
            # A tied output layer is a parameter of its own here, since the empty weights are not shared.
            if weight == output and not source.has(output):
                weight = table
            if not source.has(weight):
                raise KeyError(weight)
            names.setdefault(module, {})[name] = weight
    return names


def _row_by_row(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decoder layer that processes one row at a time, so that only one row's activations are in memory."""

    def run(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        size = len(hidden)
        outputs = [forward(hidden[i : i + 1], *_part(args, i, size), **_part(kwargs, i, size)) for i in range(size)]
        if isinstance(outputs[0], tuple):  # some architectures return attention weights beside the hidden states
            return (torch.cat([output[0] for output in outputs]), *outputs[0][1:])
        return torch.cat(outputs)

    return run


def _part(value: Any, at: int, size: int) -> Any:
    """The part of an argument that belongs to one row: that row of every batched tensor."""
    if isinstance(value, torch.Tensor):
        return value[at : at + 1] if size > 1 and value.ndim > 1 and len(value) == size else value
    if isinstance(value, Mapping):
        return {name: _part(item, at, size) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_part(item, at, size) for item in value)
    return value


def _batches(rows: Rows) -> Iterator[list[int]]:
    """Indices of rows that go through the layers together, the longest first, so that padding is least."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        # Padded to the longest, which is the first.
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _is_empty(parameter: torch.Tensor) -> bool:
    """Whether a parameter is one repeated number, which takes no memory."""
    return parameter.numel() > 1 and not any(parameter.stride())


def empty_network(folder: Path, kept: Sequence[str] = ()) -> Any:
    """A model with a folder's settings whose parameters take no memory.

    Each parameter is one number, repeated by strides of 0. They are not on torch's meta device because PEFT puts an
    adapter's weights on the base's device.

    Args:
        folder: with its config.json.
        kept: parameters that get their own memory.

    Raises:
        ModelError: its settings cannot be read, or need custom code.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise cannot_load(f"cannot be loaded: {error}", error, where=str(folder)) from error
    # Buffers (rotary frequencies) are computed when the model is built, and are small.
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.zeros if f"{prefix}.{name}" in kept else _repeated
                module._parameters[name] = nn.Parameter(empty(parameter.shape), requires_grad=False)
    return model


def _repeated(shape: torch.Size) -> torch.Tensor:
    return torch.zeros(()).expand(shape)


def open_network(folder: Path, source: Source, adapter: Path | None = None, device: str = "cpu") -> Network:
    """A model, with an adapter if there is one, ready to be compared.

    Args:
        folder: the folder of the base, or of a model from full fine-tuning.
        source: where its weights are read: the folder itself, or a file made from it.
        adapter: an adapter's folder.
        device: where it computes, in float32.
    """
    try:
        kept = _base_weights_in(adapter) if adapter is not None else []
        model = _with_adapter(empty_network(folder, kept), adapter)
        return LayerwiseNetwork(model, source, device)
    except (KeyError, AttributeError) as error:
        note(f"comparing with the full model in memory, because it cannot be read layer by layer ({error})")
        gc.collect()
        return LoadedNetwork(_with_adapter(_loaded(folder, source, device), adapter))


def _with_adapter(model: Any, adapter: Path | None) -> Any:
    if adapter is None:
        return model
    import peft

    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def _base_weights_in(adapter: Path) -> list[str]:
    """Parameters of the base that an adapter's file contains: PEFT copies into them, so they need memory of their own."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        keys = [key.removeprefix("base_model.model.") for key in file.keys()]  # noqa: SIM118 (not a dict)
    return [key.replace(".base_layer", "") for key in keys if ".lora_" not in key]


def _loaded(folder: Path, source: Source, device: str) -> Any:
    """The full model, with the source's weights for those that it has."""
    from transformers import AutoModelForCausalLM

    # transformers would load an adapter that it finds in the base's folder.
    try:
        with base_alone(str(folder)):
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise cannot_load(f"cannot be loaded: {error}", error, where=str(folder)) from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if source.has(name):
                shape = source.shape(name)
                parameter.copy_(source.rows(name, 0, shape[0] if shape else 1).reshape(parameter.shape))
    return model.to(device)
