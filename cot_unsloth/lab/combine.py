"""`combine`: merges several adapters of one base into one plain LoRA adapter, with a record of its parts.

Only the adapters' files are read, never the base's weights, and one module of the base at a time.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import ConfigError, ModelError
from cot_unsloth.core.progress import bar, note
from cot_unsloth.core.results.combination import COMBINED, Combination, CombinedAdapter
from cot_unsloth.export.adapters import Adapter
from cot_unsloth.export.safetensors_files import write_safetensors
from cot_unsloth.lab import factors
from cot_unsloth.lab.factors import Factors, Part, Recipe
from cot_unsloth.models.adapter_files import (
    CONFIG,
    WEIGHTS,
    Base,
    local_adapter,
    named_base,
    require_adapter,
    weights_of,
)
from cot_unsloth.models.target import resolve_target
from cot_unsloth.prompts import tokenizer_files
from cot_unsloth.storage import atomic, environment
from cot_unsloth.storage.hashes import sha256_of

_WARNED_ERROR = 0.01
"""Relative error above which a note says that the result is not the weighted sum; rounding stays below 1e-5."""


@dataclass(frozen=True)
class Source:
    """An adapter to combine."""

    path: Path
    """The path as given: a run, a folder or a hub id."""
    folder: Path
    weight: float
    base: Base
    config: RunConfig
    """The settings that it is used with."""
    trained: bool
    """Whether cot_unsloth trained it."""
    adapter: Adapter

    def part(self, module: str) -> Part | None:
        """Its weight update of a module; None if there is none."""
        change = self.adapter.low_rank(f"{module}.weight")
        return None if change is None else Part(change, self.weight)

    def rank(self, module: str) -> int:
        """The rank of its weight update of a module; 0 if there is none."""
        return self.adapter.settings.rank(module) if self.adapter.tensors.of(module).has_factors else 0


def combine(paths: Sequence[Path], weights: Sequence[float], recipe: Recipe, out: Path) -> Combination:
    """Combine adapters, and write the result to a folder of its own.

    Args:
        paths: runs, folders with an adapter, or hub ids; at least two.
        weights: each adapter's factor in the sum.
        recipe: the method and its options.
        out: a folder that does not exist yet.

    Raises:
        ConfigError: `out` exists, there are fewer than two adapters, or the weights are not a finite number for each.
        ModelError: an adapter is not plain LoRA, they are of different bases, or the method cannot combine them.
    """
    if out.exists():
        raise ConfigError("already exists", where=f"--out {out}", hint="name another folder, or remove it")
    if len(paths) < 2:
        raise ConfigError("name at least two adapters", where="combine")
    if not all(map(math.isfinite, weights)):
        raise ConfigError("has a number that is not finite", where=f"--weights {','.join(map(str, weights))}")
    if len(paths) != len(weights):
        raise ConfigError(f"has {len(weights)} numbers for {len(paths)} adapters", where="--weights")
    sources = [_source(path, weight) for path, weight in zip(paths, weights, strict=True)]
    _check(sources)
    modules = sorted({module for source in sources for module in source.adapter.tensors.modules})
    _check_modules(sources, modules, recipe)
    rank = _rank(sources, modules, recipe)
    with atomic.staged(out) as staging:
        writer = _Written(sources, recipe, rank)
        writer.write(modules, staging / WEIGHTS)
        _write_settings(sources, modules, rank, staging)
        _copy_tokenizer(sources, staging)
        record = _record(sources, recipe, writer)
        record.write(staging / COMBINED)
    if record.relative_error > _WARNED_ERROR:
        note(
            f"{recipe.method} is not the weighted sum: it differs by {100 * record.relative_error:.0f}% of its norm; "
            "--method cat is exact"
        )
    return record


def _source(path: Path, weight: float) -> Source:
    weights = weights_of(path)
    require_adapter(weights, str(path))
    folder = local_adapter(weights)
    base = named_base(folder)
    if not base.name:
        raise ModelError("names no base (base_model_name_or_path)", where=str(folder / CONFIG), name="base_missing")
    target = resolve_target(base=base.name, adapter=weights)
    adapter = Adapter(folder)
    unsupported = [f"{kind} ({module})" for kind, module in adapter.kinds().items()]
    unsupported += [
        f"LoRA of an embedding ({m})" for m, t in adapter.tensors.modules.items() if t.has("lora_embedding_A")
    ]
    if unsupported:
        raise ModelError(
            f"has {', '.join(unsupported)}, of which there is no weighted sum in a LoRA adapter",
            where=str(path),
            hint="only plain LoRA can be combined; export it with --merged, and train the next adapter on the result",
            name="not_combined",
        )
    return Source(path, folder, weight, base, target.config, target.trained, adapter)


def _check(sources: Sequence[Source]) -> None:
    """Check that the adapters are of one base and write the same tags.

    Raises:
        ModelError: they differ.
    """
    first = sources[0]
    for other in sources[1:]:
        if not first.base.is_same_as(other.base):
            raise ModelError(
                f"is an adapter of {other.base}, and {first.path} of {first.base}",
                where=str(other.path),
                hint="only adapters of the same base can be combined",
                name="other_base",
            )
        for name in ("thinking_tags", "trace_layout"):
            first_value, other_value = (getattr(source.config.data, name) for source in (first, other))
            if first_value != other_value:
                raise ModelError(
                    f"was trained with {name} {other_value}, and {first.path} with {first_value}", where=str(other.path)
                )
        if other.config.data.system_prompt != first.config.data.system_prompt:
            note(f"system prompt: that of {first.path}; {other.path} was trained with another")


def _check_modules(sources: Sequence[Source], modules: Sequence[str], recipe: Recipe) -> None:
    """Check that the changes of each module have one shape, and for linear one rank.

    Raises:
        ModelError: they differ.
    """
    for module in modules:
        shapes = {shape: source for source in sources if (shape := _shape(source, module)) is not None}
        if len(shapes) > 1:
            first_shape, second_shape = list(shapes)[:2]
            raise ModelError(
                f"changes {module} as {second_shape}, and {shapes[first_shape].path} as {first_shape}",
                where=str(shapes[second_shape].path),
            )
        ranks = {source.rank(module): source for source in sources}
        if recipe.method == "linear" and len(ranks) > 1:
            rank_list = ", ".join(f"{source.path} {rank or 'none'}" for rank, source in ranks.items())
            raise ModelError(
                f"linear needs equal ranks and modules, and the ranks of {module} are: {rank_list}",
                where="--method linear",
                hint="--method cat, which is exact, or svd",
                name="ranks_differ",
            )


def _shape(source: Source, module: str) -> tuple[int, int] | None:
    """(rows, columns) of the weight that a source changes."""
    tensors = source.adapter.tensors
    parts = tensors.of(module).parts
    return (tensors.shape(parts["lora_B"])[0], tensors.shape(parts["lora_A"])[1]) if parts else None


def _rank(sources: Sequence[Source], modules: Sequence[str], recipe: Recipe) -> int:
    """The rank of every module of the result. Modules with less are filled with zeros: other programs know only one."""
    summed = [[source.rank(module) for source in sources] for module in modules]
    if recipe.method == "linear":
        return max(max(ranks) for ranks in summed)
    exact = max(sum(ranks) for ranks in summed)
    return exact if recipe.method == "cat" or recipe.rank is None else recipe.rank


@dataclass
class _Written:
    """The result's tensors, computed and written one module at a time, and how far they are from the sum."""

    sources: Sequence[Source]
    recipe: Recipe
    rank: int
    errors: dict[str, float] = field(default_factory=dict)
    """||result - sum||^2 by module."""
    norms: dict[str, float] = field(default_factory=dict)
    """||sum||^2 by module."""

    def write(self, modules: Sequence[str], file: Path) -> None:
        """Write all modules."""
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        for module in modules:
            rows, columns = next(shape for source in self.sources if (shape := _shape(source, module)))
            tensors[_tensor(module, "A")] = ("F32", (self.rank, columns))
            tensors[_tensor(module, "B")] = ("F32", (rows, self.rank))
        last: list[Factors] = []
        with bar("combine", len(modules)) as progress:

            def chunks(name: str) -> Iterator[bytes]:
                if name.endswith(".lora_A.weight"):
                    last[:] = [self._module(name.removeprefix(_PREFIX).removesuffix(".lora_A.weight"))]
                    progress.advance(1)
                tensor = last[0].a if name.endswith(".lora_A.weight") else last[0].b
                yield tensor.contiguous().numpy().tobytes()

            write_safetensors(file, tensors, chunks)
        if not any(self.norms.values()):
            raise ModelError(
                "the weighted sum is zero: these adapters cancel out, or change nothing", where="--weights"
            )

    def _module(self, module: str) -> Factors:
        parts = [part for source in self.sources if (part := source.part(module)) is not None]
        result = factors.combine(parts, self.recipe, module)
        self.errors[module], self.norms[module] = factors.squared_error(result, parts)
        return result.padded(self.rank)

    @property
    def relative_error(self) -> float:
        """Over all modules."""
        return float((sum(self.errors.values()) / sum(self.norms.values())) ** 0.5)

    def largest(self) -> tuple[float, str]:
        """The largest relative error of a module whose sum is not zero, and that module."""
        return max(((self.errors[m] / norm) ** 0.5, m) for m, norm in self.norms.items() if norm)


_PREFIX = "base_model.model."


def _tensor(module: str, factor: str) -> str:
    return f"{_PREFIX}{module}.lora_{factor}.weight"


def _write_settings(sources: Sequence[Source], modules: Sequence[str], rank: int, folder: Path) -> None:
    """adapter_config.json: LoRA with a scale of 1."""
    import peft

    base = sources[0].base
    peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=_targets(sources, modules),
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base.name,
        revision=base.revision,
    ).save_pretrained(str(folder))


def _targets(sources: Sequence[Source], modules: Sequence[str]) -> list[str]:
    """The names of module kinds if every source changes all modules of these kinds; else the name of every single module."""
    targets = [source.adapter.settings.targets for source in sources]
    plain = all(
        isinstance(t["target_modules"], list)
        and not any(value for name, value in t.items() if name != "target_modules")
        for t in targets
    )
    return sorted({name for t in targets for name in t["target_modules"]}) if plain else list(modules)


def _copy_tokenizer(sources: Sequence[Source], folder: Path) -> None:
    """Copy the tokenizer and template of the first adapter, with a note if another adapter has different ones."""
    first, *others = (source.folder for source in sources)
    names = (*tokenizer_files.FILES, tokenizer_files.TEMPLATE)
    for name in names:
        if (first / name).is_file():
            shutil.copyfile(first / name, folder / name)
    template = tokenizer_files.TEMPLATE
    for other in others:
        both = [path / template for path in (first, other)]
        if all(path.is_file() for path in both) and both[0].read_bytes() != both[1].read_bytes():
            note(f"chat template: that of {first}; {other} was trained with another")


def _record(sources: Sequence[Source], recipe: Recipe, written: _Written) -> Combination:
    first, (largest, module) = sources[0], written.largest()
    data, model = first.config.data, first.config.model
    pruned = recipe.method in factors.PRUNING
    return Combination(
        version=1,
        method=recipe.method,
        rank=written.rank,
        density=recipe.density if pruned else None,
        seed=recipe.seed if recipe.method in factors.RANDOM else None,
        base=first.base.name,
        adapters=tuple(
            CombinedAdapter(
                path=str(source.path),
                weight=source.weight,
                rank=source.adapter.settings.r,
                sha256={name: sha256_of(source.folder / name) for name in (WEIGHTS, CONFIG)},
            )
            for source in sources
        ),
        modules=len(written.norms),
        relative_error=written.relative_error,
        largest_error=largest,
        largest_error_module=module,
        trained=all(source.trained for source in sources),
        system_prompt=data.system_prompt,
        thinking_tags=data.thinking_tags,
        trace_layout=data.trace_layout,
        max_seq_length=max(source.config.data.max_seq_length for source in sources),
        date_string=model.date_string,
        pad_token=model.pad_token,
        versions=environment.versions(),
    )
