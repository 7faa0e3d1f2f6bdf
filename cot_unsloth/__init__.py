"""Teach a small open model to reason, and prove that it does.

`python -m cot_unsloth.train` trains, scores and exports; `cot-unsloth --help` lists all commands. From Python:
`from cot_unsloth import load_config, train_run, export_run` (documented in `cot_unsloth.api`).
Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "CotError", "Example", "Finding", "Part", "RunConfig", "RunDir", "Trace", "ask", "check", "combine_adapters",
    "compare_runs", "dry_run", "evaluate_run", "export_run", "list_runs", "load_config", "measure_curves", "parse",
    "print_scorecard", "render_trace", "sample_run", "sweep_settings", "train_run", "transfer_adapters", "write_traces",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public name, imported from `api` on first use."""
    if name in __all__:
        from cot_unsloth import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
