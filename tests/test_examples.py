"""Every example runs, the embedded base can be reproduced, and the wheel works in an empty folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import notebooks
import pytest
from helpers import forked, module, run_cli, running_server
from speaking import Speaker

from cot_unsloth.config import load_tree
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.server import Served
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.storage.run_folder import RunDir

ROOT = Path(__file__).parent.parent
SCRIPTS = (
    "01_train.py", "02_evaluate.py", "03_export.py", "04_own_data.py", "06_check.py", "07_sample.py", "08_curves.py",
    "09_compare.py", "10_sweep.py", "11_transfer.py",
)  # fmt: skip
SHOWN = {"own_data.jsonl", "score_a_model.py", "05_client.py", "12_llamacpp.py", *SCRIPTS, *notebooks.NAMES}


def test_every_example_is_run_by_a_test() -> None:
    assert {p.name for p in (ROOT / "examples").iterdir() if p.is_file()} == SHOWN


def test_the_example_data_can_be_trained_on(tmp_path: Path) -> None:
    data = str(ROOT / "examples" / "own_data.jsonl")
    args = ["--dataset", data, "--run-dir", str(tmp_path / "run"), "--max-steps", "2", "--max-new-tokens", "8"]
    assert run_cli("train", *args) == 0
    assert len(read_jsonl(RunDir(tmp_path / "run").kept)) == 20


def script(name: str, *args: str, at: Path) -> str:
    """The output of an example script, run in the folder `at`."""
    done = forked(str(ROOT / "examples" / name), *args, at=at)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_scripts_are_short_and_use_only_the_public_interface() -> None:
    import cot_unsloth

    for name in SCRIPTS:
        text = (ROOT / "examples" / name).read_text()
        assert len(text.splitlines()) < 40
        [names] = re.findall(r"^from cot_unsloth import (.+)$", text, flags=re.MULTILINE)
        assert set(names.split(", ")) <= set(cot_unsloth.__all__)
        assert text.count("cot_unsloth import") == 1


def test_the_notebooks_are_what_their_script_writes_and_show_a_run() -> None:
    script_ = module(ROOT / "scripts" / "make_notebooks.py")
    for book in script_.NOTEBOOKS:
        kept = nbformat.read(ROOT / "examples" / book.file, as_version=4)  # type: ignore[no-untyped-call]
        assert [(c.cell_type, c.source) for c in kept.cells] == [(kind, text) for kind, text, _ in script_.cells(book)]
        outputs = {cell.source: str(cell.outputs) for cell in kept.cells if cell.cell_type == "code"}
        assert "'model_name_or_path': 'tiny-base'" in next(
            text for source, text in outputs.items() if "SETTINGS =" in source
        )
        assert "passed" in next(text for source, text in outputs.items() if "export_run" in source)
        assert not re.search(r"[/\\](?:tmp|home|root|work|Users)[/\\]", str(outputs))


@pytest.mark.slow
def test_the_scripts_train_score_and_export_a_run(tmp_path: Path) -> None:
    few = ("--world-samples", "48", "--eval-samples", "4")
    output = script("01_train.py", "--run-dir", "run", *few, at=tmp_path)
    assert "points over the base asked directly" in output
    output = script("02_evaluate.py", "run", "--n", "4", at=tmp_path)
    assert output.count("n=4") == 4
    output = script("03_export.py", "run", "--gguf", "q8_0", "--out", "out", at=tmp_path)
    assert "kl passed" in output
    assert "FAILED" not in output
    assert "What is the result?" in output
    assert {p.name for p in tmp_path.iterdir()} == {"run", "out"}
    output = script("08_curves.py", "run", "--budgets", "4", "8", "--n", "4", at=tmp_path)
    assert output.count("tokens of thinking: ") == 2
    [file] = (tmp_path / "out").glob("*.gguf")
    output = script("12_llamacpp.py", str(file), "run/config.yaml", "Start with 4. (1) add 2", at=tmp_path)
    assert "output>" not in output
    assert output.strip()
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    output = script("09_compare.py", "run", "again", at=tmp_path)
    assert "no significant difference" in output
    assert (tmp_path / "adapters" / "both" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_scripts_search_settings_and_measure_transfer(tmp_path: Path) -> None:
    output = script("10_sweep.py", "--trials", "2", "--rows", "16", at=tmp_path)
    assert output.count("'learning_rate': ") == 2
    assert (tmp_path / "sweeps" / "rate-and-rank" / "best.yaml").is_file()
    output = script(
        "11_transfer.py", "--tasks", "world:words:1-2", "world:chains:4", "--rows", "16", "--n", "4", at=tmp_path
    )
    rows = [line.split()[0] for line in output.splitlines()]
    assert rows == ["adapter", "base", "words-1-2", "chains-4", "joint", "cat-0.5"]


def test_a_data_set_is_checked_and_a_row_of_it_shown(tmp_path: Path) -> None:
    output = script("06_check.py", str(ROOT / "examples" / "own_data.jsonl"), at=tmp_path)
    assert "note: 20 in = " in output
    assert "<thinking>" in output
    assert list(tmp_path.iterdir()) == []


def test_the_client_prints_thinking_and_answer_of_a_server() -> None:
    with running_server(Served({"m": Speaker()}, load_tree({}, {}))) as address:
        command = [sys.executable, str(ROOT / "examples" / "05_client.py"), "1 + 1?", "--url", f"{address}/v1"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split("reasoning_content:\n")[1].startswith("1 + 1 = 3")
    assert output.endswith("content:\n2\n")


def test_the_client_says_what_failed_in_the_middle_of_an_answer() -> None:
    class Failing(Speaker):
        def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
            yield "<thinking>one"
            raise ValueError

    with running_server(Served({"m": Failing()}, load_tree({}, {}))) as address:
        command = [sys.executable, str(ROOT / "examples" / "05_client.py"), "1 + 1?", "--url", f"{address}/v1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: internal error (ValueError)\n")


@pytest.mark.parametrize("name", ["02_evaluate.py", "03_export.py"])
def test_a_script_without_a_run_gives_a_one_line_error(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / name), "absent"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: absent: there is no such folder")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_twenty_hand_written_traces_become_a_verified_model(tmp_path: Path) -> None:
    output = script("04_own_data.py", "--run-dir", "mine", "--epochs", "1", at=tmp_path)
    run = RunDir(tmp_path / "mine")
    assert len(read_jsonl(run.kept)) == 21
    assert json.loads(run.verified.read_text())["status"] == "passed"
    assert f"cot-unsloth chat mine/export/{run.exported_models()[0].name}" in output


def test_the_public_interface_is_complete_and_imports_no_torch() -> None:
    import cot_unsloth
    from cot_unsloth import api

    assert set(api.__all__) | {"CotError"} == set(cot_unsloth.__all__)
    assert all(callable(getattr(cot_unsloth, name)) for name in cot_unsloth.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fine_tune'"):
        cot_unsloth.fine_tune  # noqa: B018
    code = "import sys; from cot_unsloth import *; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_from_python_are_checked_like_those_of_a_file(tmp_path: Path) -> None:
    from cot_unsloth import CotError, load_config, train_run

    with pytest.raises(CotError, match=r"learning_rat: is not a setting; did you mean train\.learning_rate"):
        load_config(learning_rat=1e-4)
    assert load_config(dataset=Path("my") / "rows.jsonl").data.dataset == str(Path("my") / "rows.jsonl")
    assert load_config(ROOT / "configs" / "qwen2.5-7b.yaml", dataset_config_name=None).data.dataset_config_name is None
    with pytest.raises(CotError, match="there is no run to resume"):
        train_run(load_config(), resume=True)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return notebooks.train_start(tmp_path_factory.mktemp("notebooks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.NAMES)
def test_a_notebook_runs_from_top_to_bottom(name: str, start: Path, tmp_path: Path) -> None:
    notebooks.run_notebook(name, {"load_in_4bit": False, "gradient_checkpointing": False}, tmp_path, start)


@pytest.mark.slow
def test_right_answers_of_a_model_become_a_data_set(start: Path, tmp_path: Path) -> None:
    output = script(
        "07_sample.py", str(start), "--dataset", "world:words:1", "--problems", "16", "-k", "4", at=tmp_path
    )
    assert "of 64 attempts at 16 problems are right" in output
    rows = len(read_jsonl(tmp_path / "samples" / "data.jsonl"))
    assert f"{rows} rows: " in output
    assert rows > 0


def test_score_a_model_prints_a_table(tmp_path: Path) -> None:
    assert "base, asked directly" in script("score_a_model.py", "--n", "4", "--out", str(tmp_path), at=tmp_path)


@pytest.mark.slow
def test_pre_training_of_the_base_is_reproducible() -> None:
    """The first 20 steps of the script give the losses recorded when the base was made."""
    script = module(ROOT / "scripts" / "pretrain_tiny_base.py")
    made = json.loads((ROOT / "cot_unsloth" / "assets" / "tiny-base" / "pretrain.json").read_text())
    first, *later = made["stages"]
    recipe = script.Recipe(**first["recipe"])
    assert recipe == script.Recipe(), "the first stage of the shipped base was not made with the defaults of the script"
    assert [stage["recipe"]["stage"] for stage in later] == ["second", "third"]
    _, tokenizer, losses = script.pretrain(recipe, 20)
    assert losses == pytest.approx(first["first_losses"], abs=0.02)  # bfloat16 sums differ between CPUs
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(ROOT / "cot_unsloth" / "assets" / "tiny-base")
    assert tokenizer.get_vocab() == shipped.get_vocab()


@pytest.mark.parametrize("stage", ["first", "second", "third"])
def test_pre_training_texts_contain_no_chained_steps_traces_or_test_problems(stage: str) -> None:
    """The texts that the base was pre-trained on contain nothing that the demo measures.

    A step is chained to an earlier one if it starts from its result and has the next number or directly follows it.
    A remark about a wrong step starts from the same value as that step and has no number.
    """
    import itertools
    import re

    from cot_unsloth import tasks
    from cot_unsloth.core import trace

    script = module(ROOT / "scripts" / "pretrain_tiny_base.py")
    held_out = {
        problem.question
        for split in ("validation", "test")
        for problem in tasks.problems("world:chains:1-12,words:1-7,countdown", split=split, n=900, seed=1)
    }
    assert len(held_out) == 1800
    steps = questions_seen = 0
    for mix in script.STAGES[stage]:
        for text in itertools.islice(script.texts(3407, mix), 3000):
            full_text = text.full_text
            answers = [piece for piece, skill in text.pieces if skill]
            assert trace.parse("\n".join(answers)).trace is None
            assert "<reflection>" not in "".join(answers) or {skill for _, skill in text.pieces} == {"markup", None}
            assert text.question in full_text
            questions = {text.question, *re.findall(r"^Make .* \*\.", full_text, re.MULTILINE)} - {""}
            assert not questions & held_out
            questions_seen += len(questions)
            results: list[tuple[int, str]] = []
            for index, start, result in steps_of(full_text, countdown="Make " in full_text):
                assert (index - 1, start) not in results, full_text
                assert index == 1 or not results or start != results[-1][1], full_text
                results.append((index, result))
                steps += 1
    assert steps > 5000
    assert questions_seen > 3000


def steps_of(text: str, countdown: bool) -> list[tuple[int, str, str]]:
    """Number, start and result of every step in a text, for any task."""
    from cot_unsloth.tasks.chained import _STEP
    from cot_unsloth.tasks.countdown import _LINE

    if countdown:
        lines = filter(None, map(_LINE.search, text.splitlines()))
        return [(int(m["index"]), m["numbers"].split(", ")[0], m["made"]) for m in lines]
    return [(int(m["index"]), m["value"], m["state"] or m["raw"]) for m in _STEP.finditer(text)]


def test_a_wheel_in_an_empty_folder_runs_the_default(tmp_path: Path) -> None:
    """Installed outside the checkout, so that the base and its config must come from the wheel."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels, site, empty = tmp_path / "wheels", tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    empty.mkdir()
    small = ["--max-steps", "2", "--world-samples", "16", "--eval-samples", "4", "--max-new-tokens", "8"]
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import runpy; sys.argv = ['train', *{small!r}]; " + (
        "import cot_unsloth; assert cot_unsloth.__file__.startswith(sys.path[0]), cot_unsloth.__file__; "
        "runpy.run_module('cot_unsloth.train', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = (empty / "runs").iterdir()
    assert (run / "scorecard.json").is_file()
