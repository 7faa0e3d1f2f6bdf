"""`inspect` shows rows as the model sees them, and renders only those that it shows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import run_cli

from cot_unsloth import config as settings
from cot_unsloth import tasks
from cot_unsloth.core import trace
from cot_unsloth.core.types import IGNORE, Example, Part, Reject, Sample, Trace
from cot_unsloth.prompts import inspection
from cot_unsloth.prompts.inspection import InspectedRow, Segment
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage import records
from cot_unsloth.storage.run_folder import RunDir


def renderer(**leaves: Any) -> Renderer:
    """The renderer of the embedded model."""
    config = settings.load(None, leaves)
    return open_renderer(config.model, config.data)


def task_rows(n: int = 40, rate: float = 0.3) -> list[Example]:
    """Rows of a task, some of whose steps are corrupted."""
    return tasks.generate("world:chains:3-5", split="train", n=n, seed=1, error_rate=rate)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """The rows that have been rendered; grows during the test."""
    rendered: list[Example] = []
    known = Renderer.sample

    def sample(self: Renderer, example: Example) -> Sample | Reject:
        rendered.append(example)
        return known(self, example)

    monkeypatch.setattr(Renderer, "sample", sample)
    return rendered


def example(question: str, think: str, answer: str, **more: Any) -> Example:
    """An example with one step of reasoning."""
    return Example(id=question, question=question, trace=Trace((Part("think", think),), answer), answer=answer, where="mine.jsonl:1", **more)  # fmt: skip


@pytest.mark.parametrize("n", [1, 3, 7])
def test_only_rows_that_are_shown_are_rendered(counted: list[Example], n: int) -> None:
    config = settings.load(None, {"world_samples": 500, "world_error_rate": 0.3})
    rows = inspection.rows_of_settings(config, n)
    assert len(rows) == len(counted) == n


def test_rows_that_show_something_special_are_chosen_first() -> None:
    rows = [*task_rows(20, rate=0), *task_rows(20, rate=0.9)]
    longest = replace(rows[7], question=rows[7].question + " word" * 200)
    shortest = example("3+4?", "7", "7")
    talk = example(
        "And 5?", "5", "5", history=({"role": "user", "content": "hi " * 20}, {"role": "assistant", "content": "ho"})
    )
    rows[7], rows[9], rows[11] = longest, shortest, talk
    chosen = dict(inspection.choose_rows(rows, 6))
    assert list(chosen.values())[:3] == ["a corrupted step", "the longest", "the shortest"]
    assert chosen[7] == "the longest"
    assert chosen[9] == "the shortest"
    assert chosen[11] == "earlier turns"
    assert rows[next(iter(chosen))].trace.injected
    assert len(inspection.choose_rows(rows, 100)) == len(rows) == len(dict(inspection.choose_rows(rows, 100)))
    assert inspection.choose_rows(rows[:1], 5)[0][0] == 0


@pytest.mark.parametrize(
    ("layout", "tags"),
    [("nested", "thinking"), ("sequential", "thinking"), ("nested", "think"), ("sequential", "think")],
)
@pytest.mark.parametrize("masked", [True, False])
def test_segments_add_up_to_the_row_and_agree_with_its_labels(layout: str, tags: str, masked: bool) -> None:
    opened = renderer(trace_layout=layout, thinking_tags=tags, mask_wrong_steps=masked, max_seq_length=2048)
    rows = task_rows(30, rate=0.5)
    shown = inspection.inspect_rows(opened, rows, 12)
    wrong_texts = 0
    for row in shown:
        source = next(item for item in rows if item.where == row.where)
        sample = opened.sample(source)
        assert isinstance(sample, Sample)
        assert "".join(segment.text for segment in row.segments) == opened.chat.decode(sample.ids)
        assert row.tokens == len(sample.ids)
        assert row.supervised == sum(label != IGNORE for label in sample.labels)
        at = 0
        for segment in row.segments:
            labels = sample.labels[at : at + segment.tokens]
            assert all((label != IGNORE) is segment.loss for label in labels)
            assert opened.chat.decode(sample.ids[at : at + segment.tokens]) == segment.text
            if segment.control:
                assert opened.chat.without_control(segment.text) == ""
            else:
                assert opened.chat.control_token(segment.text) is None
            at += segment.tokens
        wrong = "".join(segment.text for segment in row.segments if segment.corrupted)
        for part in source.trace.parts:
            if part.injected and part.kind == "think":
                assert part.text in wrong
                wrong_texts += 1
        assert all(segment.loss is not masked for segment in row.segments if segment.corrupted)
        end = row.segments[-1]
        assert (end.text, end.control, end.loss, end.section) == ("<|im_end|>", True, True, None)
        thinking = "".join(segment.text for segment in row.segments if segment.section == "thinking" and segment.loss)
        assert thinking.startswith(f"<{tags}>")
        assert f"</{tags}>" in thinking
        answer = "".join(segment.text for segment in row.segments if segment.section == "output")
        assert trace.tags("output")[0] + source.trace.output + trace.tags("output")[1] == answer.strip()
        reflected = "".join(segment.text for segment in row.segments if segment.section == "reflection")
        assert all(part.text in reflected for part in source.trace.parts if part.kind == "reflect")
    assert wrong_texts


def test_the_prompt_is_masked_and_in_no_section() -> None:
    [row] = inspection.inspect_rows(
        renderer(system_prompt="Mind the gap."), [example("What is 1 + 1?", "1 + 1 = 2", "2")], 1
    )
    before = [segment for segment in row.segments if not segment.loss]
    assert {segment.section for segment in before} == {None}
    text = "".join(segment.text for segment in before)
    assert "Mind the gap." in text
    assert "What is 1 + 1?" in text
    assert "1 + 1 = 2" not in text


@pytest.mark.parametrize(
    "text",
    ["Wie groß ist π² in 日本?", "🙂 + 🙂🏽 = ?", "naïve café", "שלום 3", "a\u200bb", "x²√2≠½", "👩‍👩‍👧‍👦 family"],
)
def test_characters_made_of_several_tokens_are_not_broken(text: str) -> None:
    """A token of a byte-level vocabulary may be only part of a character, which then spans several tokens."""
    opened = renderer()
    [row] = inspection.inspect_rows(opened, [example(text, f"{text} is asked, so {text}", text)], 1)
    sample = opened.sample(example(text, f"{text} is asked, so {text}", text))
    assert isinstance(sample, Sample)
    assert "".join(segment.text for segment in row.segments) == opened.chat.decode(sample.ids)


def test_characters_that_a_tokenizer_composes_are_shown_whole() -> None:
    from tokenizers.normalizers import NFC

    opened = renderer()
    opened.chat.tokenizer.backend_tokenizer.normalizer = NFC()  # as Qwen's
    text = "cafe\u0301"
    [row] = inspection.inspect_rows(opened, [example(text, f"{text}\n{text} again", text)], 1)
    shown = "".join(segment.text for segment in row.segments)
    assert shown.count(text) == 4
    assert row.tokens == sum(segment.tokens for segment in row.segments)


def test_a_rejected_row_is_shown_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    rows = inspection.inspect_rows(renderer(max_seq_length=64), [example("why? " * 80, "so", "7")], 2)
    assert [row.segments for row in rows] == [()]
    assert rows[0].rejected.startswith("too_long: ")
    assert "not trained on: too_long: " in inspection.render_page(rows, "mine.jsonl")
    [other] = inspection.inspect_rows(renderer(), [example("why <|im_end|> so?", "so", "7")], 1)
    assert other.rejected.startswith("control_token: ")


HOSTILE = "<script>alert('x')</script> & <b>\"bold\"</b> </pre></span>"


def test_the_page_escapes_markup_in_rows() -> None:
    rows = inspection.inspect_rows(renderer(), [example(HOSTILE, f"I say {HOSTILE}", "7")], 1)
    page = inspection.render_page([replace(rows[0], where=f"{HOSTILE}.jsonl:1")], HOSTILE)
    assert "<script" not in page
    assert "<b>" not in page
    assert page.count("<pre>") == page.count("</pre>") == 1
    [body] = re.findall(r"<pre>(.*?)</pre>", page, flags=re.DOTALL)
    assert html.unescape(re.sub(r"<[^>]+>", "", body)) == "".join(segment.text for segment in rows[0].segments)
    assert not re.search(r"(src|href)=|url\(|@import|http", page)


def test_inspect_shows_a_data_file_a_config_and_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    item = {"question": "What is 3 + 4?", "thinking": "3 + 4 = 7", "answer": "7"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(item) + "\n")
    (tmp_path / "mine.yaml").write_text(f"data: {{dataset: {tmp_path / 'mine.jsonl'}}}\n")
    for target in ("mine.jsonl", "mine.yaml"):
        assert run_cli("inspect", str(tmp_path / target)) == 0
        output = capsys.readouterr()
        assert "mine.jsonl:1: the longest" in output.out
        assert "  no loss on:\n    <|im_start|>system\n" in output.out
        assert "  loss on:\n    <thinking>\n    3 + 4 = 7\n    </thinking>" in output.out
        assert "<output>7</output><|im_end|>" in output.out
        assert "\x1b" not in output.out
    assert run_cli("inspect", "-n", "2", "--world-samples", "30", "--world-error-rate", "0.5") == 0
    output = capsys.readouterr().out
    assert output.count(" with loss\n") == 2
    assert "no loss on (a corrupted step):" in output
    assert run_cli("inspect", str(tmp_path / "none.jsonl")) == 2
    assert run_cli("inspect", str(tmp_path / "mine.jsonl"), "-n", "0") == 2


def a_run(folder: Path, dataset: str, examples: list[Example]) -> RunDir:
    """A run folder with the files that `inspect` reads."""
    run = RunDir(folder)
    folder.mkdir()
    run.write_config(settings.load(None, {"dataset": dataset, "world_samples": 50, "world_error_rate": 0.4}))
    run.kept.parent.mkdir(exist_ok=True)
    records.write_jsonl(run.kept, [records.kept_row(item, "nested") for item in examples])
    return run


def test_inspect_shows_the_training_rows_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        replace(example("What is 3 + 4?", "3 + 4 = 7", "7"), split="train"),
        replace(example("Held out?", "yes", "yes"), split="test"),
    ]
    run = a_run(tmp_path / "run", str(tmp_path / "gone.jsonl"), rows)
    assert run_cli("inspect", str(run.path)) == 0
    output = capsys.readouterr().out
    assert "3 + 4 = 7" in output
    assert "Held out?" not in output
    assert run_cli("inspect", str(run.path), "--max-seq-length", "100") == 2
    a_run(tmp_path / "task", "world:chains:3-5", [])
    assert run_cli("inspect", str(tmp_path / "task"), "-n", "1") == 0
    assert "a corrupted step" in capsys.readouterr().out


def test_the_page_is_written_and_a_browser_renders_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, picture = tmp_path / "rows.html", tmp_path / "rows.png"
    flags = ["--html", str(page), "-n", "3", "--world-samples", "40", "--world-error-rate", "0.4"]
    assert run_cli("inspect", *flags) == 0
    assert capsys.readouterr().out == f"page: {page}\n"
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser is installed")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip
    command = [chromium, "--headless", *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1400", f"--screenshot={picture}", page.as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert picture.stat().st_size > 20_000


def test_token_counts_of_segments_add_up() -> None:
    segments = (Segment("a", 2, False, None, False, False), Segment("b", 3, True, "output", False, False))
    row = InspectedRow("f:1", "the first", segments)
    assert (row.tokens, row.supervised) == (5, 3)
