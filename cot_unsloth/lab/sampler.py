"""The sampler of a trial: TPE, which draws again if another trial has the same settings. Importing this imports Optuna."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import optuna

from cot_unsloth.lab.space import Choice, Choices, Combination, Dimension, combination, count, of_values

_DRAWS = 20
"""Draws until an untried combination is taken instead: TPE may prefer a few combinations, all of them tried."""


class NothingLeftError(Exception):
    """Every combination of a finite space was tried."""


class UntriedSampler(optuna.samplers.BaseSampler):
    """Draws all settings of one trial; in a finite space, none that another trial has."""

    def __init__(self, space: Sequence[Dimension], tried: set[Combination], *, seed: int, startup: int) -> None:
        """Prepare the draw.

        Args:
            space: what is varied.
            tried: combinations of other trials.
            seed: of the draw.
            startup: random trials before TPE.
        """
        self._space, self._tried, self._seed = space, tried, seed
        # Without `multivariate`, values are drawn one by one.
        self._tpe = optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=False, seed=seed)
        self._drawn: Choices = {}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, optuna.distributions.BaseDistribution]:
        """Nothing: all values are drawn independently."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Choice]:
        """Nothing."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """A value of the combination, which is drawn as a whole when its first value is asked for.

        Raises:
            NothingLeftError: every combination was tried.
        """
        if not self._drawn:
            self._drawn = self._draw(study, trial)
        return self._drawn[param_name]

    def _draw(self, study: Any, trial: optuna.trial.FrozenTrial) -> Choices:
        drawn = dict(trial.params)  # a trial that was killed between two of its values has the first of them
        for _ in range(_DRAWS):
            values = {
                one.leaf: drawn[one.leaf] if one.leaf in drawn else self._value(one, study, trial)
                for one in self._space
            }
            if count(self._space) is None or of_values(values, self._space) not in self._tried:
                return values
        free = [Dimension(one.leaf, (drawn[one.leaf],)) if one.leaf in drawn else one for one in self._space]
        combinations = count(free) or 0
        first = random.Random(self._seed).randrange(combinations)
        for number in range(combinations):
            values = dict(combination(free, (first + number) % combinations))
            if of_values(values, self._space) not in self._tried:
                return values
        raise NothingLeftError

    def _value(self, dimension: Dimension, study: Any, trial: Any) -> Choice:
        values = dimension.values
        if values is not None and len(values) == 1:
            return values[0]
        value: Choice = self._tpe.sample_independent(study, trial, dimension.leaf, dimension.distribution())
        return value
