"""Scoring a run again, and scoring models and adapters without a run."""

from __future__ import annotations

import html
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import Forked, forked, run_cli

from cot_unsloth.config import DataConfig
from cot_unsloth.core import verdict
from cot_unsloth.core.results import Scorecard
from cot_unsloth.core.types import Completion, Example, Prompt, SamplingParams, Trace
from cot_unsloth.evaluation import arms
from cot_unsloth.evaluation.arms import score_arm, score_gguf
from cot_unsloth.prompts.arms import Prompter
from cot_unsloth.storage.atomic import write_text
from cot_unsloth.storage.records import read_appended, read_jsonl
from cot_unsloth.storage.run_folder import RunDir

SMALL = [
    "--world-samples", "8", "--max-steps", "1", "--per-device-train-batch-size", "2",
    "--eval-samples", "6", "--max-new-tokens", "12", "--lora-r", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert run_cli("train", "--run-dir", str(path), *SMALL) == 0
    return RunDir(path)


def test_scoring_a_run_again_gives_the_same_scorecard(trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    before = trained.scorecard.read_text()
    assert run_cli("evaluate", str(trained.path)) == 0
    assert trained.scorecard.read_text() == before
    printed = capsys.readouterr().out
    assert "McNemar p" in printed
    assert "[low, high]" in printed
    assert "n = 6, seed 1234" in printed


def test_scores_with_other_settings_get_a_separate_folder(trained: RunDir) -> None:
    before = trained.scorecard.read_text()
    assert (
        run_cli("evaluate", str(trained.path), "--eval-seed", "7", "--eval-samples", "4", "--arms", "base_cot,tuned")
        == 0
    )
    assert trained.scorecard.read_text() == before
    (other,) = (trained.path / "evaluations").iterdir()
    card = json.loads((other / "scorecard.json").read_text())
    assert (card["n"], card["seed"], list(card["arms"])) == (4, 7, ["base_cot", "tuned"])


def test_scores_with_another_dtype_get_a_separate_folder(trained: RunDir) -> None:
    before = trained.scorecard.read_text()
    there = set((trained.path / "evaluations").glob("*"))
    assert run_cli("evaluate", str(trained.path), "--dtype", "bfloat16", "--arms", "tuned") == 0
    assert trained.scorecard.read_text() == before
    (other,) = set((trained.path / "evaluations").iterdir()) - there
    assert json.loads((other / "scorecard.json").read_text())["loaded"]["dtype"] == "bfloat16"


def test_a_model_without_a_run_is_scored_as_base(tmp_path: Path) -> None:
    out = tmp_path / "scores"
    args = ["--dataset", "world:words:2", "--eval-samples", "4", "--max-new-tokens", "8", "--out", str(out)]
    assert run_cli("evaluate", "--model", "tiny-base", *args) == 0
    card = json.loads((out / "scorecard.json").read_text())
    assert list(card["arms"]) == ["base_direct", "base_cot", "base_tags"]
    assert card["paired"] == []


def test_a_model_with_an_adapter_has_a_tuned_arm(trained: RunDir, tmp_path: Path) -> None:
    args = ["--eval-samples", "6", "--max-new-tokens", "12", "--out", str(tmp_path / "scores")]
    assert run_cli("evaluate", "--model", "tiny-base", "--adapter", str(trained.adapter), *args) == 0
    again = read_jsonl(tmp_path / "scores" / "completions" / "tuned.jsonl")
    assert again == read_jsonl(trained.completions("tuned"))


def rows(path: Path, numbers: range, times: int = 1) -> str:
    lines = [{"question": f"{n} + 4?", "answer": f"way {t}\n#### {n + 4}"} for n in numbers for t in range(times)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_training_rows_are_never_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, data = tmp_path / "run", rows(tmp_path / "rows.jsonl", range(40), times=2)
    small = ["--max-steps", "1", "--max-new-tokens", "8", "--test-fraction", "0.1", "--arms", "base_direct,tuned"]
    assert run_cli("train", "--run-dir", str(run_dir), "--dataset", data, *small) == 0
    kept = read_jsonl(RunDir(run_dir).kept)
    held_out = {row["id"] for row in kept if row["split"] == "test"}
    assert len(held_out) == 4
    card = json.loads(RunDir(run_dir).scorecard.read_text())
    assert card["n"] == 4, "a question with two rows is scored once"
    assert (
        run_cli("evaluate", str(run_dir), "--eval-samples", "30", "--eval-seed", "9", "--out", str(tmp_path / "a")) == 0
    )
    assert {row["id"] for row in read_jsonl(RunDir(tmp_path / "a").completions("tuned"))} == held_out
    assert "scoring on 4 of the 8 rows held out" in capsys.readouterr().err
    other = rows(tmp_path / "other.jsonl", range(30, 50))
    assert run_cli("evaluate", str(run_dir), "--dataset", other, "--out", str(tmp_path / "b")) == 0
    scored = {row["id"] for row in read_jsonl(RunDir(tmp_path / "b").completions("tuned"))}
    assert not scored & {row["id"] for row in kept if row["split"] == "train"}
    assert len(scored) >= 10
    adapter = ["--model", "tiny-base", "--adapter", str(RunDir(run_dir).adapter), "--dataset", data]
    assert run_cli("evaluate", *adapter, "--out", str(tmp_path / "d")) == 0
    assert {row["id"] for row in read_jsonl(RunDir(tmp_path / "d").completions("tuned"))} == held_out
    more = ["--eval-seed", "9", "--system-prompt", "none", "--out", str(tmp_path / "c")]
    assert run_cli("evaluate", str(run_dir), *more) == 0
    assert {row["id"] for row in read_jsonl(RunDir(tmp_path / "c").completions("tuned"))} == held_out


def test_a_run_without_held_out_problems_gives_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rows(tmp_path / "rows.jsonl", range(10))
    assert (
        run_cli("train", "--run-dir", str(tmp_path / "r"), "--dataset", data, "--max-steps", "1", "--eval-samples", "0")
        == 0
    )
    assert run_cli("evaluate", str(tmp_path / "r"), "--eval-samples", "4") == 2
    assert "held out no rows" in capsys.readouterr().err


def test_a_model_that_was_not_trained_is_scored_on_all_rows(tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", range(12))
    args = ["--dataset", data, "--max-new-tokens", "4", "--arms", "base_direct", "--out", str(tmp_path / "s")]
    assert run_cli("evaluate", "--model", "tiny-base", *args) == 0
    assert json.loads((tmp_path / "s" / "scorecard.json").read_text())["n"] == 12


def test_scores_with_different_settings_never_share_a_folder(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--eval-samples", "2", "--max-new-tokens", "4", "--arms", "base_direct", "--out"]
    assert run_cli("evaluate", "--model", "tiny-base", *args, str(tmp_path / "s")) == 0
    for taken in (tmp_path / "s", trained.path):
        assert run_cli("evaluate", "--model", "tiny-base", *args, str(taken)) == 2
        assert "already holds scores or a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evaluate"], "a model with --model, or a server with --api"),
        (["evaluate", "nowhere"], "there is no such folder"),
        (["evaluate", "--model", "tiny-base", "--arms", "tuned", "--out", "nowhere"], "needs a tuned model"),
        (["evaluate", "--model", "tiny-base"], "say where the scores go"),
        (["export", "nowhere", "--merged"], "there is no such folder"),
    ],
)
def test_the_error_names_what_is_missing(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(*args) == 2
    assert says in capsys.readouterr().err


def test_an_unfinished_run_is_refused(trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(trained.config.read_text())
    assert run_cli("evaluate", str(tmp_path)) == 2
    assert "has no trained weights yet" in capsys.readouterr().err


def test_a_killed_evaluation_continues_without_repeating_or_losing_a_question(tmp_path: Path) -> None:
    """Killed as soon as something is written; what follows is torn, too; the end is that of one which was never killed."""
    args = ["--model", "tiny-base", "--dataset", "world:chains", "--eval-samples", "24", "--eval-batch-size", "4"]
    args += ["--max-new-tokens", "48", "--arms", "base_direct,base_cot"]
    killed, uninterrupted = RunDir(tmp_path / "killed"), RunDir(tmp_path / "whole")
    process = Forked("cot_unsloth", "evaluate", *args, "--out", str(killed.path), at=tmp_path)
    ended = process.kill_when(lambda: any(killed.unfinished.glob("base_cot-*.jsonl")))
    assert ended == -signal.SIGKILL, "it ended before it could be killed"
    drafts = list(killed.unfinished.glob("base_cot-*.jsonl"))
    assert not killed.scorecard.exists()
    with drafts[0].open("a") as file:
        file.write('{"id": "half a l')
    answered = len(read_jsonl(killed.completions("base_direct"))) + len(read_appended(drafts[0]))
    done = forked("cot_unsloth", "evaluate", *args, "--out", str(killed.path), at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "score base, asked directly: 24 of 24 were answered before" in done.stderr
    assert f"score base, step by step: {answered - 24} of 24 were answered before" in done.stderr
    assert not killed.unfinished.exists()
    assert run_cli("evaluate", *args, "--out", str(uninterrupted.path)) == 0
    for arm in ("base_direct", "base_cot"):
        assert killed.completions(arm).read_text() == uninterrupted.completions(arm).read_text()
    assert killed.scorecard.read_text() == uninterrupted.scorecard.read_text()


def test_an_evaluation_is_not_continued_with_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = RunDir(tmp_path / "s")
    write_text(out.unfinished / "settings", "of another evaluation")
    write_text(out.completions("base_direct"), "")
    args = ["--eval-samples", "2", "--max-new-tokens", "4", "--arms", "base_direct", "--out", str(out.path)]
    assert run_cli("evaluate", "--model", "tiny-base", *args) == 2
    assert "already holds scores or a run" in capsys.readouterr().err


def test_options_of_an_evaluation_are_recorded_in_the_scorecard(trained: RunDir, tmp_path: Path) -> None:
    result = json.loads(trained.token_accuracy.read_text())
    assert result["rows"] == 6
    assert result["sections"]["thinking"]["base"]["of"] == result["sections"]["thinking"]["tuned"]["of"] > 100
    assert result["sections"]["thinking"]["tuned"]["share"] > 0.05
    assert "next-token accuracy, by section" in trained.report.read_text()
    args = ["--recovery", "--arms", "tuned", "--eval-samples", "6", "--out", str(tmp_path / "r")]
    assert run_cli("evaluate", str(trained.path), *args) == 0
    card = json.loads((tmp_path / "r" / "scorecard.json").read_text())
    assert card["recovery"]["right"] == round(6 * card["arms"]["tuned"]["accuracy"])


def test_an_evaluation_of_one_adapter_is_not_continued_with_another(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = RunDir(tmp_path / "s")
    write_text(out.unfinished / "settings", "of another adapter")
    assert run_cli("evaluate", str(trained.path), "--arms", "tuned", "--out", str(out.path)) == 2
    assert "already holds scores or a run" in capsys.readouterr().err


LENIENT, STRICT = "lenient", "last <output>"


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_an_adapter_not_trained_by_a_run_is_read_leniently_like_a_base(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--dataset", "world:words:2", "--eval-samples", "2", "--max-new-tokens", "8", "--arms", "base_cot,tuned"]
    foreign = copied(trained.adapter, tmp_path / "somewhere" / "adapter")
    ours = copied(trained.adapter, trained.checkpoints / "checkpoint-1000")
    for name, adapter, reading in (("a", foreign, LENIENT), ("b", ours, STRICT), ("c", trained.adapter, STRICT)):
        out = RunDir(tmp_path / name)
        assert (
            run_cli("evaluate", "--model", "tiny-base", "--adapter", str(adapter), *args, "--out", str(out.path)) == 0
        )
        card = Scorecard.read(out.scorecard)
        assert card.extraction == {"base_cot": LENIENT, "tuned": reading}
        output = " ".join(capsys.readouterr().out.split())
        readings = verdict.readings(card)
        assert readings in output
        assert readings in html.unescape(out.report.read_text())
    shutil.rmtree(ours)


def test_an_exported_file_is_read_strictly_if_its_export_records_a_run(
    trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = trained.exported_models()
    export = json.loads(trained.verified.read_text())
    assert export["trained"] is True
    another = export | {"sha256": {"another.gguf": ""}}
    cases = {
        "nothing": (None, LENIENT),
        "export": (export, STRICT),
        "older": ({key: value for key, value in export.items() if key != "trained"}, STRICT),
        "base": (export | {"trained": False}, LENIENT),
        "another": (another, LENIENT),
        "damaged": (["trained"], LENIENT),
    }
    args = ["--dataset", "world:words:2", "--eval-samples", "2", "--max-new-tokens", "8"]
    for name, (verified, reading) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        moved = shutil.copy(file, folder)
        if verified is not None:
            write_text(folder / "verified.json", json.dumps(verified))
        assert run_cli("evaluate", str(moved), *args, "--out", str(folder / "scores")) == 0
        card = json.loads((folder / "scores" / "scorecard.json").read_text())
        assert card["extraction"] == {"gguf": reading}, name
        assert ("read leniently, like those of a base" in capsys.readouterr().err) is (reading == LENIENT)
    assert run_cli("evaluate", str(file), *args) == 0
    (out,) = (trained.path / "evaluations").glob(f"{file.stem}-*")
    assert json.loads((out / "scorecard.json").read_text())["extraction"] == {"gguf": STRICT}


def test_the_kind_of_extraction_changes_the_score() -> None:
    class Boxed:
        name = "boxed"

        def generate(self, prompts: list[Prompt], sampling: SamplingParams, advance: Any = None) -> list[Completion]:
            return [Completion(prompt.id, "so it is \\boxed{4}", 5, "stop") for prompt in prompts]

    example = Example("e", "2 + 2?", Trace((), "4"), "4", where="rows.jsonl:1")
    for arm in ("tuned", "gguf"):
        for ours in (True, False):
            (result,) = score_arm(Boxed(), Prompter(DataConfig()), [example], arm, SamplingParams(), trained=ours)  # type: ignore[arg-type]
            assert result.correct is not ours
    (base,) = score_arm(Boxed(), Prompter(DataConfig()), [example], "base_tags", SamplingParams())  # type: ignore[arg-type]
    assert base.correct


@pytest.mark.parametrize("named", [False, True])
def test_a_served_model_is_read_strictly_if_its_run_is_named(
    named: bool, trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Served:
        name = "openai_api"

        def __init__(self, *args: Any, **settings: Any) -> None:
            pass

        def generate(self, prompts: list[Prompt], sampling: SamplingParams, advance: Any) -> list[Completion]:
            return [Completion(prompt.id, "The answer is 4.", 5, "stop") for prompt in prompts]

    monkeypatch.setattr("cot_unsloth.models.openai_api.served_models", lambda address, key: ["m"])
    monkeypatch.setattr("cot_unsloth.models.openai_api.OpenAiApi", Served)
    data = rows(tmp_path / "rows.jsonl", range(1))
    out = RunDir(tmp_path / "scores")
    args = ["--api", "http://localhost:1/v1", "--dataset", data, "--arms", "base_cot,tuned", "--out", str(out.path)]
    assert run_cli("evaluate", *([str(trained.path)] if named else []), *args) == 0
    card = json.loads(out.scorecard.read_text())
    assert card["extraction"] == {"base_cot": LENIENT, "tuned": STRICT if named else LENIENT}
    assert card["arms"]["base_cot"]["accuracy"] == 1
    assert card["arms"]["tuned"]["accuracy"] == (0 if named else 1)
    assert card["verdict"]["kind"] == "too_few"


def test_a_gguf_file_is_scored_with_room_for_earlier_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp ends an answer where the context is full, and it would count as cut off at the token limit."""
    contexts = []

    class File:
        def __init__(self, file: Path, context: int) -> None:
            contexts.append(context)

        def generate(self, prompts: list[Prompt], *more: Any) -> list[Completion]:
            return [Completion(prompt.id, "8", 1, "stop") for prompt in prompts]

        def close(self) -> None:
            """Nothing."""

    monkeypatch.setattr(arms, "LlamaCpp", File)
    (tmp_path / "a.gguf").touch()
    data = DataConfig()
    first = Example("q", "And doubled?", Trace((), "8"), "8")
    long = replace(first, system="s " * 500, history=({"role": "user", "content": "w " * 4000},))
    for example in (first, long):
        score_gguf(tmp_path / "a.gguf", Prompter(data), [example], SamplingParams(64), RunDir(tmp_path))
    assert contexts[0] >= data.max_seq_length + 64
    assert contexts[1] >= contexts[0] + 8000


def test_a_data_set_that_is_named_replaces_the_benchmark_of_a_run_in_every_command(
    trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Served:
        def __init__(self, *args: Any, **settings: Any) -> None:
            pass

        def generate(self, prompts: list[Prompt], sampling: SamplingParams, advance: Any) -> list[Completion]:
            return [Completion(prompt.id, "<output>4</output>", 5, "stop") for prompt in prompts]

    monkeypatch.setattr("cot_unsloth.models.openai_api.served_models", lambda address, key: ["m"])
    monkeypatch.setattr("cot_unsloth.models.openai_api.OpenAiApi", Served)
    run = RunDir(shutil.copytree(trained.path, tmp_path / "run"))
    write_text(tmp_path / "test.jsonl", json.dumps({"question": "How many?", "answer": "none\n#### 0"}))
    config = run.read_config().replaced(benchmark="gsm8k", benchmark_path=str(tmp_path / "test.jsonl"))
    run.write_config(config)
    (file,) = run.exported_models()
    named = ["--dataset", "world:words:2", "--eval-samples", "2", "--max-new-tokens", "8"]
    commands = {
        "run": ["evaluate", str(run.path), "--arms", "tuned"],
        "file": ["evaluate", str(file)],
        "served": ["evaluate", str(run.path), "--api", "http://localhost:1/v1"],
        "curves": ["curves", str(run.path), "--budgets", "8", "--samples", "1", "--checkpoints", "0"],
    }
    for name, command in commands.items():
        for flags, dataset, n in ((named, "world:words:2", 2), ([], "gsm8k", 1)):
            out = tmp_path / f"{name}-{n}"
            capsys.readouterr()
            assert run_cli(*command, *flags, "--out", str(out)) == 0
            result = json.loads((out / ("curves.json" if name == "curves" else "scorecard.json")).read_text())
            assert (result["dataset"], result["n"]) == (dataset, n), name
    assert "maximum" in (printed := capsys.readouterr().out)
    assert "scaling" not in printed, "one budget has no slope"
