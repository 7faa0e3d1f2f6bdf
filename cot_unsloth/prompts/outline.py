"""The outline of a rendered conversation: the text that a template writes around the messages, and where these go.

A template that never looks into a message writes the same text around every conversation with the same roles. It is then
run once, on contents that refuse to be looked at, and further conversations are joined from the pieces: 2 µs in place of
20 (Llama 3.2) to 27 (Qwen2.5). Templates that search or change contents (Qwen3's, DeepSeek-R1's) have no outline.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_unsloth.core.types import Message
from cot_unsloth.prompts.template_limits import limited, prepare

_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
"""Around the place of a content in the text of an outline; private-use characters, which no template writes."""
_PLACE = re.compile(f"{_OPEN}(\\d+)(s?){_CLOSE}")


@dataclass(frozen=True)
class Outline:
    """What a template writes around the messages of one sequence of roles."""

    pieces: tuple[str | tuple[int, bool], ...]
    """Text of the template, and (index of a message, whether white space around its content is removed)."""

    def fill(self, contents: Sequence[str]) -> str:
        """The rendered conversation; no content may be blank, because templates may ask whether there is one."""
        return "".join(
            [p if isinstance(p, str) else contents[p[0]].strip() if p[1] else contents[p[0]] for p in self.pieces]
        )


def can_fill(messages: Sequence[Message]) -> bool:
    """Whether the messages have what an outline covers: a role and a content that is not blank."""
    # A server's messages may hold anything that the template is then asked about.
    return all(
        m.keys() == {"role", "content"} and isinstance(content := m["content"], str) and content.strip()
        for m in messages
    )


def outline(source: str, roles: Sequence[str], variables: Mapping[str, object]) -> Outline | None:
    """The outline of a template's conversations with these roles; None if it looks into their contents, or fails.

    Args:
        source: the template.
        roles: the role of each message.
        variables: everything else that the template is rendered with.
    """
    if _OPEN in source:
        return None
    try:
        prepare(source)
        template = _compile(source)
        messages = [{"role": role, "content": _Content((), at)} for at, role in enumerate(roles)]
        with limited():
            text = template.render(messages=messages, **variables) if template else None
    except Exception:  # the template refuses, or does what _Content does not do: rendering a real row tells
        return None
    return None if text is None else Outline(tuple(_pieces(text)))


def _pieces(text: str) -> list[str | tuple[int, bool]]:
    pieces: list[str | tuple[int, bool]] = []
    literal, *places = _PLACE.split(text)
    pieces.append(literal)
    for index, stripped, following in zip(places[::3], places[1::3], places[2::3], strict=True):
        pieces += [(int(index), bool(stripped)), following]
    return pieces


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> Any:
    """The template, compiled as transformers compiles it, with an output that accepts contents; None where it may not.

    What a macro, a `set` block or a filter block writes comes back as an ordinary text, which could then be looked into.
    """
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    shared = _compile_jinja_template(source).environment
    tree = shared.parse(source)
    captured = (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.Block, nodes.Include, nodes.Import)
    if any(tree.find_all((*captured, nodes.FromImport, nodes.Extends))):
        return None
    if any(loop.recursive for loop in tree.find_all(nodes.For)) or not all(
        map(_is_generation_block, tree.find_all(nodes.CallBlock))
    ):
        return None
    environment = shared.overlay(finalize=lambda value: value.place() if isinstance(value, _Content) else value)
    environment.filters = {**shared.filters, "trim": _knowing(shared.filters["trim"], lambda content: content.strip())}
    # These would report content that is not text.
    of_text = {name: _knowing(shared.tests[name], lambda _: True) for name in ("string", "iterable", "sequence")}
    environment.tests = {**shared.tests, **of_text, "sameas": _not_asked}
    return environment.from_string(source)


def _is_generation_block(block: Any) -> bool:
    """Whether it is `{% generation %}`, which writes its text at once."""
    return getattr(block.call.node, "name", None) == "_generation_support"


def _knowing(function: Callable[..., Any], known: Callable[[Any], Any]) -> Callable[..., Any]:
    """A filter or test with its own result for contents."""

    def wrapped(value: Any, *args: Any) -> Any:
        return known(value) if isinstance(value, _Content) and not args else function(value, *args)

    return wrapped


class _InspectedError(Exception):
    """A template asked for more of a content than that it is written."""


def _not_asked(*_: Any, **__: Any) -> Any:
    raise _InspectedError


class _Content:
    """The content of a message, unknown except that it is text and not blank; texts may be put before and after it."""

    def __init__(self, pieces: tuple[str, ...], at: int | None, *, stripped: bool = False) -> None:
        self._at = at
        self._stripped = stripped
        self._written = pieces or (f"{_OPEN}{at}{'s' if stripped else ''}{_CLOSE}",)

    def place(self) -> str:
        """What is written for it."""
        return "".join(self._written)

    def strip(self) -> _Content:
        if self._at is None:
            raise _InspectedError  # whether white space is removed depends on the texts around it
        return _Content((), self._at, stripped=True)

    def __add__(self, other: Any) -> _Content:
        return _Content((*self._written, *_written(other)), None)

    def __radd__(self, other: Any) -> _Content:
        return _Content((*_written(other), *self._written), None)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if other is None or (isinstance(other, str) and not other):
            return False
        raise _InspectedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # asked by isinstance, hasattr(…, "__html__") and the like
        raise _InspectedError

    # Without these, Python would fall back on something that does not fail, or Jinja would ignore the failure.
    __hash__ = __str__ = __repr__ = __format__ = __len__ = __iter__ = __contains__ = __getitem__ = _not_asked
    __reversed__ = __int__ = __float__ = __index__ = __lt__ = __le__ = __gt__ = __ge__ = __mod__ = __rmod__ = _not_asked


def _written(value: Any) -> tuple[str, ...]:
    if isinstance(value, _Content):
        return value._written
    if not isinstance(value, str):
        raise _InspectedError
    return (value,)
