"""Data files become Examples: every row is kept or rejected, and each rejected row has a reason and a line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cot_unsloth.config import DataConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.data import Loaded, load_examples

TAGGED = "<thinking>\n3 + 4 = 7\n</thinking>\n<output>7</output>"


def load(path: Path | str, eval_samples: int = 0, eval_seed: int = 1, **settings: Any) -> Loaded:
    data = DataConfig(dataset=str(path), **settings)
    return load_examples(data, seed=1, eval_samples=eval_samples, eval_seed=eval_seed)


def jsonl(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "3 + 4?"},
            {"role": "assistant", "content": TAGGED},
        ]
    },
    "messages with reasoning_content": {
        "messages": [
            {"role": "user", "content": "3 + 4?"},
            {"role": "assistant", "content": "7", "reasoning_content": "3 + 4 = 7"},
        ]
    },
    "prompt and response": {"prompt": "3 + 4?", "response": TAGGED},
    "think": {"question": "3 + 4?", "answer": "<think>3 + 4 = 7</think>7"},
    "gsm8k": {"question": "3 + 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    "reasoning columns": {
        "instruction": "3 + 4?",
        "reasoning_chains": [{"step": 1, "thought": "3 + 4 = 7"}],
        "reasoning": "Adding is all there is to it.",
        "output": "7",
    },
    "reasoning column alone": {"instruction": "3 + 4?", "reasoning": "3 + 4 = 7", "output": "7"},
    "chain as text": {"instruction": "3 + 4?", "reasoning_chains": "[{'thought': '3 + 4 = 7'}]", "output": "7"},
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_is_recognised_and_read(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = load(jsonl(tmp_path, row)).examples
    assert (example.question, example.answer) == ("3 + 4?", "7")
    assert example.trace.parts[0].text == "3 + 4 = 7"


def test_messages_keep_system_and_history(tmp_path: Path) -> None:
    (example,) = load(jsonl(tmp_path, LAYOUTS["messages"])).examples
    assert example.system == "Be brief."
    assert [dict(m) for m in example.history] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "<output>hi</output>"},
    ]


def test_two_reasoning_columns_are_both_kept(tmp_path: Path) -> None:
    (example,) = load(jsonl(tmp_path, LAYOUTS["reasoning columns"])).examples
    assert [(p.kind, p.text) for p in example.trace.parts] == [
        ("think", "3 + 4 = 7"),
        ("reflect", "Adding is all there is to it."),
    ]


def test_the_input_is_appended_to_the_instruction(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": about, "output": TAGGED} for about in ("3 and 4", "5 and 2", "")]
    assert [e.question for e in load(jsonl(tmp_path, *rows)).examples] == ["Add.\n\n3 and 4", "Add.\n\n5 and 2", "Add."]


@pytest.mark.parametrize("key", ["solution", "output", "response"])
def test_the_column_with_the_reasoning_is_chosen_over_the_bare_answer(tmp_path: Path, key: str) -> None:
    (example,) = load(jsonl(tmp_path, {"problem": "3 + 4?", key: TAGGED, "answer": "7.0"})).examples
    assert (example.answer, example.trace.output) == ("7.0", "7")


def test_gsm8k_uses_the_last_mark_and_removes_only_thousands_separators(tmp_path: Path) -> None:
    rows = [
        {"question": str(n), "answer": f"wait\n#### 3\nno\n#### {final}"} for n, final in enumerate(("1,234", "(1,2)"))
    ]
    assert [e.answer for e in load(jsonl(tmp_path, *rows)).examples] == ["1234", "(1,2)"]


def test_broken_lines_at_the_start_do_not_hide_the_layout(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, *["{broken"] * 60, *[LAYOUTS["gsm8k"]] * 5))
    assert (len(loaded.examples), len(loaded.rejects)) == (5, 60)


def test_an_answer_column_beside_a_response_with_reasoning_is_the_gold_answer(tmp_path: Path) -> None:
    (example,) = load(jsonl(tmp_path, {"prompt": "3 + 4?", "response": TAGGED, "answer": 8})).examples
    assert example.answer == "8"


BAD: list[tuple[Any, str]] = [
    ('{"question": "x", ', "broken_json"),
    ("[1, 2]", "not_an_object"),
    ({"question": "3 + 4?"}, "missing_field"),
    ({"question": "3 + 4?", "answer": 7}, "no_reasoning"),
    ({"question": " ", "answer": TAGGED}, "empty_question"),
    ({"question": "3 + 4?", "answer": "just 7"}, "no_reasoning"),
    ({"question": "3 + 4?", "answer": "<thinking>a</thinking>"}, "missing_output"),
    ({"question": "3 + 4?", "answer": "<think>never closed"}, "unclosed_thinking"),
    ({"question": "half \ud800", "answer": TAGGED}, "bad_unicode"),
    ('{"question": ' + "9" * 5000 + "}", "broken_json"),
    ({"question": "3 + 4?", "response": TAGGED, "answer": True}, "wrong_type"),
    ({"question": None, "answer": None}, "missing_field"),
]


def test_a_bad_row_is_rejected_with_its_line_and_reason(tmp_path: Path) -> None:
    good = {"question": "3 + 4?", "answer": TAGGED}
    path = jsonl(tmp_path, good, *(row for row, _ in BAD), good)
    loaded = load(path, data_format="prompt_response")
    assert loaded.rows == len(BAD) + 2 == len(loaded.examples) + len(loaded.rejects)
    assert [(r.where, r.reason) for r in loaded.rejects] == [
        (f"{path}:{number}", reason) for number, (_, reason) in enumerate(BAD, start=2)
    ]


def test_blank_lines_and_a_byte_order_mark_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LAYOUTS["gsm8k"]).encode() + b"\r\n\r\n")
    assert load(path).rows == 1


def test_bytes_that_are_not_utf8_reject_one_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(LAYOUTS["gsm8k"]).encode() + b'\n{"question": "\xff"}\n')
    assert [r.reason for r in load(path).rejects] == ["not_utf8"]


def test_json_csv_and_parquet_give_the_same_examples(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 4?", "answer": f"{n} + 4 = {n + 4}\n#### {n + 4}"} for n in range(5)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "data.json").write_text(json.dumps({"data": rows}))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = [[(e.question, e.trace) for e in load(path).examples] for path in sorted(tmp_path.iterdir())]
    assert len(read) == 4
    assert all(examples == read[0] for examples in read)


def test_a_hub_id_is_loaded_with_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    calls: list[Any] = []

    def fake(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list([LAYOUTS["gsm8k"]])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))  # as if it had been downloaded before
    (tmp_path / "datasets--openai--gsm8k" / "snapshots" / "abc").mkdir(parents=True)
    loaded = load("openai/gsm8k", dataset_config_name="main", dataset_revision="abc")
    assert calls == [(("openai/gsm8k", "main"), {"split": "train", "revision": "abc"})]
    assert loaded.examples[0].where == "openai/gsm8k[train]#0"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.jsonl", None, "there is no such file"),
        ("empty.jsonl", "", "holds no rows"),
        ("rows.txt", "x", "is not a data file"),
        ("rows.json", '{"a": 1}', "holds no list of rows"),
        ("rows.json", "[1,\n", "rows.json:2"),
        ("rows.parquet", "not parquet", "is not Parquet"),
        ("rows.csv", "question,answer,answer\n1,2,3\n", "has two columns named 'answer'"),
        ("rows.jsonl", '{"a": 1}\n', "its columns match no known layout: a"),
        ("rows.jsonl", '{"question": "a", "answer": "b"}\n' * 3, "answers but no reasoning"),
    ],
)
def test_unusable_data_gives_one_clear_error(tmp_path: Path, name: str, content: str | None, expected: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_unknown_hub_id_gives_an_error() -> None:
    with pytest.raises(DataError, match="is not a local file, was not downloaded before, and"):
        load("nobody/nothing-of-that-name")


def many(tmp_path: Path, order: int = 1) -> Path:
    rows = [{"question": f"{n % 50} + 4?", "answer": f"again {n}\n#### {n % 50 + 4}"} for n in range(100)]
    return jsonl(tmp_path, *rows[::order])


def test_no_question_is_in_both_splits(tmp_path: Path) -> None:
    loaded = load(many(tmp_path), eval_samples=1000, test_fraction=0.2)
    questions = {split: {e.question for e in loaded.in_split(split)} for split in ("train", "test")}
    assert not questions["train"] & questions["test"]
    assert len(questions["test"]) == 10
    assert len(loaded.examples) == 100


def test_the_split_depends_on_eval_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    forward, backward, other = (
        {
            e.question
            for e in load(many(tmp_path, order), eval_samples=1000, eval_seed=seed, test_fraction=0.2).in_split("test")
        }
        for order, seed in ((1, 1), (-1, 1), (1, 2))
    )
    assert forward == backward
    assert forward != other


def test_at_least_one_question_remains_for_training(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, LAYOUTS["gsm8k"]), eval_samples=10)
    assert len(loaded.in_split("train")) == 1
