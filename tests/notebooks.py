"""The two notebooks, run as their reader runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from cot_unsloth.storage.run_folder import RunDir

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("finetuning-llama3.2-3b.ipynb", "finetuning-qwen2.5-7b.ipynb")
TINY = {
    "dataset": "world:chains:2-3", "world_samples": 24, "eval_samples": 3, "max_new_tokens": 16, "lora_r": 4,
    "export_samples": 2, "gguf": "", "model_name_or_path": "tiny-base", "dataset_config_name": None, "logging_steps": 1,
    "run_dir": "run",
}  # fmt: skip


def run_notebook(name: str, settings: dict[str, Any], at: Path) -> RunDir:
    """Run one on the embedded model and a world, and hold what its cells print to what they promise.

    Of its cells the installation alone is left out, of its settings model and data are overruled, and `settings`.
    """
    book = nbformat.read(EXAMPLES / name, as_version=4)  # type: ignore[no-untyped-call]
    assert all(not cell.get("outputs") for cell in book.cells)
    tags = [cell.metadata.get("tags", []) for cell in book.cells]
    assert tags.count(["install"]) == 2
    [parameters] = [cell for cell in book.cells if cell.metadata.get("tags") == ["parameters"]]
    [config] = re.findall(r'CONFIG = "(.+)"', parameters.source)
    assert (EXAMPLES.parent / config).is_file()
    parameters.source = f"CONFIG, SETTINGS = {str(EXAMPLES.parent / config)!r}, {TINY | settings!r}"
    book.cells = [cell for cell in book.cells if cell.metadata.get("tags") != ["install"]]
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(at)}}).execute()
    said = {
        cell.source: "".join(
            out.get("text", "") or str(out.get("data", {}).get("text/plain", "")) for out in cell.get("outputs", [])
        )
        for cell in book.cells
        if cell.cell_type == "code"
    }

    def of(part: str) -> str:
        [found] = [text for source, text in said.items() if part in source]
        return found

    assert "loss on:" in of("dry_run(config)")
    assert "base_direct" in of("print_scorecard(card)")
    assert "Axes" in of("losses.plot") or "Figure" in of("losses.plot")
    assert of("ask(run")
    assert "passed" in of("verified.status")
    assert "Modelfile" in of("verified.status")
    run = RunDir(at / "run")
    assert json.loads(run.verified.read_text())["status"] == "passed"
    assert [file.name for file in run.exported_models()] == ["tiny-base-cot-Q4_K_M.gguf"]
    return run
