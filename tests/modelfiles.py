"""Readers that follow Ollama: its Modelfile parser and the Go templates in it, to test what the export writes.

`commands` follows the states of `ParseFile` in ollama's parser/parser.go (0.33), rune by rune. `go` runs the part of
Go's text/template that our templates use (lexing as in text/template/parse/lex.go), on `.Messages` and `.System` as
`collate` in ollama's template/template.go makes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message", "requires",
)  # fmt: skip


class ModelfileError(Exception):
    """Ollama would refuse this Modelfile or template."""


def _letter(char: str) -> bool:
    return char.isascii() and char.isalpha()


def _step(state: str, char: str) -> tuple[str, str]:
    """The next state, and what is kept of the character."""
    space, line_end = char in " \t", char in "\r\n"
    match state:
        case "nothing":
            if char == "#":
                return "comment", ""
            return ("nothing", "") if space or line_end else ("name", char)
        case "name" if _letter(char):
            return "name", char
        case "parameter" if _letter(char) or (char.isascii() and char.isdigit()) or char == "_":
            return "parameter", char
        case "name" | "parameter" if space:
            return "value", ""
        case "value":
            return ("nothing" if space or line_end else "value"), char
        case "comment":
            return ("nothing" if line_end else "comment"), ""
    raise ModelfileError(f"{char!r} in {state}")


def _unquoted(text: str) -> str | None:
    """The value without its quotes; None if the closing quotes are still missing."""
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            is_closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if is_closed else None
    return text


def commands(text: str) -> list[tuple[str, str]]:  # noqa: C901, PLR0912
    """The commands of a Modelfile: `from`, `template`, `system`, `adapter`, or a parameter's name; and the value of each."""
    state, name, read, parsed = "nothing", "", "", []
    for char in text.removeprefix("\ufeff"):
        after, kept = _step(state, char)
        if after != state:
            if state == "name":
                name = read.lower()
                if name not in _COMMANDS:
                    raise ModelfileError(f"no command: {read!r}")
                after = "parameter" if name == "parameter" else after
            elif state == "parameter":
                name = read
            elif state == "value":
                value = _unquoted(read.strip())
                if value is None or kept in (" ", "\t"):
                    read += kept
                    continue
                parsed.append((name, value))
            state, read = after, ""
        if kept.isprintable():  # Go's strconv.IsPrint has the same definition
            read += kept
    if state == "value":
        value = _unquoted(read.strip())
        if value is None:
            raise ModelfileError(f"ends within {name}")
        parsed.append((name, value))
    elif state in ("name", "parameter"):
        raise ModelfileError("ends early")
    if "from" not in dict(parsed):
        raise ModelfileError("no FROM line")
    return parsed


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def _constant(text: str) -> str:
    """The value of a string constant in Go."""

    def character(match: re.Match[str]) -> str:
        short, long, other = match.groups()
        return chr(int(short or long, 16)) if short or long else _ESCAPES[other]

    return re.sub(r"\\(?:u(\w{4})|U(\w{8})|(.))", character, text[1:-1])


def _lexed(template: str) -> list[tuple[str, str]]:
    """Texts and actions in turn. Raises an error where Go does."""
    pieces, at = [], 0
    while True:
        begin = template.find("{{", at)
        if begin < 0:
            return [*pieces, ("text", template[at:])]
        pieces.append(("text", template[at:begin]))
        match = re.compile(r'\{\{ ((?:"(?:[^"\\\n]|\\.)*"|[^"{}\n])*?) \}\}').match(template, begin)
        if match is None:
            raise ModelfileError(f"no action: {template[begin : begin + 40]!r}")
        pieces.append(("action", match[1]))
        at = match.end()


@dataclass
class _Scope:
    """The values of names while a template runs."""

    messages: list[dict[str, str]]
    system: str
    variables: dict[str, Any]
    dot: dict[str, str] | None = None

    def value(self, expression: str) -> Any:
        """A word, a constant, or a call of a function."""
        words = re.findall(r'"(?:[^"\\]|\\.)*"|\((?:[^()]|\([^()]*\))*\)(?:\.\w+)?|[^\s()]+', expression)
        if len(words) > 1:
            name, *arguments = words[0], *map(self.value, words[1:])
            calls = {
                "eq": lambda a, b: a == b,
                "not": lambda a: not a,
                "len": len,
                "slice": lambda all_, begin: all_[begin:],
                "index": lambda all_, at: all_[at],
            }
            return calls[name](*arguments)
        (word,) = words
        if word.startswith('"'):
            return _constant(word)
        if word.startswith("("):
            inner, _, name = word[1:].rpartition(")")
            value = self.value(inner)
            return value[name[1:].lower()] if name else value
        if word in ("true", "false") or word.isdecimal():
            return {"true": True, "false": False}[word] if not word.isdecimal() else int(word)
        root = {"Messages": self.messages, "System": self.system}
        if word.startswith("$."):
            return root[word[2:]]
        if word.startswith("$"):
            return self.variables[word]
        assert word.startswith("."), word
        return root[word[1:]] if self.dot is None else self.dot.get(word[1:].lower(), "")


def go(template: str, messages: list[dict[str, str]]) -> str:
    """The prompt that a template renders for a conversation."""
    pieces = _lexed(template)
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    scope = _Scope(messages, system, {})
    nodes, rest = _block(pieces, 0)
    assert rest == len(pieces)
    return _run(nodes, scope)


def _block(pieces: list[tuple[str, str]], at: int) -> tuple[list[Any], int]:
    """Nodes up to the `end` or `else` that closes them."""
    nodes: list[Any] = []
    while at < len(pieces):
        kind, piece = pieces[at]
        if kind == "text":
            nodes.append(("text", piece))
        elif piece == "end" or piece.startswith("else"):
            return nodes, at
        elif piece.startswith("if "):
            branches, condition = [], piece.removeprefix("if ")
            while True:
                inner, at = _block(pieces, at + 1)
                branches.append((condition, inner))
                if pieces[at][1] == "end":
                    break
                condition = pieces[at][1].removeprefix("else").strip().removeprefix("if ") or "true"
            nodes.append(("if", branches))
        elif piece.startswith("range "):
            inner, at = _block(pieces, at + 1)
            nodes.append(("range", piece.removeprefix("range "), inner))
        else:
            nodes.append(("value", piece))
        at += 1
    return nodes, at


def _run(nodes: list[Any], scope: _Scope) -> str:
    text = ""
    for node in nodes:
        match node:
            case ("text", content):
                text += content
            case ("value", expression):
                name, assigned, value = expression.partition("= ")
                if assigned and name.startswith("$"):
                    scope.variables[name.rstrip(" :")] = scope.value(value)
                else:
                    text += scope.value(expression)
            case ("range", declared, inner):
                assert declared in (".Messages", "$i, $_ := .Messages")
                for at, message in enumerate(scope.messages):
                    scope.variables |= {"$i": at} if "$i" in declared else {}
                    text += _run(inner, _Scope(scope.messages, scope.system, scope.variables, message))
            case ("if", branches):
                chosen = next((inner for condition, inner in branches if scope.value(condition)), [])
                text += _run(chosen, scope)
    return text
