"""`evaluate --adapter NAME=RUN`: additional adapters, each scored as an arm under its own name, on the same problems.

All of them share one base in memory. An adapter is asked with its own system prompt, template and tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cot_unsloth.config import Flags, RunConfig
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Example
from cot_unsloth.evaluation.arms import ARM_NAMES, Arms, score_arm
from cot_unsloth.evaluation.problems import not_trained_on, trained_questions
from cot_unsloth.models.adapter_files import training_runs
from cot_unsloth.models.generation import identity
from cot_unsloth.models.switching import resolve_adapters, switched
from cot_unsloth.models.target import Target
from cot_unsloth.storage import environment
from cot_unsloth.storage.run_folder import RunDir

if TYPE_CHECKING:
    from cot_unsloth.models.hf import HfEngine


@dataclass(frozen=True)
class NamedAdapters:
    """Adapters to score beside a model."""

    targets: Mapping[str, Target] = field(default_factory=dict)

    @classmethod
    def resolve(cls, beside: Target, named: Mapping[str, Path], flags: Flags) -> NamedAdapters:
        """The adapters that the command line names.

        Raises:
            ConfigError: a name is already the name of an arm.
            ModelError: an adapter belongs to another base.
        """
        taken = next((name for name in named if name in ARM_NAMES), None)
        if taken:
            raise ConfigError("is already the name of an arm", where=f"--adapter {taken}={named[taken]}")
        return cls(resolve_adapters(beside, named, flags, use="score") if named else {})

    def key(self, config: RunConfig) -> str:
        """Identifies them and their settings; empty without any."""
        parts = (
            f"{name} {identity(config, one.weights)} {one.config.data.system_prompt}"
            for name, one in sorted(self.targets.items())
        )
        return environment.text_hash(*parts)[:12] if self.targets else ""

    def trained(self, tuned: bool) -> bool | dict[str, bool]:
        """Whether cot_unsloth trained the scored model and the adapters, by arm."""
        return {"tuned": tuned} | {name: one.trained for name, one in self.targets.items()} if self.targets else tuned

    def score(self, engine: HfEngine, problems: Sequence[Example], config: RunConfig, folder: RunDir) -> Arms:
        """Load them on the engine's base, and score each."""
        arms: Arms = {}
        for name, target in self.targets.items():
            assert target.weights is not None
            self._note_overlap(name, target.weights, problems)
            renderer, model = switched(engine, target, name)
            key = identity(config, target.weights)
            arms[name] = score_arm(model, renderer, problems, name, config.sampling_params, folder, key, target.trained)
        return arms

    def _note_overlap(self, name: str, weights: Path, problems: Sequence[Example]) -> None:
        overlap = len(problems) - len(not_trained_on(problems, trained_questions(training_runs(weights))))
        if overlap:
            note(f"{name} was trained on {overlap} of these {len(problems)} problems: its score is too high")


NONE = NamedAdapters()
