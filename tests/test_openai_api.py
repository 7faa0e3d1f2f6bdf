"""Scoring a served model: with the servers of llama.cpp and our own, and with one that simulates failures."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import run_cli, running_server, short_run

from cot_unsloth.config import RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ConfigError, EngineError
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.evaluation import lm_eval_command
from cot_unsloth.models import http_client
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.openai_api import OpenAiApi, served_models
from cot_unsloth.server import Served
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.storage.run_folder import RunDir

ANSWER = {"role": "assistant", "content": "7", "reasoning_content": "3 + 4"}


class Server:
    """Answers chat completions by a function of the body and of how often it was asked."""

    def __init__(self, answer: Callable[[dict[str, Any], int], tuple[int, Any]]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, {"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    status, payload = answer(body, len(outer.asked))
                self._say(status, payload)

            def _say(self, status: int, payload: Any) -> None:
                text = json.dumps(payload).encode() if not isinstance(payload, bytes) else payload
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


def response(message: dict[str, Any] = ANSWER, reason: str = "stop", tokens: int = 9) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": tokens}}


@pytest.fixture
def serve_with() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[dict[str, Any], int], tuple[int, Any]]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()


PROMPTS = [Prompt(f"p{i}", ({"role": "user", "content": f"{i} + 4?"},)) for i in range(8)]


def api(*servers: Server, **more: Any) -> OpenAiApi:
    return OpenAiApi([server.address for server in servers], "m", wait=0.01, **more)


def test_reasoning_and_content_of_a_response_are_joined(serve_with: Callable[..., Server]) -> None:
    server = serve_with(lambda body, n: (200, response()))
    result = api(server, api_key="k").generate(PROMPTS, SamplingParams(64, temperature=0.5, seed=3))
    assert [c.id for c in result] == [p.id for p in PROMPTS]
    assert result[0].text == "<thinking>\n3 + 4\n</thinking>\n<output>7</output>"
    assert (result[0].tokens, result[0].stopped) == (9, "stop")
    assert {body["max_tokens"] for body in server.asked} == {64}
    assert len({body["seed"] for body in server.asked}) == len(PROMPTS)
    assert set(server.keys) == {"Bearer k"}
    tagged = serve_with(lambda body, n: (200, response({"content": "<thinking>\nx\n</thinking>"}, "length")))
    (cut,) = api(tagged).generate(PROMPTS[:1], SamplingParams())
    thinks = serve_with(lambda body, n: (200, response({"content": None, "reasoning_content": "3 +"}, "length")))
    assert api(thinks).generate(PROMPTS[:1], SamplingParams())[0].text == "<thinking>\n3 +"
    assert (cut.text, cut.stopped) == ("<thinking>\nx\n</thinking>", "length")


@pytest.mark.parametrize(
    ("reasoning", "content", "text"),
    [
        ("\n3 + 4\n", "\n<output>7</output>", "<thinking>\n3 + 4\n</thinking>\n<output>7</output>"),
        ("3 + 4\n<output>7</output>", None, "<thinking>\n3 + 4\n<output>7</output>"),
        ("<output>7</output>", "", "<output>7</output>"),
        ("3 + 4", None, "<thinking>\n3 + 4\n</thinking>\n"),
    ],
)
def test_what_parsers_of_reasoning_return_is_the_text_that_was_written(
    serve_with: Callable[..., Server], reasoning: str, content: str | None, text: str
) -> None:
    """As vLLM 0.32 returns it: line ends around the tags stay, and without an end of thinking all of the text is reasoning."""
    server = serve_with(lambda body, n: (200, response({"content": content, "reasoning": reasoning})))
    assert api(server).generate(PROMPTS[:1], SamplingParams())[0].text == text


@pytest.mark.parametrize("reason", ["length", "model_length", "MAX_TOKENS"])
def test_an_answer_that_was_cut_is_not_closed(reason: str, serve_with: Callable[..., Server]) -> None:
    """Else its number, which may lack digits, would be read as the final answer."""
    message = {"content": "The answer is 1", "reasoning_content": "3 + 9"}
    server = serve_with(lambda body, n: (200, response(message, reason)))
    (cut,) = api(server).generate(PROMPTS[:1], SamplingParams())
    assert cut.stopped == "length"
    assert cut.text == "<thinking>\n3 + 9\n</thinking>\n<output>The answer is 1"
    assert trace.parse(cut.text).output is None


def test_samplers_of_a_server_are_switched_off_and_those_that_it_refuses_are_left_out(
    serve_with: Callable[..., Server], capsys: pytest.CaptureFixture[str]
) -> None:
    """A request that names no repetition_penalty gets that of the model's generation_config.json from vLLM."""
    vllm = serve_with(lambda body, n: (200, response()))
    api(vllm).generate(PROMPTS, SamplingParams())
    assert {(body["top_k"], body["min_p"], body["repetition_penalty"]) for body in vllm.asked} == {(-1, 0.0, 1.0)}

    def strict(body: dict[str, Any], n: int) -> tuple[int, Any]:
        unknown = [name for name in ("repetition_penalty", "top_k") if name in body]
        return (400, {"error": f"Unknown parameter: '{unknown[0]}'"}) if unknown else (200, response())

    openai = serve_with(strict)
    assert len(api(openai, concurrency=1).generate(PROMPTS, SamplingParams())) == 8
    assert len(openai.asked) == 8 + 2
    assert [("top_k" in body, "min_p" in body) for body in openai.asked[-2:]] == [(False, True)] * 2
    assert capsys.readouterr().err.count("the server takes no") == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (response({"content": "3 + 4 is"}, "error"), "broke off an answer"),
        (response({"content": [{"type": "text", "text": "7"}]}), "content is not text"),
    ],
)
def test_what_is_no_answer_is_not_scored(answer: dict[str, Any], says: str, serve_with: Callable[..., Server]) -> None:
    with pytest.raises(EngineError, match=says):
        api(serve_with(lambda body, n: (200, answer))).generate(PROMPTS[:1], SamplingParams())


def test_waits_grow_whatever_retry_after_says(
    serve_with: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `Retry-After: 0` all attempts were used up within milliseconds."""
    waits: list[float] = []
    server = serve_with(lambda body, n: (429, {}))
    with http_client.ApiClient([server.address], None, connections=1) as client:
        monkeypatch.setattr(client._cancelled, "wait", waits.append)
        with pytest.raises(EngineError, match=r"refused \(429\)"):
            client.post("/chat/completions", {})
    assert len(waits) == http_client.ATTEMPTS - 1
    assert all(0.75 * 2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(waits))


def test_a_busy_server_is_retried_and_several_servers_share_the_work(serve_with: Callable[..., Server]) -> None:
    def busy(body: dict[str, Any], n: int) -> tuple[int, Any]:
        return (
            (503, {"error": "loading"})
            if n <= 2
            else (429, {})
            if n == 3
            else (200, b"{")
            if n == 4
            else (200, response())
        )

    first, second = serve_with(busy), serve_with(lambda body, n: (200, response()))
    done: list[str] = []
    result = api(first, second, concurrency=2).generate(
        PROMPTS, SamplingParams(), lambda new: done.extend(c.id for c in new)
    )
    assert len(result) == 8
    assert sorted(done) == [p.id for p in PROMPTS]
    assert len(first.asked) + len(second.asked) == 8 + 4, "each that was refused is asked once more"
    assert len(second.asked) >= 4


def test_another_server_is_used_if_one_is_unreachable(serve_with: Callable[..., Server]) -> None:
    well = serve_with(lambda body, n: (200, response()))
    both = OpenAiApi(["http://127.0.0.1:9/v1", well.address], "m", wait=0.01)
    assert len(both.generate(PROMPTS, SamplingParams())) == 8
    assert len(well.asked) == 8


def test_pending_answers_are_kept_if_one_request_fails(serve_with: Callable[..., Server]) -> None:
    def slow(body: dict[str, Any], n: int) -> tuple[int, Any]:
        return (400, {"error": "no"}) if "0 + 4" in body["messages"][0]["content"] else (200, response())

    done: list[str] = []
    with pytest.raises(EngineError, match="refused"):
        api(serve_with(slow), concurrency=8).generate(
            PROMPTS, SamplingParams(), lambda new: done.extend(c.id for c in new)
        )
    assert "p0" not in done
    assert len(done) >= 1


@pytest.mark.parametrize(
    ("status", "error", "message", "hint"),
    [
        (400, {"message": "max_tokens=9 cannot be greater than max_model_len=8.", "code": 400}, "(400): max_tokens=9 cannot", "--max-new-tokens"),
        (400, {"message": "the request exceeds the available context size"}, "(400): the request", "--max-new-tokens"),
        (400, "no", "(400): no", None),
        (401, {"message": "wrong key"}, "(401): wrong key", "OPENAI_API_KEY"),
        (403, ["odd"], '(403): {"error": ["odd"]}', "OPENAI_API_KEY"),
    ],
)  # fmt: skip
def test_a_refusal_has_the_reason_of_the_server_and_what_to_do(
    serve_with: Callable[..., Server], status: int, error: object, message: str, hint: str | None
) -> None:
    """The messages of vLLM 0.32 and llama.cpp; before, they were shown as JSON."""
    server = serve_with(lambda body, n: (status, {"error": error}))
    with pytest.raises(EngineError) as raised:
        api(server, concurrency=1).generate(PROMPTS[:1], SamplingParams())
    assert message in raised.value.message
    assert (hint in (raised.value.hint or "")) if hint else raised.value.hint is None


def test_a_permanent_error_stops_at_once(serve_with: Callable[..., Server]) -> None:
    server = serve_with(lambda body, n: (400, {"error": "too long"}))
    with pytest.raises(EngineError, match=r"refused \(400\).*too long"):
        api(server, concurrency=1).generate(PROMPTS, SamplingParams())
    assert len(server.asked) <= 2, "it is not asked again, and the others are called off"
    odd = serve_with(lambda body, n: (200, {"choices": []}))
    with pytest.raises(EngineError, match="not one of the OpenAI API"):
        api(odd, concurrency=1).generate(PROMPTS[:1], SamplingParams())
    with pytest.raises(ConfigError, match="is not the address"):
        OpenAiApi(["localhost:8000"], "m")
    with pytest.raises(EngineError, match=r"no server answers there \(.*refused"):
        served_models("http://127.0.0.1:9/v1", within=1)
    with pytest.raises(ConfigError, match="is not the address"):
        served_models("localhost:8000")


def test_proxies_of_the_environment_are_used(
    serve_with: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, server = serve_with(lambda body, n: (200, response())), serve_with(lambda body, n: (200, response()))
    for name in ("HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy.address.removesuffix("/v1").removeprefix("http://"))  # also without http://
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    there = "http://models.example/v1"
    assert len(OpenAiApi([there], "m").generate(PROMPTS[:2], SamplingParams())) == 2
    assert served_models(there) == ["m"]
    assert len(proxy.asked) == 2
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    assert len(api(server).generate(PROMPTS[:2], SamplingParams())) == 2
    assert (len(proxy.asked), len(server.asked)) == (2, 2)


def test_ctrl_c_does_not_wait_for_an_answer(serve_with: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(body: dict[str, Any], n: int) -> tuple[int, Any]:
        if n == 1:
            os.kill(os.getpid(), signal.SIGINT)
        release.wait(30)
        return 200, response()

    server = serve_with(hang)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            api(server, concurrency=2).generate(PROMPTS, SamplingParams())
    finally:
        signal.signal(signal.SIGINT, before)
        release.set()
    assert time.monotonic() - began < 20
    assert len(server.asked) <= 2, "prompts were sent after the interrupt"


def test_an_evaluation_continues_after_its_server_died(
    serve_with: Callable[..., Server],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    dying = serve_with(lambda body, n: (200, response()) if n <= 5 else (400, {"error": "gone"}))
    args = ["--dataset", "world:words", "--eval-samples", "12", "--out", str(tmp_path / "s"), "--concurrency", "1"]
    assert run_cli("evaluate", "--api", dying.address, *args) == 1
    assert "refused (400)" in capsys.readouterr().err
    well = serve_with(lambda body, n: (200, response()))
    assert run_cli("evaluate", "--api", well.address, *args) == 0
    assert "5 of 12 were answered before" in capsys.readouterr().err
    assert len(well.asked) == 7
    run = RunDir(tmp_path / "s")
    assert len({row["id"] for row in read_jsonl(run.completions("tuned"))}) == 12
    assert json.loads(run.scorecard.read_text())["arms"]["tuned"]["format_valid"] == 1.0
    assert not any(b"secret-key" in file.read_bytes() for file in run.path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model", "other"], "serves m, not other"),
        (["--model", "m", "--out", ""], "say where the scores go"),
    ],
)
def test_options_that_a_server_cannot_provide_are_refused(
    args: list[str], says: str, serve_with: Callable[..., Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve_with(lambda body, n: (200, response()))
    out = [] if "--out" in args else ["--out", str(tmp_path / "s")]
    args = args[: args.index("--out")] if "--out" in args else args
    assert run_cli("evaluate", "--api", server.address, *args, *out) == 2
    assert says in capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    more = ["--gguf", "f32", "--export-samples", "0", "--arms", "tuned"]
    return short_run(tmp_path_factory.mktemp("api") / "run", *more)


def test_llama_cpps_server_and_ours_give_the_answers_of_the_file(
    exported: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = exported.exported_models()
    llama = LlamaCpp(file, context=512)
    prompts, sampling = PROMPTS[:4], SamplingParams(24)
    with monkeypatch.context() as environment:
        environment.setenv("http_proxy", "http://127.0.0.1:9")
        expected = llama.generate(prompts, sampling)  # the server in this process is asked without a proxy
    theirs = OpenAiApi([f"{llama._address}/v1"], served_models(f"{llama._address}/v1")[0])
    for one, other in zip(theirs.generate(prompts, sampling), expected, strict=True):
        assert (one.id, one.tokens, one.stopped) == (other.id, other.tokens, other.stopped)
        assert trace.parse(one.text).parts == trace.parse(other.text).parts
        assert trace.parse(one.text).output == trace.parse(other.text).output
    with pytest.raises(EngineError, match="cannot continue a partial answer"):
        theirs.generate([Prompt("x", prompts[0].messages, "It is")], sampling)
    with running_server(Served({"ours": llama}, RunConfig(), llama.slots)) as address:
        arms = ["--arms", "tuned", "--max-new-tokens", "12", "--eval-samples", "4"]
        api_flags = ["--api", f"{address}/v1", "--out", str(tmp_path / "o")]
        assert run_cli("evaluate", str(exported.path), *api_flags, *arms) == 0
    llama.close()
    assert json.loads((tmp_path / "o" / "scorecard.json").read_text())["n"] == 4


def test_a_served_run_is_not_scored_on_its_training_rows(serve_with: Callable[..., Server], tmp_path: Path) -> None:
    lines = [{"question": f"What is {n} and 4?", "answer": f"sum\n#### {n + 4}"} for n in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["--max-steps", "1", "--max-new-tokens", "4", "--arms", "tuned", "--test-fraction", "0.1", "--gguf", ""]
    run = RunDir(tmp_path / "run")
    assert run_cli("train", "--run-dir", str(run.path), "--dataset", str(data), *few) == 0
    server, out = serve_with(lambda body, n: (200, response())), RunDir(tmp_path / "s")
    assert run_cli("evaluate", str(run.path), "--api", server.address, "--out", str(out.path)) == 0
    assert {row["id"] for row in read_jsonl(out.completions("tuned"))} == run.question_ids("test")
    assert json.loads(out.scorecard.read_text())["contamination"]["exact"] == 0


def test_the_printed_command_has_all_that_the_harness_needs(
    exported: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli("evaluate", str(exported.path), "--lm-eval", "gsm8k") == 0
    line = shlex.split(capsys.readouterr().out)
    assert line[:4] == ["lm_eval", "run", "--model", "hf"]
    model = dict(arg.split("=", 1) for arg in line[line.index("--model_args") + 1].split(","))
    assert Path(model["peft"], "adapter_config.json").is_file()
    assert Path(model["pretrained"], "config.json").is_file()
    assert model["think_end_token"] == "</thinking>"
    assert line[line.index("--tasks") + 1] == "gsm8k_cot_zeroshot"
    assert line[line.index("--system_instruction") + 1] == RunConfig().data.system_prompt
    assert run_cli("evaluate", str(exported.path), "--lm-eval", "gsm9k") == 2
    assert set(lm_eval_command.TASKS) == {"gsm8k", "math500", "aime24", "gpqa-diamond"}
