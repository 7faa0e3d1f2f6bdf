"""Which page holds which blocks, and a page with its blocks rewritten."""

from __future__ import annotations

from collections.abc import Callable

from scripts.figures.applications import applications, conversions, invoices, schedules
from scripts.figures.base_card import skills
from scripts.figures.bases import bases
from scripts.figures.demo import lengths, recovery, seeds, traces
from scripts.figures.evaluation import reflecting, test_time, train_time
from scripts.figures.export import export, real_model, verify_memory
from scripts.figures.gpu import few_bits, gpu, gpu_checks
from scripts.figures.lab import reflections, sweep, techniques, techniques_smollm2
from scripts.figures.preparation import many_rows
from scripts.figures.readme import demo
from scripts.figures.real_stages import real_stages
from scripts.figures.results import ROOT
from scripts.figures.robustness import chaos, fuzz, gguf_mutations, load_test
from scripts.figures.self_training import equal_compute, grpo, rejection_sampling
from scripts.figures.speed import speed_growth, speed_scoring, speed_start, speed_training, speed_variants
from scripts.figures.tested import vllm_cpu
from scripts.figures.transfer import transfer

PAGES: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (demo,),
    "docs/evaluation.md": (test_time, train_time, reflecting),
    "docs/demo.md": (seeds, lengths, recovery, traces),
    "docs/bases.md": (bases,),
    "docs/applications.md": (applications,),
    "examples/applications/conversions/README.md": (conversions,),
    "examples/applications/schedules/README.md": (schedules,),
    "examples/applications/invoices/README.md": (invoices,),
    "docs/grpo.md": (grpo,),
    "docs/gpu.md": (few_bits, gpu, gpu_checks),
    "docs/lab.md": (sweep, transfer),
    "docs/sampling.md": (rejection_sampling, equal_compute, reflections),
    "docs/tested.md": (vllm_cpu,),
    "docs/techniques.md": (techniques, techniques_smollm2),
    "docs/recipes.md": (real_stages,),
    "docs/robustness.md": (chaos, gguf_mutations, fuzz, load_test),
    "docs/export.md": (export, verify_memory, real_model),
    "docs/speed.md": (speed_training, speed_scoring, speed_start, many_rows, speed_growth, speed_variants),
    "cot_unsloth/assets/tiny-base/README.md": (skills,),
}
"""By page, the blocks that are generated; a block is named after its function."""


def filled(page: str) -> str:
    """The text of a page with its blocks generated anew.

    Raises:
        ValueError: the page lacks a block, or a block's end.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in PAGES[page]:
        begin, end = f"<!-- {block.__name__} -->", f"<!-- /{block.__name__} -->"
        before, has_begin, rest = text.partition(begin)
        _, has_end, after = rest.partition(end)
        if not (has_begin and has_end):
            raise ValueError(f"{page} has no block {begin} … {end}")
        text = f"{before}{begin}\n{block()}\n{end}{after}"
    return text
