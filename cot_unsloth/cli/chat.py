"""`chat`: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cot_unsloth.cli import paths
from cot_unsloth.cli.options import Adapters, chat_options, command, given
from cot_unsloth.core import progress


@command()
@chat_options
@click.argument("question", required=False)
def chat(
    target: Path | None,
    base: str | None,
    adapters: Adapters,
    max_thinking_tokens: int | None,
    question: str | None,
    **flags: Any,
) -> None:
    """Talk to a model in the terminal, and see it think.

    \b
    cot-unsloth chat runs/NAME
    cot-unsloth chat runs/NAME "What is 17 * 3?"          one question
    cot-unsloth chat runs/NAME < question.txt             one question, of any number of lines
    cot-unsloth chat runs/NAME/export/FILE.gguf --max-thinking-tokens 200
    cot-unsloth chat runs/NAME --adapter other=runs/B     switch with /adapter other and /adapter base

    /help lists the commands: /example, /retry, /reset, /system, /temperature, /budget, /adapter, /save. Ctrl-C stops an
    answer; pressed twice, it ends the chat.
    """
    if target is not None and question is None and (base or adapters.own) and not paths.exists(target):
        target, question = None, str(target)  # a model is named already
    progress.starting("chat: loading the model")
    from cot_unsloth.cli import chat_session
    from cot_unsloth.evaluation.examples import examples_of
    from cot_unsloth.models.switching import load_models
    from cot_unsloth.models.target import resolve_target

    if base is not None or adapters.own is not None:
        paths.require_model(base, adapters.own)
    resolved = resolve_target(target, base=base, adapter=adapters.own, flags=given(flags))
    name = paths.model_name(target or Path(base or adapters.own or ""))
    models = load_models(resolved, name, adapters.named, given(flags))
    examples = examples_of(resolved.run, resolved.config) if resolved.run is not None else None
    chat_session.chat(models, max_thinking_tokens, question, examples)
