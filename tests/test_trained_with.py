"""Exports contain what the weights were trained with: template, tokenizer, system prompt and end-of-turn token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from helpers import run_cli
from models import TINY, adapter
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

from cot_unsloth.api import ask
from cot_unsloth.config import DEFAULT_SYSTEM_PROMPT, DataConfig, ModelConfig, load_tree
from cot_unsloth.core.errors import ModelError
from cot_unsloth.models import target
from cot_unsloth.prompts import tokenizer_files
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.storage.records import write_jsonl
from cot_unsloth.storage.run_folder import RunDir

TEMPLATE = """\
{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content + '\\n\\n' }}{%- elif m.role == 'user' %}\
{{- '### Question:\\n' + m.content + '\\n\\n' }}{%- else %}{{- '### Reply:\\n' + m.content + '<|im_end|>\\n' }}\
{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '### Reply:\\n' }}{%- endif %}
"""
ASKED = [{"role": "user", "content": "2 + 4?"}]
SAID = "### Question:\n2 + 4?\n\n### Reply:\n"
FEW = [
    "--max-steps", "2", "--per-device-train-batch-size", "2", "--gradient-accumulation-steps", "1",
    "--eval-samples", "0", "--lora-r", "4", "--gguf", "",
]  # fmt: skip


def rows(file: Path, *systems: str | None) -> Path:
    """Forty sums, with the given system prompts in rotation."""
    result = []
    for n in range(40):
        answer = f"<thinking>\n{n} + 4 = {n + 4}\n</thinking>\n<output>{n + 4}</output>"
        system = systems[n % len(systems)] if systems else None
        result.append({"question": f"{n} + 4?", "answer": answer} | ({"system": system} if system else {}))
    write_jsonl(file, result)
    return file


def trained(folder: Path, data: Path, *more: str) -> RunDir:
    assert run_cli("train", "--dataset", str(data), *FEW, "--run-dir", str(folder), *more) == 0
    return RunDir(folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def data(work: Path) -> Path:
    return rows(work / "add.jsonl")


@pytest.fixture(scope="module")
def run(work: Path, data: Path) -> RunDir:
    """A run with a custom template, whose original file is changed after training."""
    file = work / "t.jinja"
    file.write_text(TEMPLATE)
    result = trained(work / "run", data, "--chat-template", str(file))
    file.write_text("{{ messages }} of another day")
    return result


@pytest.fixture
def foreign(run: RunDir, tmp_path: Path) -> Path:
    """An adapter as another trainer saves it: a folder without a run."""
    return Path(shutil.copytree(run.adapter, tmp_path / "theirs" / "adapter"))


def exported(*args: str | Path, out: Path, code: int = 0) -> dict[str, Any]:
    assert run_cli("export", *map(str, args), "--out", str(out), "--export-samples", "0") == code
    result: dict[str, Any] = json.loads((out / "verified.json").read_text()) if code == 0 else {}
    return result


def prompt_of(folder: Path) -> str:
    """The prompt that plain transformers renders with the tokenizer of a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return str(tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True))


def edit(file: Path, change: Any) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


@pytest.mark.parametrize("kept_in", ["chat_template.jinja", "tokenizer_config.json", "the template alone"])
def test_the_template_of_an_adapter_is_in_every_export(
    kept_in: str, foreign: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kept_in == "tokenizer_config.json":
        (foreign / "chat_template.jinja").unlink()
        edit(foreign / "tokenizer_config.json", lambda tree: tree.update(chat_template=TEMPLATE))
    if kept_in == "the template alone":
        for file in foreign.glob("tokenizer*"):
            file.unlink()
    out = tmp_path / "out"
    args = ("--model", "tiny-base", "--adapter", foreign, "--merged", "--gguf", "q8_0", "--dataset", data)
    assert exported(*args, out=out)["status"] == "passed"
    assert "which was saved with the trained weights; the base's differs" in capsys.readouterr().err
    assert prompt_of(out / "merged") == SAID
    (file,) = out.glob("*.gguf")
    template = gguf.GGUFReader(file).fields["tokenizer.chat_template"].contents()
    assert template == (out / "merged" / "chat_template.jinja").read_text()
    modelfile = (out / "Modelfile").read_text()
    assert "### Question:\n{{ .Content }}" in modelfile
    assert "SYSTEM" not in modelfile
    assert json.loads((out / "verified.json").read_text())["system_prompt"] is None
    card = (out / "README.md").read_text()
    assert DEFAULT_SYSTEM_PROMPT not in card
    assert "the one that it was trained with is not known" in card


def test_an_adapter_without_a_run_uses_only_a_system_prompt_given_by_the_user(foreign: Path) -> None:
    for flags, expected in (({}, None), ({"system_prompt": "Be brief."}, "Be brief.")):
        resolved = target.resolve_target(base="tiny-base", adapter=foreign, flags=flags)
        engine, config = resolved.load_streamer(), resolved.config
        assert config.data.system_prompt == expected
        assert engine.chat.tokenizer.chat_template.strip() == TEMPLATE.strip()  # type: ignore[attr-defined]
    assert target.resolve_target(base="tiny-base").config.data.system_prompt is None, "a whole model of others, too"


def test_the_system_prompt_of_a_run_is_recognised_from_its_weights(run: RunDir) -> None:
    assert target.resolve_target(adapter=run.adapter).config.data.system_prompt == DEFAULT_SYSTEM_PROMPT


def test_the_base_is_taken_from_the_adapter(
    foreign: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = shutil.copytree(TINY, tmp_path / "a base")
    edit(foreign / "adapter_config.json", lambda tree: tree.update(base_model_name_or_path=str(base)))
    result = exported("--adapter", foreign, "--merged", "--dataset", data, out=tmp_path / "out")
    assert result["base"] == base.name  # an export holds no path of this machine
    resolved = target.resolve_target(adapter=foreign)
    engine, config = resolved.load_streamer(), resolved.config
    assert config.model.model_name_or_path == str(base)
    assert engine.prompt_tokens  # it is loaded
    scores = ("evaluate", "--adapter", str(foreign), "--dataset", "world:chains:2", "--eval-samples", "1")
    assert run_cli(*scores, "--max-new-tokens", "2", "--arms", "tuned", "--out", str(tmp_path / "scores")) == 0
    capsys.readouterr()
    exported("--model", TINY, "--adapter", foreign, "--merged", "--dataset", data, out=tmp_path / "other")
    assert f"names another base than {TINY}: {base}" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["/nowhere/a-base", "not-here/a-base", "", None])
def test_a_missing_base_gives_one_clear_error(
    named: str | None, foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(foreign / "adapter_config.json", lambda tree: tree.update(base_model_name_or_path=named))
    exported("--adapter", foreign, "--merged", out=tmp_path / "out", code=2)
    output = capsys.readouterr().err
    assert output.count("error:") == 1
    assert "--model BASE" in output
    assert (named or "names no base") in output
    assert not (tmp_path / "out").exists()


def with_tokens(folder: Path, *tokens: str, **settings: Any) -> None:
    """Save a tokenizer with more tokens, or another end-of-turn token, in a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens])
    for name, token in settings.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def roomy_base(folder: Path) -> Path:
    """The embedded base with unused embedding rows, as in Qwen."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer) + 16)
    model.save_pretrained(folder)
    for name in tokenizer_files.FILES:
        if Path(TINY, name).is_file():
            shutil.copy(Path(TINY, name), folder)
    shutil.copy(Path(TINY, "chat_template.jinja"), folder)
    # Loaded again, because PEFT saves every row of an embedding that has just been resized.
    adapter(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), folder.parent / "adapter", seed=1)
    return folder


def test_the_tokenizer_and_end_of_turn_of_an_adapter_are_exported(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, theirs = roomy_base(tmp_path / "base"), tmp_path / "adapter"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, theirs)
    with_tokens(theirs, "<|done|>", "<|more|>", eos_token="<|done|>")
    (theirs / "chat_template.jinja").write_text(TEMPLATE.replace("<|im_end|>", "<|done|>"))
    out = tmp_path / "out"
    result = exported(
        "--model", base, "--adapter", theirs, "--merged", "--gguf", "f16", "--export-dtype", "float32", "--dataset", data, out=out
    )  # fmt: skip
    output = capsys.readouterr().err
    assert "it has 2 tokens that its base's tokenizer lacks ('<|done|>', '<|more|>')" in output
    assert "its eos_token is '<|done|>', its base's '<|im_end|>'" in output
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    done = tokenizer.convert_tokens_to_ids("<|done|>")
    assert json.loads((out / "merged" / "generation_config.json").read_text())["eos_token_id"][0] == done
    (file,) = out.glob("*.gguf")
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.ggml.tokens"].contents()[done] == "<|done|>"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == done
    assert 'PARAMETER stop "<|done|>"' in (out / "Modelfile").read_text()
    assert result["status"] == "passed"
    settings = json.loads((out / "merged" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast", "saved by transformers 5, and read by 4.57"
    assert not isinstance(settings.get("extra_special_tokens"), list)


def test_control_tokens_named_like_unused_tags_are_accepted(foreign: Path, data: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = AutoModelForCausalLM.from_pretrained(TINY)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(base)
    for name in (*tokenizer_files.FILES, "chat_template.jinja"):
        if Path(TINY, name).is_file():
            shutil.copy(Path(TINY, name), base)
    tokenizer = AutoTokenizer.from_pretrained(foreign)
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in ("<thinking>", "</thinking>")])
    tokenizer.save_pretrained(foreign)
    args = ("--model", base, "--adapter", foreign, "--gguf", "q8_0", "--dataset", data, "--thinking-tags", "think")
    assert exported(*args, out=tmp_path / "out")["status"] == "passed"


def test_a_token_beyond_the_embedding_gives_one_clear_error(
    foreign: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_tokens(foreign, "<|done|>")
    args = ("--model", "tiny-base", "--adapter", foreign, "--merged", "--dataset", data)
    exported(*args, out=tmp_path / "out", code=2)
    output = capsys.readouterr().err
    assert output.count("error:") == 1
    assert "the tokenizer has a token 512, but the base's embedding has 512 rows" in output
    assert "--model BASE" in output
    assert not list(tmp_path.rglob("*.aside*"))


def test_a_run_keeps_a_copy_of_its_template(
    run: RunDir, work: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.template.read_text().strip() == TEMPLATE.strip()
    assert run.read_config().model.chat_template == str(work / "t.jinja"), "the setting keeps the name as given"
    assert run_cli("train", "--run-dir", str(run.path), "--resume") == 0
    assert "has changed since the run started" in capsys.readouterr().err
    exported(run.path, "--merged", out=tmp_path / "edited")
    assert prompt_of(tmp_path / "edited" / "merged") == SAID
    (work / "t.jinja").unlink()
    exported(run.path, "--merged", out=tmp_path / "gone")
    assert prompt_of(tmp_path / "gone" / "merged") == SAID
    assert ask(run, "2 + 4?", max_new_tokens=2) is not None
    assert run_cli("train", "--run-dir", str(run.path), "--resume") == 0
    assert run_cli("inspect", str(run.path), "-n", "1") == 0
    scores = ("evaluate", str(run.path), "--eval-samples", "1", "--dataset", "world:chains:2", "--max-new-tokens", "2")
    assert run_cli(*scores, "--out", str(tmp_path / "scores")) == 0


def test_a_killed_run_resumes_with_its_original_template(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cot_unsloth.training.sft import SupervisedFineTuning

    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE)
    with monkeypatch.context() as patch:
        patch.setattr(SupervisedFineTuning, "train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        args = ("--dataset", str(data), *FEW, "--run-dir", str(tmp_path / "run"), "--chat-template", str(file))
        assert run_cli("train", *args) == 130
    file.unlink()
    assert run_cli("train", "--run-dir", str(tmp_path / "run"), "--resume") == 0
    assert prompt_of(RunDir(tmp_path / "run").adapter) == SAID


@pytest.mark.parametrize(
    ("systems", "expected"),
    [
        (("Be brief.",), "Be brief."),
        (("Be brief.", "Be long."), None),
        (("Be brief.", None), DEFAULT_SYSTEM_PROMPT),
        ((), DEFAULT_SYSTEM_PROMPT),
    ],
)
def test_the_system_prompt_is_the_one_shared_by_all_trained_rows(
    systems: tuple[str | None, ...], expected: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    kept = [{"split": "train", "system": system} for system in systems or (None,)]
    write_jsonl(run.kept, [*kept, {"split": "test", "system": "never trained with"}])
    assert target.as_trained(run, load_tree({}, {})).data.system_prompt == expected
    assert ("of their own" in capsys.readouterr().err) == (expected is None)


def test_the_system_prompt_of_the_rows_is_exported(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", rows(tmp_path / "own.jsonl", "Add up."), "--merged", "--export-samples", "0")
    assert json.loads(run.verified.read_text())["system_prompt"] == "Add up."
    assert "system prompt: 'Add up.'" in (run.export / "README.md").read_text()
    assert target.resolve_target(run.path).config.data.system_prompt == "Add up."


def eager_to_end(folder: Path) -> Path:
    """The embedded base, changed so that it always answers with the end-of-turn token."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    head = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    hidden = model.model(input_ids=torch.arange(3, 60)[None]).last_hidden_state[0].mean(0)
    with torch.no_grad():
        head[2] = 50 * hidden / hidden.norm()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = head
    model.save_pretrained(folder)
    for name in (*tokenizer_files.FILES, "chat_template.jinja"):
        if Path(TINY, name).is_file():
            shutil.copy(Path(TINY, name), folder)
    return folder


STOPS = {
    "another": {"eos_token_id": 0, "pad_token_id": 0},
    "none": None,
    "no pad": {"eos_token_id": [0, 2], "temperature": 0.6, "do_sample": True},
    "pads with the end": {"eos_token_id": 2, "pad_token_id": 2},
    "beyond the vocabulary": {"eos_token_id": [2, 99_999], "pad_token_id": 0},
    "no id": {"eos_token_id": "<|im_end|>", "pad_token_id": 0},
}


@pytest.mark.parametrize("named", STOPS)
def test_plain_transformers_stops_at_the_trained_end_of_turn(named: str, data: Path, tmp_path: Path) -> None:
    base, generation = eager_to_end(tmp_path / "base"), STOPS[named]
    (base / "generation_config.json").unlink()
    if generation:
        (base / "generation_config.json").write_text(json.dumps(generation))
    edit(base / "config.json", lambda tree: tree.update(eos_token_id=0, pad_token_id=None))
    result = exported("--model", base, "--merged", "--dataset", data, out=tmp_path / "out")
    merged = tmp_path / "out" / "merged"
    (check,) = (entry for entry in result["checks"] if entry["name"] == "generation_config")
    assert check["passed"]
    assert 2 in check["eos_token_id"] if isinstance(check["eos_token_id"], list) else check["eos_token_id"] == 2
    written = json.loads((merged / "generation_config.json").read_text())
    assert written["pad_token_id"] == 0
    assert all(written[key] == value for key, value in (generation or {}).items() if "token" not in key)
    config = AutoConfig.from_pretrained(merged)
    assert config.eos_token_id == 2 or 2 in config.eos_token_id
    answer = pipeline("text-generation", str(merged))(ASKED, max_new_tokens=40, do_sample=False)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    (new,) = model.generate(**ids, max_new_tokens=40, do_sample=False)[:, ids["input_ids"].shape[1] :].tolist()
    assert new[-1] == 2
    assert len(new) < 10
    assert len(answer[0]["generated_text"][-1]["content"]) < 40


@pytest.mark.parametrize("text", ["{'eos_token_id': 2}", "[2]", ""])
def test_a_damaged_generation_config_gives_one_clear_error(
    text: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(TINY, tmp_path / "base"))
    (base / "generation_config.json").write_text(text)
    assert (
        run_cli("export", "--model", str(base), "--merged", "--dataset", str(data), "--out", str(tmp_path / "o")) == 2
    )
    assert f"error: {base}: its generation_config.json cannot be read: " in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_merged_folder_records_its_system_prompt(run: RunDir, tmp_path: Path) -> None:
    exported(run.path, "--merged", out=tmp_path)
    data = target.resolve_target(base=str(tmp_path / "merged")).config.data
    assert (data.system_prompt, data.thinking_tags) == (run.read_config().data.system_prompt, "thinking")


def test_a_correct_generation_config_is_not_changed(run: RunDir, tmp_path: Path) -> None:
    exported(run.path, "--merged", out=tmp_path)
    theirs, ours = Path(TINY, "generation_config.json"), tmp_path / "merged" / "generation_config.json"
    assert theirs.read_bytes() == ours.read_bytes()


def large_vocabulary(name: str, folder: Path, published_data: Path) -> Path:
    """A base with random weights and the tokenizer files of a published family."""
    source = published_data / "tokenizers" / name
    config = json.loads((source / "config.json").read_text())
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    kind = AutoConfig.for_model(
        config["model_type"], **small, vocab_size=config["vocab_size"], tie_word_embeddings=True
    )
    model = AutoModelForCausalLM.from_config(kind, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in source.iterdir():
        if file.name in (*tokenizer_files.FILES, "generation_config.json"):
            shutil.copy(file, folder)
    adapter(model.float(), folder.parent / "adapter", seed=1)
    return folder


@pytest.mark.parametrize("name", ["llama3.2", "qwen2.5"])
def test_the_tokenizer_files_of_the_base_are_exported_unchanged(
    name: str, published_data: Path, data: Path, tmp_path: Path
) -> None:
    base = large_vocabulary(name, tmp_path / "base", published_data)
    args = ("--model", base, "--adapter", tmp_path / "adapter", "--merged", "--export-dtype", "float32")
    exported(*args, "--dataset", data, out=tmp_path / "out")
    merged = tmp_path / "out" / "merged"
    for file in base.iterdir():
        if file.name in tokenizer_files.FILES and file.name != tokenizer_files.SETTINGS:
            assert (merged / file.name).read_bytes() == file.read_bytes(), file.name
    theirs, ours = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in (base, merged))
    assert ours.pop("chat_template") == (merged / "chat_template.jinja").read_text()
    theirs.pop("chat_template")
    assert ours == theirs, "more than the template has changed"
    assert_opens_in_4(merged)


def test_folders_of_a_run_contain_the_tokenizer_of_the_base(run: RunDir, tmp_path: Path) -> None:
    exported(run.path, "--merged", out=tmp_path)
    for folder in (run.adapter, tmp_path / "merged"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == Path(TINY, name).read_bytes()
    assert_opens_in_4(tmp_path / "merged", run.adapter)


def assert_opens_in_4(*folders: Path) -> None:
    """Load them in another environment with transformers 4.57, if TRANSFORMERS_4 names its Python."""
    python = os.environ.get("TRANSFORMERS_4")
    if not python:
        pytest.skip("TRANSFORMERS_4 names no python with transformers 4.57 (pip install transformers==4.57.6 jinja2)")
    code = (
        "import sys, json, transformers; from transformers import AutoTokenizer\n"
        "assert transformers.__version__ < '5', transformers.__version__\n"
        "for folder in sys.argv[2:]:\n"
        "    t = AutoTokenizer.from_pretrained(folder)\n"
        "    print(json.dumps([t.apply_chat_template(json.loads(sys.argv[1]), add_generation_prompt=True), t.eos_token]))"
    )
    # -P and without PYTHONPATH, so that it does not import our modules
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", code, json.dumps(ASKED), *map(str, folders)], capture_output=True, text=True, env=environment, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-600:]
    for line, folder in zip(done.stdout.splitlines(), folders, strict=True):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
        assert json.loads(line) == [ids, tokenizer.eos_token]


def test_tokenizer_settings_of_transformers_5_are_converted_for_transformers_4(tmp_path: Path) -> None:
    tree = {
        "tokenizer_class": "TokenizersBackend",
        "backend": "tokenizers",
        "extra_special_tokens": ["<a>"],
        "eos_token": "<e>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tree))
    assert tokenizer_files.needs_transformers_5(tmp_path)
    tokenizer_files.make_readable_by_4(tmp_path)
    assert not tokenizer_files.needs_transformers_5(tmp_path)
    assert tokenizer_files.read_settings(tmp_path) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"], "eos_token": "<e>",
    }  # fmt: skip


def test_an_equal_tokenizer_of_an_adapter_is_not_reported(foreign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_tokens(foreign)  # saved again by transformers 5 without a change
    renderer = open_renderer(ModelConfig(), DataConfig(), foreign)
    assert "the tokenizer in" not in capsys.readouterr().err
    assert renderer.chat.files == Path(TINY)


def test_a_missing_adapter_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no adapter: there is no such folder"):
        target.resolve_target(adapter=tmp_path / "nowhere")


def test_the_revision_in_an_adapter_is_used_or_the_difference_reported(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(foreign / "adapter_config.json", lambda tree: tree.update(base_model_name_or_path="a/base", revision="v1"))
    assert target.resolve_target(base="a/base", adapter=foreign).config.model.model_revision == "v1"
    assert "another" not in capsys.readouterr().err
    assert (
        target.resolve_target(
            base="a/base", adapter=foreign, flags={"model_revision": "v2"}
        ).config.model.model_revision
        == "v2"
    )
    assert "names another revision of a/base than v2: v1" in capsys.readouterr().err
    assert target.resolve_target(base="b/base", adapter=foreign).config.model.model_revision is None
    assert "names another base than b/base: a/base" in capsys.readouterr().err


def test_a_requested_template_takes_precedence_and_is_reported(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renderer = open_renderer(ModelConfig(chat_template="chatml"), DataConfig(), foreign)
    assert "### Question" not in renderer.chat.tokenizer.chat_template
    assert "as asked; the chat template" in capsys.readouterr().err


def test_several_templates_in_tokenizer_settings_are_replaced_by_the_used_one(foreign: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(TINY, tmp_path / "base"))
    named = [
        {"name": "default", "template": (base / "chat_template.jinja").read_text()},
        {"name": "rag", "template": "x"},
    ]
    (base / "chat_template.jinja").unlink()
    edit(base / "tokenizer_config.json", lambda tree: tree.update(chat_template=named))
    renderer = open_renderer(ModelConfig(model_name_or_path=str(base)), DataConfig(), foreign)
    (tmp_path / "out").mkdir()
    tokenizer_files.write(renderer.chat.tokenizer, base, TEMPLATE, tmp_path / "out")
    assert tokenizer_files.read_settings(tmp_path / "out")["chat_template"] == TEMPLATE
    assert prompt_of(tmp_path / "out") == SAID
