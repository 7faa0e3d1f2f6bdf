"""Figures for Prometheus at /metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cot_unsloth.server.generation import Slots

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts of requests and tokens, and how long clients wait. In a registry of its own: one per server."""

    def __init__(self, slots: Slots) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("cot_unsloth_requests", "Answered requests", ["path", "status"], registry=self.registry)
        self.tokens = Counter("cot_unsloth_tokens", "Tokens read and generated", ["kind"], registry=self.registry)
        self.first = Histogram(
            "cot_unsloth_first_token_seconds", "Seconds until the first token", buckets=_SECONDS, registry=self.registry
        )
        self.whole = Histogram(
            "cot_unsloth_answer_seconds",
            "Seconds until an answer is complete",
            buckets=_SECONDS,
            registry=self.registry,
        )
        for name, text, value in (
            ("cot_unsloth_running", "Answers that are generated now", lambda: slots.running),
            ("cot_unsloth_waiting", "Requests that wait for a slot", lambda: slots.waiting),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All figures in Prometheus's format."""
        return generate_latest(self.registry)

    def timer(self) -> Timer:
        """Times one answer."""
        return Timer(self)


@dataclass
class Timer:
    """Seconds from a request to its first token and to its last."""

    metrics: Metrics
    began: float = field(default_factory=time.monotonic)
    _has_begun: bool = False

    def token(self) -> None:
        """Called with each token; the first one counts."""
        if not self._has_begun:
            self._has_begun = True
            self.metrics.first.observe(time.monotonic() - self.began)

    def done(self, prompt: int, completion: int) -> None:
        """Called when the answer is complete, with its numbers of tokens."""
        self.metrics.whole.observe(time.monotonic() - self.began)
        self.metrics.tokens.labels("prompt").inc(prompt)
        self.metrics.tokens.labels("completion").inc(completion)
