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
from cot_unsloth.prompts import dates, template_limits, templates, tokenizer_files
from cot_unsloth.prompts.encoder import Encoder
from cot_unsloth.prompts.outline import Outline, can_fill, outline
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
        """Text that the model's own template, but not this one, begins an answer with: `<think>`, for reasoning models."""
        self.files: Path | None = None
        """The folder with the tokenizer's files, if known; exports copy them."""
        self.saved_beside_weights = False
        """Whether that folder holds trained weights, not the base."""
        self.date_string = date_string
        self.stops = stops
        """Token ids that generation stops at."""
        specials = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        # (?!) matches nowhere; an empty pattern would match everywhere.
        self._control = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        self._outlines: dict[tuple[Any, ...], Outline | None] = {}
        self._encoders: tuple[Any, Encoder | None] = (None, None)

    def __getstate__(self) -> dict[str, object]:
        """Without what is made again when it is needed, and cannot be pickled or is large."""
        return {**self.__dict__, "_outlines": {}, "_encoders": (None, None)}

    @property
    def _encoder(self) -> Encoder | None:
        """The encoder of the tokenizer; None if it is not one of the `tokenizers` library, or decodes in a way of its own."""
        if self._encoders[0] is not self.tokenizer:
            self._encoders = self.tokenizer, self._open_encoder()
        return self._encoders[1]

    def _open_encoder(self) -> Encoder | None:
        from transformers import PreTrainedTokenizerFast as Fast

        plain = isinstance(self.tokenizer, Fast) and type(self.tokenizer)._decode is Fast._decode
        return Encoder(self.tokenizer.backend_tokenizer) if plain else None

    def text(self, messages: Sequence[Message], *, ask: bool) -> str:
        """A conversation as text.

        Args:
            messages: the conversation.
            ask: whether to end with the beginning of an assistant's turn (`add_generation_prompt`).

        Raises:
            TemplateError: the template refuses the conversation.
        """
        if self._encoder is not None and can_fill(messages):
            shape = str(self.tokenizer.chat_template), self.date_string, ask, *(message["role"] for message in messages)
            if shape not in self._outlines:
                self._outlines[shape] = self._outline(messages, ask=ask)
            if known_outline := self._outlines[shape]:
                return known_outline.fill([message["content"] for message in messages])
        return self._rendered(messages, ask=ask)

    def _rendered(self, messages: Sequence[Message], *, ask: bool) -> str:
        try:
            # The date is put in, as in exports: transformers 5.24 passes no function such as strftime_now to templates.
            template = dates.frozen(str(self.tokenizer.chat_template), self.date_string)
            template_limits.prepare(template)
            with template_limits.limited():
                rendered = self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=ask,
                )
        except Exception as error:  # a template is a program: it can fail in any way
            raise self._refused(messages, error) from error
        return str(rendered)

    def _outline(self, messages: Sequence[Message], *, ask: bool) -> Outline | None:
        """The outline of conversations like this one, if it renders this one as transformers does."""
        variables = {
            **self.tokenizer.special_tokens_map,
            "date_string": self.date_string,
            "strftime_now": functools.partial(dates.strftime, self.date_string),
            "tools": None,
            "documents": None,
            "add_generation_prompt": ask,
        }
        found = outline(
            str(self.tokenizer.chat_template),
            [message["role"] for message in messages],
            variables,
        )
        # Compared once, because what transformers gives to templates may change with its version.
        same = found and found.fill([m["content"] for m in messages]) == self._rendered(messages, ask=ask)
        return found if same else None

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
        return (self.text(prompt.messages, ask=True) if prompt.messages else "") + prompt.prefix

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text."""
        # add_special_tokens=False, because the template has written the BOS token where there is one; a second one
        # changes the model's output without any error.
        if self._encoder is None:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._encoder.ids(text)

    def offsets(self, text: str, first: int = 0) -> list[tuple[int, int]]:
        """For each token of rendered text, begin and end of its characters.

        Args:
            text: the text.
            first: the first character of interest: tokens before it may be said to stand for (0, 0).

        Raises:
            RenderError: the tokenizer cannot tell.
        """
        if self._encoder is not None:
            return self._encoder.offsets(text, first)
        try:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError as error:
            raise RenderError(
                "the tokenizer does not tell which characters its tokens stand for, so no step can be masked",
                hint="use a fast tokenizer (tokenizer.json), or set --no-mask-wrong-steps",
                name="no_offsets",
            ) from error
        return [(int(begin), int(end)) for begin, end in encoded["offset_mapping"]]

    def keep_offsets(self, text: str, first: int) -> None:
        """Announce that `offsets` will be asked for after the `ids` of a text, so that it is tokenized once for both."""
        if self._encoder is not None:
            self._encoder.keep_offsets(text, first)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, with control tokens, and with white space as it is."""
        if self._encoder is not None:
            return self._encoder.decode(ids)
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
        """A hint that names a template to use instead of this one."""
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
