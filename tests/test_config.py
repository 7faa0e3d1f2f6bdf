"""Settings: precedence, writing and reading them back, and errors that give the line and the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cot_unsloth import config
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.lab import space as spaces
from cot_unsloth.storage.run_folder import RunDir

ROOT = Path(__file__).parent.parent
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "examples" / "applications").glob("*/*.yaml")])


def error_of(path: Path, **flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path, flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  learning_rate: 1e-3\n  seed: 5\n")
    settings = config.load(path, {"seed": "6"})
    assert (settings.train.learning_rate, settings.train.seed, settings.lora.lora_r) == (1e-3, 6, 32)


def test_another_model_without_a_config_file_uses_the_defaults_and_not_the_settings_of_the_demo() -> None:
    assert config.load(None).train.learning_rate == 4e-3
    other = config.load(None, {"model_name_or_path": "some/model"})
    assert other == config.load_tree({"model": {"model_name_or_path": "some/model"}}, {})
    assert other.train.learning_rate == 2e-4


def test_names_of_settings_are_unique_so_that_each_can_be_a_flag() -> None:
    assert len(config.LEAVES) == sum(len(kind.model_fields) for kind in config.SECTIONS.values())


def test_every_setting_has_a_description() -> None:
    assert [leaf for _, leaf, _, text in config.reference() if not text] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_config_parses_and_starts_with_its_command(path: Path) -> None:
    config.load(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    name = path.relative_to(ROOT).as_posix()
    argument = "" if name == "configs/tiny-cpu.yaml" else f" {name}"
    assert first == f"# python -m cot_unsloth.train{argument}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_line_of_a_config_differs_from_the_default_and_gives_a_reason(path: Path) -> None:
    import yaml

    tree, text = yaml.safe_load(path.read_text(encoding="utf-8")), path.read_text(encoding="utf-8")
    for section, leaves in tree.items():
        for leaf, value in leaves.items():
            assert value != config.SECTIONS[section].model_fields[leaf].default, f"{leaf} equals its default"
            if leaf not in ("model_name_or_path", "dataset"):
                line = next(line for line in text.splitlines() if line.strip().startswith(f"{leaf}:"))
                assert "#" in line, f"{leaf} has no comment"


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.endswith("-grpo")], ids=lambda p: p.stem)
def test_a_second_stage_continues_what_the_first_one_leaves(path: Path) -> None:
    first, second = config.load(path.with_stem(path.stem.removesuffix("-grpo"))), config.load(path)
    assert (first.train.method, second.train.method) == ("rft", "grpo")
    run = RunDir(str(first.train.run_dir))
    assert second.train.init_adapter == str(run.path) != second.train.run_dir
    assert second.grpo.pass_rates == (run.rounds / "1" / "samples").as_posix()
    assert (second.model, second.data, second.lora) == (first.model, first.data, first.lora)
    assert second.evaluate == first.evaluate, "both stages answer the same problems"


def test_the_embedded_config_equals_the_one_in_configs() -> None:
    assert config.DEFAULT_CONFIG.read_text() == (ROOT / "configs" / "tiny-cpu.yaml").read_text()


def test_resolved_settings_round_trip(tmp_path: Path) -> None:
    settings = config.load(None, {"arms": "base_cot,tuned", "system_prompt": "Ünïcode: #yes", "model_revision": "none"})
    again = config.load(write(tmp_path, settings.to_yaml()))
    assert again == settings
    assert again.fingerprint() == settings.fingerprint()


def test_settings_that_were_added_later_leave_the_hashes_of_older_runs_as_they_were() -> None:
    # As cot_unsloth hashed its defaults before `method` existed.
    assert config.RunConfig().fingerprint() == "fbad0443581ded95"
    assert config.RunConfig().train.method == "sft"


def test_every_training_method_can_be_chosen() -> None:
    from cot_unsloth.config.choices import METHODS

    assert [config.load(None, {"method": name}).train.method for name in METHODS] == list(METHODS)


def test_a_json_config_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train": {"max_steps": 3}}))
    assert config.load(path).train.max_steps == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:\n  rnak: 8\n", "mine.yaml:2: lora.rnak is not a setting; did you mean lora.lora_r?"),
        ("lora:\n  rank: 8\n", "did you mean lora.lora_r?"),
        ("train:\n  learning_rat: 1\n", "did you mean train.learning_rate?"),
        ("lora:\n  learning_rate: 1\n", "it belongs in section train"),
        ("trian:\n  seed: 1\n", "mine.yaml:1: trian is not a section; did you mean train?"),
        ("seed: 1\n", "it belongs in section train"),
        ("train:\n  seed: soon\n", "mine.yaml:2: train.seed is 'soon'"),
        ("train:\n  max_steps: 0\n", "nothing would be trained"),
        ("model:\n  engine: vllm\n", "mine.yaml:2: model.engine is 'vllm': input should be 'auto', 'hf' or 'unsloth'"),
        ("model:\n  engine: 3\n", "model.engine is 3: input should be 'auto', 'hf' or 'unsloth'"),
        ("train:\n  method: [sft]\n", "train.method is ['sft']: input should be 'sft'"),
        ("train: 3\n", "train must hold settings"),
        (
            "lora:\n  loraplus_lr_ratio: yes\n",
            "mine.yaml:2: lora.loraplus_lr_ratio is True: input should be a number, not yes or no",
        ),
        ("evaluate:\n  eval_samples: no\n", "mine.yaml:2: evaluate.eval_samples is False: input should be a number"),
        ("train:\n  max_steps: 010\n", "mine.yaml:2: train.max_steps is 010, which YAML reads as 8"),
        ("train:\n  save_steps: 1:30\n", "mine.yaml:2: train.save_steps is 1:30, which YAML reads as 90"),
        (
            "data:\n  answer_column: no\n",
            "mine.yaml:2: data.answer_column is False: input should be a valid string; write it in quotes",
        ),
        (
            "model:\n  date_string: 2024-07-26\n",
            "model.date_string is 2024-07-26: input should be a valid string; write it in quotes",
        ),
        ("train:\n  seed: 1\n  seed: 2\n", "mine.yaml:3: train.seed is set twice"),
        ("train: [unclosed\n", "is not YAML"),
        ("- a\n- b\n", "holds no settings"),
        ("lora: &x {lora_r: *x}\n", "cannot be read"),
        ("[" * 3000, "cannot be read"),
        ("train:\n  run_dir: 2024-13-45\n", "cannot be read"),
        ("train:\n  learning_rate: .inf\n", "finite"),
        ("train:\n  seed: 4294967296\n", "less than or equal to 4294967295"),
        ("lora:\n  target_modules: []\n", "at least 1 item"),
    ],
)
def test_each_error_gives_the_line_and_the_fix(tmp_path: Path, text: str, message: str) -> None:
    assert message in error_of(write(tmp_path, text))


def test_all_errors_are_shown_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "lora:\n  rnak: 8\n  lora_alpha: much\ntrain:\n  lr: 1\n")
    message = error_of(path, max_seq_length="long")
    assert "4 settings cannot be used" in message
    for expected in (
        "mine.yaml:2: lora.rnak",
        "mine.yaml:3: lora.lora_alpha",
        "mine.yaml:5: train.lr",
        "--max-seq-length",
    ):
        assert expected in message


def test_a_missing_config_file_is_an_error(tmp_path: Path) -> None:
    assert "there is no such file" in error_of(tmp_path / "absent.yaml")
    assert "cot-unsloth init" in error_of(tmp_path / "absent.yaml")
    assert "use a clone" in error_of(tmp_path / "configs" / "qwen2.5-7b.yaml")
    write(tmp_path, "")
    assert f"did you mean {tmp_path / 'mine.yaml'}?" in error_of(tmp_path / "mien.yaml")


def test_json_may_contain_tabs_and_escapes(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{\n\t"data": {"system_prompt": "think \\ud83d\\ude00"}\n}')
    assert config.load(path).data.system_prompt == "think \U0001f600"
    path.write_text('{"data": {"system_prompt": "half \\ud83d"}}')
    assert "cannot be read" in error_of(path)
    path.write_text('{"data":\n}')
    assert "mine.json:2: is not JSON" in error_of(path)
    path.write_text('{"train": {"seed": 1},\n "train": {"max_steps": 3}}')
    assert "mine.json:2: train is set twice" in error_of(path)
    path.write_text(
        f'{{"{"x" * 2000}": 1, "seed": 1, "seed": 2}}'
    )  # YAML reads no key of this length: there are no lines
    assert "mine.json: seed is set twice" in error_of(path)
    path.write_text('{"train": {\n\t"seed": "soon"}}')
    assert "mine.json:2: train.seed is 'soon'" in error_of(path)


@pytest.mark.parametrize("name", ["mine.json", "mine.JSON", "mine.yaml"])
def test_a_byte_order_mark_and_capitals_in_the_suffix_do_not_matter(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('{\n\t"train": {"seed": 5}\n}'.replace("\t", " " if name.endswith("yaml") else "\t"), "utf-8-sig")
    assert config.load_target(str(path), {}).train.seed == 5


@pytest.mark.parametrize(
    ("content", "is_settings"),
    [
        ('{"train": {"seed": 5}, "trian": {"x": 6}}', True),
        ('{"train": {"seed": 5}, "lora": null}', True),
        ('{"train": {}}', True),
        ('{"train": [{"question": "?"}]}', False),
        ('{"data": {"question": ["?"], "answer": ["7"]}, "version": 1}', False),
        ("{}", False),
        ("[]", False),
    ],
)
def test_a_json_file_with_a_section_is_settings(content: str, is_settings: bool, tmp_path: Path) -> None:
    """With a misspelt section beside it, it was taken for data, and the error was about rows."""
    path = tmp_path / "mine.json"
    path.write_text(content)
    assert config.is_settings_file(str(path)) is is_settings


def test_a_list_may_be_written_as_text(tmp_path: Path) -> None:
    text = "evaluate:\n  arms: base_cot, tuned\nexport:\n  gguf: q8_0\ntrain:\n  report_to: none\n"
    settings = config.load(write(tmp_path, text), {"layers_to_transform": "none"})
    assert settings.evaluate.arms == ("base_cot", "tuned")
    assert (settings.export.gguf, settings.train.report_to, settings.lora.layers_to_transform) == (("q8_0",), (), ())


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands it in a file, nor in --run-dir=~/runs/1: a folder called ~ was made."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    leaves = ("model_name_or_path", "chat_template", "run_dir", "init_adapter", "pass_rates")
    settings = config.load(None, dict.fromkeys(leaves, "~/x"))
    assert {getattr(getattr(settings, config.LEAVES[leaf]), leaf) for leaf in leaves} == {str(tmp_path / "x")}
    assert config.load(None, {"model_name_or_path": "me/x~y"}).model.model_name_or_path == "me/x~y"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("train:\n  method: grpo\n  learning_rate: 5.0e-6\n", {"method": "grpo"}),
        ("evaluate:\n  benchmark: gsm8k\n  max_new_tokens: 512\n", {"benchmark": "gsm8k"}),
        ("evaluate:\n  max_new_tokens: 1000\n", {"benchmark": "none"}),
        ("lora:\n  technique: vera\n  lora_r: 8\n", {"technique": "vera"}),
        ("train:\n  method: sft\n  learning_rate: 3.0e-3\n", {"method": "rft"}),
    ],
)
def test_a_flag_that_repeats_the_file_changes_nothing_else(tmp_path: Path, text: str, flags: dict[str, str]) -> None:
    """It took the file's learning rate, token limit or rank with it."""
    path = write(tmp_path, text)
    assert set(config.load(path).differences(config.load(path, flags))) <= {"train.method"}


def test_the_rate_of_grpo_is_not_kept_for_another_method() -> None:
    grpo = config.load_tree({"train": {"method": "grpo"}}, {})
    assert grpo.train.learning_rate != config.RunConfig().train.learning_rate
    assert grpo.overridden({"method": "sft"}).train.learning_rate == config.RunConfig().train.learning_rate
    assert grpo.overridden({"method": "rft", "learning_rate": 3e-5}).train.learning_rate == 3e-5


def test_none_is_a_text_where_it_is_a_choice() -> None:
    """`--scale-rewards none` was refused: "is None: input should be 'batch', 'group' or 'none'"."""
    assert config.load(None, {"scale_rewards": "none"}).grpo.scale_rewards == "none"
    assert config.load(None, {"system_prompt": "None"}).data.system_prompt is None
    varied = [spaces.parse(f"{leaf}=batch,none").choices for leaf in ("scale_rewards", "pass_rates")]
    assert varied == [("batch", "none"), ("batch", None)]


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, "")) == config.RunConfig()


def test_the_sections_are_the_fields_of_run_config() -> None:
    assert {name: field.annotation for name, field in config.RunConfig.model_fields.items()} == config.SECTIONS


def test_flags_override_settings_that_are_already_loaded() -> None:
    settings = config.load(None, {"learning_rate": "1e-3"}).overridden({"seed": "6", "arms": "tuned"})
    assert (settings.train.learning_rate, settings.train.seed, settings.evaluate.arms) == (1e-3, 6, ("tuned",))
    assert settings.differences(settings.replaced(seed=7, run_dir="x")) == {"train.seed": (6, 7)}
    with pytest.raises(ConfigError, match=r"--seed: train.seed is 'soon'"):
        settings.overridden({"seed": "soon"})
