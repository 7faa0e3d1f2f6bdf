"""The prompts of the arms: three for the base, and one for the trained model.

The base is scored under several prompts because a single one might handicap it: fine-tuning must beat the best of them.
"""

from __future__ import annotations

from cot_unsloth.config import DataConfig
from cot_unsloth.core import trace
from cot_unsloth.core.types import Example, Message, Prompt

ANSWER_ONLY = "\n\nGive only the final answer."
STEP_BY_STEP = "\n\nThink step by step, then give the final answer on a last line that starts with Answer:"
"""Zero-shot chain of thought (Kojima et al. 2022), with a mark after which the answer can be read."""


def system_turn(system: str | None) -> tuple[Message, ...]:
    """The beginning of a conversation: a system message, or nothing if there is no system prompt."""
    return ({"role": "system", "content": system},) if system else ()


class Prompter:
    """Makes the prompts and answers of examples, as text; needs no tokenizer."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data

    def prompt(self, example: Example, arm: str) -> Prompt:
        """The prompt of an arm. `base_tags`, `start`, `tuned`, `gguf` and named adapters are asked alike: as in training."""
        match arm:
            case "base_direct" | "forgetting_before" | "forgetting_after":
                return self._ask(example, example.system, example.question + ANSWER_ONLY)
            case "base_cot":
                return self._ask(example, example.system, example.question + STEP_BY_STEP)
            case _:
                system = example.system if example.system is not None else self.data.system_prompt
                return self._ask(example, system, example.question)

    def _ask(self, example: Example, system: str | None, question: str) -> Prompt:
        history = (self._earlier(turn) for turn in example.history)
        return Prompt(example.id, (*system_turn(system), *history, {"role": "user", "content": question}))

    def _earlier(self, turn: Message) -> Message:
        """An earlier turn in the layout and tags of this run; data is stored nested, with the default tags."""
        if turn["role"] != "assistant":
            return turn
        content = trace.rewrite_turn(turn["content"], self.data.trace_layout, self.data.thinking_tags)
        return {**turn, "content": content}

    def solution(self, example: Example) -> str:
        """The assistant's turn of a row, reasoning and output, in the layout and tags of this run."""
        return trace.render(example.trace, self.data.trace_layout, self.data.thinking_tags)
