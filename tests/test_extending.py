"""Every section of docs/extending.md works: its file and diff are applied to a copy of the package, which is then run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
FILE = re.compile(r"^`(cot_unsloth/\S+\.py)`:\n\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
DIFF = re.compile(r"^```diff\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Extended:
    """A copy of the package with one section applied."""

    def __init__(self, section: str, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(
            ROOT / "cot_unsloth", folder / "cot_unsloth", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        [(name, code)] = FILE.findall(SECTIONS[section])
        assert not (folder / name).exists()
        (folder / name).write_text(code, encoding="utf-8")
        [diff] = DIFF.findall(SECTIONS[section])
        assert diff.count("+++ ") == 1, "a registration touches one file"
        self.registration = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder, check=True)

    def run(self, *command: str) -> str:
        """Run Python with the extended package; returns what it printed."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout + done.stderr


@pytest.fixture
def extended(request: pytest.FixtureRequest, tmp_path: Path) -> Extended:
    return Extended(request.param, tmp_path)


def with_section(title: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("extended", [title], indirect=True)


def test_every_section_registers_in_a_line_or_two() -> None:
    for title, text in SECTIONS.items():
        [diff] = DIFF.findall(text)
        added = [line for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
        assert len(added) <= 2, title
        assert len(FILE.findall(text)) == 1, title


READ_ROWS = """
import json

from cot_unsloth.config import DataConfig
from cot_unsloth.data import load_examples

loaded = load_examples(DataConfig(dataset="rows.jsonl"), seed=0, eval_samples=0, eval_seed=0)
last = loaded.examples[-1]
rejects = [(reject.where, reject.reason) for reject in loaded.rejects]
print(json.dumps({"rejects": rejects, "last": [[part.text for part in last.trace.parts], last.answer]}))
"""


@with_section("A data layout")
def test_a_new_layout_is_recognised_and_its_rows_are_read(extended: Extended) -> None:
    rows = [
        {
            "problem": f"What is {n} + 4 + 5?",
            "step_1": f"{n} + 4 = {n + 4}",
            "step_2": f"{n + 4} + 5 = {n + 9}",
            "result": n + 9,
        }
        for n in range(20)
    ]
    rows[18]["result"] = None
    rows[19]["step_2"] = 28  # a number is written as text
    (extended.folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    shown = " ".join(extended.run("-m", "cot_unsloth", "check", "rows.jsonl", "--eval-samples", "4").split())
    assert "step_columns: question ← problem" in shown
    assert "reasoning ← step_1 + step_2, gold ← result" in shown
    examples = json.loads(extended.run("-c", READ_ROWS))
    assert examples["rejects"] == [["rows.jsonl:19", "missing_field"]]
    assert examples["last"] == [["19 + 4 = 23", "28"], "28"]


@pytest.mark.slow
@with_section("A task")
def test_a_new_task_trains_and_is_scored(extended: Extended) -> None:
    small = ["--max-steps", "2", "--world-samples", "16", "--eval-samples", "4", "--max-new-tokens", "8"]
    shown = extended.run("-m", "cot_unsloth", "inspect", "world:clock", "--world-error-rate", "0.3")
    assert "no loss on (a corrupted step)" in shown
    extended.run("-m", "cot_unsloth.train", "--dataset", "world:clock", "--run-dir", "run", *small)
    card = json.loads((extended.folder / "run" / "scorecard.json").read_text())
    assert set(card["arms"]["tuned"]["by_task"]) == {"clock"}


MAKE_GRANITE = """
import torch
from transformers import AutoTokenizer, GraniteConfig, GraniteForCausalLM

tokenizer = AutoTokenizer.from_pretrained("cot_unsloth/assets/tiny-base")
torch.manual_seed(0)
config = GraniteConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, embedding_multiplier=12.0, attention_multiplier=0.2, residual_multiplier=0.22,
    logits_scaling=8.0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    tie_word_embeddings=True,
)
GraniteForCausalLM(config).save_pretrained("granite")
tokenizer.save_pretrained("granite")
"""


@pytest.mark.slow
@with_section("A GGUF architecture")
def test_a_new_architecture_is_exported_and_verified(extended: Extended) -> None:
    extended.run("-c", MAKE_GRANITE)
    small = ["--max-steps", "2", "--world-samples", "16", "--eval-samples", "0", "--export-samples", "2"]
    model = ["--model-name-or-path", "granite", "--dataset", "world:chains:2-3"]
    extended.run("-m", "cot_unsloth.train", *model, *small, "--run-dir", "run", "--gguf", "q8_0")
    record = json.loads((extended.folder / "run" / "export" / "verified.json").read_text())
    assert record["status"] == "passed"
    assert {"next_token", "kl"} <= {check["name"] for check in record["checks"]}


@pytest.mark.slow
@with_section("An export target")
def test_a_new_export_target_is_written_and_verified(extended: Extended) -> None:
    small = ["--max-steps", "1", "--world-samples", "16", "--eval-samples", "0", "--export-samples", "2"]
    extended.run("-m", "cot_unsloth.train", "--run-dir", "run", *small, "--gguf", "q8_0")
    folder = extended.folder / "run" / "export"
    record = json.loads((folder / "verified.json").read_text())
    assert record["status"] == "passed"
    assert {"file": "SHA256SUMS", "name": "checksums", "passed": True} in record["checks"]
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


ATTENTION_WEIGHTS = """
from pathlib import Path

import torch

from cot_unsloth.models.target import resolve_target

renderer, engine = resolve_target(Path("run")).load()
ids = torch.tensor([engine.chat.ids("What is 3 + 4?")])
print("weights", [tuple(layer.shape) for layer in engine.model(input_ids=ids, output_attentions=True).attentions])
"""


@pytest.mark.slow
@with_section("An engine")
def test_a_new_engine_trains_and_loads_what_it_trained(extended: Extended) -> None:
    small = ["--max-steps", "2", "--world-samples", "16", "--eval-samples", "4", "--max-new-tokens", "8"]
    extended.run("-m", "cot_unsloth.train", "--engine", "eager", "--run-dir", "run", *small)
    manifest = json.loads((extended.folder / "run" / "manifest.json").read_text())
    assert manifest["engine"] == {"engine": "eager", "why": "asked for"}
    report = json.loads((extended.folder / "run" / "fit.json").read_text())
    assert report["steps"] == 2
    assert report["extra"]["engine"] == "eager"
    assert re.search(r"^weights \[\(1, \d+, (\d+), \1\)", extended.run("-c", ATTENTION_WEIGHTS), re.MULTILINE)


@pytest.mark.slow
@with_section("A training method")
def test_a_new_training_method_trains(extended: Extended) -> None:
    small = ["--max-steps", "2", "--logging-steps", "1", "--world-samples", "16", "--eval-samples", "0"]
    extended.run("-m", "cot_unsloth.train", "--method", "dft", "--run-dir", "run", *small)
    report = json.loads((extended.folder / "run" / "fit.json").read_text())
    assert report["steps"] == 2
    assert 0 < report["loss_first"] < 1, "cross-entropy alone starts above 1"
    weights = load_file(extended.folder / "run" / "adapter" / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if "lora_B" in name), "B starts at zero"
