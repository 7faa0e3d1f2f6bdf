"""`sweep`: search for settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cot_unsloth import config as settings
from cot_unsloth.cli.options import FOLDER, command, given, out_option, setting_flags
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError


@command()
@click.argument("config_file", required=False, metavar="[CONFIG]")
@click.option("--space", "space_file", type=FOLDER, metavar="FILE", help="What to vary, as YAML.")
@click.option(
    "--vary", multiple=True, metavar="SETTING=VALUES", help="Choices, or LOW:HIGH, or LOW:HIGH:log. Repeatable."
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    help="Number of trials, the default settings included. Default: 20; with --grid, every combination.",
)
@click.option("--grid", is_flag=True, help="Try every combination of the choices instead of searching.")
@click.option("--name", default="sweep", show_default=True, help="Name of the study.")
@click.option(
    "--study", metavar="URL", help="Database shared by several machines; default: a SQLite file in the sweep's folder."
)
@click.option("--no-prune", is_flag=True, help="Let every trial finish.")
@click.option(
    "--no-final",
    is_flag=True,
    help="Do not retrain the default and the best settings to compare them on held-out problems.",
)
@click.option("--sweep-seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the search.")
@click.option(
    "--heartbeat", type=click.IntRange(1), default=15, show_default=True,
    help="Seconds between the heartbeats of a process; when three are missed, another process continues its trial.",
)  # fmt: skip
@out_option("Folder of the sweep. Default: sweeps/NAME.")
@setting_flags("model", "lora", "data", "train", "sample", "grpo", "evaluate")
def sweep(
    config_file: str | None,
    space_file: Path | None,
    vary: tuple[str, ...],
    trials: int | None,
    grid: bool,
    name: str,
    study: str | None,
    out: Path | None,
    **more: Any,
) -> None:
    """Search for settings that train a better model.

    \b
    cot-unsloth sweep configs/qwen2.5-7b.yaml --vary learning_rate=5e-5:1e-3:log --trials 12
    cot-unsloth sweep --vary lora_r=4,8,16 --vary target_modules=all-linear,q_proj+v_proj --grid
    cot-unsloth sweep CONFIG --space space.yaml --study postgresql://host/db --name rates

    Trials are ranked on development problems, which are set aside from the training problems. The same command continues
    an interrupted sweep, or joins a running one. Held-out problems are used only once, for the default and the best
    settings. Needs cot-unsloth[lab].
    """
    from cot_unsloth.lab import space as spaces

    if grid and trials is not None:
        raise ConfigError(
            "cannot limit --grid, which tries every combination",
            where=f"--trials {trials}",
            hint="leave out --trials, or leave out --grid to search in that many trials",
        )
    flags = {leaf: value for leaf, value in given(more).items() if leaf in settings.LEAVES}
    config = settings.load(config_file, flags)
    dimensions = [*(spaces.read(space_file) if space_file else []), *map(spaces.parse, vary)]
    progress.starting("sweep")
    from cot_unsloth.lab import sweep as sweeping
    from cot_unsloth.lab import sweep_page

    folder = out or Path("sweeps") / sweeping.require_name(name)
    options = sweeping.Options(
        name=name,
        folder=folder,
        study=study or sweeping.default_study(folder),
        trials=trials or 20,
        seed=more["sweep_seed"],
        grid=grid,
        prune=not more["no_prune"],
        final=not more["no_final"],
        heartbeat=more["heartbeat"],
    )
    result = sweeping.sweep(config, dimensions or spaces.default_space(config), options)
    page = sweep_page.page(result, folder / "best.yaml")
    page.print()
    click.echo(f"page: {page.write(folder / 'sweep.html')}")
    if result.best is None or result.final_failed:
        raise click.exceptions.Exit(1)
