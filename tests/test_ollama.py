"""The Modelfile's Go template and the trained template of Jinja give the same prompts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from models import TINY

from cot_unsloth import trace
from cot_unsloth.config import load_tree
from cot_unsloth.errors import RenderError
from cot_unsloth.export import ollama
from cot_unsloth.export.gguf_tokens import adds_bos
from cot_unsloth.render import ChatTemplate, open_renderer
from cot_unsloth.values import ThinkingTags

_ACTION = re.compile(r"\{\{ (.*?) \}\}")


def go(template: str, messages: list[dict[str, str]]) -> str:
    """A reader of the part of Go's text/template that is used: if, else if, else, range, eq, index, fields."""
    pieces = _ACTION.split(template)
    tree, rest = block(pieces, 0)
    assert rest == len(pieces)
    return "".join(run(node, None, messages) for node in tree)


def block(pieces: list[str], at: int) -> tuple[list[Any], int]:
    """Nodes up to the `end` or `else` that closes them: pieces at even places are text, at odd ones actions."""
    nodes: list[Any] = []
    while at < len(pieces):
        piece = pieces[at]
        if at % 2 == 0:
            nodes.append(("text", piece))
        elif piece == "end" or piece.startswith("else"):
            return nodes, at
        elif piece.startswith("if "):
            branches, at = branching(pieces, at)
            nodes.append(("if", branches))
        elif piece.startswith("range "):
            assert piece == "range .Messages"
            inner, at = block(pieces, at + 1)
            assert pieces[at] == "end"
            nodes.append(("range", inner))
        else:
            nodes.append(("field", piece))
        at += 1
    return nodes, at


def branching(pieces: list[str], at: int) -> tuple[list[tuple[str, list[Any]]], int]:
    branches, condition = [], pieces[at].removeprefix("if ")
    while True:
        inner, at = block(pieces, at + 1)
        branches.append((condition, inner))
        if pieces[at] == "end":
            return branches, at
        condition = pieces[at].removeprefix("else").strip().removeprefix("if ") or "true"


def run(node: Any, message: dict[str, str] | None, messages: list[dict[str, str]]) -> str:
    match node:
        case ("text", text):
            return str(text)
        case ("field", field):
            assert message is not None
            return message.get(field.removeprefix(".").lower(), "")
        case ("range", inner):
            return "".join(run(each, m, messages) for m in messages for each in inner)
        case ("if", branches):
            chosen = next((inner for condition, inner in branches if holds(condition, message, messages)), [])
            return "".join(run(each, message, messages) for each in chosen)
    raise AssertionError(node)


def holds(condition: str, message: dict[str, str] | None, messages: list[dict[str, str]]) -> bool:
    if condition == "true":
        return True
    if condition == ".Thinking":
        return bool(message and message.get("thinking"))
    first = re.fullmatch(r'eq \(index \.Messages 0\)\.Role "(\w+)"', condition)
    if first:
        return messages[0]["role"] == first[1]
    role = re.fullmatch(r'eq \.Role "(\w+)"', condition)
    assert role, condition
    assert message
    return message["role"] == role[1]


SYSTEM = {"role": "system", "content": "Think in <thinking> tags."}
ASK, AGAIN = {"role": "user", "content": "How many?"}, {"role": "user", "content": "And then?\nWhat of 3?"}
SAID = {"role": "assistant", "content": "<output>2</output>"}
THOUGHT = {"role": "assistant", "content": "<output>2</output>", "thinking": "1 + 1 = 2"}
CONVERSATIONS = {
    "no system": [ASK],
    "system": [SYSTEM, ASK],
    "several turns": [ASK, SAID, AGAIN],
    "system, several turns": [SYSTEM, ASK, SAID, AGAIN, SAID, ASK],
    "reasoning in history": [SYSTEM, ASK, THOUGHT, AGAIN],
}


def chat_of(name: str, request: pytest.FixtureRequest, thinking_tags: ThinkingTags = "thinking") -> ChatTemplate:
    path = TINY if name == "tiny" else str(request.getfixturevalue("shared_data") / "tokenizers" / name)
    config = load_tree({"model": {"model_name_or_path": path}}, {"thinking_tags": thinking_tags})
    return open_renderer(config.model, config.data).chat


@pytest.mark.parametrize("tags", ["thinking", "think"])
@pytest.mark.parametrize("name", ["tiny", "llama3.2", "qwen2.5"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_go_template_says_what_the_jinja_template_says(
    name: str, conversation: str, tags: ThinkingTags, request: pytest.FixtureRequest
) -> None:
    chat = chat_of(name, request, tags)
    messages = CONVERSATIONS[conversation]
    opening, closing = trace.tags("thinking", tags)
    joined = [
        {
            "role": m["role"],
            "content": f"{opening}\n{m['thinking']}\n{closing}\n{m['content']}" if "thinking" in m else m["content"],
        }
        for m in messages
    ]
    wanted = chat.text(joined, ask=True)
    if adds_bos(chat.tokenizer):  # which Ollama writes by itself
        assert wanted.startswith(chat.tokenizer.bos_token)
        wanted = wanted.removeprefix(chat.tokenizer.bos_token)
    assert go(ollama.pieces(chat).template, messages) == wanted


def test_a_modelfile_has_all_that_ollama_would_otherwise_guess(request: pytest.FixtureRequest) -> None:
    config = load_tree({}, {"max_seq_length": 640})
    text = ollama.modelfile("./x.gguf", chat_of("tiny", request), config, 2048)
    assert text.splitlines()[1] == "FROM ./x.gguf"
    assert f'SYSTEM """{config.data.system_prompt}"""' in text
    for line in ('PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 640", "PARAMETER temperature 0"):
        assert line in text
    assert "ADAPTER ./a.gguf" in ollama.modelfile("base", chat_of("tiny", request), config, 2048, "./a.gguf")


def test_a_template_that_does_more_is_refused(request: pytest.FixtureRequest) -> None:
    chat = chat_of("tiny", request)
    chat.tokenizer.chat_template = "{% for m in messages %}{{ loop.index }} {{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(RenderError, match="cannot be written for Ollama"):
        ollama.pieces(chat)


def test_the_shapes_are_shared(tmp_path: Path) -> None:
    assert (
        go('a{{ range .Messages }}{{ if eq .Role "user" }}[{{ .Content }}]{{ else }}-{{ end }}{{ end }}z', [ASK, SAID])
        == "a[How many?]-z"
    )
