"""`train.init_adapter`: training continues an adapter, which is scored as the arm `start`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run_cli, short_run
from safetensors.torch import load_file

from cot_unsloth.config import RunConfig, load_tree
from cot_unsloth.core.results import Scorecard
from cot_unsloth.core.results.verification import Verification
from cot_unsloth.data.layouts.own_samples import row_of
from cot_unsloth.evaluation import forgetting
from cot_unsloth.evaluation.problems import held_out_problems
from cot_unsloth.export import card
from cot_unsloth.export.run import check_base
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage import atomic, records
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import preparation
from cot_unsloth.training.checks.examine import check_start

BARELY = ("--learning-rate", "1e-9", "--gguf", "", "--warmup-ratio", "0", "--arms", "base_tags,tuned")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs") / "first", "--gguf", "", "--arms", "base_tags,tuned")


@pytest.fixture(scope="module")
def second(first: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The adapter of `first`, trained on at a rate that changes next to nothing; its own rank is another."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    options = ("--init-adapter", str(first.path), "--lora-r", "4", "--forgetting", "general")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forgetting, "PROBLEMS", 4)
        return short_run(folder, *BARELY, *options)


def _texts(run: RunDir, arm: str) -> list[str]:
    return [score.text for score in records.read_completions(run.completions(arm))]


def test_training_goes_on_from_the_adapter(first: RunDir, second: RunDir) -> None:
    before, after = (load_file(run.adapter / "adapter_model.safetensors") for run in (first, second))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.allclose(weight, after[name], atol=1e-6)
    assert any(not torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_start_is_scored_as_the_run_it_is_from(first: RunDir, second: RunDir) -> None:
    assert _texts(second, "start") == _texts(first, "tuned")
    assert _texts(second, "base_tags") == _texts(first, "base_tags"), "the base is scored without the adapter"
    assert _texts(second, "start") != _texts(second, "base_tags")
    scores = Scorecard.read(second.scorecard)
    assert list(scores.arms) == ["base_tags", "start", "tuned"]
    assert [(pair.before, pair.after) for pair in scores.paired] == [("base_tags", "tuned"), ("start", "tuned")]
    assert scores.extraction["start"] == scores.extraction["tuned"] == "last <output>"
    assert "Against the starting adapter" in second.report.read_text(encoding="utf-8")


def test_card_and_report_name_the_rank_of_the_adapter_that_was_continued(first: RunDir, second: RunDir) -> None:
    assert second.read_config().lora.lora_r == 4
    text = card.write(second, second.read_config(), Verification(), "peft", second.adapter)
    assert f"the adapter `{first.path.name}`, trained further; rsLoRA: rank 8, alpha" in text
    assert "rank 4" not in text
    assert "q_proj" in text
    assert "LoRA, rank 8, seed" in second.report.read_text(encoding="utf-8")


def test_what_it_forgot_is_counted_from_where_training_began(first: RunDir, second: RunDir) -> None:
    figures = Scorecard.read(second.scorecard).forgetting
    assert figures is not None
    assert (figures.paired.before, figures.paired.after, figures.n) == ("start", "tuned", 4)
    # The tuned model is the start but for 1e-9; the base answers otherwise.
    assert _texts(second, "forgetting_before") == _texts(second, "forgetting_after")


def test_a_finished_run_is_scored_again_with_its_start(second: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "again"
    assert run_cli("evaluate", str(second.path), "--out", str(out)) == 0
    for arm in ("base_tags", "start", "tuned"):
        assert _texts(RunDir(out), arm) == _texts(second, arm)


def test_an_adapter_that_was_trained_in_another_format_is_a_warning(first: RunDir) -> None:
    config, template = first.read_config().replaced(init_adapter=str(first.path)), first.template.read_text()
    assert list(check_start(config, template)) == []
    assert list(check_start(config.replaced(init_adapter=None), "")) == []
    others = config.replaced(thinking_tags="think", trace_layout="sequential", system_prompt="Think.")
    (finding,) = check_start(others, template + " ")
    assert (finding.level, finding.name) == ("warning", "other_format")
    assert finding.message.endswith("another thinking_tags, trace_layout, system_prompt, chat_template")
    (finding,) = check_start(config.replaced(thinking_tags="think"), template)
    assert finding.hint == f"give --thinking-tags as in {first.config}"


def test_an_adapter_of_another_base_is_refused(
    first: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(first.adapter, tmp_path / "adapter")
    settings = folder / "adapter_config.json"
    changed = {**json.loads(settings.read_text()), "base_model_name_or_path": "someone/another-base"}
    settings.write_text(json.dumps(changed))
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), "--init-adapter", str(folder)) == 2
    assert "is an adapter of someone/another-base" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_adapter_that_cannot_be_exported_is_refused_before_training(
    first: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What continues it is of its kind, so that the export would fail after hours of training."""
    folder = shutil.copytree(first.adapter, tmp_path / "adapter")
    settings = folder / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "init_lora_weights": "pissa"}))
    args = ("train", "--run-dir", str(tmp_path / "run"), "--init-adapter", str(folder))
    assert run_cli(*args, "--gguf", "q8_0") == 2
    assert "cannot be merged: init_lora_weights (pissa)" in capsys.readouterr().err
    assert not (tmp_path / "run" / "adapter").exists()
    config = first.read_config().replaced(init_adapter=str(folder), gguf=(), merged=False)
    check_base(config, open_renderer(config.model, config.data).chat)  # nothing is exported


def test_a_continued_adapter_names_the_base_that_it_is_trained_on(first: RunDir, tmp_path: Path) -> None:
    """The start may be of another installation; `AutoPeftModel` could not load an adapter with that path."""
    folder = shutil.copytree(first.adapter, tmp_path / "adapter")
    settings = folder / "adapter_config.json"
    elsewhere = {**json.loads(settings.read_text()), "base_model_name_or_path": "/gone/cot_unsloth/assets/tiny-base"}
    settings.write_text(json.dumps(elsewhere))
    config = first.read_config().replaced(init_adapter=str(folder))
    model = HfEngine(config, open_renderer(config.model, config.data).chat).attach_trainable_weights()
    model.save_pretrained(tmp_path / "saved")
    named = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == model_path("tiny-base")


def test_a_run_that_continues_nothing_has_the_hash_it_had(tmp_path: Path) -> None:
    config = RunConfig()
    assert config.replaced(init_adapter=str(tmp_path)).fingerprint() != config.fingerprint()
    assert config.scored_arms == config.evaluate.arms_in_order


def _kept(path: Path, data: Path, **flags: str) -> RunDir:
    """A run up to its rows, with an empty folder in place of its adapter."""
    run = RunDir(path)
    config = load_tree({}, {"dataset": str(data), "run_dir": str(path), **flags})
    prepared = preparation.prepare(config)
    records.write_jsonl(run.kept, (records.kept_row(row, "nested") for row in (*prepared.train, *prepared.test)))
    atomic.write_text(run.config, config.to_yaml())
    atomic.write_text(run.manifest, "{}")
    run.adapter.mkdir()
    return run


def test_what_the_start_was_trained_on_is_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that continues another on samples of its training problems, and one that continues that on further rows."""
    rows = [{"question": f"{n} + 4?", "answer": f"{n} + 4 = {n + 4}\n#### {n + 4}"} for n in range(80)]
    records.write_jsonl(tmp_path / "all.jsonl", rows[:60])
    records.write_jsonl(tmp_path / "more.jsonl", rows[20:])
    records.write_jsonl(tmp_path / "other.jsonl", rows[10:])
    first = _kept(tmp_path / "first", tmp_path / "all.jsonl", test_fraction="0.1")
    trained = [records.kept_example(row) for row in records.iter_jsonl(first.kept) if row["split"] == "train"]
    records.write_jsonl(tmp_path / "samples.jsonl", map(row_of, trained))
    flags = {"dataset": str(tmp_path / "samples.jsonl"), "init_adapter": str(first.path)}
    assert not preparation.prepare(load_tree({}, flags)).problems
    assert "3 of 3 held-out rows are left out, as the model that this run begins with was trained on them" in (
        capsys.readouterr().err.replace("\n", " ")
    )
    second = _kept(tmp_path / "second", tmp_path / "samples.jsonl", init_adapter=str(first.path), eval_samples="0")
    config = load_tree(
        {}, {"dataset": str(tmp_path / "more.jsonl"), "init_adapter": str(second.path), "test_fraction": "0.5"}
    )
    ids = {row.id for row in trained}
    prepared = preparation.prepare(config)
    assert {row.id for row in prepared.problems}
    assert not {row.id for row in prepared.problems} & ids
    assert {reject.reason for reject in prepared.rejects} == {"trained_on"}
    # Also of a run that is scored later, on other data.
    later = second.read_config().replaced(dataset=str(tmp_path / "other.jsonl"), eval_samples=99)
    scored = {problem.id for problem in held_out_problems(second, second.read_config(), later)}
    assert len(scored) >= 20
    assert not scored & ids
    # Settings are chosen by training problems, whichever run trained on them.
    choosing = preparation.prepare(load_tree({}, {**flags, "score_on": "development"}))
    assert {problem.id for problem in choosing.problems} <= ids
    assert choosing.problems
