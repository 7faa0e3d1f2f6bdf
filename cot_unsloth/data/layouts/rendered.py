"""Conversations that a chat template has already rendered as one text: ChatML, Llama, Gemma, `### Human:` and others.

Templates with special tokens are recognised in any question column. Those with plain words are recognised only in a column
that holds a whole conversation, since words such as "Human:" occur in any text.
"""

from __future__ import annotations

import re

from cot_unsloth.core import trace
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
_END = (
    r"<\|(?:im_end|eot_id|eom_id|end_of_text|begin_of_text|endoftext|end|return)\|>|</?s>|<(?:end_of_turn|bos|eos)>"
    r"|<｜(?:begin|end)▁of▁sentence｜>"
)
_ENDS = re.compile(rf"\A(?:\s*(?:{_END}))+|(?:(?:{_END})\s*)+\Z")
"""Only at the borders of a turn: HTML strikes text out with <s> and </s>."""
_SYSTEM = re.compile(r"<<SYS>>(?P<system>.*?)<</SYS>>", re.DOTALL)
_CONVERSATION_COLUMNS = (
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
"""Columns that may hold a conversation as one text."""


def conversation_column(columns: Columns) -> str | None:
    """The column with a conversation as one text; None if there is none, or another column asks."""
    if columns.question_column() is not None:
        return None
    return next((c for c in columns.filled(_CONVERSATION_COLUMNS) if _ends_in_answer(turns(columns.value(c)))), None)


def _ends_in_answer(messages: list[dict[str, str]] | None) -> bool:
    roles = [message["role"] for message in messages or ()]
    return "user" in roles and roles[-1] == "assistant"


def has_tokens(value: object) -> bool:
    """Whether a text contains the special tokens of a chat template.

    >>> has_tokens("<|im_start|>user\\nHi<|im_end|>"), has_tokens("Human: Hi")
    (True, False)
    """
    return isinstance(value, str) and len(value) < 10_000_000 and _TOKENS.search(value) is not None


def turns(value: object) -> list[dict[str, str]] | None:
    """The messages in a text; None if it is not a conversation.

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
        # A text that begins otherwise only happens to use these words, unless it is a short instruction before the turns.
        if roles and roles[0] in ("user", "system") and "assistant" in roles and len(value[: marks[0].start()]) < 1000:
            return _messages(value, marks)
    return None


def _messages(text: str, marks: list[re.Match[str]]) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    lead = _without_end_tokens(text[: marks[0].start()])
    if lead:
        messages.append({"role": "system", "content": lead})
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        _append(messages, _role(mark), _without_end_tokens(text[mark.end() : end]))
    last = messages[-1] if messages else {}
    if last.get("role") == "assistant":
        last["content"] = trace.strip_opened_thinking(last["content"])
    if messages and not last["content"] and "thinking" not in last:
        messages.pop()  # the generation prompt at the end of a prompt
    return messages


def _role(mark: re.Match[str]) -> str:
    name = str(mark.lastgroup)
    role = {"user": "user", "answer": "assistant"}.get(name, mark[name].lower())
    return _ROLES.get(role, role)


def _append(messages: list[dict[str, str]], role: str, content: str) -> None:
    system = _SYSTEM.match(content) if role == "user" else None
    if system:
        messages.append({"role": "system", "content": system["system"].strip()})
        content = content[system.end() :].strip()
    last = messages[-1] if messages else None
    if role == "reasoning":
        if last is None or last["role"] != "assistant" or last["content"]:
            messages.append({"role": "assistant", "content": ""})
        messages[-1]["thinking"] = content
    elif last is not None and last["role"] == role and (role == "user" or not last["content"]):
        last["content"] = "\n\n".join(filter(None, (last["content"], content)))  # an instruction and its input
    elif last is not None and role == last["role"] == "assistant" and last["content"].startswith("<|channel|>"):
        last["content"] += f"<|start|>assistant{content}"
    else:
        messages.append({"role": role, "content": content})


def _without_end_tokens(text: str) -> str:
    return _ENDS.sub("", text).strip() if "<|channel|>" not in text else text.strip()
