"""A stand-in for a model that answers with one text, for tests of chat and server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cot_unsloth.core.types import Completion, Prompt, SamplingParams

TEXT = "<thinking>\n1 + 1 = 3\n<reflection>it is 2</reflection>\nso 2\n</thinking>\n<output>2</output>"
ASK = ({"role": "user", "content": "1 + 1?"},)


class Speaker:
    """A model that writes one text, a few characters at a time, and continues from any prefix of it."""

    name = "speaker"

    def __init__(self, text: str = TEXT, size: int = 3) -> None:
        self.text, self.size = text, size
        self.asked: list[Prompt] = []

    def generate(self, prompts: Any, sampling: SamplingParams, advance: Any = None) -> list[Completion]:
        raise NotImplementedError

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        self.asked.append(prompt)
        rest = self.text if not prompt.prefix else "7</output>"
        pieces = [rest[at : at + self.size] for at in range(0, len(rest), self.size)]
        yield from pieces[: sampling.max_new_tokens]

    context_length = 4096

    def prompt_tokens(self, prompt: Prompt) -> int:
        return 5
