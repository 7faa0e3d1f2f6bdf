"""What the trained model predicts on held-out rows: the reference that every exported file is compared with."""

from __future__ import annotations

import functools
from typing import Any

import torch

from cot_unsloth.core.errors import RenderError
from cot_unsloth.core.types import Sample
from cot_unsloth.export import layerwise, verify
from cot_unsloth.export.gguf import predictions
from cot_unsloth.export.gguf.predictions import Position
from cot_unsloth.export.layerwise import Network
from cot_unsloth.export.model import Model
from cot_unsloth.export.subject import COMPARED_ROWS, Subject


class Reference:
    """Predictions of base and adapter in float32; each kind is computed when a target first asks for it.

    The network is opened for one kind and released after it, because a target opens the exported model beside it.

    Raises:
        RenderError: no held-out row can be rendered and fits into the model's context.
    """

    def __init__(self, model: Model, subject: Subject) -> None:
        self._model, self._subject = model, subject
        rendered = subject.renderer.samples(subject.examples[:COMPARED_ROWS])
        self.samples: list[Sample] = [sample for sample in rendered.samples if len(sample.ids) <= model.context]
        if not self.samples:
            reasons = [f"{reject.detail} ({reject.where})" for reject in rendered.rejects[:1]]
            reason = "".join(reasons) or f"all are longer than the {model.context:,} tokens of the model's context"
            raise RenderError(f"no row is left to compare on: {reason}", where=subject.config.data.dataset)

    @functools.cached_property
    def supervised_logprobs(self) -> list[Any]:
        """Log-probabilities at supervised positions of each sample: (positions, vocabulary) float32 each."""
        return verify.distributions(self._network(), self.samples)

    @functools.cached_property
    def positions(self) -> list[Position]:
        """Where in the samples a GGUF file's next tokens are compared."""
        return predictions.positions_of(self.samples)

    @functools.cached_property
    def position_logprobs(self) -> list[Any]:
        """Log-probabilities at each of `positions`: (vocabulary,) float32 each."""
        return predictions.distributions(self._network(), self.positions)

    def _network(self) -> Network:
        source = layerwise.FolderSource(self._model.weights)
        return layerwise.open_network(self._subject.folder, source, self._subject.adapter, comparison_device())


def comparison_device() -> str:
    """Where models are compared, in float32."""
    return "cuda" if torch.cuda.is_available() else "cpu"
