"""The unsloth engine, on the CPU backend that Unsloth brings: the interface, for real.

Loading, in 4 bits too, fitting, resuming, generating, saving, merging and exporting are Unsloth's own here. Fused
kernels and packing need a GPU, so nothing here says anything of them.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import notebooks
import peft
import pytest
import torch
from helpers import UNSLOTH_FIRST, chains, forked, furthest, lora, started
from models import made as small_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cot_unsloth import tasks
from cot_unsloth.config import RunConfig, load
from cot_unsloth.core.errors import DivergedError, EngineError, ModelError
from cot_unsloth.core.types import IGNORE, Prompt, Sample, SamplingParams
from cot_unsloth.models import registry, unsloth_engine
from cot_unsloth.models.fusion import fused, why_not_fused
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.protocols import Generator, Trainable
from cot_unsloth.models.registry import Choice
from cot_unsloth.models.unsloth_engine import UnslothEngine
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage import run_folder
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training.method import TrainingHooks
from cot_unsloth.training.sft import fit

WIDTH = {"float32": 32, "bfloat16": 16}
LESS = {
    "engine": "unsloth", "lora_r": "4", "lora_alpha": "8", "autocast": "false", "save_steps": "100", "logging_steps": "1",
}  # fmt: skip


def settings(**flags: str) -> RunConfig:
    return load(None, LESS | flags)


def made(n: int = 12) -> tuple[Renderer, list[Sample]]:
    return chains(settings(), n)


def loaded(config: RunConfig, adapter: Path | None = None) -> UnslothEngine:
    engine = registry.load(config, made(1)[0].chat, Choice("unsloth", "a test"), adapter)
    assert isinstance(engine, UnslothEngine)
    return engine


def test_the_engine_implements_trainable_and_keeps_the_order_of_prompts() -> None:
    engine = loaded(settings())
    assert isinstance(engine, Trainable)
    assert isinstance(engine, Generator)
    renderer, _ = made(1)
    examples = tasks.generate("world:chains:2-4", split="test", n=5, seed=1)
    prompts = [renderer.prompt(example, "base_direct") for example in examples]
    said = engine.generate(prompts, SamplingParams(max_new_tokens=6, batch_size=2))
    assert [c.id for c in said] == [p.id for p in prompts]
    again = engine.generate(prompts, SamplingParams(max_new_tokens=6, batch_size=5))
    assert [c.text for c in said] == [c.text for c in again]
    samples = renderer.samples(tasks.generate("world:chains:2-4", split="test", n=3, seed=1)).samples
    next_token_accuracy = engine.next_token_accuracy(samples)
    assert [[hit is not None for hit in row] for row in next_token_accuracy] == [
        [i != IGNORE for i in s.labels] for s in samples
    ]


@pytest.mark.parametrize(
    ("dtype", "first", "rest", "more"),
    [
        ("float32", 1e-3, 1e-3, ()),
        ("bfloat16", 1e-2, None, ()),
        ("float32", 1e-3, 1e-3, ("full_finetuning=true",)),
        ("float32", 1e-3, 1e-3, ("load_in_4bit=true",)),
    ],
)
def test_training_gives_the_same_losses_as_hf(
    dtype: str, first: float, rest: float | None, more: tuple[str, ...], tmp_path: Path
) -> None:
    """Same base, same adapter at the start, same order of rows; the other engine where Unsloth is not imported."""
    start = tmp_path / "start.safetensors"
    found = {}
    for engine in ("hf", "unsloth"):
        out = tmp_path / f"{engine}.json"
        script, imported = str(Path(__file__).with_name("curve.py")), UNSLOTH_FIRST if engine == "unsloth" else ()
        done = forked(script, engine, str(start), str(out), dtype, *more, at=tmp_path, first=imported)
        assert done.returncode == 0, done.stderr[-3000:]
        found[engine] = json.loads(out.read_text())
    ours, theirs = found["hf"], found["unsloth"]
    assert ours["samples"] == theirs["samples"]
    assert ours["counts"] == theirs["counts"]
    assert (
        ours["extra"]["weight_bits"]
        == theirs["extra"]["weight_bits"]
        == (4 if "load_in_4bit=true" in more else WIDTH[dtype])
    )
    assert ours["extra"]["engine"] == "hf"
    assert theirs["extra"]["engine"] == "unsloth"
    gaps = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    assert len(gaps) == 20
    assert gaps[0] <= first, gaps
    if rest is not None:
        assert max(gaps) <= rest, gaps


def test_resuming_from_a_checkpoint_is_exact(tmp_path: Path) -> None:
    _, samples = made()
    flags = {"max_steps": "4", "save_steps": "2", "lr_scheduler_type": "constant", "per_device_train_batch_size": "2"}
    through = loaded(settings(**flags))
    fit(through, samples, TrainingHooks(tmp_path))
    assert [p.name for p in run_folder.complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    for checkpoint in run_folder.complete_checkpoints(tmp_path):  # between two steps, and after the last one
        resumed = loaded(settings(**flags))
        report = fit(resumed, samples, TrainingHooks(tmp_path, resume_from=checkpoint))
        assert report.steps == 4
        assert furthest(lora(through), lora(resumed)) <= 1e-6


def test_divergence_stops_training_and_a_lower_learning_rate_continues(tmp_path: Path) -> None:
    """In one engine, too: the adapter that is given up is taken off with its base."""
    _, samples = made()
    flags = {"max_steps": "4", "save_steps": "1", "per_device_train_batch_size": "2", "lr_scheduler_type": "constant"}
    engine = loaded(settings(**flags, learning_rate="1e18", warmup_ratio="0"))
    with pytest.raises(DivergedError) as raised:
        fit(engine, samples, TrainingHooks(tmp_path / "c"))
    kept = run_folder.complete_checkpoints(tmp_path / "c")
    for checkpoint in kept:
        weights = load_file(checkpoint / "adapter_model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert [run_folder.checkpoint_step(p) for p in kept][-1:] == [raised.value.step - 1]
    engine.config = settings(**flags, learning_rate="1e-4")
    rows: list[Any] = []
    fit(engine, samples, TrainingHooks(tmp_path / "d", on_log=rows.append))
    assert {row["learning_rate"] for row in rows} == {1e-4}
    engine.config = settings(**flags, learning_rate="1e-5")
    rows.clear()
    fit(engine, samples, TrainingHooks(tmp_path / "d", resume_from=tmp_path / "d" / "checkpoint-3", on_log=rows.append))
    assert {(row["step"], row["learning_rate"]) for row in rows} == {(4, 1e-5)}
    engine.model.get_parameter(next(iter(lora(engine)))).data.fill_(float("nan"))
    with pytest.raises(EngineError, match="no longer finite"):
        engine.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_model_that_needs_code_from_its_repository_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))
    folder = Path(shutil.copytree(model_path("tiny-base"), tmp_path / "model"))
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    kinds = ("AutoConfig", "AutoModelForCausalLM")
    config |= {"model_type": "planted", "auto_map": {kind: f"planted.{kind}" for kind in kinds}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="needs code from its own repository"):
        loaded(settings(model_name_or_path=str(folder)))
    assert not (tmp_path / "marker").exists()


def test_plain_peft_loads_the_saved_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And computes the same: what was trained under autocast is scored without it."""
    monkeypatch.setattr("cot_unsloth.training.trainers.cpu_has_bfloat16", lambda: True)
    _, samples = made()
    engine = loaded(settings(max_steps="3", learning_rate="1e-2", autocast="true"))
    fit(engine, samples, TrainingHooks(tmp_path / "checkpoints"))
    engine.save(tmp_path / "adapter")
    ids = torch.tensor([list(samples[0].ids)])
    with torch.inference_mode():
        tuned = engine.model(input_ids=ids).logits
        with engine.as_base():
            base = engine.model(input_ids=ids).logits
    plain = AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32)
    theirs: Any = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    with torch.inference_mode():
        assert (theirs(input_ids=ids).logits - tuned).abs().max() < 1e-3
        with theirs.disable_adapter():
            assert (theirs(input_ids=ids).logits - base).abs().max() < 1e-3
    assert (tuned - base).abs().max() > 0.1


def test_full_finetuning_saves_a_model_for_plain_transformers(tmp_path: Path) -> None:
    _, samples = made()
    flags = {"full_finetuning": "true", "learning_rate": "1e-3", "max_steps": "4", "save_steps": "2"}
    engine = loaded(settings(**flags))
    report = fit(engine, samples, TrainingHooks(tmp_path / "c"))
    engine.save(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32).eval()
    assert report.extra.trainable_parameters == sum(p.numel() for p in base.parameters())
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ids = torch.tensor([list(samples[0].ids)])
    with torch.inference_mode():
        tuned = engine.model(input_ids=ids).logits
        assert (saved(input_ids=ids).logits - tuned).abs().max() < 1e-3
        assert (base(input_ids=ids).logits - tuned).abs().max() > 0.1
    renderer, _ = made(1)
    prompts = [renderer.prompt(e, "tuned") for e in tasks.generate("world:chains", split="test", n=3, seed=1)]
    sampling = SamplingParams(max_new_tokens=16)
    with engine.as_base():
        based = engine.generate(prompts, sampling)
    assert based == loaded(settings(**flags)).generate(prompts, sampling)
    again = loaded(settings(**flags), tmp_path / "model")
    assert again.generate(prompts, sampling) == engine.generate(prompts, sampling) != based
    here = sum(isinstance(thing, type(base)) for thing in gc.get_objects())
    for _ in range(3):
        with again.as_base():
            pass
    assert sum(isinstance(thing, type(base)) for thing in gc.get_objects()) <= here, "a base is held on to"
    resumed = loaded(settings(**flags))
    fit(resumed, samples, TrainingHooks(tmp_path / "c", resume_from=tmp_path / "c" / "checkpoint-2"))
    one, other = (dict(each.model.named_parameters()) for each in (engine, resumed))
    assert furthest(one, other) <= 1e-6


class StandInForVllm:
    """What Unsloth calls `model.vllm_engine`: vLLM's interface over plain transformers, for vLLM needs a GPU.

    It looks at what it is given as vLLM does: ids, a set of parameters for each, and an adapter's folder.
    """

    def __init__(self) -> None:
        self.base = AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32).eval()
        self.asked: list[tuple[int, str | None]] = []

    def generate(self, prompts: Any, parameters: Any, *, use_tqdm: bool, lora_request: Any) -> Any:
        assert not use_tqdm
        assert len({each.seed for each in parameters}) == len(prompts) == len(parameters)
        self.asked.append((len(prompts), lora_request and lora_request.lora_path))
        model: Any = self.base
        if lora_request is not None:
            model = peft.PeftModel.from_pretrained(self.base, lora_request.lora_path).eval()
        said = []
        for prompt, wanted in zip(prompts, parameters, strict=True):
            ids = torch.tensor([prompt["prompt_token_ids"]])
            made = model.generate(
                input_ids=ids, do_sample=False, max_new_tokens=wanted.max_tokens, eos_token_id=wanted.stop_token_ids,
                pad_token_id=0,
            )  # fmt: skip
            output = SimpleNamespace(token_ids=tuple(made[0, ids.shape[1] :].tolist()))
            said.append(SimpleNamespace(outputs=[output]))
        if lora_request is not None:
            self.base = model.unload()
        return said


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> StandInForVllm:
    """The vllm package as it is imported, and as Unsloth hands it out."""
    stand_in = StandInForVllm()
    top, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    top.SamplingParams = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, path: SimpleNamespace(  # type: ignore[attr-defined]
        lora_name=name, lora_int_id=number, lora_path=path
    )
    for name, module in {"vllm": top, "vllm.lora": ModuleType("vllm.lora"), "vllm.lora.request": request}.items():
        monkeypatch.setitem(sys.modules, name, module)
    loader = unsloth_engine.import_unsloth().FastLanguageModel
    real = loader.from_pretrained

    def with_vllm(*, fast_inference: bool, gpu_memory_utilization: float, max_lora_rank: int, **given: Any) -> Any:
        assert fast_inference
        assert (gpu_memory_utilization, max_lora_rank) == (0.4, 64)
        assert given["max_seq_length"] == 512 + 2 * 24, "vLLM takes a prompt, a beginning and what follows within this"
        model, tokenizer = real(**given)
        model.vllm_engine = stand_in
        return model, tokenizer

    monkeypatch.setattr(loader, "from_pretrained", with_vllm)
    return stand_in


def test_vllm_answers_with_the_base_and_with_the_adapter(
    vllm: StandInForVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {
        "fast_inference": "true", "gpu_memory_utilization": "0.4", "max_seq_length": "512", "max_new_tokens": "24",
        "max_steps": "3", "learning_rate": "1e-2",
    }  # fmt: skip
    renderer, samples = made()
    prompts = [renderer.prompt(e, "tuned") for e in tasks.generate("world:chains", split="test", n=5, seed=1)]
    sampling, seen = SamplingParams(max_new_tokens=24), []
    monkeypatch.setattr(unsloth_engine, "VLLM_BATCH", 3)
    engine = UnslothEngine(settings(**flags), renderer.chat)

    def plainly(adapter: bool) -> Any:
        """The same answers, by the model that shares its weights."""
        with contextlib.nullcontext() if adapter else engine.as_base():
            return HfEngine.generate(engine, prompts, sampling)

    before = engine.generate(prompts, sampling, lambda done: seen.append(len(done)))
    assert before == plainly(adapter=False)
    assert seen == [3, 2]
    fit(engine, samples, TrainingHooks(tmp_path / "c"))
    engine.save(tmp_path / "adapter")
    tuned = engine.generate(prompts, sampling)
    assert tuned == plainly(adapter=True) != before
    with engine.as_base():
        assert engine.generate(prompts, sampling) == before
    again = UnslothEngine(settings(**flags), renderer.chat, tmp_path / "adapter")
    assert again.generate(prompts, sampling) == tuned
    with_adapter = [path for _, path in vllm.asked if path]
    assert with_adapter[-1] == str(tmp_path / "adapter")
    assert len(with_adapter) == 4
    ended = ModuleType("unsloth_zoo.vllm_utils")
    ended.delete_vllm = vllm.asked.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unsloth_zoo.vllm_utils", ended)
    again.close()
    assert vllm.asked[-1] is vllm
    large = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) | {"r": 100}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(large))
    assert again._inference()["max_lora_rank"] == 100


def test_a_prompt_that_would_be_truncated_is_refused() -> None:
    engine = loaded(settings(max_seq_length="64", max_new_tokens="8"))
    fits, long = (Prompt(str(n), ({"role": "user", "content": "3 + 4 " * n},)) for n in (2, 40))
    assert len(engine.generate([fits], SamplingParams(max_new_tokens=4))) == 1
    with pytest.raises(EngineError, match=r"40: .* tokens of prompt, the model was loaded for 80"):
        engine.generate([fits, long], SamplingParams(max_new_tokens=4))


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused() -> None:
    engine = loaded(settings(max_seq_length="1900"))
    prompt = Prompt("a", ({"role": "user", "content": "3 + 4"},))
    with pytest.raises(EngineError, match=r"a: .* and 2048 of an answer, the model has 2048 positions") as error:
        engine.generate([prompt], SamplingParams(max_new_tokens=2048))
    assert "--max-new-tokens" in (error.value.hint or "")
    with pytest.raises(EngineError, match="2048 positions"):
        engine.answer_ids([[3, 4, 5]], ["a"], SamplingParams(max_new_tokens=2046))


@pytest.mark.parametrize("flags", [{}, {"load_in_4bit": "true"}])
def test_a_continued_adapter_is_patched_like_a_new_one(
    flags: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU: fused, and with the gradient checkpointing that was asked for."""
    first = loaded(settings(**flags))
    first.attach_trainable_weights(made(2)[1])
    first.save(tmp_path / "adapter")
    patched = []

    def patch(model: Any, use_gradient_checkpointing: object) -> Any:
        patched.append(use_gradient_checkpointing)
        return model

    # The CPU backend has nothing to patch.
    loader = unsloth_engine.import_unsloth().FastLanguageModel
    monkeypatch.setattr(loader, "patch_peft_model", staticmethod(patch), raising=False)
    again = settings(init_adapter=str(tmp_path / "adapter"), gradient_checkpointing="true", **flags)
    model = loaded(again).attach_trainable_weights(made(2)[1])
    assert patched == ["unsloth"]
    assert model.get_base_model().is_gradient_checkpointing
    # What is not quantized keeps its type: in float32 the embedding would take twice its memory.
    new, continued = (one.get_input_embeddings().weight.dtype for one in (first.model, model))
    assert new == continued
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert len(trained) == len([p for p in first.model.parameters() if p.requires_grad])


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "no"), ("bfloat16", "float32")])
def test_float32_is_not_trained_under_autocast(dtype: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its trainers read this variable, which its loader sets to float32, and then autocast to 16 bits."""
    engine = loaded(settings(dtype=dtype))
    monkeypatch.setenv("UNSLOTH_MIXED_PRECISION", "float32")
    engine.adapt_arguments(SimpleNamespace(gradient_checkpointing=True))
    assert os.environ["UNSLOTH_MIXED_PRECISION"] == precision


def test_the_context_is_not_extended_beyond_that_of_the_model() -> None:
    assert loaded(settings(max_seq_length="1900", max_new_tokens="400"))._max_length == 2048


def test_a_missing_vllm_is_an_error_and_never_replaced(
    tmp_path: Path, vllm: StandInForVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = started("-m", "cot_unsloth.train", "--engine", "unsloth", "--fast-inference", at=tmp_path)
    assert done.returncode == 2
    assert "model.fast_inference: needs vllm, which is not installed" in done.stderr
    loader = unsloth_engine.import_unsloth().FastLanguageModel
    with_vllm = loader.from_pretrained

    def without(**given: Any) -> Any:
        model, tokenizer = with_vllm(**given)
        del model.vllm_engine
        return model, tokenizer

    monkeypatch.setattr(loader, "from_pretrained", without)
    flags = {"fast_inference": "true", "gpu_memory_utilization": "0.4", "max_seq_length": "512", "max_new_tokens": "24"}
    with pytest.raises(ModelError, match="unsloth loaded it without vLLM"):
        UnslothEngine(settings(**flags), made(1)[0].chat)


def test_a_killed_run_resumes_and_ends_in_a_verified_export(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = [
        "-m", "cot_unsloth.train", "--engine", "unsloth", "--run-dir", str(folder), "--world-samples", "64",
        "--max-steps", "12", "--save-steps", "2", "--per-device-train-batch-size", "2", "--eval-samples", "4",
        "--max-new-tokens", "12", "--lora-r", "4", "--merged", "--gguf", "q8_0", "--export-samples", "2",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen([sys.executable, *few], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not run_folder.complete_checkpoints(RunDir(folder).checkpoints) and time.monotonic() < deadline:
        assert first.poll() is None, first.stderr.read() if first.stderr else ""
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not RunDir(folder).adapter.exists()
    done = forked("cot_unsloth.train", "--run-dir", str(folder), "--resume", at=tmp_path, first=UNSLOTH_FIRST)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "engine unsloth: asked for" in done.stderr
    assert "fused by unsloth: " in done.stderr
    result = json.loads(RunDir(folder).verified.read_text())
    assert result["status"] == "passed"
    assert {each["file"] for each in result["checks"]} == {"merged", "tiny-base-cot-Q8_0.gguf"}
    assert set(json.loads(RunDir(folder).scorecard.read_text())["arms"]) >= {"base_direct", "tuned", "gguf"}
    assert {p.name for p in tmp_path.iterdir()} == {"run"}, "Unsloth left files in the working directory"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return notebooks.train_start(tmp_path_factory.mktemp("notebooks"))


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_runs_with_the_settings_for_a_gpu(name: str, start: Path, tmp_path: Path) -> None:
    """In 4 bits, with gradients checkpointed, and Unsloth imported by the cell that needs it first."""
    folder = notebooks.run_notebook(name, {"engine": "unsloth"}, tmp_path, start)
    extra = json.loads(folder.fit_report.read_text())["extra"]
    assert (extra["engine"], extra["weight_bits"]) == ("unsloth", 4)


def test_importing_unsloth_too_late_is_reported(tmp_path: Path) -> None:
    code = "import transformers; from cot_unsloth.cli import main; main(['train', '--engine', 'unsloth'])"
    done = started("-c", code, at=tmp_path)
    assert done.returncode == 1
    assert "unsloth has to be imported before transformers" in done.stderr
    assert "hint: put `import unsloth` at the top" in done.stderr
    assert "Traceback" not in done.stderr


def test_layers_that_are_not_fused_are_reported_with_the_reason(tmp_path: Path) -> None:
    engine = loaded(settings(target_modules="q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"))
    model = engine._attach_adapter(())
    assert fused(model)["qkv"] == (0, model.config.num_hidden_layers)
    assert {"a base in float32 is not fused", "k_proj has no adapter"} <= set(why_not_fused(model))


def test_the_biases_of_qwen2_are_reported_as_not_fused(tmp_path: Path) -> None:
    small_model("qwen2", tmp_path, model_path("tiny-base"))
    config = settings(model_name_or_path=str(tmp_path / "base"))
    model = loaded(config)._attach_adapter(())
    assert "q_proj, k_proj, v_proj has a bias in the base" in why_not_fused(model)


def test_telemetry_and_installer_of_unsloth_are_disabled() -> None:
    assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"
    assert os.environ["UNSLOTH_AUTO_INSTALL"] == "0"


def test_grpo_continues_an_adapter(tmp_path: Path) -> None:
    """Unsloth's own generation draws the attempts; its CPU backend was made for imitation alone."""
    few = (
        "--dataset",
        "world:chains",
        "--world-samples",
        "12",
        "--eval-samples",
        "0",
        "--gguf",
        "",
        "--engine",
        "unsloth",
    )
    first, second = tmp_path / "first", tmp_path / "second"
    train = ("-m", "cot_unsloth", "train", *few)
    done = started(*train, "--run-dir", str(first), "--max-steps", "2", at=tmp_path)
    assert done.returncode == 0, done.stderr
    drawn = ("--num-generations", "4", "--generation-batch-size", "8", "--max-new-tokens", "24", "--no-guards")
    rewarded = ("--reward-overlong", "1", "--overlong-share", "1", "--dev-problems", "2", "--max-steps", "2")
    again = ("--method", "grpo", "--init-adapter", str(first), "--run-dir", str(second))
    done = started(*train, *again, *drawn, *rewarded, at=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (first, second))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
