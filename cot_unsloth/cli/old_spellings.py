"""`evaluate --curves` and `evaluate --lm-eval BENCHMARK`, the older spellings of the commands `curves` and `lm-eval`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from cot_unsloth.cli.curves import OPTIONS, CurveOptions, curves_options, measure_curves
from cot_unsloth.cli.lm_eval import print_command
from cot_unsloth.cli.options import Adapters, given
from cot_unsloth.core.errors import ConfigError


def curves_and_lm_eval(evaluate: Callable[..., None]) -> Callable[..., None]:
    """Give `evaluate` the old options, hidden from its help; they do what the commands do."""

    @click.option("--lm-eval", "benchmark_of_lm_eval", metavar="BENCHMARK", hidden=True)
    @click.option("--curves", is_flag=True, hidden=True)
    @curves_options(hidden=True)
    @functools.wraps(evaluate)
    def dispatch(*, curves: bool, benchmark_of_lm_eval: str | None, **values: Any) -> None:
        options = given({name: values.pop(name) for name in OPTIONS})
        if benchmark_of_lm_eval is not None:
            print_command(values["runs"], benchmark_of_lm_eval)
        elif values["api"] is not None and (curves or options):
            raise ConfigError("cannot be combined with --curves and its options", where="--api")
        elif curves:
            _measure(options, **values)
        elif options or (len(values["runs"]) > 1 and values["api"] is None):
            message = "several runs, budgets and samples go with --curves"
            raise ConfigError(message, where="evaluate", hint="or use cot-unsloth curves")
        else:
            evaluate(**values)

    return dispatch


def _measure(
    options: CurveOptions,
    *,
    runs: Any,
    base: Any,
    adapters: Adapters,
    out: Any,
    api: None,
    concurrency: int,
    **flags: Any,
) -> None:
    if base is not None or adapters.own is not None or adapters.named:
        raise ConfigError("name a run, or several that differ in their seed", where="--curves")
    measure_curves(runs, out, options, given(flags))
