"""The `openai_api` engine: models that a server answers for, over the OpenAI chat interface.

vLLM, SGLang, llama-server, Ollama and ours speak it. Many prompts are asked at a time, of several servers if
there are several; what a server cannot take at the moment is asked again. Reasoning that a server keeps apart
(`reasoning_content`, or `reasoning`) gets its tags back. The key is read from the environment, never from a
file of settings, and goes into no file of ours.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError, EngineError
from cot_unsloth.core.types import Completion, Plan, Prompt, ThinkingTags
from cot_unsloth.models.protocols import Advance

PATIENCE = 6
"""Times that a prompt is asked; the waits between double, from a second on, so a minute in all."""
ANSWER_WITHIN = 1800.0
"""Seconds that a server may take for one answer."""
_BUSY = {408, 409, 425, 429, 500, 502, 503, 504}


class OpenAiApi:
    """A model behind one or several servers.

    Raises:
        ConfigError: an address is none.
    """

    name = "openai_api"
    capabilities: frozenset[str] = frozenset()

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
        self._gone = threading.Event()

    def generate(self, prompts: Sequence[Prompt], plan: Plan, advance: Advance = lambda done: None) -> list[Completion]:
        """One completion a prompt, in their order.

        Raises:
            EngineError: a server refuses a prompt, or does not answer however often it is asked.
        """
        if any(prompt.prefix for prompt in prompts):  # each kind of server has its own way, and some have none
            raise EngineError("a server cannot be made to go on from a given beginning", where=self.addresses[0])
        done: dict[int, Completion] = {}
        self._gone.clear()
        with ThreadPoolExecutor(self.concurrency) as pool:
            jobs = {pool.submit(self._answer, prompt, plan, i): i for i, prompt in enumerate(prompts)}
            failed: EngineError | None = None
            try:
                for job in as_completed(jobs):
                    try:
                        done[jobs[job]] = job.result()
                    except EngineError as error:  # what is on its way was paid for, and is kept; nothing more is asked
                        failed = failed or error
                        self._gone.set()
                    else:
                        advance([done[jobs[job]]])
            finally:
                self._gone.set()
        if failed:
            raise failed
        return [done[i] for i in range(len(prompts))]

    def _answer(self, prompt: Prompt, plan: Plan, number: int) -> Completion:
        if self._gone.is_set():
            raise EngineError("was called off", where=self.model)
        found = self._post(number, self._body(prompt, plan, number))
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

    def _body(self, prompt: Prompt, plan: Plan, number: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [dict(message) for message in prompt.messages],
            "max_tokens": plan.max_new_tokens,
            "temperature": plan.temperature,
            "top_p": plan.top_p,
            "seed": (plan.seed + number) % 2**31,
        }

    def _post(self, number: int, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        )
        for asked in range(1, PATIENCE + 1):
            # Each time another server, where there are several: one may be away for good.
            url = f"{self.addresses[(number + asked - 1) % len(self.addresses)]}/chat/completions"
            request = urllib.request.Request(url, json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=ANSWER_WITHIN) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                said = _body_of(error)
                if error.code not in _BUSY or asked == PATIENCE:
                    raise EngineError(f"the server refused ({error.code}): {said}", where=url) from error
                pause = _seconds(error.headers.get("Retry-After"))
            except (OSError, ValueError, http.client.HTTPException) as error:  # not there (yet), cut off, or no JSON
                if asked == PATIENCE:
                    hint = "what was answered so far is kept; the same command goes on from there"
                    raise EngineError(f"the server does not answer: {error}", where=url, hint=hint) from error
                pause = None
            # Spread, so that prompts which were refused together do not come back together.
            if self._gone.wait(
                pause if pause is not None else self.wait * 2 ** (asked - 1) * random.uniform(0.75, 1.25)
            ):
                break
        raise EngineError("was called off", where=self.model)


def _body_of(error: urllib.error.HTTPError) -> str:
    try:
        return error.read().decode(errors="replace")[:300]
    except (OSError, http.client.HTTPException):
        return str(error.reason)


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


def _seconds(retry_after: str | None) -> float | None:
    """How long a server asks to be left alone, at most a minute."""
    try:
        return min(60.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None


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
    check_address(address)
    url = f"{address.rstrip('/')}/models"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=within) as answer:
            return [str(model["id"]) for model in json.loads(answer.read())["data"]]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        took = time.monotonic() - began
        raise EngineError(
            f"no server answers there ({error}, after {took:.0f} s)",
            where=url,
            hint="is the server running? Its address ends in /v1",
        ) from error
