"""A Modelfile with which Ollama renders prompts as in training.

Ollama (0.33) uses Go templates instead of the model's Jinja template, and without a TEMPLATE it attaches a bundled one that
resembles the model's. Ours is derived from the trained template: it is rendered on conversations with markers, the text
around the markers is split into the pieces of a turn, and the reassembled pieces are compared with the template on
conversations of every shape before anything is written. Every text in the Modelfile is written so that Ollama's parser
reads back the same text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cot_unsloth.config import RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import RenderError
from cot_unsloth.core.types import Message, ThinkingTags
from cot_unsloth.export.gguf.tokens import adds_bos
from cot_unsloth.prompts.chat_template import ChatTemplate, TemplateError

_SYSTEM, _USER, _ANSWER, _AGAIN, _LAST = "M1system", "M2user", "M3answer", "M4again", "M5last"
_INSIDE = 'one  two\n\n\t{three} {{ four }} [five] "six" <b>&amp;</b> é ' + "seven " * 1000 + "end"
"""A text with what templates rewrite or cut."""
SystemPosition = Literal["turn", "first user", "last user", "nowhere"]
"""Where a template writes the system prompt: in its own turn (ChatML, Llama 3), inside the first user turn
(Gemma 3, Llama 2, Mistral), inside the last (Mistral 7B v0.3 to Nemo), or nowhere (Gemma 1 raises an error)."""


@dataclass(frozen=True)
class Pieces:
    """What a template writes around the turns of a conversation."""

    opening: str
    """Before a first turn that is the system's."""
    opening_without_system: str
    """Before a first turn that is the user's: some templates have their own system text."""
    around: Mapping[str, tuple[str, str]]
    """By role, the text before and after a turn's content. For a system prompt inside a user's turn: the text between
    the beginning of that turn and the prompt, and between the prompt and the user's text."""
    ask: str
    """The beginning of the assistant's turn."""
    system_in: SystemPosition = "turn"
    thinking_tags: ThinkingTags = "thinking"
    """The tags to put around reasoning, which Ollama stores separately and infers from the text around `.Thinking`."""
    strips: bool = False
    """Whether the trained template leaves out white space around a turn's text, which a Go template cannot."""

    def text(self, messages: Sequence[Message]) -> str:
        """A conversation, as the Go template renders it."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        users = [at for at, message in enumerate(messages) if message["role"] == "user"]
        host = {"first user": users[0], "last user": users[-1]}.get(self.system_in)
        text = self.opening_without_system if system is None else self.opening
        for at, message in enumerate(messages):
            if message["role"] == "system" and self.system_in != "turn":
                continue
            before, after = self.around[message["role"]]
            if at == host and system is not None:
                before += system.join(self.around["system"])
            thinking = message.get("thinking")  # Ollama's name of reasoning_content
            thought = trace.join_reasoning(str(thinking), "", self.thinking_tags) if thinking else ""
            text += f"{before}{thought}{message['content']}{after}"
        return text + self.ask

    def template(self, default_system: str | None = None) -> str:
        """The Go template.

        Args:
            default_system: a system prompt for conversations that have none, if SYSTEM cannot hold it.

        Raises:
            RenderError: a piece is not valid text (half of a surrogate pair).
        """
        default = None if default_system is None else _constant(default_system)
        (sys_a, sys_b), (user_a, user_b), (answer_a, answer_b) = (
            tuple(map(_go, self.around[role])) for role in ("system", "user", "assistant")
        )
        begin, system, inside, turns = _go(self.opening_without_system), "", "", ".Messages"
        match self.system_in:
            case "turn":
                opening = _go(self.opening)
                begun = begin if default is None else f"{opening}{sys_a}{default}{sys_b}"
                is_system = 'eq (index .Messages 0).Role "system"'
                begin = (
                    begun
                    if begun == opening
                    else f"{{{{ if {is_system} }}}}{opening}{{{{ else }}}}{begun}{{{{ end }}}}"
                )
                system = f'if eq .Role "system" }}}}{sys_a}{{{{ .Content }}}}{sys_b}{{{{ else '
            # Ollama joins all system messages in .System. Older turns are cut from a long conversation, so that its first
            # user turn can be at any index: a variable says whether the prompt has been written.
            case "first user":
                begin += "{{ $done := false }}"
                inside = f"{{{{ if not $done }}}}{_prompt(sys_a, sys_b, default)}{{{{ $done = true }}}}{{{{ end }}}}"
            case "last user":
                turns = "$i, $_ := .Messages"
                inside = f"{{{{ if eq (len (slice $.Messages $i)) 1 }}}}{_prompt(sys_a, sys_b, default)}{{{{ end }}}}"
        thought = trace.join_reasoning("{{ .Thinking }}", "", self.thinking_tags)
        thinking = f"{{{{ if .Thinking }}}}{thought}{{{{ end }}}}"
        return (
            f"{begin}{{{{ range {turns} }}}}"
            f'{{{{ {system}if eq .Role "user" }}}}{user_a}{inside}{{{{ .Content }}}}{user_b}'
            f'{{{{ else if eq .Role "assistant" }}}}{answer_a}{thinking}{{{{ .Content }}}}{answer_b}'
            f"{{{{ end }}}}{{{{ end }}}}{_go(self.ask)}"
        )


def _prompt(before: str, after: str, default: str | None) -> str:
    """The system prompt inside a user's turn, as a Go template."""
    if default is None:
        return f"{{{{ if $.System }}}}{before}{{{{ $.System }}}}{after}{{{{ end }}}}"
    return f"{before}{{{{ if $.System }}}}{{{{ $.System }}}}{{{{ else }}}}{default}{{{{ end }}}}{after}"


def pieces(chat: ChatTemplate) -> Pieces:
    """Split a template into pieces.

    Raises:
        RenderError: it does more than write something around each turn, so our Go template cannot reproduce it.
    """
    system: Message = {"role": "system", "content": _SYSTEM}
    user: Message = {"role": "user", "content": _USER}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    again: Message = {"role": "user", "content": _AGAIN}
    # Its text differs from the first turn's: templates search turns by their content.
    last: Message = {"role": "user", "content": _LAST}
    bos = chat.tokenizer.bos_token if adds_bos(chat.tokenizer) else ""

    def rendered(*messages: Message, ask: bool = False) -> str:
        # llama.cpp in Ollama adds BOS by itself; with another one in the template it would be there twice.
        return chat.text(messages, ask=ask).removeprefix(bos or "")

    prompt = rendered(user, ask=True)
    ask = prompt.removeprefix(rendered(user))
    after_user = rendered(user).partition(_USER)[2]
    after_answer = rendered(user, answer).partition(_ANSWER)[2]
    before_answer = rendered(user, answer).partition(_USER)[2].partition(_ANSWER)[0].removeprefix(after_user)
    before_user = rendered(user, answer, again).partition(_ANSWER)[2].partition(_AGAIN)[0].removeprefix(after_answer)
    opening = prompt.partition(_USER)[0].removesuffix(before_user)
    turns = {"user": (before_user, after_user), "assistant": (before_answer, after_answer)}

    def candidate(system_in: SystemPosition, before: str, around: tuple[str, str]) -> Pieces:
        return Pieces(before, opening, {**turns, "system": around}, ask, system_in, chat.thinking_tags)

    with_system: list[list[Message]] = [[system, user], [system, user, answer, again, answer, last]]
    try:
        head, _, rest = rendered(system, user).partition(_SYSTEM)
    except TemplateError:
        candidates, with_system = [candidate("nowhere", opening, ("", ""))], []
    else:
        between, begun = rest.partition(_USER)[0], opening + before_user
        inside = (head.removeprefix(begun), between)
        candidates = [
            candidate("turn", "", (head, between.removesuffix(before_user))),
            *(
                candidate(position, opening, inside)
                for position in ("first user", "last user")
                if head.startswith(begun)
            ),
        ]
    conversations: list[list[Message]] = [[user], [user, answer, again], *with_system]
    conversations += [[{**turn, "content": _INSIDE} for turn in turns] for turns in ([user], *with_system[:1])]
    around: Message = {"role": "user", "content": f"\n {_USER} \n"}
    for split in candidates:
        if all(split.text(messages) == rendered(*messages, ask=True) for messages in conversations):
            return replace(split, strips=rendered(around, ask=True) == rendered(user, ask=True))
    raise RenderError(
        "the chat template cannot be written for Ollama: it does more than write something around each turn",
        where="Modelfile",
        hint="the GGUF has its own template, which llama.cpp uses",
    )


_ALL = 1_000_000
"""More tokens than any vocabulary has."""


def modelfile(source: str, chat: ChatTemplate, config: RunConfig, context: int, adapter: str | None = None) -> str:
    """The text of a Modelfile.

    Args:
        source: what FROM names.
        chat: the template that was trained with.
        config: the run's settings.
        context: the base's context length in tokens.
        adapter: what ADAPTER names.

    Raises:
        RenderError: as `pieces`; or a Modelfile cannot hold a path or stop token.
    """
    e, prompt, template = config.evaluate, config.data.system_prompt, pieces(chat)
    if prompt and template.system_in == "nowhere":
        raise RenderError("the chat template takes no system turn, but there is a system prompt", where="Modelfile")
    system = _quoted(prompt) if prompt else None
    default = prompt if prompt and system is None else None
    stops = [_argument(chat.decode([id_]), "the stop token", quotes=True) for id_ in sorted(chat.stops)]
    lines = [
        f"# ollama create NAME -f Modelfile{'.lora' if adapter else ''}",
        *(["# FROM: the base as Ollama knows it, or a GGUF file of it"] if adapter else []),
        f"FROM {_argument(source, 'the name of the model')}",
        *([f"ADAPTER {_argument(adapter, 'the name of the adapter')}"] if adapter else []),
        *(["# the template was trained without system turns: it leaves them out"] * (template.system_in == "nowhere")),
        *(["# in training, white space around the text of a turn was left out: Ollama keeps it"] * template.strips),
        *(["# SYSTEM cannot hold the system prompt, so TEMPLATE does"] if default else []),
        f"TEMPLATE {_quoted(template.template(default))}",
        *([f"SYSTEM {system}"] if system else []),
        *(f"PARAMETER stop {stop}" for stop in stops),
        "# the length it was trained at and that of an answer, and the decoding it was scored with",
        # Ollama's default, 4,096 since 0.6 and 2,048 before, cuts longer prompts without an error; and where an answer reaches
        # the end of the context, the beginning of the prompt is dropped.
        f"PARAMETER num_ctx {min(context, config.data.max_seq_length + e.max_new_tokens)}",
        f"PARAMETER temperature {e.temperature:g}",
        f"PARAMETER top_p {e.top_p:g}",
        # Ollama samples from the 40 likeliest by default, scoring from all. 0 would say so too, but failed in some versions.
        *([f"PARAMETER top_k {_ALL}"] if e.temperature else []),
        # Ollama documents 1.1 as its default, which penalizes repeated tags and digits; scoring uses none.
        "PARAMETER repeat_penalty 1.0",
    ]
    return "\n".join(lines) + "\n"


def base_name(config: RunConfig, out: Path) -> str:
    """What FROM names for the base itself: a hub id unchanged, a local folder relative to `out`, where the Modelfile is.

    Ollama takes a relative path from the Modelfile's folder, not from where the user is.
    """
    name = config.model.model_name_or_path
    if not Path(name).expanduser().is_dir():
        return name
    folder = Path(name).expanduser().resolve()
    try:
        return Path(os.path.relpath(folder, out.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return folder.as_posix()


# A Modelfile's grammar (ollama 0.33, parser/parser.go): a value ends at the first line end at which the text so far, without
# surrounding white space, is complete, that is, begins with three quotes (or one) and ends with as many, or begins with none.
# There are no escapes. Characters that Go does not count as printable are dropped, except tab, CR and LF.
_ENDS_EARLY = re.compile(r'"""[ \t]*[\r\n]')
_ONE_LINE = re.compile(r'(?!["\s])[^\r\n]*(?<!\s)')


def _quoted(text: str) -> str | None:
    """A text as a value of any number of lines; None if the grammar cannot hold it.

    >>> _quoted('say "hi"'), _quoted('write \\"\\"\\" first'), _quoted('end in \\"\\"\\"\\nand go on')
    ('\"\"\"say "hi"\"\"\"', 'write \"\"\" first', None)
    """
    if not _is_kept(text) or _ENDS_EARLY.search(text):
        return None
    if '"""' in text and _ONE_LINE.fullmatch(text):
        return text  # without surrounding quotes, a parser that ends at the first three quotes reads this correctly too
    return f'"""{text}"""'


def _argument(text: str, what: str, *, quotes: bool = False) -> str:
    """A name or a token as a value: bare, or with `quotes` in double quotes, if the grammar allows it.

    Raises:
        RenderError: the grammar cannot hold it.
    """
    plain = _is_kept(text) and not re.search(r"[\r\n]", text)
    if plain and quotes and '"' not in text:
        return f'"{text}"'
    if plain and not quotes and text and _ONE_LINE.fullmatch(text):
        return text
    quoted = _quoted(text)
    if quoted is None:
        raise RenderError(f"{what} cannot be written in a Modelfile: {text!r}", where="Modelfile")
    return quoted


def _is_kept(text: str) -> bool:
    """Whether Ollama's parser keeps every character. Python's isprintable is Go's IsPrint: the only space is ASCII's."""
    return all(char.isprintable() or char in "\t\r\n" for char in text)


# Braces, because Go reads two as the beginning of an action, and the second may be in the text that follows; and quotes
# that could end the value of TEMPLATE.
_NOT_PLAIN = re.compile(r'\{+|"""+|"+\Z')


def _go(text: str) -> str:
    """A text in a Go template: unchanged, except that text with a special meaning becomes a string constant."""
    escaped = _NOT_PLAIN.sub(lambda match: _constant(match[0]), text)
    return "".join(char if _is_kept(char) else _constant(char) for char in escaped)


def _constant(text: str) -> str:
    """A text as a string constant of a Go template, on one line.

    >>> print(_constant('a\\n"b"'))
    {{ "a\\n\\"b\\"" }}
    """
    return '{{ "' + "".join(map(_escaped, text)) + '" }}'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char in "\t\r\n":
        return {"\t": "\\t", "\r": "\\r", "\n": "\\n"}[char]
    if char.isprintable():
        return char
    code = ord(char)
    if 0xD800 <= code < 0xE000:
        raise RenderError(f"{char!r} is half of a character, which no file can contain", where="Modelfile")
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
