"""The server: the OpenAI API over a socket, its refusals, its limits, and clients that behave badly."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from helpers import running_server
from speaking import ASK, TEXT, Speaker

from cot_unsloth.config import load_tree
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.models.protocols import Streamer
from cot_unsloth.server import Served, access_for, bind, generation, protection, run
from cot_unsloth.server.protection import Access

REASONING = "1 + 1 = 3\n<reflection>it is 2</reflection>\nso 2"
CHAT = {"messages": list(ASK)}


def served(engine: Streamer | None = None, **more: Any) -> Served:
    return Served({"m": engine or Speaker()}, load_tree({}, {}), **more)


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with running_server(served(**getattr(request, "param", {}))) as address, httpx.Client(base_url=address) as client:
        yield client


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def joined(chunks: list[Any], name: str, index: int = 0) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(delta.get(name, "") for delta in deltas)


def test_reasoning_and_content_are_separate_fields(client: httpx.Client) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT)
    result = answer.json()
    (choice,) = result["choices"]
    assert answer.status_code == 200
    assert choice["message"] == {"role": "assistant", "content": "2", "reasoning_content": REASONING}
    assert choice["finish_reason"] == "stop"
    assert result["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": -(-len(TEXT) // 3),
        "total_tokens": 5 - (-len(TEXT) // 3),
    }


def test_a_stream_adds_up_to_the_answer(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = events(answer.text)
    assert (joined(chunks, "content"), joined(chunks, "reasoning_content")) == ("2", REASONING)
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["prompt_tokens"] == 5
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_an_answer_that_a_client_sends_back_is_what_the_model_wrote(client: httpx.Client) -> None:
    message = client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]
    speaker = Speaker()
    with running_server(served(speaker)) as address:
        messages = [*ASK, message, {"role": "user", "content": "Sure?"}]
        httpx.post(f"{address}/v1/chat/completions", json={"messages": messages})
    assert speaker.asked[0].messages[-2]["content"] == TEXT


def test_several_choices_come_with_seeds_of_their_own() -> None:
    class Seeded(Speaker):
        def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
            yield from ("<output>", str(sampling.seed), "</output>")

    with running_server(served(Seeded(), slots=2)) as address:
        body = {**CHAT, "n": 3, "seed": 7}
        whole = httpx.post(f"{address}/v1/chat/completions", json=body).json()["choices"]
        chunks = events(httpx.post(f"{address}/v1/chat/completions", json={**body, "stream": True}).text)
    assert [choice["message"]["content"] for choice in whole] == ["7", "8", "9"]
    assert [joined(chunks, "content", index) for index in range(3)] == ["7", "8", "9"]


def test_equal_requests_without_a_seed_get_seeds_of_their_own() -> None:
    """All had the same one: repeated samples were one sample, and trying again changed nothing."""

    class Seeded(Speaker):
        def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
            yield str(sampling.seed)

    with running_server(served(Seeded())) as address:
        body = {**CHAT, "temperature": 1.0}
        answers = [httpx.post(f"{address}/v1/chat/completions", json=body).text for _ in range(3)]
    assert len({json.loads(text)["choices"][0]["message"]["content"] for text in answers}) == 3


def test_a_temperature_near_0_is_greedy() -> None:
    """Logits overflowed: an internal error in transformers, other tokens in llama.cpp."""

    class Tepid(Speaker):
        def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
            yield str(sampling.temperature)

    with running_server(served(Tepid())) as address:
        for asked, used in ((5e-324, 0.0), (1e-5, 1e-5), (0, 0)):
            answer = httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "temperature": asked}).json()
            assert float(answer["choices"][0]["message"]["content"]) == used


def test_an_empty_prompt_is_refused() -> None:
    class Counting(Speaker):
        def prompt_tokens(self, prompt: Prompt) -> int:
            return len(prompt.prefix)

    with running_server(served(Counting())) as address:
        answer = httpx.post(f"{address}/v1/completions", json={"prompt": ""})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "the prompt is empty")


def test_completions_continue_a_text_as_it_is() -> None:
    speaker = Speaker("7 + 1 = 8. Then", size=2)
    with running_server(served(speaker)) as address:
        body = {"prompt": "3 + 4 = ", "stop": [". "], "max_tokens": 20}
        (whole,) = httpx.post(f"{address}/v1/completions", json=body).json()["choices"]
        chunks = events(httpx.post(f"{address}/v1/completions", json={**body, "stream": True}).text)
    assert (whole["text"], whole["finish_reason"]) == ("7</output>", "stop")  # what a Speaker says after a prefix
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert speaker.asked[0] == Prompt("", (), "3 + 4 = ")


def test_null_fields_and_neutral_values_count_as_absent(client: httpx.Client) -> None:
    body: dict[str, Any] = {
        **CHAT, "temperature": None, "stop": None, "max_tokens": None, "n": None, "stream": None, "tools": None,
        "response_format": {"type": "text"}, "logprobs": False, "presence_penalty": 0, "tools ": [1], "user": "someone",
    }  # fmt: skip
    assert client.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"messages": "\xff"}', "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b'{"messages": [], "max_tokens": 1%s}' % (b"0" * 5000), "number out of range"),
        ([], "the body"),
        ({}, "messages: field required"),
        ({"messages": []}, "messages: list should have at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: input should be 'system'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: input should be a valid string"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "input should be 'text'"),
        ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, "last message must be the user's"),
        ({**CHAT, "temperature": "hot"}, "temperature: input should be a valid number"),
        ({**CHAT, "temperature": 3}, "temperature: input should be less than or equal to 2"),
        ({**CHAT, "max_tokens": -1}, "max_tokens: input should be greater than or equal to 1"),
        ({**CHAT, "max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({**CHAT, "max_tokens": True}, "max_tokens"),
        ({**CHAT, "tools": [{}]}, "tools is not supported"),
        ({**CHAT, "top_k": 1}, "top_k is not supported"),
        ({**CHAT, "repetition_penalty": 1.1}, "repetition_penalty is not supported"),
        ({**CHAT, "guided_json": {}}, "guided_json is not supported"),
        ({**CHAT, "logprobs": True}, "the speaker engine gives no log-probabilities"),
        ({**CHAT, "response_format": {"type": "json_object"}}, "response_format.type"),
        ({**CHAT, "stream_options": [1]}, "stream_options"),
        ({**CHAT, "n": 1000}, "n: input should be less than or equal to 16"),
        ({**CHAT, "stop": ["a", "b", "c", "d", "e"]}, "stop: list should have at most 4 items"),
        ({**CHAT, "verbosity": "low"}, "verbosity is not supported"),
        (
            {"messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, *ASK]},
            "messages[1].tool_calls is not",
        ),
        ({**CHAT, "seed": 10**30}, "seed"),
    ],
)
def test_an_invalid_request_is_refused_with_the_reason(client: httpx.Client, body: Any, message: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/v1/chat/completions", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_prompt_that_does_not_fit_is_refused_and_a_long_answer_is_shortened() -> None:
    speaker = Speaker()
    speaker.context_length = 9
    speaker.prompt_tokens = lambda prompt: 9 if "long" in prompt.messages[-1]["content"] else 5  # type: ignore[method-assign]
    with running_server(served(speaker)) as address:
        long = httpx.post(f"{address}/v1/chat/completions", json={"messages": [{"role": "user", "content": "long"}]})
        short = httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "max_tokens": 500}).json()
    assert long.status_code == 400
    assert "the prompt has 9 tokens, and the model's context is 9" in long.json()["error"]["message"]
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (4, "length")


@pytest.mark.parametrize("client", [{"access": Access("secret")}], indirect=True)
def test_an_api_key_is_required(client: httpx.Client) -> None:
    def status(key: str | None, path: str = "/v1/chat/completions") -> int:
        headers = {"Authorization": f"Bearer {key}".encode()} if key is not None else {}
        return client.post(path, json=CHAT, headers=headers).status_code

    assert [status(key) for key in (None, "wrong", "s\u00e9cret", "secret")] == [401, 401, 401, 200]
    assert client.get("/health").status_code == 200
    assert client.get("/metrics").status_code == client.get("/v1/models").status_code == 401
    # The name of a scheme may be in any case (RFC 9110).
    assert client.get("/v1/models", headers={"Authorization": "bearer secret"}).status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "Basic secret"}).status_code == 401
    # Refused before the body is looked at.
    assert client.post("/v1/chat/completions", content=b"[" * 100_000).status_code == 401


def test_paths_and_methods(client: httpx.Client) -> None:
    assert client.post("/v1/embeddings", json={}).status_code == 404
    for path in ("/chat/completions", "/v1/v1/chat/completions", "/v1/responses"):
        answer = client.post(path, json={})
        assert (answer.status_code, "/v1/chat/completions, " in answer.json()["error"]["message"]) == (404, True)
    wrong = client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "/v1/chat/completions does not take GET"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["m"]
    assert client.get("/v1/models/m").json()["object"] == "model"
    assert client.get("/v1/models/other").status_code == 404


def test_several_models_share_a_server() -> None:
    with running_server(Served({"a": Speaker(), "b": Speaker("<output>5</output>")}, load_tree({}, {}))) as address:

        def ask(model: str | None) -> httpx.Response:
            return httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "model": model})

        answers = {name: ask(name).json() for name in ("a", "b", None)}
        unknown = ask("c")
    contents = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
    assert contents == {"a": "2", "b": "5", None: "2"}
    assert [answer["model"] for answer in answers.values()] == ["a", "b", "a"]
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "model")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_pages_of_others_cannot_use_a_server_on_this_machine(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = client.post(
        "/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": "application/json"} | headers
    )
    assert answer.status_code == status


@pytest.mark.parametrize("client", [{"access": Access(origins=("https://friend.example",))}], indirect=True)
def test_an_origin_can_be_allowed(client: httpx.Client) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    preflight = client.options("/v1/chat/completions", headers={"Origin": "https://friend.example", **ask})
    assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
    assert client.options("/v1/chat/completions", headers={"Origin": "https://other.example", **ask}).status_code == 403


def test_any_address_but_loopback_needs_a_key() -> None:
    with bind("0.0.0.0", 0) as listener:
        with pytest.raises(ConfigError, match="a key is required"):
            access_for(listener, None)
        with pytest.raises(ConfigError, match="a key is required"):
            access_for(listener, "")
        assert access_for(listener, "k").hosts is None
    with bind("127.0.0.1", 0) as listener:
        assert access_for(listener, None).hosts
        for key in ("", "two words", "end ", "cl\u00e9", "line\n"):  # every request was refused
            with pytest.raises(ConfigError, match="no client could send it"):
                access_for(listener, key)
        assert access_for(listener, "k-1").api_key == "k-1"


def test_the_size_of_a_body_is_limited(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "MOST_BYTES", 1000)
    large = {"messages": [{"role": "user", "content": "x" * 1000}]}
    assert client.post("/v1/chat/completions", json=large).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield from (b"x" * 400 for _ in range(5))

    sent = client.post("/v1/chat/completions", content=chunks(), headers={"Content-Type": "application/json"})
    assert sent.status_code == 413


def connected(address: str, text: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(text.encode())
    return connection


def test_half_requests_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.3)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running_server(served()) as address:
        for text, status in (
            ("", b""),
            ("POST / HTTP/1.1\r\nHo", b""),
            (head + "Content-Length: 50\r\n\r\n{", b" 408 "),
        ):
            with connected(address, text) as connection:
                began, answer = time.monotonic(), b""
                while data := connection.recv(1000):
                    answer += data
                    if status and status in answer:
                        break
                assert time.monotonic() - began < 10
                assert status in answer


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running_server(served()) as address:
        connected(address, head + "Content-Length: 50\r\n\r\n{").close()
        counted = 'cot_unsloth_requests_total{path="/v1/chat/completions",status="499"} 1.0'
        assert eventually(lambda: counted in httpx.get(f"{address}/metrics").text)
    assert "error" not in capfd.readouterr().err


class Endless(Speaker):
    """Speaks until it is stopped; knows how many of its streams are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        self.open += 1
        try:
            for number in range(sampling.max_new_tokens):
                time.sleep(0.002)
                yield f"{number} "
        finally:
            self.open -= 1


def eventually(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("stream", [True, False])
def test_a_slot_is_free_when_its_client_is_gone(stream: bool) -> None:
    engine = Endless()
    body = json.dumps({**CHAT, "stream": stream, "max_tokens": 1_000_000})
    with running_server(served(engine, slots=1)) as address:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        engine.context_length = 2_000_000
        with connected(address, head + body):
            assert eventually(lambda: engine.open == 1)
        assert eventually(lambda: engine.open == 0)
        engine.context_length = 10
        assert httpx.post(f"{address}/v1/chat/completions", json=CHAT).status_code == 200


def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    engine = Endless()
    engine.context_length = 2005
    body = json.dumps({**CHAT, "stream": True, "max_tokens": 2000})
    with running_server(served(engine, slots=1)) as address:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with connected(address, head + body):
            answer = httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "max_tokens": 3}, timeout=30)
    assert answer.json()["usage"]["completion_tokens"] == 3


class Gated(Speaker):
    """Says nothing before its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        assert self.gate.wait(30)
        yield from super().stream(prompt, sampling)


def test_requests_beyond_the_queue_are_refused_to_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "MOST_WAITING", 2)
    engine = Gated()

    def full(address: str) -> bool:
        metrics = httpx.get(f"{address}/metrics").text
        return "cot_unsloth_running 1.0" in metrics and "cot_unsloth_waiting 2.0" in metrics

    with running_server(served(engine, slots=1)) as address, ThreadPoolExecutor(3) as threads:
        ask = partial(httpx.post, f"{address}/v1/chat/completions", json=CHAT, timeout=30)
        accepted = [threads.submit(ask) for _ in range(3)]
        try:
            assert eventually(lambda: full(address))
            refused = [ask() for _ in range(3)]
        finally:
            engine.gate.set()
        assert [answer.status_code for answer in refused] == [503] * 3
        assert all(answer.headers["retry-after"] for answer in refused)
        assert [answer.result().status_code for answer in accepted] == [200] * 3


def test_an_engine_that_fails_is_reported_and_the_server_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever ran the server was not told more than the client, and a 500 was logged as "disconnected"."""

    class Failing(Speaker):
        def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
            yield "<thinking>"
            raise ValueError("secret detail")

    with running_server(served(Failing())) as address:
        whole = httpx.post(f"{address}/v1/chat/completions", json=CHAT)
        streamed = httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "stream": True})
        assert httpx.get(f"{address}/health").status_code == 200
        counted = 'cot_unsloth_requests_total{path="/v1/chat/completions",status="500"} 1.0'
        assert eventually(lambda: counted in httpx.get(f"{address}/metrics").text)
    printed = capfd.readouterr().err
    assert printed.count("error: ValueError: secret detail\n") == 2
    assert "disconnected" not in printed
    assert (whole.status_code, whole.json()["error"]["message"]) == (500, "internal error (ValueError)")
    assert events(streamed.text)[-1]["error"]["message"] == "internal error (ValueError)"
    assert "secret detail" not in whole.text + streamed.text


def test_figures_for_prometheus(client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json=CHAT)
    for path in ("/x1", "/x2"):
        client.get(path)
    # A request is counted once its answer has been sent, which may be after the client has it.
    counted = 'cot_unsloth_requests_total{path="other",status="404"} 2.0'
    assert eventually(lambda: counted in client.get("/metrics").text)
    text = client.get("/metrics").text
    assert 'cot_unsloth_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'cot_unsloth_tokens_total{kind="prompt"} 5.0' in text
    assert "cot_unsloth_running 0.0" in text
    assert "cot_unsloth_first_token_seconds_count 1.0" in text


def test_addresses_that_are_tried_without_a_key_take_no_memory() -> None:
    key = {"Authorization": "Bearer k"}
    with running_server(served(access=Access("k"))) as address:
        for number in range(3):
            assert httpx.get(f"{address}/admin{number}").status_code == 401
        counted = 'cot_unsloth_requests_total{path="other",status="401"} 3.0'
        assert eventually(lambda: counted in httpx.get(f"{address}/metrics", headers=key).text)
        assert "admin" not in httpx.get(f"{address}/metrics", headers=key).text


def test_the_log_has_no_control_characters(capfd: pytest.CaptureFixture[str]) -> None:
    with running_server(served()) as address:
        host, port = address.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port))
        connection.putrequest("GET", "/%1b[31mred%0d%0aforged")
        connection.endheaders()
        assert connection.getresponse().status == 404
    lines = capfd.readouterr().err
    assert "forged" in lines
    assert "\x1b" not in lines
    assert not any(line.startswith("forged") for line in lines.splitlines())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
def test_host_names_and_addresses_of_both_ip_versions_can_be_bound(host: str) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with bind(host, 0) as listener:
        assert listener.getsockname()[1] > 0


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def test_a_port_belongs_to_the_first_who_takes_it() -> None:
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConfigError, match="Address already in use") as refused:
        bind("127.0.0.1", listener.getsockname()[1])
    assert "--port 0" in str(refused.value.hint)


def test_a_privileged_port_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ConfigError, match="cannot listen there: Permission denied") as refused:
        bind("127.0.0.1", 80)
    assert "below 1024" in str(refused.value.hint)
