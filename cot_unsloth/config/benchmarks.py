"""Benchmarks that the settings can name, as their authors publish them.

To add one, add an entry to BENCHMARKS; if its rows have a shape of their own, also a reader in `data.benchmarks`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A public test set."""

    hub_id: str
    config_name: str | None
    """Configuration on the hub; None if there is only one."""
    split: str
    """The split to score on; some test sets are published as `train`."""
    reader: str
    """How a row is read: a key of `data.benchmarks.READERS`."""
    max_new_tokens: int
    """The token limit of an answer unless the settings give one: enough for a chain of thought on these problems."""
    lm_eval_task: str
    """Its name in lm-evaluation-harness (lm_eval 0.4.13)."""


BENCHMARKS: dict[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", "main", "test", "gsm8k", 2048, "gsm8k_cot_zeroshot"),
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", "problem_answer", 8192, "hendrycks_math500"),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", "problem_answer", 16384, "aime24"),
    "gpqa-diamond": Benchmark("Idavidrein/gpqa", "gpqa_diamond", "train", "gpqa", 8192, "gpqa_diamond_cot_zeroshot"),
}
"""GPQA is gated, and its authors ask not to publish its questions in plain text."""
