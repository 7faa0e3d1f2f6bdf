"""`chat`: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cot_unsloth.cli import paths
from cot_unsloth.cli.options import Adapters, chat_options, command, given


@command()
@chat_options
def chat(
    target: Path | None, base: str | None, adapters: Adapters, max_thinking_tokens: int | None, **flags: Any
) -> None:
    """Talk to a model in the terminal, and see it think.

    \b
    cot-unsloth chat runs/NAME
    cot-unsloth chat runs/NAME/export/FILE.gguf --max-thinking-tokens 200
    cot-unsloth chat runs/NAME < question.txt             one question, of any number of lines
    cot-unsloth chat runs/NAME --adapter other=runs/B     /adapter other, /adapter base switch between them
    """
    from cot_unsloth.cli import chat_session
    from cot_unsloth.models.switching import load_models
    from cot_unsloth.models.target import resolve_target

    if base is not None or adapters.own is not None:
        paths.require_model(base, adapters.own)
    resolved = resolve_target(target, base=base, adapter=adapters.own, flags=given(flags))
    name = paths.model_name(target or Path(base or adapters.own or ""))
    chat_session.chat(load_models(resolved, name, adapters.named, given(flags)), max_thinking_tokens)
