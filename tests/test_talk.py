"""Chat and serve: a turn split into sections, a thinking budget, and the OpenAI interface over a socket."""

from __future__ import annotations

import io
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import run_cli

from cot_unsloth.config import load_tree
from cot_unsloth.core.types import Completion, Prompt, SamplingParams
from cot_unsloth.models.serving import Service, listen
from cot_unsloth.models.streaming import TextPiece, Turn, history

TEXT = "<thinking>\n1 + 1 = 3\n<reflection>it is 2</reflection>\nso 2\n</thinking>\n<output>2</output>"


class Speaker:
    """A model that writes one text, a few characters at a time, and continues from any prefix of it."""

    name = "speaker"

    def __init__(self, text: str = TEXT, size: int = 3) -> None:
        self.text, self.size = text, size
        self.asked: list[Prompt] = []

    def generate(self, prompts: Any, sampling: SamplingParams, advance: Any = None) -> list[Completion]:
        raise NotImplementedError

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        self.asked.append(prompt)
        rest = self.text if not prompt.prefix else "7</output>"
        pieces = [rest[at : at + self.size] for at in range(0, len(rest), self.size)]
        yield from pieces[: sampling.max_new_tokens]

    def prompt_tokens(self, prompt: Prompt) -> int:
        return 5


def sections(pieces: list[TextPiece]) -> dict[str | None, str]:
    result: dict[str | None, str] = {}
    for piece in pieces:
        result[piece.section] = result.get(piece.section, "") + piece.text
    return result


ASK = ({"role": "user", "content": "1 + 1?"},)


@pytest.mark.parametrize("size", [1, 2, 5, 200])
def test_a_turn_is_split_into_sections_however_it_is_chunked(size: int) -> None:
    turn = Turn(Speaker(size=size), ASK, SamplingParams(500))
    result = sections(list(turn))
    assert result["reflection"] == "it is 2"
    assert result["output"] == "2"
    assert result["thinking"].split() == ["1", "+", "1", "=", "3", "so", "2"]
    assert (turn.text, turn.finish_reason, turn.cut) == (TEXT, "stop", False)


def test_thinking_over_budget_is_ended_and_an_answer_follows() -> None:
    speaker = Speaker()
    turn = Turn(speaker, ASK, SamplingParams(500), max_thinking=8)
    result = sections(list(turn))
    assert turn.cut
    assert result["output"] == "7"
    assert turn.text == "<thinking>\n1 + 1 = 3\n</thinking>\n<output>7</output>"
    assert speaker.asked[1].prefix == "<thinking>\n1 + 1 = 3\n</thinking>\n<output>"
    inside = Turn(Speaker(size=1), ASK, SamplingParams(500), max_thinking=36)
    list(inside)
    assert "</reflection>\n</thinking>\n<output>7</output>" in inside.text


def test_a_turn_over_budget_has_the_finish_reason_length() -> None:
    turn = Turn(Speaker(), ASK, SamplingParams(4))
    list(turn)
    assert (turn.finish_reason, turn.tokens) == ("length", 4)


def test_a_budget_that_ends_inside_a_tag_leaves_no_partial_tag() -> None:
    for budget in range(1, len(TEXT)):
        turn = Turn(Speaker(size=1), ASK, SamplingParams(budget))
        output = "".join(piece.text for piece in turn)
        assert not re.search("</?[a-z]*$", turn.text + output), budget
        assert TEXT.startswith(turn.text)


def test_earlier_turns_get_their_tags_back() -> None:
    assert history({"role": "assistant", "content": "2"})["content"] == "<output>2</output>"
    whole = history({"role": "assistant", "content": "2", "reasoning_content": "1 + 1 = 2"})["content"]
    assert whole == "<thinking>\n1 + 1 = 2\n</thinking>\n<output>2</output>"
    assert history({"role": "assistant", "content": TEXT})["content"] == TEXT
    assert (
        history({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})["content"]
        == "ab"
    )


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    service = Service(Speaker(), load_tree({}, {}), name="m", **getattr(request, "param", {}))
    with listen(service, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ask(address: str, body: Any, path: str = "/v1/chat/completions", key: str | None = None) -> tuple[int, str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_reasoning_and_content_are_separate_fields(address: str) -> None:
    status, text = ask(address, {"messages": list(ASK)})
    result = json.loads(text)
    message = result["choices"][0]["message"]
    assert status == 200
    assert message["content"] == "2"
    assert message["reasoning_content"] == "1 + 1 = 3\nit is 2\nso 2"
    assert result["choices"][0]["finish_reason"] == "stop"
    assert result["usage"]["completion_tokens"] == -(-len(TEXT) // 3)


def test_a_stream_adds_up_to_the_answer(address: str) -> None:
    status, text = ask(address, {"messages": list(ASK), "stream": True, "stream_options": {"include_usage": True}})
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert (status, lines[-1]) == (200, "[DONE]")
    chunks = [json.loads(line) for line in lines[:-1]]
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    assert "".join(d.get("content", "") for d in deltas) == "2"
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "1 + 1 = 3\nit is 2\nso 2"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["prompt_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not JSON"),
        ([], "must be an object"),
        ({}, "messages must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "must be text"),
        ({"messages": [*ASK, {"role": "assistant", "content": "x"}]}, "last message must be the user's"),
        ({"messages": list(ASK), "temperature": "hot"}, "temperature must be a number"),
        ({"messages": list(ASK), "max_tokens": -1}, "must be a number from 1"),
        ({"messages": list(ASK), "tools": [{}]}, "tools is not supported"),
        ({"messages": list(ASK), "n": 2}, "n above 1 is not supported"),
    ],
)
def test_an_invalid_request_is_refused_with_the_reason(address: str, body: Any, message: str) -> None:
    status, text = ask(address, body)
    assert status == 400
    assert message in json.loads(text)["error"]["message"]
    assert ask(address, {"messages": list(ASK)})[0] == 200


@pytest.mark.parametrize("address", [{"api_key": "secret"}], indirect=True)
def test_an_api_key_is_required(address: str) -> None:
    body = {"messages": list(ASK)}
    assert ask(address, body)[0] == ask(address, body, key="wrong")[0] == 401
    assert ask(address, body, key="secret")[0] == 200
    with urllib.request.urlopen(address + "/health") as answer:
        assert answer.status == 200


def test_unknown_paths_give_404(address: str) -> None:
    assert ask(address, {}, "/v1/embeddings")[0] == 404
    with urllib.request.urlopen(address + "/v1/models") as answer:
        assert json.load(answer)["data"][0]["id"] == "m"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    small = [
        "--world-samples",
        "32",
        "--max-steps",
        "2",
        "--eval-samples",
        "0",
        "--gguf",
        "q8_0",
        "--export-samples",
        "0",
    ]
    assert run_cli("train", "--run-dir", str(path), *small) == 0
    return path


@pytest.mark.parametrize("target", [".", "export/tiny-base-cot-Q8_0.gguf"])
def test_chat_answers_from_a_run_and_from_a_file(
    run: Path, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cot_unsloth.cli import chat_session

    asked: list[str] = []
    real = chat_session.show
    monkeypatch.setattr(chat_session, "show", lambda turn: (asked.append(turn.messages[-1]["content"]), real(turn)))
    terminal = io.StringIO("What is \\\n3 + 4?\n/reset\n\nAnd now?\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert run_cli("chat", str(run / target), "--max-new-tokens", "8") == 0
    assert asked == ["What is \n3 + 4?", "And now?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Start with 4.\n(1) add 2\n\nWhat is the result?\n"))
    assert run_cli("chat", str(run / target), "--max-new-tokens", "8") == 0
    assert asked[2:] == ["Start with 4.\n(1) add 2\n\nWhat is the result?"]
    assert capsys.readouterr().out.strip()


def test_a_file_is_served_over_a_socket(run: Path) -> None:
    from cot_unsloth.models.target import resolve_target

    target = resolve_target(run / "export" / "tiny-base-cot-Q8_0.gguf", flags={"max_new_tokens": 12})
    engine, config = target.load_streamer(slots=4), target.config
    with listen(Service(engine, config, name="tiny"), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        answers: list[tuple[int, str]] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(address, {"messages": list(ASK)}))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.shutdown()
    assert [status for status, _ in answers] == [200] * 6
    assert len({json.dumps(json.loads(text)["choices"]) for _, text in answers}) == 1


def test_hf_streams_what_it_generates(run: Path) -> None:
    from cot_unsloth.models.target import resolve_target

    engine = resolve_target(run).load_streamer()
    prompt = Prompt("x", ASK)
    (whole,) = engine.generate([prompt], SamplingParams(16))
    assert "".join(engine.stream(prompt, SamplingParams(16))) == whole.text
    heard = engine.stream(prompt, SamplingParams(2000))
    next(heard)
    heard.close()  # type: ignore[attr-defined]  # its thread ends too
    assert engine.generate([prompt], SamplingParams(16)) == [whole]


def test_chat_refuses_what_is_not_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("chat") == 2
    assert "name a run, a .gguf file" in capsys.readouterr().err
    assert run_cli("chat", str(tmp_path)) == 2
    assert run_cli("serve", str(tmp_path / "x.gguf")) == 2
    assert "there is no such file" in capsys.readouterr().err
