"""Chat: a turn split into sections, a thinking budget, stop texts, and the terminal."""

from __future__ import annotations

import io
import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import run_cli, running_server
from speaking import ASK, TEXT, Speaker

from cot_unsloth.config import load_tree
from cot_unsloth.core.errors import InputError
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.models.streaming import TextPiece, Turn, history
from cot_unsloth.server import Served


def sections(pieces: list[TextPiece]) -> dict[str | None, str]:
    result: dict[str | None, str] = {}
    for piece in pieces:
        result[piece.section] = result.get(piece.section, "") + piece.text
    return result


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


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_answer_ends_before_a_stop_text_however_it_is_chunked(size: int) -> None:
    turn = Turn(Speaker(size=size), ASK, SamplingParams(500), stops=("nowhere", "so 2"))
    assert sections(list(turn)) == {"thinking": "\n1 + 1 = 3\n\n", "reflection": "it is 2"}
    assert (turn.finish_reason, turn.text) == ("stop", TEXT[: TEXT.index("so 2")])
    nothing = Turn(Speaker(size=size), ASK, SamplingParams(500), stops=("2</output>!",))
    assert sections(list(nothing))["output"] == "2"  # what looked like the beginning of one is not lost


def test_earlier_turns_get_their_tags_back() -> None:
    assert history({"role": "assistant", "content": "2"})["content"] == "<output>2</output>"
    whole = history({"role": "assistant", "content": "2", "reasoning_content": "1 + 1 = 2"})["content"]
    assert whole == "<thinking>\n1 + 1 = 2\n</thinking>\n<output>2</output>"
    assert history({"role": "assistant", "content": TEXT})["content"] == TEXT
    assert (
        history({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})["content"]
        == "ab"
    )


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
    for nothing in (io.StringIO(" \n"), None):
        monkeypatch.setattr("sys.stdin", nothing or terminal)
        assert run_cli("chat", str(run / target), *([] if nothing else [""])) == 2
        assert "there is no question" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_pipe_gets_the_answer_with_its_tags(size: int, capsys: pytest.CaptureFixture[str]) -> None:
    from cot_unsloth.cli import chat_session

    chat_session.show(Turn(Speaker(size=size), ASK, SamplingParams(500)))
    assert capsys.readouterr().out == f"{TEXT}\n"
    for budget in range(1, len(TEXT)):
        turn = Turn(Speaker(size=1), ASK, SamplingParams(budget))
        chat_session.show(turn)
        printed = capsys.readouterr()
        assert printed.out == f"{turn.text}\n", budget
        assert "cut off at --max-new-tokens" in printed.err


def test_examples_of_a_run_on_files_are_its_held_out_problems(tmp_path: Path) -> None:
    from cot_unsloth.core.types import Example, Score, Trace
    from cot_unsloth.evaluation.examples import example_questions, examples_of
    from cot_unsloth.storage import records
    from cot_unsloth.storage.run_folder import RunDir

    run = RunDir(tmp_path)
    config = load_tree({}, {"dataset": "mine.jsonl"})
    assert examples_of(run, config) is None
    score = Score("1", "data", "2 + 2?", "4", "<output>5</output>", "5", False, None, 3, "stop")
    run.completions("tuned").parent.mkdir()
    records.append_jsonl(run.completions("tuned"), [vars(score)])
    draw = examples_of(run, config)
    assert draw is not None
    assert (draw(3).question, draw(3).answer) == ("2 + 2?", "4")
    generated = examples_of(run, load_tree({}, {"dataset": "world:chains"}))
    assert generated is not None
    assert generated(3).task == "chains"
    asked = example_questions(run, load_tree({}, {"dataset": "world:chains"}), 3)
    assert len(set(asked)) == 3
    tasks = example_questions(run, load_tree({}, {"dataset": "world:chains,words,countdown"}), 3)
    assert [any(word in text for text in tasks) for word in ("Make ", "modulo", "How many")] == [True] * 3
    assert tasks == sorted(tasks, key=len)
    assert example_questions(run, config, 3) == ["2 + 2?"]
    records.append_jsonl(run.completions("tuned"), [vars(score) | {"id": "2", "question": "And doubled?"}])
    turns = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"})
    follow_up = Example("2", "And doubled?", Trace((), "8"), "8", split="test", history=turns)  # type: ignore[arg-type]
    records.append_jsonl(run.kept, [records.kept_row(follow_up, "nested")])
    assert example_questions(run, config, 3) == ["2 + 2?"]


def test_a_file_is_served_to_many_at_a_time(run: Path) -> None:
    from cot_unsloth.models.target import resolve_target

    target = resolve_target(run / "export" / "tiny-base-cot-Q8_0.gguf", flags={"max_new_tokens": 12})
    answers: list[Any] = []
    with running_server(Served({"tiny": target.load_streamer(slots=4)}, target.config, slots=4)) as address:
        url = f"{address}/v1/chat/completions"
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(url, json={"messages": list(ASK)}, timeout=60)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        raw = httpx.post(f"{address}/v1/completions", json={"prompt": "1 + 1 =", "max_tokens": 4}, timeout=60).json()
        long = httpx.post(url, json={"messages": [{"role": "user", "content": "7 " * 5000}]}, timeout=60)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({json.dumps(answer.json()["choices"]) for answer in answers}) == 1
    assert raw["usage"]["completion_tokens"] >= 1
    assert long.status_code == 400


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


def test_a_question_may_be_longer_than_the_name_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """With --model, `chat` looked for a run of that name: "File name too long"."""
    assert run_cli("chat", "--model", "tiny-base", "What is 1 + 1? " * 20, "--max-new-tokens", "3") == 0
    assert capsys.readouterr().out.strip()


def test_chat_refuses_what_is_not_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("chat") == 2
    assert "name a run, a .gguf file" in capsys.readouterr().err
    assert run_cli("chat", str(tmp_path)) == 2
    assert run_cli("serve", str(tmp_path / "x.gguf")) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_conversation_that_fills_the_context_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp refused the next question, which ended the chat; transformers answered it with nonsense."""
    from cot_unsloth.cli import chat_session
    from cot_unsloth.models.switching import NamedModel

    class Small(Speaker):
        context_length = 40

        def prompt_tokens(self, prompt: Prompt) -> int:
            return 10 * sum(message["role"] != "system" for message in prompt.messages)

    speaker = Small("<thinking>\n" + "so " * 60)
    models = {"m": NamedModel(speaker, load_tree({}, {}))}
    terminal = io.StringIO("one\ntwo\nthree\n/retry\n/reset\nfour\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    chat_session.chat(models)
    asked = [
        [message["content"] for message in prompt.messages if message["role"] == "user"] for prompt in speaker.asked
    ]
    assert asked == [["one"], ["one", "two"], ["one", "two"], ["four"]]
    said = capsys.readouterr().err
    assert said.count("the conversation has 50 tokens, and the model's context is 40") == 1
    assert said.count("(the model's context is full") == 4
    monkeypatch.setattr(Small, "context_length", 10)
    with pytest.raises(InputError, match="the model's context is 10"):
        chat_session.chat(models, question="one")
