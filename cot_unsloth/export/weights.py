"""Weights on disk, a block of rows at a time.

How a base is read: which of its safetensors hold the model, whether its output layer is the embedding, and the rows of
each tensor. Nothing here loads a full model, and memory does not grow with its size.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.json_text import parse_json
from cot_unsloth.export import weight_names
from cot_unsloth.prompts.tokenizer import model_path

BLOCK = 1 << 18
"""Weights of a block (1 MiB in float32). In smaller blocks, threads wait for Python's
lock between operations longer than they compute."""
GPU_BLOCK = 1 << 24
"""Weights of a block on a GPU (64 MiB in float32, below 1 GiB with the temporary tensors of a K-quant).

A K-quant takes some 300 kernels a block. On an H100 whose host launches one in 30 us, blocks of 2^18 took more than two
minutes for a third of a 3B model, nearly all of it spent launching kernels (bench/results/gpu).
"""
MOST_THREADS = 8
"""More would only add memory: the disk is the bottleneck then."""
GPU_THREADS = 2
"""One reads and merges while the other's block is on the GPU."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""The types of safetensors that are plain numbers."""
HfConfig = Mapping[str, Any]
"""A model's config.json; its keys depend on `model_type`."""

In = TypeVar("In")
Out = TypeVar("Out")


def in_order(work: Callable[[In], Out], items: Iterable[In], most: int = MOST_THREADS) -> Iterator[Out]:
    """Results of `work`, done by at most `most` threads, in the order of the items.

    At most one result more than there are threads is in memory, so memory does not grow with the number of items.
    """
    import torch

    threads = min(most, os.cpu_count() or 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread a block: torch's own threads on blocks this small were 6 times slower
    try:
        with ThreadPoolExecutor(threads) as pool:
            # The oldest is waited for, so results keep the order of the items.
            waiting: deque[Future[Out]] = deque()
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(before)


class TensorEntry(TypedDict):
    """What the header of a safetensors file says of one tensor."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]
    """First byte and the one after the last, counted from the end of the header."""


class Weights:
    """The tensors of a model's folder; at first only the headers are read.

    Only the files that transformers reads are read: the one that config.json names (`transformers_weights`),
    `model.safetensors`, or the shards that `model.safetensors.index.json` names. The folder may also contain
    `consolidated.safetensors`, an adapter, or shards of an earlier save.

    Names are those of transformers' modules. An output layer that is tied to the embedding has no name here. As in
    transformers 5, it is tied if config.json says so and the files have only one of the two weights, or both and equal;
    if they differ, config.json is wrong.

    Raises:
        ModelError: there are none; a file is truncated or not a safetensors file; a shard or the output layer is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = _config(folder)
        self.index, self.files, listed = weight_files(folder, self.config.get("transformers_weights"))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        """By their names in safetensors: BF16, F16, F32, U8..."""
        self.file_of: dict[str, Path] = {}
        self._stored: dict[str, str] = {}
        """A tensor's name in its file, if it differs from its name here."""
        self._written: dict[str, str] = {}
        self._open: dict[Path, Any] = {}
        for file in self.files:
            for name, entry in read_header(file).items():
                if name != "__metadata__":
                    self.shapes[name] = tuple(entry["shape"])
                    self.types[name] = entry["dtype"]
                    self.file_of[name] = file
        absent = sorted(set(listed) - set(self.shapes))
        if absent:
            raise _missing(folder, f"{listed[absent[0]]} is missing, or lacks {absent[0]}")
        self._use_loaded_names()
        self.embedding = weight_names.embedding_in(self.shapes)
        """The name of the input embedding; None if it is not a known name."""
        self.output = weight_names.output_in(self.shapes)
        """The name of the output layer, whether it has a weight of its own or not."""
        self.declared_tied = _declared_tied(self.config)
        """Whether config.json says, correctly or not, that the output layer is tied to the embedding."""
        self._resolve_output()

    @property
    def tied(self) -> bool:
        """Whether the embedding is the output layer too."""
        return self.output not in self.shapes

    @property
    def stores_tied(self) -> bool:
        """Whether config.json has to say that the output layer is tied: as it says now, if neither of the two is known."""
        return self.tied if self.embedding is not None or self.output in self.shapes else self.declared_tied

    def _use_loaded_names(self) -> None:
        """Give the weights the names that they have in transformers once they are loaded."""
        renamed = weight_names.loaded_names(self.folder, self.config.get("model_type"), self.shapes)
        for stored, name in renamed.items():
            self._alias(name, stored)
            self._drop(stored)
            self._written[name] = stored

    def written_name(self, name: str) -> str:
        """What a weight is called in a file that is read as the base's are: by its name there."""
        return self._written.get(name, name)

    def _resolve_output(self) -> None:
        """Drop an output layer that equals the tied embedding; make sure that there is one if it is not tied."""
        output = self.output
        if self.embedding is None:
            if output in self.shapes and self.declared_tied:  # transformers ties whichever of the two is there
                self._name_embedding()
        elif output in self.shapes:
            if self.declared_tied and self._equal(output, self.embedding):
                self._drop(output)
        elif (
            not self.declared_tied
            and self.config
            and not any(name.startswith(output.removesuffix("weight")) for name in self.shapes)
        ):
            raise ModelError(
                f"holds no {output}, and config.json does not tie it to the embedding: it would be random",
                where=str(self.folder),
                hint="set tie_word_embeddings to true if the model was trained with tied weights, or fetch the model again",
                name="no_output_layer",
            )

    def _name_embedding(self) -> None:
        self.embedding = "model.embed_tokens.weight"
        self._alias(self.embedding, self.output)
        self._drop(self.output)

    def untie(self) -> None:
        """Give the output layer its own name, which reads the embedding, because an adapter changes one of the two."""
        assert self.tied
        assert self.embedding is not None
        self._alias(self.output, self.embedding)
        self._written[self.output] = weight_names.written_output(self.output, self.embedding)

    def _alias(self, name: str, other: str) -> None:
        self.shapes[name], self.types[name] = self.shapes[other], self.types[other]
        self.file_of[name], self._stored[name] = self.file_of[other], self._stored.get(other, other)

    def _drop(self, name: str) -> None:
        del self.shapes[name], self.types[name], self.file_of[name]

    def _equal(self, one: str, other: str) -> bool:
        if self.shapes[one] != self.shapes[other] or not (self.is_float(one) and self.is_float(other)):
            return False
        pairs = ((self.rows(one, *block), self.rows(other, *block)) for block in blocks(self, one))
        return all(bool((a.float() == b.float()).all()) for a, b in pairs)

    def names_of(self, file: Path) -> list[str]:
        """The tensors of one file, in its order."""
        return [name for name, at in self.file_of.items() if at == file]

    def is_float(self, name: str) -> bool:
        """Whether a tensor contains plain numbers, and not the codes of a quantized weight."""
        return self.types[name] in FLOATS

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Any:
        """Rows of a tensor, as a tensor of the type they are stored in."""
        from safetensors import safe_open

        file, stored = self.file_of[name], self._stored.get(name, name)
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        # safetensors cannot slice a tensor without dimensions.
        if not self.shapes[name]:
            return self._open[file].get_tensor(stored)
        return self._open[file].get_slice(stored)[begin:end]

    @property
    def parameters(self) -> int:
        """How many numbers there are in all."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def _config(folder: Path) -> HfConfig:
    """The contents of config.json; empty if it is missing or damaged, which is reported where it is needed."""
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _declared_tied(config: HfConfig) -> bool:
    """What config.json says about tying the output layer, or the default of its model type."""
    nested = config.get("text_config")
    declared = config.get(
        "tie_word_embeddings", nested.get("tie_word_embeddings") if isinstance(nested, dict) else None
    )
    if declared is not None or "model_type" not in config:
        return bool(declared)
    from transformers import AutoConfig

    try:
        return bool(getattr(AutoConfig.for_model(config["model_type"]), "tie_word_embeddings", False))
    except (ValueError, TypeError, KeyError):  # a kind of model that transformers does not know
        return True


def weight_files(folder: Path, named: Any = None) -> tuple[Path | None, list[Path], dict[str, str]]:
    """The files that transformers reads a model from.

    Args:
        folder: the model's.
        named: `transformers_weights` of its config.json.

    Returns:
        the index, if there is one; the files in order; the file of each tensor that the index names.

    Raises:
        ModelError: there are none, one is missing, or the index is broken.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if isinstance(named, str):
        single, index = (folder / named, index) if named.endswith(".safetensors") else (single, folder / named)
        if not _is_file_name(named):
            raise _missing(folder, f"config.json names weights elsewhere: {named}")
    # transformers prefers model.safetensors to an index in the same folder.
    if single.is_file() and not (isinstance(named, str) and named.endswith(".json")):
        return None, [single], {}
    if not index.is_file():
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        raise ModelError(
            f"has no model.safetensors and no index of shards, only {', '.join(others[:3])}, which transformers does not load"
            if others
            else "holds no safetensors",
            where=str(folder),
            hint="give the folder of a full model",
            name="weights_missing",
        )
    try:
        listed: dict[str, str] = dict(parse_json(index.read_text(encoding="utf-8"))["weight_map"])
        names = sorted(set(listed.values()))
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a file's name is not text")
        # A path in an index could name any file of the machine.
        if not all(map(_is_file_name, names)):
            raise ValueError("it names a file in another folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"is not an index of shards: {error}", where=str(index), hint="fetch it again", name="damaged_weights"
        ) from error
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise _missing(
            folder, f"{absent[0]} is missing, or lacks {next(k for k, v in listed.items() if v == absent[0])}"
        )
    return index, [folder / name for name in names], listed


def _missing(folder: Path, message: str) -> ModelError:
    return ModelError(message, where=str(folder), hint="fetch the model again", name="shard_missing")


def _is_file_name(name: str) -> bool:
    return 0 < len(name.encode(errors="replace")) < 256 and "\0" not in name and Path(name).name == name


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The header of a safetensors file, checked against the file's size.

    Raises:
        ModelError: it is not a safetensors file, or is truncated.
    """
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > 100_000_000:  # the limit of safetensors itself
                raise ValueError("the header is too long")
            header: dict[str, TensorEntry] = parse_json(handle.read(length))
        ends = [_tensor_end(entry) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"is not a safetensors file: {error}", where=str(file), hint="fetch it again", name="damaged_weights"
        ) from error
    # 8 bytes with the header's length, the header, and the numbers up to the end of the last tensor.
    expected, actual = 8 + length + max(ends, default=0), file.stat().st_size
    if actual != expected:
        raise ModelError(
            f"has {actual:,} bytes but should have {expected:,}",
            where=str(file),
            hint="fetch it again",
            name="damaged_weights",
        )
    return header


def _tensor_end(entry: TensorEntry) -> int:
    """The byte after a tensor, by its entry in the header.

    Raises:
        ValueError, KeyError, TypeError: it is not an entry.
    """
    begin, end = entry["data_offsets"]
    numbers = [*entry["shape"], begin, end]
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(entry["dtype"], str):
        raise ValueError("a tensor's shape, type or place is not one")
    return end


def blocks(weights: Weights, name: str, multiple: int = 1, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """The blocks of a tensor: first row and the one after the last, in multiples of `multiple` rows.

    A block has at most `size` weights, and never less than one `multiple` of rows.
    """
    shape = weights.shapes[name]
    if len(shape) < 2:
        yield 0, shape[0] if shape else 1
        return
    columns = math.prod(shape[1:])
    step = max(1, size // (max(1, columns) * multiple)) * multiple
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def base_folder(config: RunConfig) -> Path:
    """The folder of the base's files; a hub id is taken from the cache, or fetched.

    Raises:
        ModelError: it is not here and cannot be fetched.
    """
    name = model_path(config.model.model_name_or_path)
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    def fetched(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=config.model.model_revision, allow_patterns=list(patterns)))

    try:
        folder = fetched("*.json")
        # Only the weights that the JSON files name: a repository may have the same model in other formats too.
        return fetched("*.json", *_named_weights(folder))
    except Exception as error:  # errors of the hub and of the network share no base class
        raise ModelError(f"the base cannot be found: {error}", where=name, name="base_missing") from error


def _named_weights(folder: Path) -> set[str]:
    """Weight files that the JSON files of a folder name, whether they exist or not."""
    named = _config(folder).get("transformers_weights")
    index = folder / (named if isinstance(named, str) and named.endswith(".json") else "model.safetensors.index.json")
    names = {named if isinstance(named, str) else "model.safetensors"}
    return names | (
        set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else set()
    )
