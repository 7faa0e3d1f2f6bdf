"""`chat`: talk to a model in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cot_unsloth.cli import paths
from cot_unsloth.cli.options import chat_options, command, given


@command()
@chat_options
def chat(
    target: Path | None, base: str | None, adapter: Path | None, max_thinking_tokens: int | None, **flags: Any
) -> None:
    """Talk to a model in the terminal, and see it think.

    \b
    cot-unsloth chat runs/NAME
    cot-unsloth chat runs/NAME/export/FILE.gguf --max-thinking-tokens 200
    cot-unsloth chat runs/NAME < question.txt             one question, of any number of lines
    """
    from cot_unsloth.cli import chat_session
    from cot_unsloth.models.target import resolve_target

    if base is not None or adapter is not None:
        paths.require_model(base, adapter)
    resolved = resolve_target(target, base=base, adapter=adapter, flags=given(flags))
    chat_session.chat(resolved.load_streamer(), resolved.config, max_thinking_tokens)
