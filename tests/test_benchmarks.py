"""Benchmarks by name, their token budgets, and removal of training rows that overlap with them."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import run_cli

from cot_unsloth.config import BENCHMARKS, EvaluateConfig, load_tree
from cot_unsloth.core.errors import ConfigError, DataError
from cot_unsloth.core.types import Completion, Example, Message, Part, Trace
from cot_unsloth.data import benchmarks, decontaminate, layouts
from cot_unsloth.evaluation import score
from cot_unsloth.storage.records import read_jsonl
from cot_unsloth.storage.run_folder import RunDir

GPQA = {
    "Question": "Which is heaviest?",
    "Correct Answer": "lead",
    "Incorrect Answer 1": "tin",
    "Incorrect Answer 2": "iron",
    "Incorrect Answer 3": "zinc",
}
MATHS = {"problem": "What is $\\frac{1}{2} + \\frac{1}{3}$?", "answer": "\\frac{5}{6}", "level": 1}


def written(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def loaded(name: str, path: str, n: int = 500) -> list[Example]:
    given = {"evaluate": {"benchmark": name, "benchmark_path": path, "eval_samples": n}}
    return benchmarks.load(load_tree(given, {}).evaluate)


def right(example: Example, text: str) -> bool:
    return score.judge(example, Completion(example.id, text, 1, "stop"), tagged=False).correct


def test_every_benchmark_has_a_reader_and_a_documented_budget() -> None:
    assert {benchmark.reader for benchmark in BENCHMARKS.values()} == set(benchmarks.READERS)
    assert str(EvaluateConfig.model_fields["benchmark"].description).endswith("2048, 8192, 16384, 8192")


def test_every_row_of_gsm8k_is_read(published_data: Path, own_data: Path) -> None:
    examples = loaded("gsm8k", str(published_data / "gsm8k" / "test.jsonl"), 2000)
    assert len(examples) == (16 if published_data == own_data else 1319)
    assert all(right(example, f"The answer is {example.answer}.") for example in examples)
    assert {example.task for example in examples} == {"gsm8k"}


def test_maths_answers_and_choices_are_scored(tmp_path: Path) -> None:
    for name in ("math500", "aime24"):
        (example,) = loaded(name, written(tmp_path / "m.jsonl", [MATHS]))
        assert right(example, "so \\boxed{5/6}")
        assert not right(example, "so \\boxed{6/5}")
    one, two = (loaded("gpqa-diamond", written(tmp_path / "g.jsonl", [GPQA]))[0] for _ in range(2))
    assert one == two
    assert f"({one.answer}) lead" in one.question
    assert right(one, f"<output>({one.answer})</output>")
    assert right(one, f"The answer is {one.answer}.")
    other = "A" if one.answer != "A" else "B"
    assert not right(one, f"<output>{other}</output>")


def test_a_row_of_another_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a row of math500: there is no 'problem'"):
        loaded("math500", written(tmp_path / "x.jsonl", [{"question": "?"}]))


@pytest.mark.parametrize("cell", [None, "", " "])
@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("math500", "problem"),
        ("aime24", "answer"),
        ("gpqa-diamond", "Correct Answer"),
        ("gpqa-diamond", "Incorrect Answer 2"),
    ],
)
def test_an_empty_cell_of_a_benchmark_is_an_error(name: str, column: str, cell: str | None, tmp_path: Path) -> None:
    """A null was the question, or the right choice, "None"."""
    row = {**(GPQA if name.startswith("gpqa") else MATHS), column: cell}
    with pytest.raises(DataError, match=f"is not a row of {name}: {column} is "):
        loaded(name, written(tmp_path / "x.jsonl", [row]))


def test_the_benchmark_sets_the_token_budget_unless_one_is_given() -> None:
    def budget(tree: dict[str, Any], **flags: Any) -> int:
        return load_tree({"evaluate": tree}, flags).evaluate.max_new_tokens

    assert budget({}, benchmark="math500") == 8192
    assert budget({"benchmark": "gsm8k"}) == 2048
    assert budget({"benchmark": "gsm8k", "max_new_tokens": 99}) == 99
    assert budget({"benchmark": "gsm8k", "max_new_tokens": 99}, benchmark="aime24") == 16384
    assert budget({"max_new_tokens": 512}, benchmark="gsm8k", max_new_tokens="64") == 64
    again = load_tree({}, {"benchmark": "gsm8k", "max_new_tokens": 77})
    assert again.overridden({}).evaluate.max_new_tokens == 77
    with pytest.raises(ConfigError, match=r"needs evaluate\.benchmark"):
        load_tree({}, {"benchmark_path": "x.jsonl"})


def example(question: str, thinking: str = "so", at: int = 0) -> Example:
    return Example(f"q{at}", question, Trace((Part("think", thinking),), "1"), "1", where=f"f:{at}")


LONG = "A farmer has twelve cows and each of them gives nine litres of milk every single day"


def test_accents_are_compared_however_they_are_composed() -> None:
    """Tokenizers compose them, so that a model sees one question in both."""
    composed, split = (unicodedata.normalize(form, "Tính tổng của 3 và 4 ở đây?") for form in ("NFC", "NFD"))
    assert composed != split
    assert layouts.question_id(composed) == layouts.question_id(split)
    assert decontaminate.folded_words(composed) == decontaminate.folded_words(split)
    test, train = (Example(str(n), text, Trace((), "7"), "7") for n, text in enumerate((composed, split)))
    assert decontaminate.find_overlap([train], [test]).kinds[0] & decontaminate.EXACT


@pytest.mark.parametrize(
    ("test", "train", "equal"),
    [
        ("What is 3 + 4?", "What is 3 + 4", True),
        (r"Compute $\sin 60^{\circ}$.", r"Compute \( \sin 60^\circ \)", True),
        (r"Compute $\sin 60^{\circ}$.", r"Compute $\sin 60^\circ$", True),
        ('What is "3+4"?', "what is 3 + 4?", True),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("What is 3.5?", "What is 3 5?", False),
        ("What is 5!?", "What is 5?", False),
        ("What is f'(2)?", "What is f(2)?", False),
        ("How old is Tom's dog?", "How old is Tom’s dog?", True),
        ("What is 3 – 4?", "What is 3 - 4?", True),
        ("What is 3 − 4?", "What is 3 + 4?", False),
        ("Who has $1,000?", "Who has 1000?", True),
        ("What is f(1, 2)?", "What is f(1,2)?", True),
        ("What is f(1,2)?", "What is f(12)?", False),
        (r"What is $\dfrac{1}{2}$, if $x \leq 3$?", r"What is \(\frac{1}{2}\), if \(x \le 3\)?", True),
        ("What is x\u200b + 1?", "What is x + 1?", True),
        ("What is x²?", "What is x2?", False),
        ("Which?\n\n(A) x\n(B) y\n\nAnswer.", "Which?\n\n(A) y\n(B) x\n\nAnswer.", True),
        ("Which?\n\n(A) x\n(B) y\n\nAnswer.", "Which?\n\n(A) x\n(B) z\n\nAnswer.", False),
    ],
)
def test_a_short_question_is_found_whatever_its_markup(test: str, train: str, equal: bool) -> None:
    """It has fewer words than an overlap by words needs."""
    one, other = (Example(text, text, Trace((), "7"), "7") for text in (test, train))
    assert bool(decontaminate.find_overlap([other], [one]).kinds[0] & decontaminate.EXACT) is equal


def test_overlapping_rows_are_detected_and_no_others() -> None:
    test = [example(LONG + ". How much is it?"), example("3 + 4?")]
    train = [
        example(LONG.upper() + ".  How much  is it?"),  # differs only in case and spacing
        example("Think of this: " + LONG.replace(" and", ", and") + "!"),  # 13 words in a row
        example("Solve it.", thinking=f"I know one: {LONG}"),  # in the solution
        example("A farmer has twelve cows and each of them is brown"),  # 9 words
        example("A farmer has eleven cows and each of them gives nine buckets of cream"),  # 7 words
        example("3 - 4?"),  # a different sum, though its words are the same
        example("3  + 4?"),
    ]
    overlap = decontaminate.find_overlap(train, test)
    assert list(overlap.of(decontaminate.EXACT)) == [0, 6]
    assert list(overlap.of(decontaminate.BY_LONG)) == [0, 1, 2]
    assert list(overlap.of(decontaminate.BY_SHORT)) == [0, 1, 2, 3]
    counts = overlap.counts(0)
    assert (counts.training_rows, counts.exact, counts.ngram_13, counts.ngram_8) == (7, 2, 3, 4)
    kept, rejects = decontaminate.remove_overlap(train, overlap, ngrams=True)
    assert len(kept) + len(rejects) == len(train)
    assert len(decontaminate.remove_overlap(train, overlap, ngrams=False)[1]) == 2
    assert {reject.reason for reject in rejects} == {"contaminated"}
    assert overlap.counts(len(rejects)).dropped == 4


def test_questions_of_conversations_are_equal_with_the_turns_before_them() -> None:
    """A follow-up is the same question only after the same turns; an earlier question of a row is asked by it, too."""

    def talk(*turns: str) -> Example:
        roles = itertools.cycle(("user", "assistant"))
        history = tuple(Message(role=role, content=text) for role, text in zip(roles, turns[:-1], strict=False))
        return replace(example(turns[-1]), history=history)

    test = [talk("3 + 4?", "7", "And doubled?"), example("5 + 4?")]
    train = [
        talk("2 + 4?", "6", "And doubled?"),  # after another question
        example("And doubled?"),
        talk("3 + 4?", "7", "And halved?"),
        talk("3 +  4?", "7", "and doubled?"),
        talk("3 + 4?", "7", "And doubled?", "14", "And then?"),
        talk("5 + 4?", "9", "And doubled?"),
    ]
    assert list(decontaminate.find_overlap(train, test).of(decontaminate.EXACT)) == [3, 4, 5]


def test_wording_shared_by_all_rows_drops_none(tmp_path: Path) -> None:
    ask = "Solve this problem step by step and put the final answer alone into the output at the end"
    data = written(tmp_path / "train.jsonl", [gsm(f"{ask}: {n} + 4?", n + 4) for n in range(40)])
    run = RunDir(tmp_path / "run")
    few = ["--max-steps", "1", "--max-new-tokens", "4", "--arms", "tuned", "--test-fraction", "0.1", "--gguf", ""]
    assert run_cli("train", "--run-dir", str(run.path), "--dataset", data, *few) == 0
    card = json.loads(run.scorecard.read_text())
    assert card["contamination"] == {"training_rows": 36, "exact": 0, "ngram_13": 36, "ngram_8": 36, "dropped": 0}


def gsm(question: str, answer: int) -> dict[str, str]:
    return {"question": question, "answer": f"count\n#### {answer}"}


def test_a_run_is_scored_on_a_benchmark_and_not_trained_on_its_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = [gsm(f"{LONG}. How much is it in {n} days?", n) for n in range(4)]
    train = [gsm(f"What is {n} and {n}?", 2 * n) for n in range(20)] + [test[1]] + [gsm(f"{LONG}; why?", 3)]
    data, test_file = written(tmp_path / "train.jsonl", train), written(tmp_path / "test.jsonl", test)
    few = ["--max-steps", "1", "--max-new-tokens", "8", "--lora-r", "4", "--arms", "base_direct,tuned", "--gguf", ""]
    benchmark = ["--benchmark", "gsm8k", "--benchmark-path", test_file]
    run = RunDir(tmp_path / "run")
    assert run_cli("train", "--run-dir", str(run.path), "--dataset", data, *benchmark, *few) == 0
    announced = capsys.readouterr().err
    assert "2 contaminated" in announced
    assert "200 problems requested, gsm8k has 4\n" in announced
    card = json.loads(run.scorecard.read_text())
    assert (card["n"], card["dataset"]) == (4, "gsm8k")
    assert card["contamination"] == {"training_rows": 22, "exact": 1, "ngram_13": 2, "ngram_8": 2, "dropped": 2}
    splits = [row["split"] for row in read_jsonl(run.kept)]
    assert (splits.count("train"), splits.count("test")) == (20, 4)
    assert len(read_jsonl(run.rejected)) == 2
    report = run.report.read_text()
    assert "Of 22 training rows, 1 ask the same question as one of these problems, 2 share 13 words in a row" in report
    assert "2 were left out of training for it." in report
    assert "only if the run names a benchmark" not in report
    before = run.scorecard.read_text()
    assert run_cli("evaluate", str(run.path)) == 0
    assert run.scorecard.read_text() == before

    dirty = RunDir(tmp_path / "dirty")
    assert run_cli("train", "--run-dir", str(dirty.path), "--dataset", data, *few, "--eval-samples", "0") == 0
    out = ["--out", str(tmp_path / "s"), "--eval-samples", "9", "--max-new-tokens", "8"]
    assert run_cli("evaluate", str(dirty.path), *benchmark, *out) == 0
    card = json.loads((tmp_path / "s" / "scorecard.json").read_text())
    assert card["n"] == 3, "a question of the training data was scored"
    assert card["contamination"]["ngram_13"] == 2
    assert card["contamination"]["dropped"] == 0
    args = ["--model", "tiny-base", *benchmark, "--max-new-tokens", "4", "--arms", "base_cot"]
    assert run_cli("evaluate", *args, "--out", str(tmp_path / "b")) == 0
    assert json.loads((tmp_path / "b" / "scorecard.json").read_text())["n"] == 4
