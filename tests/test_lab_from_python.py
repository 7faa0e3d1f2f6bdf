"""The laboratory from Python: the same results as on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import run_cli, short_run
from test_combine import PLAIN, adapter

import cot_unsloth
from cot_unsloth import CotError
from cot_unsloth.storage.run_folder import RunDir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        task: short_run(folder / task, "--dataset", f"world:{task}", "--arms", "tuned") for task in ("words", "chains")
    }


def test_a_combination_is_the_command_lines(tmp_path: Path) -> None:
    sources = [adapter(tmp_path / name, seed=seed, **PLAIN) for seed, name in enumerate("ab")]
    made = cot_unsloth.combine_adapters(sources, out=tmp_path / "python", method="svd", weights=[1, 0.5], rank=4)
    arguments = ["--method", "svd", "--weights", "1,0.5", "--rank", "4", "--out", str(tmp_path / "command")]
    assert run_cli("combine", *map(str, sources), *arguments) == 0
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("python", "command")]
    assert weights[0] == weights[1]
    assert made.rank == 4
    with pytest.raises(CotError, match="rank"):
        cot_unsloth.combine_adapters(sources, out=tmp_path / "refused", method="cat", rank=4)


def test_runs_are_listed_compared_and_scored_on_each_others_tasks(runs: dict[str, RunDir], tmp_path: Path) -> None:
    listed = cot_unsloth.list_runs(runs["words"].path.parent)
    assert {Path(run.path).name for run in listed} == {"words", "chains"}
    with pytest.raises(CotError, match="no problem"):
        cot_unsloth.compare_runs(list(runs.values()))
    cot_unsloth.evaluate_run(runs["words"], out=tmp_path / "again", arms="tuned")
    same = cot_unsloth.compare_runs([runs["words"], tmp_path / "again"])
    assert [(pair.gained, pair.lost, same.n) for pair in same.pairs] == [(0, 0, 4)]
    config = runs["words"].read_config()
    result = cot_unsloth.transfer_adapters(config, adapters=runs, combine=["cat:0.5"], joint=False, out=tmp_path / "t")
    assert [row.name for row in result.adapters] == ["base", "words", "chains", "cat-0.5"]
    assert [task.name for task in result.tasks] == ["words", "chains"]
    assert len(result.cells) == 8


def test_a_model_is_sampled_from_python(tmp_path: Path) -> None:
    few = {"dataset": "world:chains", "world_samples": 6, "samples_per_problem": 2, "max_new_tokens": 8}
    with pytest.raises(CotError, match="no row to train on"):
        cot_unsloth.sample_run("tiny-base", out=tmp_path / "samples", **few)
    assert len((tmp_path / "samples" / "attempts.jsonl").read_text().splitlines()) == 8  # two of six problems are shown


@pytest.mark.slow
def test_settings_are_swept_from_python(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    config = cot_unsloth.load_config(
        world_samples=64, max_steps=2, per_device_train_batch_size=2, eval_samples=4, max_new_tokens=8, gguf=""
    )
    result = cot_unsloth.sweep_settings(config, ["lora_r=4,8"], out=tmp_path / "ranks", trials=1, final=False)
    assert [trial.state for trial in result.trials] == ["complete"]
    assert "lora_r" in (tmp_path / "ranks" / "best.yaml").read_text()
    with pytest.raises(CotError, match="lora_rang"):
        cot_unsloth.sweep_settings(config, ["lora_rang=4,8"], out=tmp_path / "other")


def test_what_the_command_line_refuses_is_refused_here_too(tmp_path: Path) -> None:
    config, out = cot_unsloth.load_config(), tmp_path / "out"
    refused: dict[str, Callable[[], object]] = {
        "name at least two adapters": lambda: cot_unsloth.combine_adapters(["a"], out=out),
        "a number that is not finite": lambda: cot_unsloth.combine_adapters("ab", out=out, weights=[1, float("nan")]),
        "is not a method": lambda: cot_unsloth.combine_adapters("ab", out=out, method="mean"),  # type: ignore[arg-type]
        "needs at least two tasks": lambda: cot_unsloth.transfer_adapters(config, "world:words", out=out),
        "must be at least 1": lambda: cot_unsloth.sweep_settings(config, "lora_r=4,8", out=out, trials=0),
        "varied twice": lambda: cot_unsloth.sweep_settings(config, ["lora_r=4", "lora_r=8"], out=out),
        "needs at least two runs": lambda: cot_unsloth.compare_runs(["a"]),
        "there is no such folder": lambda: cot_unsloth.list_runs(tmp_path / "absent"),
    }
    for message, call in refused.items():
        with pytest.raises(CotError, match=message):
            call()
    assert not out.exists()
