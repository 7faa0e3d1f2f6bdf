"""Log-probabilities of an answer's tokens: those of the model itself, in every engine that gives them, and refused elsewhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from helpers import running_server
from models import TINY, opened
from speaking import ASK, Speaker
from transformers import LogitsProcessor

from cot_unsloth.config import load_tree
from cot_unsloth.core.errors import LogprobsError
from cot_unsloth.core.types import Prompt, SamplingParams, StreamedText
from cot_unsloth.export.file_names import file_name
from cot_unsloth.export.gguf import writer
from cot_unsloth.models import hf_generation
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.protocols import TokenStreamer
from cot_unsloth.models.streaming import Turn
from cot_unsloth.models.target import resolve_target
from cot_unsloth.server import Served

QUESTION = Prompt(
    "", ({"role": "user", "content": "Start with 4 and work modulo 11.\n(1) add 2\nWhat is the result?"},)
)
GREEDY, SAMPLED = SamplingParams(12), SamplingParams(12, temperature=1.5, top_p=0.9, seed=5)


@pytest.fixture(scope="module")
def network() -> Any:
    return resolve_target(base="tiny-base").load_streamer()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    model, _ = opened(Path(TINY), None)
    file = tmp_path_factory.mktemp("gguf") / file_name("tiny", "f32")
    writer.write(model, {"f32": file})
    engine = LlamaCpp(file, context=512, slots=2)
    yield engine
    engine.close()


def streamed(engine: TokenStreamer, sampling: SamplingParams, most: int = 3) -> StreamedText:
    """The pieces of an answer as one."""
    pieces = list(engine.stream_tokens(QUESTION, sampling, most))
    return StreamedText(
        "".join(p.text for p in pieces),
        tuple(token for p in pieces for token in p.tokens),
        sum(p.count for p in pieces),
    )


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_tokens_of_a_transformers_model_have_its_own_log_probabilities(network: Any, sampling: SamplingParams) -> None:
    answer = streamed(network, sampling)
    assert answer.text == "".join(network.stream(QUESTION, sampling))
    assert "".join(token.text for token in answer.tokens) == answer.text
    prompt = network.chat.ids(network.chat.prompt_text(QUESTION))
    ids = network.chat.ids(answer.text)
    assert len(ids) == len(answer.tokens)
    with torch.inference_mode():
        logits = network.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits.float(), -1)
    for row, id_, token in zip(expected, ids, answer.tokens, strict=True):
        assert token.logprob == pytest.approx(float(row[id_]), abs=1e-3)
        assert [one.logprob for one in token.most_likely] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
        assert token.most_likely[0].text == network.chat.decode([int(row.argmax())])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_tokens_in_llama_cpp_have_the_log_probabilities_of_the_file(llama: LlamaCpp, sampling: SamplingParams) -> None:
    answer = streamed(llama, sampling)
    assert answer.text == "".join(llama.stream(QUESTION, sampling))
    assert "".join(token.text for token in answer.tokens) == answer.text
    prompt, ids = llama.ids(llama.render(QUESTION.messages)), llama.ids(answer.text, special=False)
    assert len(ids) == len(answer.tokens)
    for index, (id_, token) in enumerate(zip(ids, answer.tokens, strict=True)):
        expected = llama.logprobs([*prompt, *ids[:index]], 512)
        assert token.logprob == pytest.approx(expected[id_], abs=1e-3)
        assert token.most_likely[0].logprob == pytest.approx(max(expected.values()), abs=1e-3)
    assert [token.logprob for token in answer.tokens] != [0.0] * len(answer.tokens)


@pytest.mark.parametrize("logprobs", [None, 1])
def test_every_token_counts_also_within_a_character(network: Any, llama: LlamaCpp, logprobs: int | None) -> None:
    """A piece of text that took several tokens counted as one, and an answer that was cut ended with "stop"."""
    wild = SamplingParams(40, temperature=30.0, seed=3)  # bytes at random: most are no character
    for engine in (network, llama) if logprobs is None else (network,):
        pieces = list(engine.stream(QUESTION, wild))
        assert len([piece for piece in pieces if piece]) < 40
        turn = Turn(engine, QUESTION.messages, wild, most_likely=logprobs)
        written = [token for piece in turn for token in piece.tokens]
        assert (turn.tokens, turn.finish_reason) == (40, "length")
        assert len(written) == (0 if logprobs is None else 40)


def test_llama_cpp_keeps_the_tokens_that_the_other_engines_keep(llama: LlamaCpp) -> None:
    """Top_p is applied to the probabilities at the temperature asked for."""
    ids = llama.ids(llama.render(QUESTION.messages))
    logprobs = torch.tensor(sorted(llama.logprobs(ids, 1000).values(), reverse=True))
    for temperature in (0.5, 1.0, 2.0, 4.0):
        probabilities = (logprobs / temperature).softmax(-1)
        expected = int((probabilities.cumsum(-1) - probabilities < 0.8).sum())
        body = {"prompt": ids, "n_predict": 1, "temperature": temperature, "top_p": 0.8, "n_probs": 1000}
        (token,) = llama.complete(body | {"post_sampling_probs": True})["completion_probabilities"]
        assert sum(one["prob"] > 0 for one in token["top_probs"]) == expected  # type: ignore[typeddict-item]


def test_the_token_that_ends_the_turn_is_not_one_of_the_answers(network: Any, llama: LlamaCpp) -> None:
    for engine in (network, llama):
        answer = streamed(engine, SamplingParams(60))
        assert len(answer.tokens) < 60
        assert all(token.text for token in answer.tokens)


def test_llama_cpp_refuses_where_it_does_not_report_a_token(llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    """An é of two tokens, forced by a bias, of which llama.cpp reports the second alone."""
    first, second = llama.ids("é", special=False)
    body = LlamaCpp._body
    bias = {"logit_bias": [[first, 50.0], [second, 49.0]]}
    monkeypatch.setattr(LlamaCpp, "_body", lambda self, *args: body(self, *args) | bias)
    with pytest.raises(LogprobsError, match="ends inside a character"):
        streamed(llama, SamplingParams(4, temperature=1.0))


def test_tokens_inside_a_character_are_counted(network: Any, llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no text of their own: an answer that was cut at its limit was said to have ended by itself."""
    body, text = LlamaCpp._body, "é😀 é"  # two, four, one and two tokens
    monkeypatch.setattr(LlamaCpp, "_body", lambda self, *args: body(self, *args) | {"grammar": f'root ::= "{text}"'})
    ids = network.chat.ids(text)
    assert len(ids) == 9

    class Forced(LogitsProcessor):
        def __init__(self) -> None:
            self.left = [*ids, min(network.chat.stops)]

        def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -1e4).index_fill_(-1, torch.tensor([self.left.pop(0)]), 0.0)

    batch = hf_generation.generate_batch
    monkeypatch.setattr(
        hf_generation, "generate_batch", lambda *args, **more: batch(*args, logits_processor=[Forced()], **more)
    )
    with running_server(Served({"hf": network, "gguf": llama}, load_tree({}, {}))) as address:
        for model, limit in itertools.product(("hf", "gguf"), range(1, 12)):
            answer = post(address, "completions", model=model, prompt="x", max_tokens=limit).json()
            reason = answer["choices"][0]["finish_reason"]
            assert (model, limit, answer["usage"]["completion_tokens"]) == (model, limit, min(limit, 9))
            assert reason == ("length" if limit <= 9 else "stop")


def post(address: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json=body, timeout=60)


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]


def test_the_server_gives_them_in_the_forms_of_the_openai_api(network: Any, llama: LlamaCpp) -> None:
    settings = load_tree({}, {})
    with running_server(Served({"hf": network, "gguf": llama}, settings)) as address:
        for model in ("hf", "gguf"):
            chat: dict[str, Any] = {
                "model": model,
                "messages": list(QUESTION.messages),
                "max_tokens": 12,
                "temperature": 0,
            }
            chat |= {"logprobs": True, "top_logprobs": 2}
            choice = post(address, "chat/completions", **chat).json()["choices"][0]
            entries = choice["logprobs"]["content"]
            assert {len(entry["top_logprobs"]) for entry in entries} == {2}
            assert choice["message"]["content"] in "".join(entry["token"] for entry in entries)
            assert bytes(byte for entry in entries for byte in entry["bytes"]).decode().startswith("<")
            chunks = events(post(address, "chat/completions", **chat, stream=True).text)
            parts = [c["choices"][0]["logprobs"]["content"] for c in chunks]
            assert [e["token"] for part in parts for e in part] == [e["token"] for e in entries]
            # llama.cpp keeps what it computed of the prompt, and the rest is summed in another order.
            assert [e["logprob"] for part in parts for e in part] == pytest.approx(
                [e["logprob"] for e in entries], abs=1e-3
            )
            text: dict[str, Any] = {
                "model": model,
                "prompt": "3 + 4 =",
                "max_tokens": 4,
                "temperature": 0,
                "logprobs": 2,
            }
            choice = post(address, "completions", **text).json()["choices"][0]
            listed = choice["logprobs"]
            assert "".join(listed["tokens"]) == choice["text"]
            assert [len(one) for one in listed["tokens"]][:-1] == [b - a for a, b in pairwise(listed["text_offset"])]
            best = [max(top.values()) for top in listed["top_logprobs"]]
            assert best == listed["token_logprobs"]  # greedy
            chunks = events(post(address, "completions", **text, stream=True).text)
            parts = [c["choices"][0]["logprobs"] for c in chunks]
            for name in ("tokens", "text_offset"):
                assert [value for part in parts for value in part[name]] == listed[name]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"logprobs": True}, "the speaker engine gives no log-probabilities"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("completions", {"logprobs": 2}, "the speaker engine gives no log-probabilities"),
        ("completions", {"logprobs": 6}, "logprobs"),
        ("chat/completions", {"model": "hf", "logprobs": True, "stop": "x"}, "cannot be combined with stop"),
        ("chat/completions", {"model": "hf", "logprobs": True, "max_thinking_tokens": 5}, "thinking budget"),
    ],
)
def test_what_cannot_be_given_exactly_is_refused(network: Any, path: str, body: Any, message: str) -> None:
    asked = {"messages": list(ASK)} if path.startswith("chat") else {"prompt": "x"}
    with running_server(Served({"m": Speaker(), "hf": network}, load_tree({}, {}))) as address:
        answer = post(address, path, **({"model": "m"} | asked | body))
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_token_that_is_not_reported_is_400_or_the_last_event_of_a_stream(
    llama: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args: Any) -> Iterator[StreamedText]:
        raise LogprobsError("not reported")
        yield

    monkeypatch.setattr(LlamaCpp, "stream_tokens", unknown)
    chat = {"messages": list(ASK), "logprobs": True}
    with running_server(Served({"gguf": llama}, load_tree({}, {}))) as address:
        assert post(address, "chat/completions", **chat).status_code == 400
        last = events(post(address, "chat/completions", **chat, stream=True).text)[-1]
    assert last["error"] == {"message": "not reported", "type": "invalid_request_error", "param": None, "code": None}
