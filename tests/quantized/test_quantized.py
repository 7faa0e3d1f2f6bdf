"""Weights in 4 and 8 bits with bitsandbytes on a CPU: loading, training, resuming, scoring and export.

In the environment of tests/unsloth, which brings bitsandbytes, and in a process that Unsloth is not imported in;
where the `unsloth` engine is asked, it is in one of its own. Speed and memory of a GPU can't be told from here.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from helpers import UNSLOTH_FIRST, chains, forked, furthest, lora
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, load
from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.types import Sample, SamplingParams
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.quantization import of_weights
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import fit

LESS = {"engine": "hf", "lora_r": "4", "lora_alpha": "8", "autocast": "false", "save_steps": "100"}
FEW = (
    "--dataset", "world:chains:2-3", "--world-samples", "48", "--max-steps", "6", "--save-steps", "3", "--lora-r", "4",
    "--per-device-train-batch-size", "2", "--eval-samples", "4", "--max-new-tokens", "12", "--export-samples", "2",
)  # fmt: skip


def settings(**flags: str) -> RunConfig:
    return load(None, LESS | flags)


def made(n: int = 12) -> tuple[Renderer, list[Sample]]:
    return chains(settings(), n)


def run(verb: str, *args: str, at: Path, engine: str = "hf") -> subprocess.CompletedProcess[str]:
    return forked("cot_unsloth", verb, *args, at=at, first=UNSLOTH_FIRST if engine == "unsloth" else ())


def through_nf4(model: Any) -> Any:
    """A plain model whose linear layers, the head apart, have the weights that NF4 leaves of them."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            codes, state = bnb.quantize_4bit(module.weight.data, quant_type="nf4", compress_statistics=True)
            module.weight.data = bnb.dequantize_4bit(codes, state)
    return model.eval()


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32).eval()


def test_every_layer_except_the_head_is_quantized_to_nf4() -> None:
    renderer, samples = made(1)
    engine = HfEngine(settings(load_in_4bit="true"), renderer.chat)
    assert of_weights(engine.model) == 4
    ids = torch.tensor([list(samples[0].ids)])
    with torch.inference_mode():
        ours, plain, whole = (m.eval()(input_ids=ids).logits for m in (engine.model, through_nf4(base()), base()))
    assert (ours - plain).abs().max() < 1e-3
    assert (ours - whole).abs().max() > 0.1


@pytest.mark.parametrize("bits", ["4", "8"])
def test_generation_before_training_does_not_change_training(bits: str, tmp_path: Path) -> None:
    """On a CPU with AVX512-BF16 the weights that bitsandbytes packs to answer with have no gradient."""
    renderer, samples = made()
    prompts = [renderer.prompt(e, "base_direct") for e in tasks.generate("world:chains", split="test", n=2, seed=1)]
    seen: list[list[dict[str, Any]]] = []
    for answers_first in (False, True):
        flags = {f"load_in_{bits}bit": "true", "max_steps": "3", "logging_steps": "1"}
        engine = HfEngine(settings(**flags), renderer.chat)
        if answers_first:
            engine.generate(prompts, SamplingParams(max_new_tokens=4))
        rows: list[dict[str, Any]] = []
        fit(
            engine,
            samples,
            TrainingHooks(tmp_path / str(answers_first), on_log=lambda row, to=rows: to.append(dict(row))),
        )
        seen.append(rows)
    assert [(row["loss"], row["grad_norm"]) for row in seen[0]] == [(row["loss"], row["grad_norm"]) for row in seen[1]]


@pytest.mark.parametrize(("bits", "optim"), [("4", "adamw_8bit"), ("8", "adamw_torch")])
def test_an_adapter_is_trained_in_float32_resumed_and_loaded_again(bits: str, optim: str, tmp_path: Path) -> None:
    renderer, samples = made()
    # A rank of 64, for bitsandbytes keeps the moments of less than 4,096 numbers in 32 bits.
    flags = {
        f"load_in_{bits}bit": "true",
        "optim": optim,
        "lora_r": "64",
        "max_steps": "12",
        "save_steps": "6",
        "learning_rate": "1e-2",
    }
    engine = HfEngine(settings(**flags), renderer.chat)
    prompts = [renderer.prompt(e, "tuned") for e in tasks.generate("world:chains", split="test", n=4, seed=1)]
    sampling = SamplingParams(max_new_tokens=16)
    untouched = engine.generate(prompts, sampling)
    report = fit(engine, samples, TrainingHooks(tmp_path / "c"))
    assert report.extra.weight_bits == int(bits)
    assert report.loss_first is not None
    assert report.loss_last is not None
    assert report.loss_last < report.loss_first
    assert {p.dtype for p in lora(engine).values()} == {torch.float32}
    engine.save(tmp_path / "adapter")
    again = HfEngine(settings(**flags), renderer.chat, tmp_path / "adapter")
    assert again.generate(prompts, sampling) == engine.generate(prompts, sampling) != untouched
    with again.as_base():
        assert again.generate(prompts, sampling) == untouched
    kept = torch.load(tmp_path / "c" / "checkpoint-6" / "optimizer.pt", weights_only=True)["state"]
    moments = kept[0].get("__bnb_optimizer_quant_state__", kept[0])
    assert (torch.uint8 in {v.dtype for v in moments.values() if torch.is_tensor(v)}) is (optim == "adamw_8bit")
    resumed = HfEngine(settings(**flags), renderer.chat)
    fit(resumed, samples, TrainingHooks(tmp_path / "c", resume_from=tmp_path / "c" / "checkpoint-6"))
    assert furthest(lora(engine), lora(resumed)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "unsloth"])
def test_a_run_in_four_bits_is_exported_onto_the_16_bit_base(engine: str, tmp_path: Path) -> None:
    more = ("--load-in-4bit", "--learning-rate", "1e-2", "--merged", "--gguf", "q8_0", "--lora-gguf")
    done = run("train", "--engine", engine, "--run-dir", "run", *FEW, *more, at=tmp_path, engine=engine)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels-community" not in done.stderr
    assert "4-bit weights on a CPU" in done.stderr
    folder = RunDir(tmp_path / "run")
    assert json.loads(folder.fit_report.read_text())["extra"]["weight_bits"] == 4
    result = json.loads(folder.verified.read_text())
    assert result["status"] == "passed"
    names = {"merged", "tiny-base-cot-Q8_0.gguf", "tiny-base-cot-LORA.gguf"}
    assert {each["file"] for each in result["checks"]} == names
    adapter = load_file(folder.adapter / "adapter_model.safetensors")
    scale = json.loads((folder.adapter / "adapter_config.json").read_text())["lora_alpha"] / 4
    merged = load_file(next(folder.merged.glob("*.safetensors")))
    for name, weight in base().state_dict().items():
        factors = [adapter.get(f"base_model.model.{name[:-7]}.lora_{side}.weight") for side in "AB"]
        delta = scale * factors[1] @ factors[0] if factors[0] is not None and factors[1] is not None else 0
        if name in merged:
            assert torch.equal(merged[name], (weight + delta).to(merged[name].dtype)), name
    card = (folder.export / "README.md").read_text()
    assert "held in 4 bits for these, but for the GGUF file, which is on its 16-bit weights." in card
    assert "; the base held in 4 bits" in card
    before = json.loads(folder.scorecard.read_text())
    again = run("evaluate", "run", "--out", "again", at=tmp_path, engine=engine)
    assert again.returncode == 0, again.stderr[-3000:]
    scores = json.loads((tmp_path / "again" / "scorecard.json").read_text())
    assert scores["loaded"]["load_in_4bit"] is True
    assert all(scores["arms"][arm] == before["arms"][arm] for arm in ("base_direct", "base_tags", "tuned"))
    alone = run(
        "evaluate", "--model", "tiny-base", "--adapter", "run/adapter", "--load-in-4bit", "--dataset", "world:chains:2-3",
        "--eval-samples", "4", "--max-new-tokens", "12", "--out", "alone", at=tmp_path,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr[-3000:]


def test_unsloth_is_refused_if_it_loads_other_weights_than_requested(tmp_path: Path) -> None:
    """Its CPU backend loads 16-bit weights although 8 bits were requested."""
    done = run(
        "train", "--engine", "unsloth", "--load-in-8bit", "--run-dir", "run", *FEW, at=tmp_path, engine="unsloth"
    )
    assert done.returncode == 2
    assert "error: tiny-base: the unsloth engine loaded it in 32 bits" in done.stderr
    assert "hint: --no-load-in-8bit, or --engine hf" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model like many on the hub: stored in 4 bits, with bfloat16 as its compute dtype."""
    folder = tmp_path_factory.mktemp("stored") / "tiny-bnb-4bit"
    renderer, _ = made(1)
    engine = HfEngine(settings(load_in_4bit="true", dtype="bfloat16"), renderer.chat)
    engine.model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path("tiny-base")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("flags", [("--merged",), ("--gguf", "q8_0")])
def test_a_model_stored_in_four_bits_is_not_exported(flags: tuple[str, ...], stored: Path, tmp_path: Path) -> None:
    done = run("export", "--model", str(stored), *flags, "--out", "out", at=tmp_path)
    assert done.returncode == 2
    assert "its weights are quantized (bitsandbytes)" in done.stderr
    assert "--model BASE" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_stored_in_four_bits_is_recognised(stored: Path) -> None:
    renderer, _ = made(1)
    engine = HfEngine(settings(model_name_or_path=str(stored)), renderer.chat)
    assert of_weights(engine.model) == 4
    assert {m.compute_dtype for m in engine.model.modules() if hasattr(m, "compute_dtype")} == {torch.float32}
    with pytest.raises(ModelError, match="is stored in 4 bits, of which every weight cannot be trained"):
        HfEngine(settings(model_name_or_path=str(stored), full_finetuning="true"), renderer.chat)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hf", "unsloth"])
def test_a_model_stored_in_four_bits_is_trained_and_exported_onto_its_16_bit_original(
    engine: str, stored: Path, tmp_path: Path
) -> None:
    args = ("--engine", engine, "--model-name-or-path", str(stored), "--run-dir", "run", *FEW)
    refused = run("train", *args, "--merged", at=tmp_path, engine=engine)
    assert refused.returncode == 2
    assert "its weights are quantized (bitsandbytes)" in refused.stderr
    assert not (tmp_path / "run").exists()
    done = run("train", *args, at=tmp_path, engine=engine)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(RunDir(tmp_path / "run").fit_report.read_text())["extra"]["weight_bits"] == 4
    exported = run("export", "run", "--model", "tiny-base", "--merged", "--gguf", "q8_0", at=tmp_path, engine=engine)
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert json.loads(RunDir(tmp_path / "run").verified.read_text())["status"] == "passed"
