"""A Modelfile that makes Ollama ask as training asked.

Ollama has templates of Go where the model has one of Jinja, and attaches a bundled one where none is
given that it knows. Ours is derived from the trained template: it is rendered on marked conversations,
what stands around the marks is taken apart into the pieces of a turn, and the pieces put together again
are held against the template on conversations of every shape before a line is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cot_unsloth import trace
from cot_unsloth.config import RunConfig
from cot_unsloth.errors import RenderError
from cot_unsloth.export.gguf_tokens import adds_bos
from cot_unsloth.render import ChatTemplate
from cot_unsloth.values import Message, ThinkingTags

_SYSTEM, _USER, _ANSWER, _AGAIN = "M1system", "M2user", "M3answer", "M4again"


@dataclass(frozen=True)
class Pieces:
    """What a template writes around the turns of a conversation."""

    opening: str
    """Before a first turn that is the system's."""
    opening_without_system: str
    """Before a first turn that is the user's: some templates have a system text of their own."""
    around: Mapping[str, tuple[str, str]]
    """By role, what stands before and after a turn's content."""
    ask: str
    """What the assistant's turn begins with."""
    thinking_tags: ThinkingTags = "thinking"
    """What reasoning that Ollama keeps apart is put between again."""

    def text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation, as the Go template writes it."""
        said = self.opening if messages[0]["role"] == "system" else self.opening_without_system
        for message in messages:
            before, after = self.around[message["role"]]
            thinking = message.get("thinking")
            thought = trace.join_reasoning(thinking, "", self.thinking_tags) if thinking else ""
            said += f"{before}{thought}{message['content']}{after}"
        return said + self.ask

    @property
    def template(self) -> str:
        """The Go template."""
        (sys_a, sys_b), (user_a, user_b), (said_a, said_b) = (self.around[r] for r in ("system", "user", "assistant"))
        thought = trace.join_reasoning("{{ .Thinking }}", "", self.thinking_tags)
        thinking = f"{{{{ if .Thinking }}}}{thought}{{{{ end }}}}"
        return (
            f'{{{{ if eq (index .Messages 0).Role "system" }}}}{self.opening}'
            f"{{{{ else }}}}{self.opening_without_system}{{{{ end }}}}"
            "{{ range .Messages }}"
            f'{{{{ if eq .Role "system" }}}}{sys_a}{{{{ .Content }}}}{sys_b}'
            f'{{{{ else if eq .Role "user" }}}}{user_a}{{{{ .Content }}}}{user_b}'
            f'{{{{ else if eq .Role "assistant" }}}}{said_a}{thinking}{{{{ .Content }}}}{said_b}'
            f"{{{{ end }}}}{{{{ end }}}}{self.ask}"
        )


def pieces(chat: ChatTemplate) -> Pieces:
    """Take a template apart.

    Raises:
        RenderError: it does more than write something around each turn, so no Go template of ours is it.
    """
    system: Message = {"role": "system", "content": _SYSTEM}
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}
    again: Message = {"role": "user", "content": _AGAIN}
    bos = chat.tokenizer.bos_token if adds_bos(chat.tokenizer) else ""

    def said(*messages: Message, ask: bool = False) -> str:
        return chat.text(messages, ask=ask).removeprefix(bos or "")

    asked = said(user, ask=True)
    ask = asked.removeprefix(said(user))
    after_user = said(user).partition(_USER)[2]
    after_answer = said(user, answer).partition(_ANSWER)[2]
    before_answer = said(user, answer).partition(_USER)[2].partition(_ANSWER)[0].removeprefix(after_user)
    before_user = said(user, answer, again).partition(_ANSWER)[2].partition(_AGAIN)[0].removeprefix(after_answer)
    before_system, _, rest = said(system, user).partition(_SYSTEM)
    after_system = rest.partition(_USER)[0].removesuffix(before_user)
    found = Pieces(
        opening="",
        opening_without_system=asked.partition(_USER)[0].removesuffix(before_user),
        around={
            "system": (before_system, after_system),
            "user": (before_user, after_user),
            "assistant": (before_answer, after_answer),
        },
        ask=ask,
        thinking_tags=chat.thinking_tags,
    )
    for messages in ([user], [system, user], [user, answer, again], [system, user, answer, again, answer, user]):
        if found.text(messages) != said(*messages, ask=True):
            raise RenderError(
                "the chat template cannot be written for Ollama: it does more than write something around each turn",
                where="Modelfile",
                hint="the GGUF brings its own template, which llama.cpp uses",
            )
    return found


def modelfile(source: str, chat: ChatTemplate, config: RunConfig, context: int, adapter: str | None = None) -> str:
    """The text of a Modelfile.

    Args:
        source: what FROM names.
        chat: the template that was trained with.
        config: the run's settings.
        context: tokens that the base was made for.
        adapter: what ADAPTER names.

    Raises:
        RenderError: as `pieces`.
    """
    e, prompt = config.evaluate, config.data.system_prompt
    stops = [chat.decode([id_]) for id_ in sorted(chat.stops)]
    lines = [
        f"# ollama create NAME -f Modelfile{'.lora' if adapter else ''}",
        *(["# FROM: the base as Ollama knows it, or a GGUF file of it"] if adapter else []),
        f"FROM {source}",
        *([f"ADAPTER {adapter}"] if adapter else []),
        f'TEMPLATE """{pieces(chat).template}"""',
        *([f'SYSTEM """{prompt}"""'] if prompt else []),
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "# the length it was trained at, and the decoding it was scored with",
        f"PARAMETER num_ctx {min(context, max(config.data.max_seq_length, e.max_new_tokens))}",
        f"PARAMETER temperature {e.temperature:g}",
        f"PARAMETER top_p {e.top_p:g}",
        "PARAMETER repeat_penalty 1.0",
    ]
    return "\n".join(lines) + "\n"
