"""A tokenizer with its chat template: messages to text, text to token ids, and the special tokens of both.

Everything that would change from day to day (templates may print the date) is fixed here, so that training, scoring and
exported files render a conversation alike.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.core.errors import RenderError
from cot_unsloth.core.types import Message, Prompt, ThinkingTags
from cot_unsloth.prompts import dates, templates, tokenizer_files
from cot_unsloth.prompts.tokenizer import first_line


class TemplateError(RenderError):
    """A template renders a conversation in a way that cannot be trained on; `reason` names it for the row's reject."""

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(
        self, tokenizer: Any, *, date_string: str, stops: frozenset[int], thinking_tags: ThinkingTags = "thinking"
    ) -> None:
        self.tokenizer = tokenizer
        self.thinking_tags = thinking_tags
        """The tags of the assistant's reasoning, which an exported template writes around `reasoning_content`."""
        self.base_opening = ""
        """What the model's own template begins an answer with and this one does not: `<think>`, of reasoning models."""
        self.files: Path | None = None
        """The folder with the tokenizer's files, if known; exports copy them."""
        self.saved_beside_weights = False
        """Whether that is a folder of trained weights, not the base's."""
        self.date_string = date_string
        self.stops = stops
        """Token ids that generation stops at."""
        specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        # (?!) matches nowhere; an empty pattern would match everywhere.
        self._control = re.compile("|".join(map(re.escape, specials)) or r"(?!)")

    def text(self, messages: Sequence[Message], *, ask: bool) -> str:
        """A conversation as text.

        Args:
            messages: the conversation.
            ask: whether to end with the beginning of an assistant's turn (`add_generation_prompt`).

        Raises:
            TemplateError: the template refuses the conversation.
        """
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=ask,
                date_string=self.date_string,
                strftime_now=lambda form: dates.strftime(self.date_string, form),
            )
        except Exception as error:  # a template is a program: it can fail in any way
            raise self._refused(messages, error) from error
        return str(rendered)

    def _refused(self, messages: Sequence[Message], error: Exception) -> TemplateError:
        import jinja2

        if isinstance(error, jinja2.TemplateSyntaxError):
            what, other = f"is not Jinja: line {error.lineno}: {error.message}", ""
        else:
            roles = [message["role"] for message in messages]
            what = f"refuses a conversation of {', '.join(roles)}: {first_line(error)}"
            other = "if it takes no system turn, set --system-prompt ''; else " if "system" in roles else ""
        return TemplateError("template_refused", f"the chat template {what}", hint=other + self.template_hint)

    def prompt_text(self, prompt: Prompt) -> str:
        """The text that a model continues."""
        return self.text(prompt.messages, ask=True) + prompt.prefix

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text."""
        # add_special_tokens=False, because the template has written the BOS token where there is one; a second one
        # changes the model's output without any error.
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        # Calling the backend saves a third of the time. A tokenizer.json may ask for truncation or padding of its own.
        if backend.truncation is not None or backend.padding is not None:
            backend.no_truncation()
            backend.no_padding()
        return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each token of rendered text, begin and end of its characters.

        Raises:
            RenderError: the tokenizer cannot tell.
        """
        try:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise RenderError(
                "the tokenizer does not tell which characters its tokens stand for, so no step can be masked",
                hint="take a fast tokenizer (tokenizer.json), or set --no-mask-wrong-steps",
                name="no_offsets",
            ) from error
        return [(int(begin), int(end)) for begin, end in encoded["offset_mapping"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, with control tokens, and with white space as it is."""
        # clean_up_tokenization_spaces would turn " ." into "." and hide what the ids really say.
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def use(self, template: str) -> None:
        """Render conversations with another template."""
        self.tokenizer.chat_template = template
        # cached_property keeps its value in __dict__; both depend on the template.
        for derived in ("template_hint", "turn_end"):
            self.__dict__.pop(derived, None)

    @functools.cached_property
    def template_hint(self) -> str:
        """Which template to take instead of this one, for hints."""
        own = str(self.tokenizer.chat_template)
        name = templates.fitting(self.tokenizer, own) or templates.fitting(self.tokenizer, "")
        if name is None or templates.text(name, self.tokenizer) == own:
            return "set --chat-template FILE"
        return f"set --chat-template {name}, a training template that comes with cot_unsloth"

    @functools.cached_property
    def turn_end(self) -> int | None:
        """The id of the token that ends an answer: the first control token after it; None if there is none.

        It need not be the tokenizer's eos: in Llama 3 it is <|eot_id|>, where base models have <|end_of_text|>.
        """
        answer = "It is so."
        try:
            rendered = self.text(
                [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}], ask=False
            )
        except TemplateError:
            return None
        token = self.control_token(rendered.rpartition(answer)[2])
        return None if token is None else int(self.tokenizer.convert_tokens_to_ids(token))

    @property
    def stop_tokens(self) -> str:
        """The tokens that generation stops at, for messages."""
        return ", ".join(repr(self.decode([id_])) for id_ in sorted(self.stops))

    def without_control(self, text: str) -> str:
        """A text without control tokens."""
        return self._control.sub("", text)

    def control_token(self, text: str) -> str | None:
        """The first control token spelt out in a text, if any; the tokenizer would read it as control, not as text."""
        token = self._control.search(text)
        return token[0] if token else None


def save_tokenizer(chat: ChatTemplate, out: Path, template: str | None = None) -> None:
    """Write a tokenizer unchanged, with the template in use or another one.

    A tokenizer from beside trained weights may have been saved by transformers 5; it is rewritten so that 4.57 reads it.
    """
    tokenizer_files.write(chat.tokenizer, chat.files, template or str(chat.tokenizer.chat_template), out)
    if chat.files is None or chat.saved_beside_weights:
        tokenizer_files.make_readable_by_4(out)
