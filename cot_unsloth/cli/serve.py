"""`serve`: a model behind the OpenAI chat API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from cot_unsloth.cli import paths
from cot_unsloth.cli.options import chat_options, command, given


@command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0: any free port.")
@click.option("--api-key", envvar="COT_UNSLOTH_API_KEY", help="Require this key; also from COT_UNSLOTH_API_KEY.")
@click.option(
    "--cors", "origins", metavar="ORIGIN", multiple=True, help="Let web pages of this origin use it; * allows any."
)
@chat_options
def serve(
    target: Path | None,
    base: str | None,
    adapter: Path | None,
    max_thinking_tokens: int | None,
    host: str,
    port: int,
    api_key: str | None,
    origins: tuple[str, ...],
    **flags: Any,
) -> None:
    """Serve a model behind the OpenAI chat API.

    \b
    cot-unsloth serve runs/NAME/export/FILE.gguf
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "What is 17 * 3?"}]}'

    The thinking is returned in `reasoning_content`, the output in `content`. Anything but a loopback address needs a key.
    """
    from cot_unsloth import server
    from cot_unsloth.models.llamacpp import SLOTS
    from cot_unsloth.models.target import resolve_target

    if base is not None or adapter is not None:
        paths.require_model(base, adapter)
    with server.bind(host, port) as listener:  # before a model is loaded for minutes
        access = server.access_for(listener, api_key, origins)
        resolved = resolve_target(target, base=base, adapter=adapter, flags=given(flags))
        engine = resolved.load_streamer(SLOTS)
        name = _model_name(target or Path(base or adapter or ""))
        slots = SLOTS if engine.name == "llamacpp" else 1
        served = server.Served({name: engine}, resolved.config, slots, max_thinking_tokens, access)
        server.serve(served, listener)


def _model_name(target: Path) -> str:
    """What the model is called in answers: the name of its file or folder, also where that is given as `.`."""
    path = Path(os.path.normpath(target.absolute()))
    return (path.stem if path.suffix == ".gguf" else path.name) or "model"
