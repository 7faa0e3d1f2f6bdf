"""GGUF files in real llama.cpp: the same ids, prompts and next tokens as the adapter; and every sabotage is caught."""

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

from cot_unsloth import tasks
from cot_unsloth.config import load, load_tree
from cot_unsloth.core.errors import ModelError
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
"""Nats within which two tokens of a model of random weights are as likely as each other in 16 bits."""


def assert_follows(file: Path, model: Model, renderer: Renderer) -> None:
    """Next token 20 of 20; and of llama.cpp's greedy answers each token is the likeliest, or ties with it."""
    network, llama = tuned(model), LlamaCpp(file, context=1024)
    for at, ids in enumerate(prompts(renderer, 20)):
        with torch.inference_mode():
            found = llama.logprobs(ids, 5)
            ours = network(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            assert int(ours.argmax()) == max(found, key=lambda id_: found[id_])
            assert max(abs(float(ours[id_]) - value) for id_, value in found.items()) < TIE
            if at < 4:
                body = {"prompt": ids, "n_predict": 24, "temperature": 0.0, "return_tokens": True, "ignore_eos": True}
                new = llama.complete(body)["tokens"]
                forced = network(input_ids=torch.tensor([[*ids, *new]])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
                assert len(new) == 24
                forced[:, sorted(renderer.chat.stops)] = -torch.inf  # llama.cpp was told not to end
                gaps = [float(row.max() - row[id_]) for row, id_ in zip(forced, new, strict=True)]
                assert max(gaps) < TIE, gaps
    llama.close()


def test_f16_is_the_adapter_token_for_token(small: Made, tmp_path: Path) -> None:
    assert_follows(written(small[0], tmp_path), *small)


def all_checks(file: Path, model: Model, renderer: Renderer, quant: str = "f16", trained: Any = None) -> list[Check]:
    """As an export makes them; `trained` is what `expected` gives, where several files are compared with it."""
    subject, asked = subject_of(model, renderer)
    exact = quant in ("f32", "f16")
    return verify_file(
        model, subject, file, asked, trained if trained is not None else expected(model, renderer), exact=exact
    )


def expected(model: Model, renderer: Renderer) -> Any:
    """The distributions of the trained model that files of it are compared with."""
    return predictions.distributions(LoadedNetwork(tuned(model)), subject_of(model, renderer)[1])


def subject_of(model: Model, renderer: Renderer) -> tuple[Subject, Any]:
    """What an export verifies, and the positions of its rows where next tokens are compared."""
    config = load_tree(
        {"model": {"model_name_or_path": str(model.weights.folder)}}, {"export_samples": 2, "max_new_tokens": 8}
    )
    examples = tuple(tasks.generate("world:chains,words", split="test", n=6, seed=3))
    # A benchmark's rows hold an answer and no reasoning.
    examples = (replace(examples[0], trace=Trace((), examples[0].answer)), *examples[1:])
    assert model.adapter is not None
    subject = Subject(config, model.adapter.folder, renderer, examples)
    return subject, predictions.positions_of(renderer.samples(examples[1:]).samples)


def test_every_type_is_verified(small: Made, tmp_path: Path) -> None:
    model, renderer = small
    files = {quant: tmp_path / f"{quant}.gguf" for quant in writer.QUANTS}
    writer.write(model, files)
    trained = expected(model, renderer)
    for quant, file in files.items():
        found = all_checks(file, model, renderer, quant, trained)
        assert all(check.passed for check in found), f"{quant}: {shown(found)}"
        assert abs(writer.size(model, quant) - file.stat().st_size) < 0.2 * file.stat().st_size
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(files["q4_k_m"]).tensors}
    output = "token_embd.weight" if model.tied else "output.weight"
    fused = "blk.1.attn_qkv.weight" in kinds
    assert kinds[output] == "Q6_K"
    assert [kinds[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1, 2)] == ["Q4_K", "Q4_K", "Q6_K"]
    values = [kinds[f"blk.{layer}.attn_{'qkv' if fused else 'v'}.weight"] for layer in (1, 2)]
    assert values == (["Q5_K", "Q5_K"] if fused else ["Q4_K", "Q6_K"])


def test_the_size_of_a_block_changes_no_byte(llama_like: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU takes larger blocks than a CPU. Of the base alone: a product of another size may round another way."""
    base = replace(llama_like[0], adapter=None)
    as_it_is = written(base, tmp_path, "q4_k_m").read_bytes()
    for size in (1 << 12, 1 << 24):
        monkeypatch.setattr(writer, "BLOCK", size)
        (tmp_path / str(size)).mkdir()
        assert written(base, tmp_path / str(size), "q4_k_m").read_bytes() == as_it_is


def test_a_file_can_be_closed_as_soon_as_it_is_open(llama_like: Made, tmp_path: Path) -> None:
    """llama.cpp's server, told to end before it had begun, was waited for without end."""
    file = written(llama_like[0], tmp_path)
    for _ in range(5):
        LlamaCpp(file, context=64, slots=1).close()


def test_a_mixture_is_llama_cpps() -> None:
    """Layers of 28 that get more bits: the first three, the last four, every third between."""
    more = [layer for layer in range(28) if writer._more_bits(layer, 28)]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]


def test_the_adapter_alone_follows_too(small: Made, tmp_path: Path) -> None:
    model, renderer = small
    alone = opened(model.weights.folder, None)[0]
    base, adapter = written(alone, tmp_path), tmp_path / "lora.gguf"
    lora.write(model, adapter)
    network, llama = LoadedNetwork(tuned(model)), LlamaCpp(base, context=1024, adapters=[adapter])
    asked = [predictions.Position(tuple(ids), ends_turn=False) for ids in prompts(renderer, 8)]
    trained = predictions.distributions(network, asked)
    found = [llama.logprobs(position.prefix, 500) for position in asked]
    llama.close()
    verdicts = predictions.check_distributions(predictions.Compared(asked, trained, trained, found), exact=True)
    assert all(check.passed for check in verdicts), shown(verdicts)


def nasty(n: int, seed: int = 0) -> list[str]:
    """Strings of all kinds of letters, in the form that tokenizers normalize to."""
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
def test_real_tokenizers_give_the_same_ids(shape: str, tokenizer: str, published_data: Path, tmp_path: Path) -> None:
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}  # it is all vocabulary
    model, renderer = made(shape, tmp_path, published_data / "tokenizers" / tokenizer, **narrow)
    llama = LlamaCpp(written(model, tmp_path, "q8_0"), context=512)
    chat = renderer.chat
    different = [text for text in nasty(1000) if llama.ids(text, special=False) != chat.ids(text)]
    assert different == []
    examples = tasks.generate("world:chains,words", split="test", n=6, seed=3)
    verdicts = checks.check_text(llama, renderer, examples)
    llama.close()
    assert all(check.passed for check in verdicts), shown(verdicts)


def test_the_tiny_tokenizer_gives_the_same_ids(small: Made, tmp_path: Path) -> None:
    llama = LlamaCpp(written(small[0], tmp_path, "q8_0"), context=512)
    different = [text for text in nasty(1000) if llama.ids(text, special=False) != small[1].chat.ids(text)]
    llama.close()
    assert different == []


def changed(name: str, value: Any) -> Callable[[Any, Any], None]:
    def change(fields: Any, tensors: Any) -> None:
        fields[name][0] = value

    return change


def unpermuted(fields: Any, tensors: Any) -> None:
    for name, held in tensors.items():
        if "attn_q" in name or "attn_k" in name:
            held[0] = writer.from_pairs(torch.from_numpy(held[0]), 64).numpy()


def hidden_tags(fields: Any, tensors: Any) -> None:
    kinds = fields["tokenizer.ggml.token_type"][0]
    for text in ("<", ">", "</"):
        if text in fields["tokenizer.ggml.tokens"][0]:
            kinds[fields["tokenizer.ggml.tokens"][0].index(text)] = int(gguf.TokenType.CONTROL)


SABOTAGE: dict[str, tuple[Callable[[Any, Any], None], set[str]]] = {
    "wrong template": (changed("tokenizer.chat_template", "{{ messages[0]['content'] }}"), {"prompt"}),
    "missing stop token": (changed("tokenizer.ggml.eos_token_id", 7), {"stop_token"}),
    "unpermuted q and k": (unpermuted, {"weights"}),
    "tags as control tokens": (hidden_tags, {"tag_tokens"}),
    "double BOS": (changed("tokenizer.ggml.add_bos_token", True), {"token_ids"}),
}


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made("llama", tmp_path_factory.mktemp("sabotage"), TINY)


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_sabotaged_file_is_caught(name: str, llama_like: Made, tmp_path: Path) -> None:
    change, expected = SABOTAGE[name]
    file = written(llama_like[0], tmp_path)
    rewritten(file, lambda fields, tensors: None)
    assert all(check.passed for check in all_checks(file, *llama_like)), "it is not the rewriting that is caught"
    if name == "double BOS":
        rewritten(
            file,
            lambda fields, tensors: fields.update(
                {"tokenizer.ggml.bos_token_id": [1, gguf.GGUFValueType.UINT32, gguf.GGUFValueType.UINT32]}
            ),
        )
    rewritten(file, change)
    failed = {check.name for check in all_checks(file, *llama_like) if not check.passed}
    assert expected <= failed


def test_the_adapter_of_another_run_is_caught(llama_like: Made, tmp_path: Path) -> None:
    model, renderer = llama_like
    other = tmp_path / "other"
    from models import adapter

    adapter(tuned(model).unload(), other, seed=9)
    file = written(opened(model.weights.folder, other)[0], tmp_path)
    failed = {check.name for check in all_checks(file, model, renderer) if not check.passed}
    assert "weights" in failed


def test_a_file_cut_short_is_caught(llama_like: Made, tmp_path: Path) -> None:
    file = written(llama_like[0], tmp_path)
    file.write_bytes(file.read_bytes()[:-5000])
    found = all_checks(file, *llama_like)
    assert [check.name for check in found] == ["readable"]
    assert not found[0].passed


def test_missing_bos_is_caught(own_data: Path, tmp_path: Path) -> None:
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
def test_what_cannot_be_written_is_refused_by_name(
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


def test_an_unknown_architecture_is_refused_before_training_with_the_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` stops before a step, and `check` finds it, where a GGUF is asked for; a merged folder needs no list."""
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
    said = capsys.readouterr().err
    assert "GPTNeoXForCausalLM cannot be written to GGUF" in said
    assert all(name in said for name in architectures.known())
    assert not (tmp_path / "run" / "adapter").exists()
    assert run_cli("check", *settings, "--gguf", "q8_0") != 0
    assert "GPTNeoXForCausalLM cannot be written to GGUF" in flat(capsys.readouterr())
    run_cli("check", *settings, "--merged")
    assert "cannot be written to GGUF" not in flat(capsys.readouterr())


def flat(said: Any) -> str:
    """All that was said, in one line."""
    return re.sub(r"\s+", " ", said.out + said.err)


def test_a_window_shorter_than_the_rows_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = made("mistral", tmp_path, TINY, sliding_window=300)
    settings = [
        "--model-name-or-path", str(model.weights.folder), "--dataset", "world:chains:2", "--world-samples", "16",
        "--eval-samples", "2", "--gguf", "q8_0",
    ]  # fmt: skip
    run_cli("check", *settings)
    assert "a sliding window of 300 tokens, for rows and answers of up to" in flat(capsys.readouterr())
    run_cli("check", *settings, "--max-seq-length", "200", "--max-new-tokens", "100")
    assert "for rows and answers of up to" not in flat(capsys.readouterr())


def test_a_tokenizer_that_splits_text_in_another_way_is_refused(llama_like: Made) -> None:
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
    said = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template=template, tokenize=False
    )
    assert "26 Jul 2024" in said


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return short_run(tmp_path_factory.mktemp("runs") / "run", "--gguf", "q8_0", "--lora-gguf")


def test_training_ends_in_verified_files_and_their_score(run: RunDir) -> None:
    found = json.loads(run.verified.read_text())
    assert found["status"] == "passed"
    assert {check["file"] for check in found["checks"]} == {"tiny-base-cot-Q8_0.gguf", "tiny-base-cot-LORA.gguf"}
    hashed = {"tiny-base-cot-Q8_0.gguf", "tiny-base-cot-LORA.gguf", "Modelfile", "Modelfile.lora"}
    assert set(found["sha256"]) == hashed
    card = json.loads(run.scorecard.read_text())
    assert list(card["arms"]) == ["base_direct", "base_cot", "base_tags", "tuned", "gguf"]
    assert card["paired"][-1]["before"] == "tuned"
    assert sorted(p.name for p in run.export.iterdir()) == [
        "Modelfile", "Modelfile.lora", "README.md", "tiny-base-cot-LORA.gguf", "tiny-base-cot-Q8_0.gguf", "verified.json",
    ]  # fmt: skip
    readme = (run.export / "README.md").read_text()
    assert "license: apache-2.0" in readme
    assert re.search(r"^\| gguf \| \d", readme, re.MULTILINE), "the file's own score, though it came after the card"
    assert " bits" not in readme
    assert json.loads(run.manifest.read_text())["data_hash"] in readme


def test_more_files_stand_beside_the_first(run: RunDir) -> None:
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m") == 0
    found = json.loads(run.verified.read_text())
    assert {check["file"] for check in found["checks"]} > {"tiny-base-cot-Q8_0.gguf", "tiny-base-cot-Q4_K_M.gguf"}
    assert run_cli("export", str(run.path), "--gguf", "q4_k_m") == 2


def test_the_file_is_an_arm_of_its_own(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run.export / "tiny-base-cot-Q8_0.gguf"
    assert run_cli("evaluate", str(file), "--eval-samples", "3") == 0
    assert "gguf" in capsys.readouterr().out
    assert run_cli("evaluate", str(run.export / "tiny-base-cot-LORA.gguf"), "--eval-samples", "3") == 2
    assert "is an adapter alone" in capsys.readouterr().err
    lonely = tmp_path / "x.gguf"
    shutil.copy(file, lonely)
    assert run_cli("evaluate", str(lonely)) == 2
    flags = ["--dataset", "world:chains:2", "--eval-samples", "2", "--max-new-tokens", "4"]
    assert run_cli("evaluate", str(lonely), "--out", str(tmp_path / "s"), *flags) == 0
    assert json.loads((tmp_path / "s" / "scorecard.json").read_text())["n"] == 2


def test_without_llama_cpp_files_say_that_they_are_unverified(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cot_unsloth.models.llamacpp.available", lambda: False)
    assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path / "a")) == 3
    assert "pip install xllamacpp" in capsys.readouterr().err
    assert (tmp_path / "a" / "tiny-base-cot-F16.unverified.gguf").is_file()
    assert not list((tmp_path / "a").glob("*F16.gguf"))
    assert json.loads((tmp_path / "a" / "verified.json").read_text())["status"] == "unverified"
    assert run_cli("export", str(run.path), "--gguf", "f16", "--allow-unverified", "--out", str(tmp_path / "b")) == 0


def test_a_full_disk_leaves_nothing_and_the_run_exportable(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cot_unsloth.export.gguf.writer._pad", full)
        assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path)) == 1
    assert "No space left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
        assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path)) == 2
    assert "the disk has 0 MiB free" in capsys.readouterr().err
    assert run_cli("export", str(run.path), "--gguf", "f16", "--out", str(tmp_path)) == 0


def test_a_killed_export_leaves_no_final_name(run: RunDir, tmp_path: Path) -> None:
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
    assert all(path.name.startswith(".aside-") for path in out.iterdir())
    assert run_cli(*args) == 0
    assert not list(out.glob(".aside-*"))


def test_an_absent_base_is_one_clear_error(run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("tiny-base", str(tmp_path / "absent")))
    assert run_cli("export", str(copy), "--gguf", "f16", "--out", str(tmp_path / "out")) == 2
    assert "error:" in capsys.readouterr().err


def test_llama_cpp_answers_as_transformers_does(run: RunDir) -> None:
    """The contract of a Generator, over the file."""
    from cot_unsloth.core.types import Prompt, SamplingParams
    from cot_unsloth.models.protocols import Generator, Streamer

    llama = LlamaCpp(run.export / "tiny-base-cot-Q8_0.gguf", context=1024)
    assert isinstance(llama, Generator)
    assert isinstance(llama, Streamer)
    renderer = open_renderer(load().model, load().data)
    asked = [renderer.prompt(e, "tuned") for e in tasks.generate("world:words", split="test", n=5, seed=1)]
    sampling = SamplingParams(max_new_tokens=12)
    together = llama.generate(asked, sampling)
    assert [c.id for c in together] == [p.id for p in asked]
    assert together == [llama.generate([p], sampling)[0] for p in asked]
    assert "".join(llama.stream(asked[0], sampling)) == together[0].text
    assert llama.prompt_tokens(asked[0]) == len(renderer.chat.ids(renderer.chat.prompt_text(asked[0])))
    prefixed = Prompt("x", asked[0].messages, prefix="It is")
    assert llama.generate([prefixed], sampling)[0].text.startswith("It is")
    hot = [llama.generate(asked[:2], SamplingParams(12, temperature=1.5, seed=s)) for s in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    llama.close()
    with pytest.raises(ModelError, match="there is no such file"):
        LlamaCpp(Path("absent.gguf"))
    for context in (0, 512):
        with pytest.raises(ModelError, match="is no whole GGUF file"):
            LlamaCpp(Path(__file__), context=context)


def table() -> str:
    """The table of docs/export.md, as the registry has it."""
    rows = ["| class | GGUF | tokenizer | rope | sliding window |", "| --- | --- | --- | --- | --- |"]
    for name, kind in architectures.known().items():
        arch, tokenizers, ropes = gguf.MODEL_ARCH_NAMES[kind.arch], ", ".join(kind.tokenizers), ", ".join(kind.ropes)
        rows.append(f"| `{name}` | `{arch}` | {tokenizers} | {ropes} | {kind.window} |")
    return "\n".join(rows)


def test_the_table_of_architectures_is_the_registry() -> None:
    text = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- architectures -->\n")[2].partition("\n<!-- /architectures -->")[0]
    assert shown == table()
