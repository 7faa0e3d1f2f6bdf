"""Weights on disk, a block of rows at a time.

Owns reading: the safetensors of a base (one file or shards), the changes of an adapter by the name
of the weight they are of, and the two folded together in float32. Nothing here holds a model, and
what is held does not grow with it: a block of rows, and the two factors of one projection.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cot_unsloth.config import RunConfig
from cot_unsloth.errors import ModelError
from cot_unsloth.render import model_path

BLOCK = 1 << 18
"""Weights of a block (1 MiB in float32). With smaller ones, threads wait for each other between operations more than
they compute."""
GPU_BLOCK = 1 << 24
"""Weights of a block that a GPU works on (64 MiB in float32, below 1 GiB with what a K-quant holds beside it).

A K-quant takes some 300 kernels a block. On an H100 whose host launches one in 30 us, blocks of 2^18 took more than two
minutes for a third of a 3B model, all of them spent launching (bench/results/gpu).
"""
MOST_THREADS = 8
"""More would only add memory: the disk is the limit then."""
GPU_THREADS = 2
"""One reads and folds while the other's block is on the GPU."""
_FACTORS = ("lora_A.weight", "lora_B.weight")
_FLOATS = ("F64", "F32", "F16", "BF16")

In = TypeVar("In")
Out = TypeVar("Out")


def in_order(work: Callable[[In], Out], items: Iterable[In], most: int = MOST_THREADS) -> Iterator[Out]:
    """Results of `work`, done by at most `most` threads, in the order of the items; few are held at a time."""
    import torch

    threads = min(most, os.cpu_count() or 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread a block: torch's own threads on small blocks are many times slower
    try:
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Out]] = deque()
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(before)


class Weights:
    """The tensors of a folder's safetensors files, whose headers alone are read at first.

    Raises:
        ModelError: there are none; a file is cut short or none of safetensors; a shard is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = sorted(folder.glob("*.safetensors"))
        if not self.files:
            raise ModelError(
                "holds no safetensors", where=str(folder), hint="give a folder of a whole model", name="weights_missing"
            )
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        """As safetensors calls them: BF16, F16, F32, U8..."""
        self.file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in self.files:
            for name, entry in _header(file).items():
                if name != "__metadata__":
                    self.shapes[name] = tuple(entry["shape"])
                    self.types[name] = entry["dtype"]
                    self.file_of[name] = file
        self._check_shards()

    def _check_shards(self) -> None:
        for index in self.folder.glob("*.safetensors.index.json"):
            listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            missing = sorted(set(listed) - set(self.shapes))
            if missing:
                raise ModelError(
                    f"{listed[missing[0]]} is missing, or lacks {missing[0]}",
                    where=str(self.folder),
                    name="shard_missing",
                )

    def names_of(self, file: Path) -> list[str]:
        """The tensors of one file, in the order they stand in it."""
        return [name for name, at in self.file_of.items() if at == file]

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds plain numbers, and not the codes of a quantized weight."""
        return self.types[name] in _FLOATS

    def rows(self, name: str, begin: int = 0, end: int | None = None) -> Any:
        """Rows of a tensor, as a tensor of the type they are stored in."""
        from safetensors import safe_open

        file = self.file_of[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        if not self.shapes[name]:
            return self._open[file].get_tensor(name)
        return self._open[file].get_slice(name)[begin:end]

    @property
    def parameters(self) -> int:
        """How many numbers there are in all."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors, held against its size."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > 100_000_000:
                raise ValueError("the header is too long")
            header: dict[str, Any] = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"is no safetensors file: {error}", where=str(file), hint="fetch it again", name="damaged_weights"
        ) from error
    wanted, found = 8 + length + max(ends, default=0), file.stat().st_size
    if found != wanted:
        raise ModelError(
            f"has {found:,} bytes and should have {wanted:,}",
            where=str(file),
            hint="fetch it again",
            name="damaged_weights",
        )
    return header


@dataclass(frozen=True)
class Delta:
    """One adapted projection: W becomes W + scale * B @ A."""

    a: Any
    """(r, in) float32."""
    b: Any
    """(out, r) float32."""
    scale: float

    def check(self, shape: tuple[int, ...]) -> None:
        """Hold the adapter's shape against the weight's.

        Raises:
            ModelError: they differ, so the adapter is of another base.
        """
        ours = (self.b.shape[0], self.a.shape[1])
        if shape != ours:
            raise ModelError(f"the adapter is of another base: it changes {ours}, the weight is {shape}")

    def fold(self, weight: Any, begin: int = 0) -> Any:
        """The merged rows in float32, of which the first is row `begin` of the whole weight."""
        return weight.float() + self.scale * (self.b[begin : begin + weight.shape[0]] @ self.a)


class Adapter:
    """A LoRA adapter as plain PEFT saves it; its factors are read when they are asked for.

    Raises:
        ModelError: there is no adapter, or it holds what cannot be folded into a weight, which is named.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        settings, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        if not settings.is_file() or not file.is_file():
            raise ModelError(
                "holds no adapter", where=str(folder), hint="it needs adapter_config.json and adapter_model.safetensors"
            )
        _header(file)
        self.config: dict[str, Any] = json.loads(settings.read_text(encoding="utf-8"))
        self._tensors = safe_open(file, framework="pt")
        names = list(self._tensors.keys())
        self._refuse(names)
        self._modules = {
            name.removesuffix("." + _FACTORS[0]).removeprefix("base_model.model."): name.removesuffix("." + _FACTORS[0])
            for name in names
            if name.endswith(_FACTORS[0])
        }

    def _refuse(self, names: list[str]) -> None:
        config = self.config
        found = [name for name in names if not name.endswith(_FACTORS)]
        found += [f"use_dora ({config['use_dora']})"] if config.get("use_dora") else []
        found += [f"bias ({config['bias']})"] if config.get("bias", "none") != "none" else []
        start = str(config.get("init_lora_weights", ""))
        if start.lower().startswith(("pissa", "olora", "corda", "loftq")):
            found.append(f"init_lora_weights ({start}): it is of a base that was changed first")
        if found:
            raise ModelError(f"cannot be folded: {', '.join(found[:3])}", where=str(self.folder))

    @property
    def names(self) -> set[str]:
        """The base's weights that it changes."""
        return {f"{module}.weight" for module in self._modules}

    @property
    def rank(self) -> int:
        """The largest rank of its factors."""
        return max(self._tensors.get_slice(f"{m}.{_FACTORS[0]}").get_shape()[0] for m in self._modules.values())

    def delta(self, name: str) -> Delta | None:
        """The change of one weight of the base; None where it has none."""
        module = name.removesuffix(".weight")
        if module not in self._modules:
            return None
        a, b = (self._tensors.get_tensor(f"{self._modules[module]}.{factor}").float() for factor in _FACTORS)
        return Delta(a, b, _scale(self.config, module, a.shape[0]))

    def check_base(self, weights: Weights) -> None:
        """Make sure that it is an adapter of this base.

        Raises:
            ModelError: it changes a weight that the base does not have, has in another shape, or has
                in 4 or 8 bits only.
        """
        for name in sorted(self.names):
            if name not in weights.shapes:
                raise ModelError(
                    f"the base has no {name}: the adapter is of another base", where=str(weights.folder)
                )  # fmt: skip
            if not weights.is_float(name):
                raise ModelError(
                    f"{name} is stored in 4 or 8 bits, so nothing can be folded into it exactly",
                    where=str(weights.folder),
                    hint="export with the 16-bit base: --model BASE",
                )
            delta = self.delta(name)
            assert delta is not None
            delta.check(weights.shapes[name])


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Alpha over rank (or its root, rsLoRA), with a pattern's own alpha where one matches."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def blocks(weights: Weights, name: str, multiple: int = 1, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """The blocks that a tensor is worked on in: first row and the one after the last, in whole `multiple`s.

    A block has at most `size` weights, and never less than one `multiple` of rows.
    """
    shape = weights.shapes[name]
    if len(shape) < 2:
        yield 0, shape[0] if shape else 1
        return
    columns = math.prod(shape[1:])
    step = max(1, size // (columns * multiple)) * multiple
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

    try:
        return Path(
            snapshot_download(name, revision=config.model.model_revision, allow_patterns=["*.safetensors*", "*.json"])
        )
    except Exception as error:  # hub and network faults share no base class
        raise ModelError(f"the base cannot be found: {error}", where=name, name="base_missing") from error
