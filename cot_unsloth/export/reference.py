"""The trained model's predictions on held-out rows: the reference that every exported file is compared with."""

from __future__ import annotations

import functools
import gc
from collections.abc import Collection
from typing import Any, Literal

import torch

from cot_unsloth.core.errors import RenderError
from cot_unsloth.core.types import Sample
from cot_unsloth.export import layerwise, verify
from cot_unsloth.export.gguf import predictions
from cot_unsloth.export.gguf.predictions import Position
from cot_unsloth.export.model import Model
from cot_unsloth.export.subject import COMPARED_ROWS, Subject

ReferenceKind = Literal["supervised", "positions"]
"""Predictions of the trained model: at supervised positions of each row, for a target that transformers opens, or at the
three positions of a row at which llama.cpp is asked."""


class Reference:
    """Predictions of base and adapter in float32, computed together when a target first asks for one of them.

    Together, because opening the network can mean loading the full model; and before the target opens its own file,
    because the network is released then: only one model is in memory at a time. The predictions stay: 20 rows with 12
    positions each over a vocabulary of 128k are 117 MiB.

    Args:
        model: base and adapter.
        subject: the rows.
        kinds: what targets will ask for.

    Raises:
        RenderError: no held-out row can be rendered and fits into the model's context.
    """

    def __init__(self, model: Model, subject: Subject, kinds: Collection[ReferenceKind]) -> None:
        self._model, self._subject, self._kinds = model, subject, kinds
        rendered = subject.renderer.samples(subject.examples[:COMPARED_ROWS])
        self.samples: list[Sample] = [sample for sample in rendered.samples if len(sample.ids) <= model.context]
        if not self.samples:
            reasons = [f"{reject.detail} ({reject.where})" for reject in rendered.rejects[:1]]
            reason = "".join(reasons) or f"all are longer than the {model.context:,} tokens of the model's context"
            raise RenderError(f"no row is left to compare on: {reason}", where=subject.config.data.dataset)

    @property
    def supervised_logprobs(self) -> list[Any]:
        """Log-probabilities at supervised positions of each sample: (positions, vocabulary) float32 each."""
        return self._logprobs["supervised"]

    @functools.cached_property
    def positions(self) -> list[Position]:
        """Where in the samples a GGUF file's next tokens are compared."""
        return predictions.positions_of(self.samples)

    @property
    def position_logprobs(self) -> list[Any]:
        """Log-probabilities at each of `positions`: (vocabulary,) float32 each."""
        return self._logprobs["positions"]

    @functools.cached_property
    def _logprobs(self) -> dict[ReferenceKind, list[Any]]:
        source = layerwise.FolderSource(self._model.weights)
        network = layerwise.open_network(self._subject.folder, source, self._subject.adapter, comparison_device())
        logprobs: dict[ReferenceKind, list[Any]] = {}
        if "supervised" in self._kinds:
            logprobs["supervised"] = verify.distributions(network, self.samples)
        if "positions" in self._kinds:
            logprobs["positions"] = predictions.distributions(network, self.positions)
        del network
        # Modules whose forward was replaced refer to themselves, so only the collector frees the adapter's weights.
        gc.collect()
        return logprobs


def comparison_device() -> str:
    """Where models are compared, in float32."""
    return "cuda" if torch.cuda.is_available() else "cpu"
