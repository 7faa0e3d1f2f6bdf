"""Log-probabilities of an answer's tokens, in the forms of the OpenAI API.

They are the model's own, before temperature and top_p, and are given for every token of the answer as it was generated, tags
included, but not for the token that ends the turn. Requests that cannot be answered exactly are rejected.
"""

from __future__ import annotations

from collections.abc import Sequence

from cot_unsloth.core.types import TokenLogprob, WrittenToken
from cot_unsloth.models.protocols import Streamer, TokenStreamer
from cot_unsloth.server.requests import ChatRequest, RequestError, TextRequest

Json = dict[str, object]


def require(asked: ChatRequest | TextRequest, engine: Streamer, thinking_budget: int | None = None) -> None:
    """Refuse log-probabilities that the engine does not have, or that the text would not agree with.

    Raises:
        RequestError: with 400.
    """
    if asked.most_likely is None:
        return
    if not isinstance(engine, TokenStreamer) or not engine.has_logprobs:
        raise RequestError(f"the {engine.name} engine gives no log-probabilities", param="logprobs")
    if asked.stops:
        raise RequestError("logprobs cannot be combined with stop, which cuts the text inside a token", param="stop")
    if thinking_budget is not None:
        message = "logprobs cannot be combined with a thinking budget, whose tags the model does not write"
        raise RequestError(message, param="max_thinking_tokens" if isinstance(asked, ChatRequest) else None)


class Written:
    """The tokens of one choice that were not sent yet."""

    def __init__(self, is_chat: bool, is_asked: bool) -> None:
        self._is_chat, self._is_asked = is_chat, is_asked
        self._tokens: list[WrittenToken] = []
        self._offset = 0
        """Characters of the text before them."""

    def add(self, tokens: Sequence[WrittenToken]) -> None:
        """More tokens."""
        self._tokens += tokens

    def take(self) -> Json | None:
        """The field `logprobs` with what has come since it was last taken; None if nobody asked for it."""
        if not self._is_asked:
            return None
        tokens, self._tokens = self._tokens, []
        return {"content": [_chat_entry(token) for token in tokens]} if self._is_chat else self._of_text(tokens)

    def _of_text(self, tokens: Sequence[WrittenToken]) -> Json:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{one.text: one.logprob for one in token.most_likely} for token in tokens],
            "text_offset": offsets,
        }


def _chat_entry(token: WrittenToken) -> Json:
    return {**_entry(token), "top_logprobs": [_entry(one) for one in token.most_likely]}


def _entry(token: WrittenToken | TokenLogprob) -> Json:
    # A token that ends inside a character has no text of its own, and its bytes are not known here.
    known = token.text and "\ufffd" not in token.text
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode()) if known else None}
