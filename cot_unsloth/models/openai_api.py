"""The `openai_api` engine: models that a server answers for, over the OpenAI chat interface.

vLLM, SGLang, llama-server, Ollama and ours speak it. Many prompts are asked at a time, of several servers if
there are several; what a server cannot take at the moment is asked again. Reasoning that a server keeps apart
(`reasoning_content`, or `reasoning`) gets its tags back. The key is read from the environment, never from a
file of settings, and goes into no file of ours.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError, EngineError
from cot_unsloth.core.types import Completion, Prompt, SamplingParams, ThinkingTags
from cot_unsloth.models.protocols import Advance

if TYPE_CHECKING:
    from cot_unsloth.models.http_client import ApiClient


class OpenAiApi:
    """A model behind one or several servers.

    Raises:
        ConfigError: an address is none.
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
        """Name the servers; nothing is asked yet.

        Args:
            addresses: of the servers, such as http://127.0.0.1:8000/v1; prompts go to them in turn.
            model: what the servers call it.
            api_key: sent as a bearer token where it is given.
            concurrency: prompts that are asked at a time, over all servers.
            wait: seconds before a prompt is asked a second time.
            thinking_tags: what reasoning that a server keeps apart is put between again.
        """
        for address in addresses:
            check_address(address)
        self.addresses = [address.rstrip("/") for address in addresses]
        self.model, self.api_key, self.concurrency, self.wait = model, api_key, concurrency, wait
        self.thinking_tags = thinking_tags

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, advance: Advance = lambda done: None
    ) -> list[Completion]:
        """One completion a prompt, in their order.

        Raises:
            EngineError: a server refuses a prompt, or does not answer however often it is asked.
        """
        if any(prompt.prefix for prompt in prompts):  # each kind of server has its own way, and some have none
            raise EngineError("a server cannot be made to go on from a given beginning", where=self.addresses[0])
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
        found = client.post("/chat/completions", self._body(prompt, sampling, number), first_server=number)
        try:
            (choice,) = found["choices"]
            message = choice["message"]
            content = message.get("content") or ""
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
            tokens = int(found["usage"]["completion_tokens"])
            stopped = choice["finish_reason"]
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"the answer is not what the OpenAI interface promises: {error!r}", where=self.model
            ) from error
        cut = stopped == "length"
        text = _joined(reasoning, content, cut, self.thinking_tags)
        return Completion(prompt.id, text, tokens, "length" if cut else "stop")

    def _body(self, prompt: Prompt, sampling: SamplingParams, number: int) -> dict[str, object]:
        return {
            "model": self.model,
            "messages": [dict(message) for message in prompt.messages],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": (sampling.seed + number) % 2**31,
        }


def _joined(reasoning: str, content: str, cut: bool, thinking_tags: ThinkingTags) -> str:
    """One text with our tags, as a server that keeps reasoning apart has taken them off; cut: by the budget."""
    if not reasoning.strip():
        return content
    if not content.strip():
        opened = f"{trace.tags('thinking', thinking_tags)[0]}\n{reasoning}"
        return opened if cut else trace.join_reasoning(reasoning.strip(), "", thinking_tags)
    if not trace.has_tags(content):
        opening, closing = trace.tags("output")
        content = f"{opening}{content.strip()}{closing}"
    return trace.join_reasoning(reasoning.strip(), content, thinking_tags)


def check_address(address: str) -> None:
    """Refuse what is no address of a server.

    Raises:
        ConfigError: it does not begin with http:// or https://.
    """
    if not address.startswith(("http://", "https://")):
        raise ConfigError("is no address of a server", where=f"--api {address}", hint="http://127.0.0.1:8000/v1")


def served_models(address: str, api_key: str | None = None, within: float = 10.0) -> list[str]:
    """What a server calls its models.

    Raises:
        ConfigError: the address is none.
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
