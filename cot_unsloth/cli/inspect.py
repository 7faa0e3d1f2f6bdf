"""`inspect`: show rows as the model sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cot_unsloth import config as settings
from cot_unsloth.cli import paths
from cot_unsloth.cli.options import FOLDER, command, given, setting_flags
from cot_unsloth.config import Flags
from cot_unsloth.core import progress
from cot_unsloth.core.errors import ConfigError

if TYPE_CHECKING:
    from cot_unsloth.prompts.inspection import InspectedRow


@command("inspect")
@click.argument("target", required=False, metavar="[CONFIG|DATA|RUN]")
@click.option("-n", "count", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rows to show.")
@click.option("--html", metavar="FILE", type=FOLDER, help="Write them to an HTML page instead.")
@setting_flags("model", only=("model_name_or_path", "model_revision", "chat_template", "pad_token", "date_string"))
@setting_flags("data")
def inspect(target: str | None, count: int, html: Path | None, **flags: Any) -> None:
    """Show rows as the model sees them.

    \b
    cot-unsloth inspect mine.jsonl
    cot-unsloth inspect configs/mine.yaml -n 10 --html rows.html
    cot-unsloth inspect runs/NAME

    Colours and marks show the sections, which tokens carry loss, control tokens, and steps that a task corrupted.
    """
    progress.starting("inspect")
    from cot_unsloth.prompts import inspection
    from cot_unsloth.reporting import tables
    from cot_unsloth.storage.atomic import write_text

    paths.require_existing(target)
    rows = _rows(target, count, given(flags))
    if html is None:
        tables.print_rows(rows)
        return
    write_text(html, inspection.render_page(rows, inspection.page_title(target)))
    click.echo(f"page: {html}")


def _rows(target: str | None, count: int, flags: Flags) -> list[InspectedRow]:
    from cot_unsloth.prompts import inspection
    from cot_unsloth.storage.run_folder import RunDir

    if target is not None and Path(target, "config.yaml").is_file():
        if flags:
            where = settings.flag_name(next(iter(flags)))
            raise ConfigError("needs data or settings; a run has its own", where=where)
        return inspection.rows_of_run(RunDir.open(target), count)
    return inspection.rows_of_settings(settings.load_target(target, flags), count)
