"""Several adapters on one base in memory: each answers as it does alone, in chat, server and llama.cpp."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapter_kinds import make_base
from helpers import run_cli, running_server, short_run
from models import TINY, opened
from test_combine import PLAIN, RS, SOME, adapter

from cot_unsloth.core.errors import ConfigError, ModelError
from cot_unsloth.core.results import Scorecard
from cot_unsloth.core.types import Message, Prompt, SamplingParams
from cot_unsloth.export.gguf import lora, writer
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.models.switching import NamedModel, load_models, resolve_adapters
from cot_unsloth.models.target import resolve_target
from cot_unsloth.server import Served

QUESTIONS = ["Start with 4.\n(1) add 2\n\nWhat is the result?", "What is 3 + 4?", "Start with 9."]
FLAGS = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    kinds = {"plain": PLAIN, "rs": RS, "v1.5": SOME}
    folder = tmp_path_factory.mktemp("adapters")
    return {name: adapter(folder / name, seed=i, std=2.0, **kind) for i, (name, kind) in enumerate(kinds.items())}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of models that were loaded."""
    names: list[str] = []
    real = HfEngine._from_pretrained

    def counted(self: HfEngine, name: str, *more: Any) -> Any:
        names.append(name)
        return real(self, name, *more)

    monkeypatch.setattr(HfEngine, "_from_pretrained", counted)
    return names


def request(question: str, **more: Any) -> dict[str, Any]:
    messages: list[Message] = [{"role": "user", "content": question}]
    return {"messages": messages, **more}


@contextlib.contextmanager
def serving(models: dict[str, NamedModel], slots: int = 1) -> Iterator[Ask]:
    """A server of models behind a real socket; what asks it: message and model of the answer."""
    engines, configs = ({n: getattr(m, part) for n, m in models.items()} for part in ("engine", "config"))
    with running_server(Served(engines, next(iter(configs.values())), slots, configs=configs)) as address:

        def message(question: str, **more: Any) -> tuple[Any, str]:
            answer = httpx.post(f"{address}/v1/chat/completions", json=request(question, **more), timeout=60)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["message"], answer.json()["model"]

        yield Ask(address, message)


@dataclass(frozen=True)
class Ask:
    address: str
    message: Any


def test_one_server_answers_for_base_and_three_adapters_at_once(adapters: dict[str, Path], loads: list[str]) -> None:
    alone = {}
    for name, path in {**adapters, "base": None}.items():
        target = resolve_target(base=None if path else "tiny-base", adapter=path, flags=FLAGS)
        with serving(load_models(target, "alone", {}, FLAGS)) as served:
            alone |= {(name, question): served.message(question)[0] for question in QUESTIONS}
    assert len({json.dumps(alone[name, QUESTIONS[0]]) for name in ("base", *adapters)}) == 4
    loads.clear()
    named = {name: path for name, path in adapters.items() if name != "plain"}
    own = resolve_target(adapter=adapters["plain"], flags=FLAGS)
    with serving(load_models(own, "plain", named, FLAGS)) as served:
        asked = [*alone] * 2
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda key: served.message(key[1], model=key[0]), asked))
        assert answers == [(alone[key], key[0]) for key in asked]
        assert served.message(QUESTIONS[0])[1] == "plain"
        url = f"{served.address}/v1/chat/completions"
        text = httpx.post(url, json=request(QUESTIONS[0], model="rs", stream=True)).text
        chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        content = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        assert (content, chunks[0]["model"]) == (alone["rs", QUESTIONS[0]]["content"], "rs")
        unknown = httpx.post(url, json=request("?", model="other"))
        assert unknown.status_code == 404
        assert "plain, rs, v1.5, base" in unknown.text
    assert len(loads) == 1


def test_names_that_differ_in_a_dot_are_two_adapters(adapters: dict[str, Path]) -> None:
    named = {"v1.5": adapters["v1.5"], "v1_5": adapters["plain"], "v1_dot_5": adapters["rs"]}
    models = load_models(resolve_target(base="tiny-base", flags=FLAGS), "base-itself", named, FLAGS)
    prompt = Prompt("", ({"role": "user", "content": QUESTIONS[0]},))
    answers = {name: models[name].engine.generate([prompt], SamplingParams(12))[0].text for name in named}
    assert len(set(answers.values())) == 3


def test_the_list_of_models_has_all_of_them(adapters: dict[str, Path]) -> None:
    target = resolve_target(base="tiny-base", flags=FLAGS)
    with serving(load_models(target, "tiny-base", adapters, FLAGS)) as served:
        models = httpx.get(f"{served.address}/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["base", "plain", "rs", "v1.5"]


def test_chat_switches_between_adapters(
    adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], loads: list[str]
) -> None:
    from cot_unsloth.cli import chat_session

    answers: list[tuple[str, int]] = []
    real = chat_session.show
    monkeypatch.setattr(
        chat_session, "show", lambda turn: (real(turn), answers.append((turn.text, len(turn.messages))))
    )
    lines = ["", "/adapter", "/reset", "/adapter rs", "", "/adapter nobody", "/reset", "/adapter base", "", "/adapter plain", ""]  # fmt: skip
    terminal = io.StringIO("\n".join(line or "What is 3 + 4?" for line in lines) + "\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    named = [f"--adapter={name}={path}" for name, path in adapters.items() if name != "plain"]
    assert run_cli("chat", "--adapter", str(adapters["plain"]), *named, "--max-new-tokens", "12") == 0
    assert len({text for text, _ in answers[:3]}) == 3
    assert [length for _, length in answers] == [1, 1, 1, 3]  # the conversation goes on after a switch
    shown = capsys.readouterr().err
    assert "* plain\n  rs\n  v1.5\n  base" in shown
    assert "no adapter is named nobody" in shown
    assert len(loads) == 1


def test_what_cannot_share_a_base_is_refused(adapters: dict[str, Path], tmp_path: Path) -> None:
    own = resolve_target(adapter=adapters["plain"], flags=FLAGS)
    for name in ("base", "plain"):
        with pytest.raises(ConfigError, match=f"{name} is the name of another model"):
            load_models(own, "plain", {name: adapters["rs"]}, FLAGS)
    settings = json.loads((adapters["rs"] / "adapter_config.json").read_text())
    for key, value, message in (
        ("base_model_name_or_path", "someone/else", "is an adapter of someone/else"),
        ("init_lora_weights", "pissa", "changes the base as it is loaded"),
    ):
        other = tmp_path / key
        other.mkdir()
        (other / "adapter_config.json").write_text(json.dumps({**settings, key: value}))
        (other / "adapter_model.safetensors").write_bytes((adapters["rs"] / "adapter_model.safetensors").read_bytes())
        with pytest.raises(ModelError, match=message):
            load_models(own, "plain", {"other": other}, FLAGS)
    assert run_cli("chat", "--adapter", str(adapters["rs"]), "--adapter", str(adapters["plain"])) == 2
    assert run_cli("chat", "--adapter", f"a={adapters['rs']}", "--adapter", f"a={adapters['plain']}") == 2


@pytest.fixture(scope="module")
def files(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base as GGUF, and for two adapters: the adapter alone, and merged into the base; all in float32."""
    folder = tmp_path_factory.mktemp("files")
    paths = {"base": folder / "base.gguf"}
    for name in ("plain", "rs"):
        model, _ = opened(Path(TINY), adapters[name])
        writer.write(replace(model, adapter=None), {"f32": paths["base"]})
        paths |= {name: folder / f"{name}-LORA.gguf", f"merged {name}": folder / f"{name}-merged.gguf"}
        lora.write(model, paths[name])
        writer.write(model, {"f32": paths[f"merged {name}"]})
    return paths


def test_llama_cpp_switches_between_adapters_of_one_loaded_file(files: dict[str, Path]) -> None:
    """Interleaved, so that a state that was computed with one adapter and reused with another would show."""
    base = LlamaCpp(files["base"], context=256, adapters=[files["plain"], files["rs"]])
    views = {"base": base.with_adapter(None), "plain": base.with_adapter(0), "rs": base.with_adapter(1)}
    ids = base.ids(QUESTIONS[0])
    alone = {}
    for name in views:
        merged = LlamaCpp(files["base" if name == "base" else f"merged {name}"], context=256)
        alone[name] = merged.logprobs(ids, 512)
        merged.close()
    for name in ("base", "plain", "rs", "plain", "base", "rs"):
        measured = views[name].logprobs(ids, 512)
        for token, value in alone[name].items():
            assert value < -12 or abs(measured[token] - value) < 0.02, (name, token)
    assert max(abs(alone["plain"][t] - alone["rs"][t]) for t in alone["rs"] if t in alone["plain"]) > 0.5
    base.close()


def test_a_served_file_answers_for_its_adapters_at_once(files: dict[str, Path]) -> None:
    models = load_models(
        resolve_target(files["base"], flags=FLAGS), "base.gguf", {n: files[n] for n in ("plain", "rs")}, FLAGS, slots=4
    )
    alone = {}
    for name in models:
        engine = LlamaCpp(files["base" if name == "base" else f"merged {name}"], slots=1)
        with serving({name: NamedModel(engine, models[name].config)}) as served:
            alone |= {(name, question): served.message(question)[0] for question in QUESTIONS}
        engine.close()
    with serving(models, 4) as served, ThreadPoolExecutor(6) as pool:
        asked = [*alone] * 2
        answers = list(pool.map(lambda key: served.message(key[1], model=key[0])[0], asked))
    assert answers == [alone[key] for key in asked]
    assert len({json.dumps(alone[name, QUESTIONS[0]]) for name in models}) == 3


def test_a_file_with_trained_weights_takes_no_adapters(files: dict[str, Path], tmp_path: Path) -> None:
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(files["merged rs"].read_bytes())
    (tmp_path / "verified.json").write_text(json.dumps({"sha256": {"merged.gguf": "x"}, "trained": True}))
    with pytest.raises(ModelError, match="has trained weights in it"):
        load_models(resolve_target(merged), "merged", {"plain": files["plain"]}, {})
    with pytest.raises(ModelError, match="has no GGUF files of an adapter"):
        load_models(resolve_target(files["base"]), "file", {"plain": tmp_path}, {})


def test_adapters_are_arms_on_the_same_problems(adapters: dict[str, Path], tmp_path: Path, loads: list[str]) -> None:
    few = ("--dataset", "world:words", "--eval-samples", "3", "--max-new-tokens", "8", "--arms", "base_tags,tuned")
    named = [f"--adapter={name}={adapters[name]}" for name in ("rs", "v1.5")]
    assert run_cli("evaluate", "--adapter", str(adapters["plain"]), *named, *few, "--out", str(tmp_path / "all")) == 0
    assert len(loads) == 1
    card = Scorecard.read(tmp_path / "all" / "scorecard.json")
    assert list(card.arms) == ["base_tags", "tuned", "rs", "v1.5"]
    assert [(pair.before, pair.after) for pair in card.paired] == [
        ("base_tags", "tuned"), ("tuned", "rs"), ("tuned", "v1.5"),
    ]  # fmt: skip
    assert card.extraction["rs"] == "lenient"  # no run of ours trained it
    assert run_cli("evaluate", "--adapter", str(adapters["rs"]), *few, "--out", str(tmp_path / "rs")) == 0
    together, alone = (tmp_path / "all" / "completions" / "rs.jsonl", tmp_path / "rs" / "completions" / "tuned.jsonl")
    assert together.read_text() == alone.read_text()
    own = ["--model", "tiny-base", *named, *few]
    assert run_cli("evaluate", *own, "--out", str(tmp_path / "base")) == 0
    card = Scorecard.read(tmp_path / "base" / "scorecard.json")
    assert [(pair.before, pair.after) for pair in card.paired] == [("base_tags", "rs"), ("base_tags", "v1.5")]
    for refused in ("tuned", "base"):
        arguments = ["--model", "tiny-base", f"--adapter={refused}={adapters['rs']}", *few]
        assert run_cli("evaluate", *arguments, "--out", str(tmp_path / "no")) == 2


def test_a_run_is_scored_beside_others_in_a_folder_of_its_own(adapters: dict[str, Path], tmp_path: Path) -> None:
    run = short_run(tmp_path / "run", "--gguf", "")
    before = run.scorecard.read_bytes()
    assert run_cli("evaluate", str(run.path), f"--adapter=other={adapters['rs']}", f"--adapter=itself={run.path}") == 0
    assert run.scorecard.read_bytes() == before
    (folder,) = (run.path / "evaluations").iterdir()
    card = Scorecard.read(folder / "scorecard.json")
    assert {"tuned", "other", "itself"} <= set(card.arms)
    same = next(pair for pair in card.paired if pair.after == "itself")
    assert (same.before, same.gained, same.lost) == ("tuned", 0, 0)
    assert (card.extraction["itself"], card.extraction["other"]) == ("last <output>", "lenient")


def test_an_adapter_of_a_copy_of_the_base_is_one_of_the_base(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        make_base(tmp_path / name, tied=True, seed=seed)
    of_copy, of_b = (adapter(tmp_path / f"of-{name}", tmp_path / name, **PLAIN) for name in ("copy", "b"))
    target = resolve_target(base=str(tmp_path / "a"), use="score")
    assert list(resolve_adapters(target, {"copy": of_copy}, {}, use="score")) == ["copy"]
    with pytest.raises(ModelError, match="is an adapter of"):
        resolve_adapters(target, {"b": of_b}, {}, use="score")
