"""Conversations that a chat template has already written out as one text: ChatML, Llama, Gemma, `### Human:` and others.

Templates with special tokens are recognised in any column that asks, and those of plain words only in a column that
holds the whole conversation: words such as "Human:" may stand in any text.
"""

from __future__ import annotations

import re
from typing import Any

from cot_unsloth.data.layouts.row import Columns

_TOKENS = re.compile(
    r"<\|im_start\|>[ \t]*(?P<chatml>\w+)[^\n]*\n?"
    r"|<\|start_header_id\|>\s*(?P<llama3>\w+)\s*<\|end_header_id\|>"
    r"|<\|start_of_role\|>(?P<granite>\w+)<\|end_of_role\|>"
    r"|<start_of_turn>(?P<gemma>\w+)"
    r"|<\|start\|>(?P<harmony>system|developer|user)[^<]*<\|message\|>|<\|start\|>(?P<assistant>assistant)(?=<\|channel\|>)"
    r"|<\|(?P<zephyr>system|user|assistant)\|>"
    r"|<｜(?P<deepseek>User|Assistant)｜>"
    r"|(?P<user>\[INST\])|(?P<answer>\[/INST\])"
)
_WORDS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"#{2,4} ?(?P<role>Human|User|Assistant|System|Instruction|Input|Response|Question|Problem|Reasoning|Thinking|"
        r"Thought|Solution|Answer|Output):?(?=\s)",
        r"^(?P<role>Human|Assistant|System):(?=\s)",
        r"(?:^|(?<=\s)|(?<=</s>))(?P<role>USER|ASSISTANT|SYSTEM):(?=\s)",
        r"^(?P<role>Question|Reasoning|Thinking|Thought|Answer|Q|A):(?=\s)",
    )
)
_ROLES = {
    **dict.fromkeys(("user", "human", "instruction", "input", "question", "problem", "q"), "user"),
    **dict.fromkeys(("assistant", "model", "response", "answer", "solution", "output", "a"), "assistant"),
    **dict.fromkeys(("think", "reasoning", "thinking", "thought"), "reasoning"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_END = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|end_of_text|begin_of_text|endoftext|end|return)\|>|</?s>|<(?:end_of_turn|bos|eos)>"
    r"|<｜(?:begin|end)▁of▁sentence｜>"
)
_SYSTEM = re.compile(r"<<SYS>>(?P<system>.*?)<</SYS>>", re.DOTALL)
_WHOLE = (
    "text",
    "formattedtext",
    "formatted",
    "chattext",
    "prompttext",
    "conversation",
    "conversations",
    "chat",
    "dialogue",
    "chosen",
)
"""Columns that may hold a whole conversation as one text."""


def column(columns: Columns) -> str | None:
    """The column that holds a whole conversation as one text, if nothing else asks."""
    if columns.question() is not None:
        return None
    return next((c for c in columns.each(_WHOLE) if _answers(turns(columns.value(c)))), None)


def _answers(found: list[dict[str, str]] | None) -> bool:
    roles = [turn["role"] for turn in found or ()]
    return "user" in roles and roles[-1] == "assistant"


def has_tokens(value: Any) -> bool:
    """Whether a text is a conversation with the special tokens of a template.

    >>> has_tokens("<|im_start|>user\\nHi<|im_end|>"), has_tokens("Human: Hi")
    (True, False)
    """
    return isinstance(value, str) and len(value) < 10_000_000 and _TOKENS.search(value) is not None


def turns(value: Any) -> list[dict[str, str]] | None:
    """The messages of a text; None where it is no conversation.

    >>> turns("### Human: Hi### Assistant: Hello")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    if not isinstance(value, str):
        return None
    if has_tokens(value):
        return _messages(value, list(_TOKENS.finditer(value)))
    for words in _WORDS:
        marks = list(words.finditer(value))
        roles = [_ROLES[mark["role"].lower()] for mark in marks]
        # A text of plain words that begins otherwise is one that only uses them, or has instructions before its turns.
        if roles and roles[0] in ("user", "system") and "assistant" in roles and len(value[: marks[0].start()]) < 1000:
            return _messages(value, marks)
    return None


def _messages(text: str, marks: list[re.Match[str]]) -> list[dict[str, str]]:
    made: list[dict[str, str]] = []
    lead = _bare(text[: marks[0].start()])
    if lead:
        made.append({"role": "system", "content": lead})
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        _add(made, _role(mark), _bare(text[mark.end() : end]))
    if made and not made[-1]["content"] and "thinking" not in made[-1]:
        made.pop()  # what a prompt ends in, for the model to go on
    return made


def _role(mark: re.Match[str]) -> str:
    name = str(mark.lastgroup)
    called = {"user": "user", "answer": "assistant"}.get(name, mark[name].lower())
    return _ROLES.get(called, called)


def _add(made: list[dict[str, str]], role: str, content: str) -> None:
    system = _SYSTEM.match(content) if role == "user" else None
    if system:
        made.append({"role": "system", "content": system["system"].strip()})
        content = content[system.end() :].strip()
    last = made[-1] if made else None
    if role == "reasoning":
        if last is None or last["role"] != "assistant" or last["content"]:
            made.append({"role": "assistant", "content": ""})
        made[-1]["thinking"] = content
    elif last is not None and last["role"] == role and (role == "user" or not last["content"]):
        last["content"] = "\n\n".join(filter(None, (last["content"], content)))  # an instruction and its input
    elif last is not None and role == last["role"] == "assistant" and last["content"].startswith("<|channel|>"):
        last["content"] += f"<|start|>assistant{content}"
    else:
        made.append({"role": role, "content": content})


def _bare(text: str) -> str:
    return _END.sub("", text).strip() if "<|channel|>" not in text else text.strip()
