"""GGUF files in llama.cpp: the same ids, prompts and next tokens as the adapter; every corruption fails a check."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from helpers import forked, run_cli, short_run
from models import SHAPES, TINY, made, opened, rewritten, shown, tuned
from safetensors.torch import load_file, save_file

from cot_unsloth import tasks
from cot_unsloth.config import load, load_tree
from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.progress import bar
from cot_unsloth.core.results.verification import Check
from cot_unsloth.core.types import Trace
from cot_unsloth.export.file_names import file_name
from cot_unsloth.export.gguf import architectures, lora, predictions, tokenizers, tokens, writer
from cot_unsloth.export.gguf import verify as checks
from cot_unsloth.export.layerwise import LoadedNetwork
from cot_unsloth.export.model import Model, open_model
from cot_unsloth.export.subject import Subject
from cot_unsloth.export.targets.full_gguf import verify_file
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage.lock import LOCK
from cot_unsloth.storage.run_folder import RunDir

Made = tuple[Model, Renderer]


@pytest.fixture(scope="module", params=SHAPES)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(request.param, tmp_path_factory.mktemp(request.param), TINY)


def written(model: Model, folder: Path, quant: str = "f16") -> Path:
    file = folder / file_name("small", quant)
    writer.check(model)
    writer.write(model, {quant: file})
    return file


def prompts(renderer: Renderer, n: int) -> list[list[int]]:
    examples = tasks.generate("world:chains,words,countdown", split="test", n=n, seed=3)
    chat = renderer.chat
    return [chat.ids(chat.prompt_text(renderer.prompt(example, "tuned"))) for example in examples]


TIE = 0.05
"""Nats by which log-probabilities of a model with random weights may differ after rounding to 16 bits."""


def assert_same_predictions(file: Path, model: Model, renderer: Renderer) -> None:
    """Check llama.cpp's next token on 20 prompts, and that its greedy tokens are the most likely ones, or within `TIE`."""
    network, llama = tuned(model), LlamaCpp(file, context=1024)
    for at, ids in enumerate(prompts(renderer, 20)):
        with torch.inference_mode():
            measured = llama.logprobs(ids, 5)
            ours = network(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert int(ours.argmax()) == max(measured, key=lambda id_: measured[id_])
            assert max(abs(float(ours[id_]) - value) for id_, value in measured.items()) < TIE
            if at < 4:
                body = {"prompt": ids, "n_predict": 24, "temperature": 0.0, "return_tokens": True, "ignore_eos": True}
                new = llama.complete(body)["tokens"]
                forced = network(input_ids=torch.tensor([[*ids, *new]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
                assert len(new) == 24
                forced[:, sorted(renderer.chat.stops)] = -torch.inf  # ignore_eos forbids these tokens
                gaps = [float(row.max() - row[id_]) for row, id_ in zip(forced, new, strict=True)]
                assert max(gaps) < TIE, gaps
    llama.close()


def test_an_f16_file_predicts_the_tokens_of_the_adapter(small: Made, tmp_path: Path) -> None:
    assert_same_predictions(written(small[0], tmp_path), *small)


def all_checks(file: Path, model: Model, renderer: Renderer, quant: str = "f16", trained: Any = None) -> list[Check]:
    """All checks that an export makes of a file; `trained` is the result of `expected`, to share it between files."""
    subject, positions = subject_of(model, renderer)
    exact = quant in ("f32", "f16")
    trained = trained if trained is not None else expected(model, renderer)
    with bar(f"verify {file.name}") as progress:
        return verify_file(model, subject, file, positions, trained, exact=exact, progress=progress)


def expected(model: Model, renderer: Renderer) -> Any:
    """The distributions of the trained model, with which its files are compared."""
    return predictions.distributions(LoadedNetwork(tuned(model)), subject_of(model, renderer)[1])


def subject_of(model: Model, renderer: Renderer) -> tuple[Subject, Any]:
    """The subject of an export, and the positions of its rows at which next tokens are compared."""
    config = load_tree(
        {"model": {"model_name_or_path": str(model.weights.folder)}}, {"export_samples": 2, "max_new_tokens": 8}
    )
    examples = tuple(tasks.generate("world:chains,words", split="test", n=6, seed=3))
    # Rows of a benchmark have an answer and no reasoning.
    examples = (replace(examples[0], trace=Trace((), examples[0].answer)), *examples[1:])
    assert model.adapter is not None
    subject = Subject(config, model.adapter.folder, renderer, examples)
    return subject, predictions.positions_of(renderer.samples(examples[1:]).samples)


def test_every_quantization_passes_verification(small: Made, tmp_path: Path) -> None:
    model, renderer = small
    files = {quant: tmp_path / f"{quant}.gguf" for quant in writer.QUANTS}
    writer.write(model, files)
    trained = expected(model, renderer)
    for quant, file in files.items():
        results = all_checks(file, model, renderer, quant, trained)
        assert all(check.passed for check in results), f"{quant}: {shown(results)}"
        assert abs(writer.size(model, quant) - file.stat().st_size) < 0.2 * file.stat().st_size
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(files["q4_k_m"]).tensors}
    output = "token_embd.weight" if model.tied else "output.weight"
    fused = "blk.1.attn_qkv.weight" in kinds
    assert kinds[output] == "Q6_K"
    assert [kinds[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1, 2)] == ["Q4_K", "Q4_K", "Q6_K"]
    values = [kinds[f"blk.{layer}.attn_{'qkv' if fused else 'v'}.weight"] for layer in (1, 2)]
    assert values == (["Q5_K", "Q5_K"] if fused else ["Q4_K", "Q6_K"])


def test_the_block_size_does_not_change_the_file(
    llama_like: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU uses larger blocks than a CPU. Without an adapter, because B @ A of another size may be rounded differently."""
    base = replace(llama_like[0], adapter=None)
    default = written(base, tmp_path, "q4_k_m").read_bytes()
    for size in (1 << 12, 1 << 24):
        monkeypatch.setattr(writer, "BLOCK", size)
        (tmp_path / str(size)).mkdir()
        assert written(base, tmp_path / str(size), "q4_k_m").read_bytes() == default


def test_a_model_can_be_closed_or_dropped_right_after_it_is_opened(llama_like: Made, tmp_path: Path) -> None:
    """llama.cpp's server did not stop if it was told to before it had started, and the process waited forever."""
    file = written(llama_like[0], tmp_path)
    for _ in range(5):
        LlamaCpp(file, context=64, slots=1).close()
        LlamaCpp(file, context=64, slots=1)


def test_the_layers_with_more_bits_are_those_of_llama_cpp() -> None:
    """Of 28 layers, the first three, the last four and every third between get more bits."""
    more = [layer for layer in range(28) if writer._more_bits(layer, 28)]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]


def test_an_adapter_file_on_its_base_predicts_as_the_trained_model(small: Made, tmp_path: Path) -> None:
    model, renderer = small
    alone = opened(model.weights.folder, None)[0]
    base, adapter = written(alone, tmp_path), tmp_path / "lora.gguf"
    lora.write(model, adapter)
    network, llama = LoadedNetwork(tuned(model)), LlamaCpp(base, context=1024, adapters=[adapter])
    positions = [predictions.Position(tuple(ids), ends_turn=False) for ids in prompts(renderer, 8)]
    trained = predictions.distributions(network, positions)
    measured = [llama.logprobs(position.prefix, 500) for position in positions]
    llama.close()
    results = predictions.check_distributions(predictions.Compared(positions, trained, trained, measured), exact=True)
    assert all(check.passed for check in results), shown(results)


def nasty(n: int, seed: int = 0) -> list[str]:
    """Random strings of many scripts, in NFC, the form that tokenizers normalize to."""
    rng = random.Random(seed)
    ranges = [(32, 126), (0xA1, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F5FF), (9, 13)]
    pieces = ["<thinking>", "</output>", "  ", "\n\n", "1234567", "don't", "é", "'S", "\t", " ", "\r\n"]

    def piece() -> str:
        if rng.random() < 0.3:
            return rng.choice(pieces)
        low, high = rng.choice(ranges)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6)))

    return [unicodedata.normalize("NFC", "".join(piece() for _ in range(rng.randint(1, 12)))) for _ in range(n)]


@pytest.mark.parametrize(("shape", "tokenizer"), [("llama", "llama3.2"), ("qwen2", "qwen2.5")])
def test_llama_cpp_gives_the_ids_of_llama_and_qwen_tokenizers(
    shape: str, tokenizer: str, published_data: Path, tmp_path: Path
) -> None:
    # Nearly all weights are the embedding.
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    model, renderer = made(shape, tmp_path, published_data / "tokenizers" / tokenizer, **narrow)
    llama = LlamaCpp(written(model, tmp_path, "q8_0"), context=512)
    chat = renderer.chat
    different = [text for text in nasty(1000) if llama.ids(text, special=False) != chat.ids(text)]
    assert different == []
    examples = tasks.generate("world:chains,words", split="test", n=6, seed=3)
    results = checks.check_text(llama, renderer, examples)
    llama.close()
    assert all(check.passed for check in results), shown(results)


def test_llama_cpp_gives_the_ids_of_the_embedded_tokenizer(small: Made, tmp_path: Path) -> None:
    llama = LlamaCpp(written(small[0], tmp_path, "q8_0"), context=512)
    different = [text for text in nasty(1000) if llama.ids(text, special=False) != small[1].chat.ids(text)]
    llama.close()
    assert different == []


def changed(name: str, value: Any) -> Callable[[Any, Any], None]:
    def change(fields: Any, tensors: Any) -> None:
        fields[name][0] = value

    return change


def unpermuted(fields: Any, tensors: Any) -> None:
    for name, stored in tensors.items():
        if "attn_q" in name or "attn_k" in name:
            stored[0] = writer.from_pairs(torch.from_numpy(stored[0]), 64).numpy()


def hidden_tags(fields: Any, tensors: Any) -> None:
    kinds = fields["tokenizer.ggml.token_type"][0]
    for text in ("<", ">", "</"):
        if text in fields["tokenizer.ggml.tokens"][0]:
            kinds[fields["tokenizer.ggml.tokens"][0].index(text)] = int(gguf.TokenType.CONTROL)


CORRUPTIONS: dict[str, tuple[Callable[[Any, Any], None], set[str]]] = {
    "wrong template": (changed("tokenizer.chat_template", "{{ messages[0]['content'] }}"), {"prompt"}),
    "missing stop token": (changed("tokenizer.ggml.eos_token_id", 7), {"stop_token"}),
    "unpermuted q and k": (unpermuted, {"weights"}),
    "tags as control tokens": (hidden_tags, {"tag_tokens"}),
    "double BOS": (changed("tokenizer.ggml.add_bos_token", True), {"token_ids"}),
}


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made("llama", tmp_path_factory.mktemp("sabotage"), TINY)


@pytest.fixture(scope="module")
def intact(llama_like: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A rewritten but unchanged file, which passes every check, and the distributions of the trained model."""
    file, trained = written(llama_like[0], tmp_path_factory.mktemp("intact")), expected(*llama_like)
    rewritten(file, lambda fields, tensors: None)
    results = all_checks(file, *llama_like, trained=trained)
    assert all(check.passed for check in results), f"rewriting alone must not fail a check: {shown(results)}"
    return file, trained


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_file_fails_verification(
    name: str, llama_like: Made, intact: tuple[Path, Any], tmp_path: Path
) -> None:
    change, failing = CORRUPTIONS[name]
    file = Path(shutil.copy(intact[0], tmp_path))
    if name == "double BOS":
        rewritten(
            file,
            lambda fields, tensors: fields.update(
                {"tokenizer.ggml.bos_token_id": [1, gguf.GGUFValueType.UINT32, gguf.GGUFValueType.UINT32]}
            ),
        )
    rewritten(file, change)
    failed = {check.name for check in all_checks(file, *llama_like, trained=intact[1]) if not check.passed}
    assert failing <= failed


def test_a_file_with_the_adapter_of_another_run_fails_verification(llama_like: Made, tmp_path: Path) -> None:
    model, renderer = llama_like
    other = tmp_path / "other"
    from models import adapter

    adapter(tuned(model).unload(), other, seed=9)
    file = written(opened(model.weights.folder, other)[0], tmp_path)
    failed = {check.name for check in all_checks(file, model, renderer) if not check.passed}
    assert "weights" in failed


def test_small_norm_weights_pass_verification(tmp_path: Path) -> None:
    """A float32 Gemma 3: 1 + weight is stored, which rounds a weight of 0.005 by more than float32 rounds it."""
    model, _ = made("gemma3", tmp_path, TINY)
    file = model.weights.folder / "model.safetensors"
    tensors = {name: tensor.float() * (0.005 if "norm" in name else 1) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    model, _ = opened(model.weights.folder, None)
    result = checks.check_weights(checks.read_file(written(model, tmp_path)), model)
    assert result.passed, result


def test_a_truncated_file_fails_verification(llama_like: Made, tmp_path: Path) -> None:
    file = written(llama_like[0], tmp_path)
    file.write_bytes(file.read_bytes()[:-5000])
    results = all_checks(file, *llama_like)
    assert [check.name for check in results] == ["readable"]
    assert not results[0].passed


def test_a_missing_bos_token_fails_verification(own_data: Path, tmp_path: Path) -> None:
    model, renderer = made("llama", tmp_path, own_data / "tokenizers" / "llama3.2")
    file = written(model, tmp_path, "q8_0")
    examples = tasks.generate("world:chains", split="test", n=3, seed=3)
    rewritten(file, changed("tokenizer.ggml.add_bos_token", False))
    llama = LlamaCpp(file, context=512)
    failed = {check.name for check in checks.check_text(llama, renderer, examples) if not check.passed}
    llama.close()
    assert "token_ids" in failed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM cannot be written"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope scaling dynamic"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        (
            {"model_type": "mistral"},
            "LlamaForCausalLM, which transformers loads as MistralForCausalLM because of model_type mistral",
        ),
    ],
)
def test_a_setting_that_cannot_be_written_is_refused_by_name(
    llama_like: Made, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama_like[0].weights.folder, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | change))
    adapter = llama_like[0].adapter
    assert adapter
    with pytest.raises(ModelError, match=message):
        writer.check(open_model(base, adapter.folder, llama_like[1].chat, "x"))


def test_an_unsupported_architecture_is_refused_before_training_with_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` stops before the first step and `check` reports it if a GGUF is requested; a merged folder is allowed."""
    from transformers import GPTNeoXConfig

    model, _ = made("llama", tmp_path, TINY)
    base = model.weights.folder
    GPTNeoXConfig(architectures=["GPTNeoXForCausalLM"], vocab_size=560, tie_word_embeddings=True).save_pretrained(base)
    few = [
        "--model-name-or-path",
        str(base),
        "--dataset",
        "world:chains:2",
        "--world-samples",
        "16",
        "--eval-samples",
        "2",
    ]
    settings = [*few, "--max-steps", "1"]
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), *settings, "--gguf", "q8_0") == 2
    output = capsys.readouterr().err
    assert "GPTNeoXForCausalLM cannot be written to GGUF" in output
    assert all(name in output for name in architectures.known())
    assert not (tmp_path / "run" / "adapter").exists()
    assert run_cli("check", *settings, "--gguf", "q8_0") != 0
    assert "GPTNeoXForCausalLM cannot be written to GGUF" in one_line(capsys.readouterr())
    run_cli("check", *settings, "--merged")
    assert "cannot be written to GGUF" not in one_line(capsys.readouterr())


def one_line(output: Any) -> str:
    """Standard output and standard error on one line."""
    return re.sub(r"\s+", " ", output.out + output.err)


def test_a_sliding_window_shorter_than_the_rows_is_reported_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = made("mistral", tmp_path, TINY, sliding_window=300)
    settings = [
        "--model-name-or-path", str(model.weights.folder), "--dataset", "world:chains:2", "--world-samples", "16",
        "--eval-samples", "2", "--gguf", "q8_0",
    ]  # fmt: skip
    run_cli("check", *settings)
    assert "a sliding window of 300 tokens, for rows and answers of up to" in one_line(capsys.readouterr())
    run_cli("check", *settings, "--max-seq-length", "200", "--max-new-tokens", "100")
    assert "for rows and answers of up to" not in one_line(capsys.readouterr())


def test_a_tokenizer_with_an_unknown_split_is_refused(llama_like: Made) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizers.split_of(tokenizer).pre == "qwen2"
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    assert tokenizers.split_of(tokenizer).pre == "smollm"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="splits text by"):
        tokenizers.split_of(tokenizer)


def test_the_date_in_a_template_is_frozen(published_data: Path) -> None:
    config = load_tree({"model": {"model_name_or_path": str(published_data / "tokenizers" / "llama3.2")}}, {})
    chat = open_renderer(config.model, config.data).chat
    template = tokens.exported_template(chat)
    output = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template=template, tokenize=False
    )
    assert "26 Jul 2024" in output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs") / "run", "--gguf", "q8_0", "--lora-gguf")


def test_training_exports_verified_files_and_scores_them(run: RunDir) -> None:
    record = json.loads(run.verified.read_text())
    assert record["status"] == "passed"
    assert {check["file"] for check in record["checks"]} == {"tiny-base-cot-Q8_0.gguf", "tiny-base-cot-LORA.gguf"}
    hashed = {"tiny-base-cot-Q8_0.gguf", "tiny-base-cot-LORA.gguf", "Modelfile", "Modelfile.lora"}
    assert set(record["sha256"]) == hashed
    card = json.loads(run.scorecard.read_text())
    assert list(card["arms"]) == ["base_direct", "base_cot", "base_tags", "tuned", "gguf"]
    assert card["paired"][-1]["before"] == "tuned"
    assert sorted(p.name for p in run.export.glob("[!.]*")) == [
        "Modelfile", "Modelfile.lora", "README.md", "tiny-base-cot-LORA.gguf", "tiny-base-cot-Q8_0.gguf", "verified.json",
    ]  # fmt: skip
    readme = (run.export / "README.md").read_text()
    assert "license: apache-2.0" in readme
    assert re.search(r"^\| tuned, as a GGUF file \| \d", readme, re.MULTILINE), (
        "the card is rewritten with the score of the file, which is measured later"
    )
    assert " bits" not in readme
    assert json.loads(run.manifest.read_text())["data_hash"] in readme


def test_another_quantization_is_added_to_an_export(run: RunDir) -> None:
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m") == 0
    record = json.loads(run.verified.read_text())
    assert {check["file"] for check in record["checks"]} > {"tiny-base-cot-Q8_0.gguf", "tiny-base-cot-Q4_K_M.gguf"}
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m") == 2


def test_a_gguf_file_can_be_evaluated(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run.export / "tiny-base-cot-Q8_0.gguf"
    assert run_cli("evaluate", str(file), "--eval-samples", "3") == 0
    assert "gguf" in capsys.readouterr().out
    assert run_cli("evaluate", str(run.export / "tiny-base-cot-LORA.gguf"), "--eval-samples", "3") == 2
    assert "is an adapter without its base" in capsys.readouterr().err
    outside_a_run = tmp_path / "x.gguf"
    shutil.copy(file, outside_a_run)
    assert run_cli("evaluate", str(outside_a_run)) == 2
    flags = ["--dataset", "world:chains:2", "--eval-samples", "2", "--max-new-tokens", "4"]
    assert run_cli("evaluate", str(outside_a_run), "--out", str(tmp_path / "s"), *flags) == 0
    assert json.loads((tmp_path / "s" / "scorecard.json").read_text())["n"] == 2


def test_without_llama_cpp_files_are_named_unverified(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cot_unsloth.models.llamacpp.available", lambda: False)
    assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path / "a")) == 3
    assert "pip install xllamacpp" in capsys.readouterr().err
    assert (tmp_path / "a" / "tiny-base-cot-F16.unverified.gguf").is_file()
    assert not list((tmp_path / "a").glob("*F16.gguf"))
    assert json.loads((tmp_path / "a" / "verified.json").read_text())["status"] == "unverified"
    assert run_cli("export", str(run.path), "--gguf", "f16", "--allow-unverified", "--out", str(tmp_path / "b")) == 0


def test_a_full_disk_leaves_no_files_and_the_export_can_be_repeated(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cot_unsloth.export.gguf.writer._pad", full)
        assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path)) == 1
    assert "No space left" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
        assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path)) == 2
    assert "the disk has 0 MiB free" in capsys.readouterr().err
    assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path)) == 0


def test_a_killed_export_leaves_only_a_temporary_folder(run: RunDir, tmp_path: Path) -> None:
    killed = tmp_path / "killed.py"
    killed.write_text(
        "import os, signal, sys\n"
        "from cot_unsloth.export.gguf import verify\n"
        "verify.read_file = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from cot_unsloth.cli import main\nmain(sys.argv[1:])"
    )
    out = tmp_path / "out"
    args = ("export", str(run.path), "--gguf", "f16", "--out", str(out))
    assert forked(str(killed), *args, at=tmp_path).returncode == -signal.SIGKILL
    assert all(path.name.startswith((".aside-", LOCK)) for path in out.iterdir())
    assert run_cli(*args) == 0
    assert not list(out.glob(".aside-*"))


def test_a_missing_base_gives_one_error(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("tiny-base", str(tmp_path / "absent")))
    assert run_cli("export", str(copy), "--gguf", "f16", "--out", str(tmp_path / "out")) == 2
    assert "error:" in capsys.readouterr().err


def test_llama_cpp_is_a_generator(run: RunDir) -> None:
    """`LlamaCpp` implements `Generator` and `Streamer`."""
    from cot_unsloth.core.types import Prompt, SamplingParams
    from cot_unsloth.models.protocols import Generator, Streamer

    llama = LlamaCpp(run.export / "tiny-base-cot-Q8_0.gguf", context=1024)
    assert isinstance(llama, Generator)
    assert isinstance(llama, Streamer)
    renderer = open_renderer(load().model, load().data)
    questions = [renderer.prompt(e, "tuned") for e in tasks.generate("world:words", split="test", n=5, seed=1)]
    # After ten tokens, two are nearly as likely: which one is chosen depends on what else is in llama.cpp's batch.
    sampling = SamplingParams(max_new_tokens=10)
    together = llama.generate(questions, sampling)
    assert [c.id for c in together] == [p.id for p in questions]
    assert together == [llama.generate([p], sampling)[0] for p in questions]
    assert "".join(llama.stream(questions[0], sampling)) == together[0].text
    assert llama.prompt_tokens(questions[0]) == len(renderer.chat.ids(renderer.chat.prompt_text(questions[0])))
    prefixed = Prompt("x", questions[0].messages, prefix="It is")
    assert llama.generate([prefixed], sampling)[0].text.startswith("It is")
    hot = [llama.generate(questions[:2], SamplingParams(12, temperature=1.5, seed=s)) for s in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    llama.close()
    with pytest.raises(ModelError, match="there is no such file"):
        LlamaCpp(Path("absent.gguf"))
    for context in (0, 512):
        with pytest.raises(ModelError, match="is not a complete GGUF file"):
            LlamaCpp(Path(__file__), context=context)


def table() -> str:
    """The table of docs/export.md, generated from the registry."""
    rows = ["| class | GGUF | tokenizer | rope | sliding window |", "| --- | --- | --- | --- | --- |"]
    for name, kind in architectures.known().items():
        arch, tokenizers, ropes = gguf.MODEL_ARCH_NAMES[kind.arch], ", ".join(kind.tokenizers), ", ".join(kind.ropes)
        rows.append(f"| `{name}` | `{arch}` | {tokenizers} | {ropes} | {kind.window} |")
    return "\n".join(rows)


def test_the_table_of_architectures_in_the_docs_matches_the_registry() -> None:
    text = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- architectures -->\n")[2].partition("\n<!-- /architectures -->")[0]
    assert shown == table()
