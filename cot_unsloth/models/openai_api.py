"""The `openai_api` engine: models behind a server with the OpenAI chat API.

vLLM, SGLang, llama-server, Ollama and our own server have it. Many requests are sent at a time, to several servers in turn;
`http_client` repeats those that a busy server refuses. Reasoning that a server returns in a field of its own
(`reasoning_content`, or `reasoning`) gets its tags back. The key is read from the environment, never from a file of settings,
and is written to no file.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError, EngineError
from cot_unsloth.core.progress import note
from cot_unsloth.core.types import Completion, Prompt, SamplingParams, ThinkingTags
from cot_unsloth.models.protocols import Advance

if TYPE_CHECKING:
    from cot_unsloth.models.http_client import ApiClient

_NEUTRAL: Mapping[str, float] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Samplers beyond temperature and top_p, switched off. They are not in OpenAI's API, but have defaults in servers: vLLM and
SGLang take those of the model's generation_config.json (Qwen2.5: repetition_penalty 1.05, which changes greedy answers too),
llama-server has top_k 40 and min_p 0.05."""
_BROKEN_OFF = ("error", "abort")
"""Values of `finish_reason` of a server that failed while it answered (OpenRouter, SGLang): status 200, and part of an answer."""

_CUT = ("length", "model_length", "max_tokens")
"""Values of it where a limit of tokens was reached, of the answer or (Mistral: model_length) of the context."""


class OpenAiApi:
    """A model behind one or several servers.

    Raises:
        ConfigError: an address is not one of a server.
    """

    name = "openai_api"

    def __init__(
        self,
        addresses: Sequence[str],
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = 32,
        wait: float = 1.0,
        thinking_tags: ThinkingTags = "thinking",
    ) -> None:
        """Set up the requests; none is sent yet.

        Args:
            addresses: of the servers, such as http://127.0.0.1:8000/v1; prompts go to them in turn.
            model: its name on the servers.
            api_key: sent as a bearer token, if given.
            concurrency: requests at a time, over all servers.
            wait: seconds before a request is repeated; the waits double.
            thinking_tags: written around reasoning that a server returns in a field of its own.
        """
        for address in addresses:
            check_address(address)
        self.addresses = [address.rstrip("/") for address in addresses]
        self.model, self.api_key, self.concurrency, self.wait = model, api_key, concurrency, wait
        self.thinking_tags = thinking_tags
        self._neutral = dict(_NEUTRAL)
        """Those that no server has refused."""
        self._lock = threading.Lock()

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        """One completion per prompt, in the order of the prompts.

        Raises:
            EngineError: a server refuses a prompt, or does not answer in any attempt.
        """
        if any(prompt.prefix for prompt in prompts):  # servers differ in how an answer is continued, and some cannot
            raise EngineError("a server cannot continue a partial answer", where=self.addresses[0])
        from cot_unsloth.models.http_client import ApiClient, run_concurrently

        done: dict[int, Completion] = {}
        failed: BaseException | None = None
        with ApiClient(
            self.addresses, self.api_key, connections=self.concurrency, wait=self.wait, model=self.model
        ) as client:  # fmt: skip
            jobs = [functools.partial(self._answer, client, prompt, sampling, i) for i, prompt in enumerate(prompts)]
            for i, result in run_concurrently(jobs, self.concurrency):
                if isinstance(result, Completion):
                    done[i] = result
                    advance([result])
                elif isinstance(result, EngineError):  # answers under way are kept; no further prompt is sent
                    failed = failed or result
                    client.cancel()
                else:
                    raise result
        if failed:
            raise failed
        return [done[i] for i in range(len(prompts))]

    def _answer(self, client: ApiClient, prompt: Prompt, sampling: SamplingParams, number: int) -> Completion:
        answer = self._post(client, self._body(prompt, sampling), number)
        try:
            (choice,) = answer["choices"]
            message = choice["message"]
            content = message.get("content") or ""
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
            tokens = int(answer["usage"]["completion_tokens"])
            stopped = choice["finish_reason"]
            if not (isinstance(content, str) and isinstance(reasoning, str)):
                raise TypeError(f"content is not text: {content or reasoning!r}"[:300])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(f"the answer is not one of the OpenAI API: {error!r}", where=self.model) from error
        if stopped in _BROKEN_OFF:
            raise EngineError(f"the server broke off an answer (finish_reason {stopped})", where=self.model)
        cut = isinstance(stopped, str) and stopped.lower() in _CUT
        text = _joined(reasoning, content, cut, self.thinking_tags)
        return Completion(prompt.id, text, tokens, "length" if cut else "stop")

    def _post(self, client: ApiClient, body: Mapping[str, object], number: int) -> Any:
        """The server's answer, asked for without those of `_NEUTRAL` that it refuses by name, as OpenAI's own does."""
        while True:
            neutral = dict(self._neutral)
            try:
                return client.post("/chat/completions", {**body, **neutral}, first_server=number)
            except EngineError as error:
                refused = [name for name in neutral if name in error.message]
                if not refused:
                    raise
                with self._lock:
                    new = [name for name in refused if self._neutral.pop(name, None) is not None]
                if new:
                    note(
                        f"{self.model}: the server takes no {', '.join(new)}, so its own settings of them apply, if it has any"
                    )

    def _body(self, prompt: Prompt, sampling: SamplingParams) -> dict[str, object]:
        return {
            "model": self.model,
            "messages": [dict(message) for message in prompt.messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed_of(prompt.id),
        }


def _joined(reasoning: str, content: str, cut: bool, thinking_tags: ThinkingTags) -> str:
    """Reasoning and answer as one text with tags; `cut` if it reached the token limit."""
    if not reasoning.strip():
        return content
    opening, closing = trace.tags("output")
    if not content.strip():
        # Where vLLM's parsers find no end of the thinking, all of the answer is reasoning.
        if reasoning.lstrip().startswith(opening):
            return reasoning.lstrip()
        opened = f"{trace.tags('thinking', thinking_tags)[0]}\n{reasoning.lstrip()}"
        return opened if cut or opening in reasoning else trace.join_reasoning(reasoning.strip(), "", thinking_tags)
    if not trace.has_tags(content):
        # A cut answer stays open, as from engines that write the tags themselves: its last number may lack digits.
        content = f"{opening}{content.strip()}{closing * (not cut)}"
    return trace.join_reasoning(reasoning.strip(), content.lstrip(), thinking_tags)


def check_address(address: str) -> None:
    """Check that an address is that of a server.

    Raises:
        ConfigError: it does not begin with http:// or https://.
    """
    if not address.startswith(("http://", "https://")):
        raise ConfigError("is not the address of a server", where=f"--api {address}", hint="http://127.0.0.1:8000/v1")


def served_models(address: str, api_key: str | None = None, within: float = 10.0) -> list[str]:
    """Names of a server's models.

    Raises:
        ConfigError: it is not the address of a server.
        EngineError: it does not answer.
    """
    import httpx

    from cot_unsloth.models import http_client

    check_address(address)
    url = f"{address.rstrip('/')}/models"
    began = time.monotonic()
    try:
        with http_client.open_client([address], api_key, 1, httpx.Timeout(within)) as client:
            response = client.get(url)
            if not response.is_success:
                raise ValueError(f"HTTP {response.status_code} {response.reason_phrase}")
            return [str(model["id"]) for model in response.json()["data"]]
    except (*http_client.FAILURES, KeyError, TypeError) as error:
        took = time.monotonic() - began
        raise EngineError(
            f"no server answers there ({http_client.reason(error)}, after {took:.0f} s)",
            where=url,
            hint="is the server running? Its address ends in /v1",
        ) from error
