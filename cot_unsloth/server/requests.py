"""The bodies of requests, with the field names of the OpenAI API.

Fields that are null count as absent. Fields that would change the answer and are not supported (tools, penalties) are refused by name, never ignored; others, such as `user`, are ignored, as the API's own servers do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from cot_unsloth.config import DataConfig
from cot_unsloth.core.types import Message
from cot_unsloth.models.streaming import history

MOST_TOKENS = 1 << 20
MOST_STOPS = 4
"""As in the OpenAI API."""
MOST_CHOICES = 16
_LEAST_TEMPERATURE = 1e-6


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        param: the field at fault, as the client named it.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


Text = Annotated[str, Field(max_length=1 << 22)]
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MOST_STOPS)]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]


class _Object(BaseModel):
    """A JSON object whose values must have the right types, and whose other fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Part(_Object):
    type: Literal["text"]
    text: Text


class ChatMessage(_Object):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[_Part] | None = None
    reasoning_content: Text | None = None
    """An assistant's thinking, as a client got it from us."""
    tool_calls: Any = None
    function_call: Any = None

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Format(_Object):
    type: Literal["text"]


class _StreamOptions(_Object):
    include_usage: bool | None = None


class _Request(BaseModel):
    """What both kinds of requests have in common."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: Text | None = None
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Annotated[str, Field(min_length=1)] | Stops | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @property
    def sampling_temperature(self) -> float:
        """The temperature; 0 for one so small that logits divided by it overflow, which is meant to be greedy decoding."""
        return self.temperature if self.temperature and self.temperature >= _LEAST_TEMPERATURE else 0.0

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts at which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Request):
    """A body for /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    response_format: _Format | None = None
    max_thinking_tokens: Tokens | None = None
    """Thinking budget in tokens; not in the OpenAI API."""
    logprobs: bool | Literal[0] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most_likely(self) -> int | None:
        """How many of the likeliest tokens to give in the place of each; None if no log-probabilities are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """Tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens


class TextRequest(_Request):
    """A body for /v1/completions: the model continues a text as it is, without a chat template."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | Literal[False] | None = None
    """As in the OpenAI API, 0 asks only for the tokens that were written."""

    @property
    def most_likely(self) -> int | None:
        """As of a `ChatRequest`."""
        return None if self.logprobs is None or self.logprobs is False else self.logprobs

    @property
    def text(self) -> str:
        """The text to be continued."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class VotesRequest(_Object):
    """A body for /votes: answers to one question, to be counted."""

    answers: Annotated[list[Annotated[str, Field(max_length=1 << 16)]], Field(min_length=1, max_length=MOST_CHOICES)]


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "best_of": (1,),
    "suffix": ("",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    # Of vLLM, llama.cpp and Ollama, whose clients send them to any server of this API.
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "min_tokens": (0,),
    "max_new_tokens": (),
    "n_predict": (-1,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": ("",),
    "json_schema": ({},),
}
"""Fields that are not supported, with the values at which they change nothing."""

Request = TypeVar("Request", bound=BaseModel)


def parse(kind: type[Request], body: bytes) -> Request:
    """A request from its body.

    Raises:
        RequestError: it is not JSON, not valid, or asks for what is not supported.
    """
    try:
        request = kind.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _refusal(error) from error
    for name, value in (request.model_extra or {}).items():
        neutral = _NEUTRAL.get(name)
        if neutral is not None and value is not None and value not in neutral:
            raise RequestError(f"{name} is not supported", param=name)
    if isinstance(request, TextRequest) and request.echo:
        raise RequestError("echo is not supported", param="echo")
    if isinstance(request, ChatRequest) and request.messages[-1].role != "user":
        raise RequestError("the last message must be the user's", param="messages")
    if isinstance(request, ChatRequest):
        _require_content(request)
        if request.top_logprobs and not request.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return request


def messages_of(asked: ChatRequest, data: DataConfig) -> tuple[Message, ...]:
    """The conversation as the model was trained on it, with its system prompt if the client has none."""
    turns = [
        history(
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": message.text,
                "reasoning_content": message.reasoning_content,
            },
            data.thinking_tags,
        )
        for message in asked.messages
    ]
    if data.system_prompt and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": data.system_prompt})
    return tuple(turns)


def _require_content(request: ChatRequest) -> None:
    for index, message in enumerate(request.messages):
        for name in ("tool_calls", "function_call"):  # the template would leave them out
            if getattr(message, name) not in (None, []):
                raise RequestError(f"messages[{index}].{name} is not supported", param=f"messages[{index}].{name}")
        if message.content is None and message.role != "assistant":
            raise RequestError(f"messages[{index}].content must be text", param=f"messages[{index}].content")


_ADDRESSES = ("/chat/completions", "/completions", "/models")


def no_such_address(path: str) -> str:
    """The message for an unknown path: a client's base URL may lack /v1, or have it twice."""
    is_meant = path.endswith((*_ADDRESSES, "/responses"))
    return f"there is no {path}" + (f"; there are {', '.join(f'/v1{end}' for end in _ADDRESSES)}" if is_meant else "")


def _refusal(error: pydantic.ValidationError) -> RequestError:
    """A fault of a body, by the field's path."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    # Of a union, such as text or parts, every branch is reported. The one that came furthest is meant, and of equal ones that
    # whose type was right: of five stop texts, that they are too many, not that they are no single text.
    first = max(
        errors, key=lambda one: (len(one["loc"]), not one["type"].endswith(("_type", "literal_error", "missing")))
    )
    if first["type"] == "json_invalid":
        return RequestError(f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    path = ""
    for part in first["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "list"):  # others name a branch of a union
            path += f".{part}" if path else part
    message = first["msg"][:1].lower() + first["msg"][1:]
    return RequestError(f"{path}: {message}" if path else f"the body: {message}", param=path or None)
