"""The embedded base matches its model card, and the docs match the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from cot_unsloth.config import ModelConfig
from cot_unsloth.prompts.tokenizer import load_tokenizer, model_path
from scripts.figures import pages, plots

FOLDER = Path(model_path("tiny-base"))
ROOT = Path(__file__).parent.parent


def test_the_base_is_under_8_megabytes_and_its_config_fits_its_tokenizer() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    config = AutoConfig.from_pretrained(FOLDER)
    assert config.model_type == "llama"
    assert config.max_position_embeddings >= 2048
    assert config.vocab_size >= len(AutoTokenizer.from_pretrained(FOLDER))


def test_its_tokenizer_covers_ascii_and_splits_numbers_into_digits() -> None:
    tokenizer = load_tokenizer(ModelConfig()).tokenizer
    printable = "".join(map(chr, range(128)))
    for text in (printable, "12345 + 67", "tabs\tand\nlines  ", "ünïcode 日本 🙂"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    pieces = [tokenizer.decode([id_]) for id_ in tokenizer("1234567890")["input_ids"]]
    assert pieces == list("1234567890")
    split = json.loads((FOLDER / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"][0]
    assert split["pattern"]["Regex"].startswith("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|")


def test_its_template_writes_reasoning_in_our_tags() -> None:
    tokenizer = load_tokenizer(ModelConfig()).tokenizer
    turns = [
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": "7", "reasoning_content": "3 + 4 = 7"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text.endswith("<|im_start|>assistant\n<thinking>\n3 + 4 = 7\n</thinking>\n7<|im_end|>\n")


@pytest.mark.parametrize("page", pages.PAGES)
def test_the_figures_of_a_page_match_the_results(page: str) -> None:
    assert pages.filled(page) == (ROOT / page).read_text(encoding="utf-8"), "run python -m scripts.figures"


def test_the_plots_match_the_results() -> None:
    from PIL import Image

    images = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    reports = {f"report-{width}-{scheme}.png" for width in (1280, 380) for scheme in ("light", "dark")}
    drawn = {"terminal.svg", "chat-terminal.svg", "chat-page.png", *reports}
    assert images == set(plots.PLOTS) | drawn, "those that are no plots come from scripts/screenshots.py"
    assert max((ROOT / "docs" / "images" / name).stat().st_size for name in drawn) < 150_000
    for name, (_, result) in plots.PLOTS.items():
        with Image.open(ROOT / "docs" / "images" / name) as image:
            assert image.info["Source"] == plots.source(result), "run python -m scripts.figures"


def test_recovery_was_compared_at_equal_training_tokens() -> None:
    for run in json.loads((ROOT / "bench" / "results" / "recovery.json").read_text())["runs"]:
        with_, without = run["with reflections"], run["without"]
        assert abs(with_["tokens"] - without["tokens"]) <= 512  # less than one row
        assert with_["injected"]["n"] == without["injected"]["n"] >= 300


def test_the_demo_improves_on_the_base_in_every_run() -> None:
    """The committed figures: the base fails at the tasks and the tuned model solves them, in every run.

    Countdown is excluded from the last check: its accuracy at the first try is below the target, see docs/demo.md.
    """
    demo = json.loads((ROOT / "bench" / "results" / "demo.json").read_text())
    assert demo["make_demo"]["wall_seconds"] <= 240
    assert len({run["seed"] for run in demo["runs"]}) >= 3
    for run in demo["runs"]:
        tuned = run["arms"]["tuned"]
        bases = [scores for arm, scores in run["arms"].items() if arm.startswith("base_")]
        assert len(bases) == 3
        assert min(family["n"] for family in tuned["by_task"].values()) >= 300
        assert max(base["accuracy"] for base in bases) <= 0.35
        assert max(pair["mcnemar_p"] for pair in run["paired"] if pair["after"] == "tuned") < 0.001
        assert min(pair["mcnemar_p"] for pair in run["paired"] if pair["after"] == "gguf") > 0.01
        for task in ("chains", "words"):
            assert tuned["by_task"][task]["accuracy"] >= max(base["by_task"][task]["accuracy"] for base in bases) + 0.6


def test_reflections_correct_injected_errors() -> None:
    """At equal training tokens: almost none is corrected without reflections, most are with them, with few false alarms.

    The target is nine in ten problems solved under injected errors; docs/demo.md gives the distance from it.
    """
    for run in json.loads((ROOT / "bench" / "results" / "recovery.json").read_text())["runs"]:
        with_, without = run["with reflections"], run["without"]
        assert without["injected"]["accuracy"]["share"] < 0.45
        assert with_["injected"]["mended"]["share"] > 0.7 > 0.05 > without["injected"]["mended"]["share"]
        assert with_["undisturbed"]["false_alarms"]["share"] < 0.02
        assert with_["injected"]["false_alarms"]["share"] < 0.02


@pytest.mark.parametrize("name", ["demo.json", "base.json", "recovery.json", "export.json"])
def test_every_result_records_its_command_and_environment(name: str) -> None:
    result = json.loads((ROOT / "bench" / "results" / name).read_text())
    assert {"cpu", "versions", "python", "git"} <= set(result["environment"])
    assert "python" in json.dumps(result.get("command") or [run["command"] for run in result["runs"]])
