"""Runs the two notebooks as a reader does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
from helpers import started
from nbclient import NotebookClient

from cot_unsloth.storage.run_folder import RunDir

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("finetuning-llama3.2-3b.ipynb", "finetuning-qwen2.5-7b.ipynb")
SMALL = {
    "dataset": "world:words:1", "world_samples": 24, "eval_samples": 3, "max_new_tokens": 40, "lora_r": 4,
    "export_samples": 2, "gguf": "", "dataset_config_name": None, "logging_steps": 1, "run_dir": "run", "benchmark": None,
    "forgetting": None, "samples_per_problem": 2, "worked_examples": 0, "rounds": 1, "development_problems": 2,
}  # fmt: skip
TAUGHT = [
    "--dataset", "world:words:1", "--world-samples", "160", "--eval-samples", "0", "--gguf", "", "--merged", "--lora-r", "4",
    "--learning-rate", "8e-3", "--per-device-train-batch-size", "4", "--gradient-accumulation-steps", "1", "--engine", "hf",
]  # fmt: skip


def train_start(folder: Path) -> Path:
    """The embedded base after it has just learnt the format: as it is, it solves no problem that it could learn from."""
    done = started("-m", "cot_unsloth", "train", "--run-dir", "start", *TAUGHT, at=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "start" / "export" / "merged").rename(folder / "tiny-base")


def run_notebook(name: str, settings: dict[str, Any], at: Path, start: Path) -> RunDir:
    """Run a notebook with a small model to start from and a small task, and check what its cells print.

    Only the installation cells are left out; model, data and `settings` replace those of its config.
    """
    book = nbformat.read(EXAMPLES / name, as_version=4)  # type: ignore[no-untyped-call]
    tags = [cell.metadata.get("tags", []) for cell in book.cells]
    assert tags.count(["install"]) == 2
    [parameters] = [cell for cell in book.cells if cell.metadata.get("tags") == ["parameters"]]
    [config] = re.findall(r'CONFIG = "(.+)"', parameters.source)
    assert (EXAMPLES.parent / config).is_file()
    parameters.source = f"CONFIG, SETTINGS = {str(EXAMPLES.parent / config)!r}, {SMALL | settings | {'model_name_or_path': str(start)}!r}\nQUESTION = 'What is 3 + 4?'"
    book.cells = [cell for cell in book.cells if cell.metadata.get("tags") != ["install"]]
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(at)}}).execute()
    outputs = {
        cell.source: "".join(
            out.get("text", "") or str(out.get("data", {}).get("text/plain", "")) for out in cell.get("outputs", [])
        )
        for cell in book.cells
        if cell.cell_type == "code"
    }

    def output_of(part: str) -> str:
        [output] = [text for source, text in outputs.items() if part in source]
        return output

    assert "loss on:" in output_of("dry_run(config)")
    assert "base, asked directly" in output_of("print_scorecard(card)")
    assert "Axes" in output_of("losses.plot") or "Figure" in output_of("losses.plot")
    assert output_of("ask(run")
    assert "passed" in output_of("verified.status")
    assert "Modelfile" in output_of("verified.status")
    run = RunDir(at / "run")
    assert json.loads(run.verified.read_text())["status"] == "passed"
    assert [file.name for file in run.exported_models()] == ["tiny-base-cot-Q4_K_M.gguf"]
    return run
