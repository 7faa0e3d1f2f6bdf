"""`serve`: a model behind the OpenAI chat API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cot_unsloth.cli import paths
from cot_unsloth.cli.options import Adapters, chat_options, command, given
from cot_unsloth.core import progress

_EXAMPLES = 3
"""Questions that the chat page offers."""


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
    adapters: Adapters,
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

    The thinking is returned in `reasoning_content`, the output in `content`. Any address but a loopback one needs a key.

    With --adapter NAME=RUN (repeatable), one base in memory serves several models: a request's `model` is the run's name,
    a NAME, or `base`.
    """
    progress.starting("serve: loading the model")
    from cot_unsloth import server
    from cot_unsloth.evaluation.examples import example_questions
    from cot_unsloth.models.llamacpp import SLOTS
    from cot_unsloth.models.switching import load_models
    from cot_unsloth.models.target import resolve_target

    if base is not None or adapters.own is not None:
        paths.require_model(base, adapters.own)
    with server.bind(host, port) as listener:  # before loading, which takes minutes: the port may be taken
        access = server.access_for(listener, api_key, origins)
        resolved = resolve_target(target, base=base, adapter=adapters.own, flags=given(flags))
        name = paths.model_name(target or Path(base or adapters.own or ""))
        models = load_models(resolved, name, adapters.named, given(flags), SLOTS)
        engines = {name: model.engine for name, model in models.items()}
        configs = {name: model.config for name, model in models.items()}
        slots = SLOTS if resolved.is_gguf else 1
        questions = example_questions(resolved.run, resolved.config, _EXAMPLES) if resolved.run is not None else ()
        served = server.Served(engines, resolved.config, slots, max_thinking_tokens, access, configs, questions)
        server.serve(served, listener)
