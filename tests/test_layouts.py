"""Layouts of published data sets: twenty rows of each are read into question, reasoning and answer."""

from __future__ import annotations

import csv
import decimal
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cot_unsloth import config
from cot_unsloth.config import DataConfig
from cot_unsloth.config import load as load_config
from cot_unsloth.core import answers, trace
from cot_unsloth.core.errors import ConfigError, DataError
from cot_unsloth.core.types import Example
from cot_unsloth.data import Loaded, layouts, load_examples, load_problems, readers
from cot_unsloth.data.layouts import base
from cot_unsloth.data.layouts.own_samples import row_of
from cot_unsloth.training import pipeline, preparation

TAGGED = "<thinking>\n3 + 4 = 7\n</thinking>\n<output>7</output>"
Row = dict[str, Any]


def load(path: Path, **settings: Any) -> Loaded:
    return load_examples(DataConfig(dataset=str(path), **settings), seed=1, eval_samples=0, eval_seed=1)


def jsonl(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(tmp_path: Path, row: Row, **settings: Any) -> Example:
    (example,) = load(jsonl(tmp_path, row), **settings).examples
    return example


def reject(tmp_path: Path, row: Row, **settings: Any) -> tuple[str, str]:
    """Reason and detail with which a row is rejected; a good row comes before it."""
    loaded = load(jsonl(tmp_path, {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}, row), **settings)
    (rejected,) = loaded.rejects
    assert loaded.rows == 2
    return rejected.reason, rejected.detail


def thoughts(example: Example) -> str:
    return "\n".join(part.text for part in example.trace.parts)


def q(n: int) -> str:
    return f"What is {n} plus 4?"


def r(n: int) -> str:
    return f"We add: {n} + 4 = {n + 4}."


def a(n: int) -> str:
    return str(n + 4)


def user(n: int) -> Row:
    return {"role": "user", "content": q(n)}


def options(n: int) -> list[str]:
    return [str(n + 3), str(n + 4), str(n + 5), str(n * 100)]


def question_with_options(n: int) -> str:
    lines = [f"({letter}) {text}" for letter, text in zip("ABCD", options(n), strict=True)]
    return "\n".join([q(n), "", *lines, "", "Answer with the letter of the right choice."])


def assistant(n: int) -> Row:
    return {"role": "assistant", "content": f"<think>\n{r(n)}\n</think>\n\nIt is $\\boxed{{{a(n)}}}$."}


@dataclass(frozen=True)
class Case:
    """Rows of a layout as a data set writes them, and what must be read from them."""

    row: Callable[[int], Row]
    name: str
    answer: Callable[[int], str] = a
    question: Callable[[int], str] = q
    reasoning: Callable[[int], str] = r
    output: Callable[[int], str] | None = None
    """The text of the output section, if it differs from the gold answer."""


def boxed(n: int) -> str:
    return f"{r(n)} So the sum is $\\boxed{{{a(n)}}}$."


def letter_b(n: int) -> str:
    return "B"


CASES: dict[str, Case] = {
    "ShareGPT": Case(
        lambda n: {
            "id": f"x{n}",
            "conversations": [
                {"from": "human", "value": q(n)},
                {"from": "gpt", "value": f"<think>{r(n)}</think>{a(n)}"},
            ],
        },
        "sharegpt",
    ),
    "ShareGPT with system turn, tags of ours": Case(
        lambda n: {
            "conversation": [
                {"from": "system", "value": "Add."},
                {"from": "user", "value": q(n)},
                {"from": "chatgpt", "value": f"<thinking>\n{r(n)}\n</thinking>\n<output>{a(n)}</output>"},
            ]
        },
        "sharegpt",
    ),
    "ShareGPT as role and content": Case(
        lambda n: {"Conversations": [user(n), {"role": "assistant", "content": f"<think>{r(n)}</think>{a(n)}"}]},
        "messages",
    ),
    "Alpaca with tags": Case(
        lambda n: {"instruction": q(n), "input": "", "output": f"<think>{r(n)}</think>{a(n)}", "history": []}, "alpaca"
    ),
    "Alpaca with input and a marked answer": Case(
        lambda n: {"Instruction": q(n), "Input": "Use digits.", "Output": f"{r(n)}\nThe answer is {a(n)}."},
        "problem_solution",
        question=lambda n: f"{q(n)}\n\nUse digits.",
        reasoning=lambda n: f"{r(n)}\nThe answer is {a(n)}.",
    ),
    "TRL prompt and completion, text": Case(
        lambda n: {"prompt": q(n), "completion": f"<think>{r(n)}</think>{a(n)}"}, "prompt_response"
    ),
    "TRL prompt and completion, messages": Case(
        lambda n: {
            "prompt": [{"role": "system", "content": "Add."}, user(n)],
            "completion": [{"role": "assistant", "content": f"<think>{r(n)}</think>{a(n)}"}],
        },
        "prompt_completion",
    ),
    "a list of messages as prompt, text as response": Case(
        lambda n: {"prompt": [user(n)], "response": f"<think>{r(n)}</think>{a(n)}"}, "prompt_completion"
    ),
    "GRPO prompts with a gold answer and a solution": Case(
        lambda n: {"prompt": [user(n)], "reward_model": {"style": "rule", "ground_truth": a(n)}, "solution": boxed(n)},
        "prompt_completion",
        reasoning=boxed,
    ),
    "MATH": Case(
        lambda n: {"problem": q(n), "level": "Level 1", "type": "Algebra", "solution": boxed(n)},
        "problem_solution",
        reasoning=boxed,
    ),
    "MATH-500, LIMO": Case(
        lambda n: {"Problem": q(n), "Solution": boxed(n), "Answer": a(n)}, "problem_solution", reasoning=boxed
    ),
    "NuminaMath": Case(
        lambda n: {
            "source": "synthetic",
            "problem": q(n),
            "solution": boxed(n),
            "messages": [user(n), {"role": "assistant", "content": boxed(n)}],
        },
        "messages",
        reasoning=boxed,
    ),
    "OpenR1-Math": Case(
        lambda n: {
            "problem": q(n),
            "solution": boxed(n),
            "answer": a(n),
            "uuid": str(n),
            "generations": [assistant(n)["content"], "worse"],
            "messages": [user(n), assistant(n)],
        },
        "messages",
        output=lambda n: f"It is $\\boxed{{{a(n)}}}$.",
    ),
    "OpenR1-Math without messages": Case(
        lambda n: {
            "problem": q(n),
            "answer": a(n),
            "generations": ["<think>no</think>0", assistant(n)["content"]],
            "correctness_math_verify": [False, True],
        },
        "generations",
        output=lambda n: f"It is $\\boxed{{{a(n)}}}$.",
    ),
    "OpenMathReasoning": Case(
        lambda n: {
            "problem": q(n),
            "generated_solution": assistant(n)["content"],
            "expected_answer": a(n),
            "pass_rate": "0.5",
        },
        "prompt_response",
        output=lambda n: f"It is $\\boxed{{{a(n)}}}$.",
    ),
    "question, thinking, answer": Case(
        lambda n: {"question": q(n), "thinking": r(n), "answer": a(n)}, "reasoning_columns"
    ),
    "medical o1": Case(lambda n: {"Question": q(n), "Complex_CoT": r(n), "Response": a(n)}, "reasoning_columns"),
    "query, rationale, label": Case(lambda n: {"label": n + 4, "rationale": r(n), "query": q(n)}, "reasoning_columns"),
    "problem, steps, final_answer": Case(
        lambda n: {"problem": q(n), "steps": ["We add.", {"explanation": r(n), "output": a(n)}], "final_answer": a(n)},
        "reasoning_columns",
        reasoning=lambda n: f"We add.\n{r(n)}\n{a(n)}",
    ),
    "FLAN CoT": Case(lambda n: {"source": q(n), "target": a(n), "rationale": r(n), "task": "sum"}, "reasoning_columns"),
    "AQuA": Case(
        lambda n: {
            "question": q(n),
            "correct": "B",
            "rationale": r(n),
            "options": [f"{letter}){text}" for letter, text in zip("ABCD", options(n), strict=True)],
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "CommonsenseQA, ARC": Case(
        lambda n: {
            "question": q(n),
            "choices": {"text": options(n), "label": ["1", "2", "3", "4"]},
            "answerKey": "2",
            "explanation": r(n),
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "MMLU with reasoning": Case(
        lambda n: {"question": q(n), "choices": options(n), "answer": 1, "subject": "sums", "cot": r(n)},
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "MMLU-Pro": Case(
        lambda n: {
            "question": q(n),
            "options": options(n),
            "answer": "B",
            "answer_index": 1,
            "cot_content": r(n),
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "MedQA": Case(
        lambda n: {
            "question": q(n),
            "options": dict(zip("ABCD", options(n), strict=True)),
            "answer": a(n),
            "answer_idx": "B",
            "reasoning": r(n),
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "MedMCQA": Case(
        lambda n: {
            "question": q(n),
            **dict(zip(("opa", "opb", "opc", "opd"), options(n), strict=True)),
            "cop": 1,
            "exp": r(n),
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "multiple choice with a response": Case(
        lambda n: {
            "question": q(n),
            "options": options(n),
            "answer": "(B)",
            "response": f"<think>{r(n)}</think>The answer is **B: {a(n)}**",
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
        output=lambda n: f"The answer is **B: {a(n)}**",
    ),
    "MathQA": Case(
        lambda n: {
            "Problem": q(n),
            "Rationale": r(n),
            "correct": "b",
            "options": " , ".join(f"{letter} ) {text}" for letter, text in zip("abcd", options(n), strict=True)),
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "SVAMP": Case(
        lambda n: {
            "ID": f"c-{n}",
            "Body": f"Ada has {n} pears.",
            "Question": "She gets 4. How many has she?",
            "Equation": f"( {n}.0 + 4.0 )",
            "Answer": float(n + 4),
            "Type": "Addition",
        },
        "svamp",
        question=lambda n: f"Ada has {n} pears. She gets 4. How many has she?",
        reasoning=lambda n: f"( {n}.0 + 4.0 )",
    ),
    "StrategyQA": Case(
        lambda n: {
            "qid": str(n),
            "term": "sums",
            "question": f"Is {n} more than 9?",
            "answer": n > 9,
            "facts": [f"The number is {n}.", "Nine is 9."],
            "decomposition": ["What is the number?"],
        },
        "reasoning_columns",
        question=lambda n: f"Is {n} more than 9?",
        reasoning=lambda n: f"The number is {n}.\nNine is 9.",
        answer=lambda n: "yes" if n > 9 else "no",
    ),
    "s1K": Case(
        lambda n: {
            "question": q(n),
            "solution": a(n),
            "thinking_trajectories": [r(n)],
            "attempt": boxed(n),
            "cot_type": "math",
        },
        "reasoning_columns",
        output=boxed,
    ),
    "s1K-1.1": Case(
        lambda n: {
            "question": q(n),
            "solution": a(n),
            "gemini_thinking_trajectory": "other",
            "gemini_attempt": "other",
            "deepseek_thinking_trajectory": r(n),
            "deepseek_attempt": boxed(n),
            "deepseek_grade": "Yes",
        },
        "reasoning_columns",
        output=boxed,
    ),
    "OpenThoughts": Case(
        lambda n: {
            "system": "Think first.",
            "conversations": [
                {"from": "user", "value": q(n)},
                {
                    "from": "assistant",
                    "value": f"<|begin_of_thought|>\n\n{r(n)}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{boxed(n)}\n\n"
                    "<|end_of_solution|>",
                },
            ],
        },
        "sharegpt",
        output=boxed,
        answer=a,
    ),
    "prm800k": Case(
        lambda n: {
            "labeler": "x",
            "question": {"problem": q(n), "ground_truth_answer": a(n)},
            "label": {
                "steps": [
                    {
                        "completions": [{"text": "Bad.", "rating": -1}, {"text": "We add.", "rating": 1}],
                        "chosen_completion": 1,
                    },
                    {"completions": [{"text": "Hm.", "rating": 0}], "chosen_completion": 0},
                    {"completions": [{"text": r(n), "rating": 1}], "chosen_completion": 0},
                ]
            },
        },
        "prm800k",
        reasoning=lambda n: f"We add.\n{r(n)}",
    ),
    "Marco-o1": Case(
        lambda n: {"instruction": q(n), "response": f"<Thought>\n{r(n)}\n</Thought>\n\n<Output>\n{a(n)}\n</Output>"},
        "alpaca",
    ),
    "R1 distillation without its opening tag": Case(
        lambda n: {"prompt": q(n), "response": f"{r(n)}\n</think>\n\n{a(n)}"}, "prompt_response"
    ),
    "reasoning field of messages": Case(
        lambda n: {"messages": [user(n), {"role": "assistant", "content": a(n), "reasoning": r(n)}]}, "messages"
    ),
    "thinking field of messages": Case(
        lambda n: {"messages": [user(n), {"role": "assistant", "content": a(n), "thinking": r(n)}]}, "messages"
    ),
    "parts of a content": Case(
        lambda n: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": q(n)}]},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": r(n)}, {"type": "text", "text": a(n)}],
                },
            ]
        },
        "messages",
    ),
    "messages as JSON text": Case(
        lambda n: {"messages": json.dumps([user(n), {"role": "assistant", "content": f"<think>{r(n)}</think>{a(n)}"}])},
        "messages",
    ),
    "messages as Python text": Case(
        lambda n: {"messages": str([user(n), {"role": "assistant", "content": f"<think>{r(n)}</think>{a(n)}"}])},
        "messages",
    ),
    "Dolphin-R1": Case(
        lambda n: {"messages": [{"role": "system", "content": "Add."}, user(n)], "reasoning": r(n), "answer": a(n)},
        "messages",
    ),
    "messages as input, text as output": Case(
        lambda n: {
            "input": [user(n)],
            "output": f"<think>{r(n)}</think>{a(n)}",
            "system_prompt": "Add.",
            "reasoning": "on",
        },
        "prompt_completion",
    ),
    "a preference pair": Case(
        lambda n: {"prompt": q(n), "chosen": [user(n), assistant(n)], "rejected": [user(n), assistant(n + 1)]},
        "prompt_completion",
        output=lambda n: f"It is $\\boxed{{{a(n)}}}$.",
    ),
    "items with a key for each role": Case(
        lambda n: {"conversation": [{"human": q(n), "assistant": f"<think>{r(n)}</think>{a(n)}"}]}, "messages"
    ),
    "columns named after a model": Case(
        lambda n: {"question": q(n), "deepseek_reasoning": r(n), "deepseek_response": a(n), "deepseek_grade": "Yes"},
        "reasoning_columns",
    ),
    "solution and answer the other way round": Case(
        lambda n: {"question": q(n), "solution": a(n), "answer": f"{r(n)} That is all."},
        "problem_solution",
        reasoning=lambda n: f"{r(n)} That is all.",
    ),
    "MetaMath": Case(
        lambda n: {"query": q(n), "response": f"{r(n)}\n#### {a(n)}\nThe answer is: {a(n)}", "type": "x"}, "gsm8k"
    ),
    "natural reasoning": Case(
        lambda n: {"question": q(n), "reference_answer": a(n), "responses": [{"model": "x", "response": boxed(n)}]},
        "generations",
        reasoning=boxed,
    ),
    "headings in <think>": Case(
        lambda n: {"question": q(n), "answer": f"<think>\n#### Step 1\n{r(n)}\n#### Step 2\nDone.\n</think>\n{a(n)}"},
        "prompt_response",
        reasoning=lambda n: f"#### Step 1\n{r(n)}\n#### Step 2\nDone.",
    ),
    "GSM8K": Case(lambda n: {"question": q(n), "answer": f"{r(n)}\n#### {a(n)}"}, "gsm8k"),
    "PubMedQA": Case(
        lambda n: {
            "pubid": n,
            "question": q(n),
            "context": {"contexts": [f"There are {n}.", "Four more come."], "labels": ["A", "B"]},
            "long_answer": r(n),
            "final_decision": a(n),
        },
        "reasoning_columns",
        question=lambda n: f"There are {n}.\nFour more come.\n\n{q(n)}",
    ),
    "ProntoQA": Case(
        lambda n: {
            "question": f"Rex has {n} pears, and gets 4.",
            "query": "True or false: Rex has pears.",
            "chain_of_thought": [r(n), "So he has."],
            "answer": "True",
        },
        "reasoning_columns",
        question=lambda n: f"Rex has {n} pears, and gets 4.\n\nTrue or false: Rex has pears.",
        reasoning=lambda n: f"{r(n)}\nSo he has.",
        answer=lambda n: "True",
    ),
    "FOLIO with reasoning": Case(
        lambda n: {
            "premises": [f"{n} is a sum.", "Sums are big."],
            "conclusion": f"{n} is big.",
            "label": "True",
            "cot": r(n),
        },
        "reasoning_columns",
        question=lambda n: f"{n} is a sum.\nSums are big.\n\n{n} is big.",
        answer=lambda n: "True",
    ),
    "ECQA": Case(
        lambda n: {
            "q_no": str(n),
            "q_text": q(n),
            **{f"q_op{i}": text for i, text in enumerate(options(n), start=1)},
            "q_ans": a(n),
            "taskA_pos": "x",
            "taskB": r(n),
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "options numbered from 0, and the number of one": Case(
        lambda n: {
            "sent1": q(n),
            "sent2": "",
            **{f"ending{i}": t for i, t in enumerate(options(n))},
            "label": 1,
            "cot": r(n),
        },
        "multiple_choice",
        answer=letter_b,
        question=question_with_options,
    ),
    "ReClor with reasoning": Case(
        lambda n: {"context": "Sums are sums.", "question": q(n), "answers": options(n), "label": 1, "rationale": r(n)},
        "multiple_choice",
        answer=letter_b,
        question=lambda n: f"Sums are sums.\n\n{question_with_options(n)}",
    ),
    "OlympiadBench with two solutions": Case(
        lambda n: {
            "question": q(n),
            "solution": [r(n), "Count on."],
            "final_answer": [a(n)],
            "is_multiple_answer": False,
        },
        "prompt_response",
    ),
    "Math-Shepherd": Case(
        lambda n: {
            "input": f"{q(n)} Step 1: {r(n)} ки\nStep 2: The answer is: {a(n)} ки",
            "label": f"{q(n)} Step 1: {r(n)} +\nStep 2: The answer is: {a(n)} +",
            "task": "GSM8K",
        },
        "rated_steps",
        reasoning=lambda n: f"Step 1: {r(n)}\nStep 2: The answer is: {a(n)}",
    ),
    "TRL's labelled steps": Case(
        lambda n: {
            "prompt": q(n),
            "completions": [f"Step 1: {r(n)}", f"The answer is: {a(n)}"],
            "labels": [True, True],
        },
        "rated_steps",
        reasoning=lambda n: f"Step 1: {r(n)}\nThe answer is: {a(n)}",
    ),
    "Gemini": Case(
        lambda n: {
            "systemInstruction": {"parts": [{"text": "Add."}]},
            "contents": [
                {"role": "user", "parts": [{"text": q(n)}]},
                {"role": "model", "parts": [{"text": r(n), "thought": True}, {"text": a(n)}]},
            ],
        },
        "messages",
    ),
    "Anthropic": Case(
        lambda n: {
            "system": [{"type": "text", "text": "Add."}],
            "messages": [
                user(n),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": r(n), "signature": "x"},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": a(n)},
                    ],
                },
            ],
        },
        "messages",
    ),
    "a preference pair of ShareGPT": Case(
        lambda n: {
            "conversations": [{"from": "human", "value": q(n)}],
            "chosen": {"from": "gpt", "value": f"<think>{r(n)}</think>{a(n)}"},
            "rejected": {"from": "gpt", "value": "0"},
        },
        "sharegpt",
    ),
    "gpt-oss in columns": Case(lambda n: {"user": q(n), "analysis": r(n), "final": a(n)}, "reasoning_columns"),
    "a prompt in a template, and its output": Case(
        lambda n: {
            "input": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nAdd.<|eot_id|><|start_header_id|>user"
            f"<|end_header_id|>\n\n{q(n)}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "output": f"<think>{r(n)}</think>{a(n)}<|eot_id|>",
        },
        "prompt_completion",
    ),
    "a response beside its gold answer": Case(
        lambda n: {"prompt": q(n), "response": f"{r(n)}\nThat is all.", "ground_truth": a(n)},
        "problem_solution",
        reasoning=lambda n: f"{r(n)}\nThat is all.",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_of_each_layout_are_read(tmp_path: Path, case: Case) -> None:
    loaded = load(jsonl(tmp_path, *map(case.row, range(1, 21))))
    assert (len(loaded.examples), loaded.rejects) == (20, ())
    assert loaded.columns
    assert loaded.columns.layout == case.name
    for n, example in enumerate(loaded.examples, start=1):
        assert (example.question, thoughts(example), example.answer) == (
            case.question(n),
            case.reasoning(n),
            case.answer(n),
        )
        assert example.trace.output == (case.output or case.answer)(n)


@pytest.mark.parametrize("name", ["medical o1", "AQuA", "MATH-500, LIMO", "question, thinking, answer", "ShareGPT"])
def test_capitals_order_and_extra_columns_do_not_matter(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    rows = [
        {"ID": n, **{key.upper(): value for key, value in reversed(case.row(n).items())}, "tags": ["x"]}
        for n in range(1, 21)
    ]
    loaded = load(jsonl(tmp_path, *rows))
    assert [e.answer for e in loaded.examples] == [case.answer(n) for n in range(1, 21)]
    assert loaded.columns
    assert {"ID", "tags"} <= set(loaded.columns.unused)


@pytest.mark.parametrize("written", [repr, json.dumps])
@pytest.mark.parametrize("name", [name for name in CASES if name != "prm800k"])
def test_lists_and_objects_in_a_csv_are_read_like_json(
    name: str, written: Callable[[Any], str], tmp_path: Path
) -> None:
    """As pandas writes them, or as JSON: they became garbage in the question, the answer or the trace."""
    rows = [CASES[name].row(n) for n in range(4)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(column) for column in columns)
            writer.writerow(
                ["" if cell is None else cell if isinstance(cell, str) else written(cell) for cell in cells]
            )
    of_json, of_csv = (
        load_examples(DataConfig(dataset=str(path)), seed=1, eval_samples=0, eval_seed=1, to_train_on=False).examples
        for path in (jsonl(tmp_path, *rows), tmp_path / "rows.csv")
    )
    for one_, other in zip(of_json, of_csv, strict=True):
        assert (one_.question, one_.trace.parts, one_.system, one_.history) == (
            other.question, other.trace.parts, other.system, other.history,
        )  # fmt: skip
        assert one_.answer == other.answer or answers.same(one_.answer, other.answer)


@pytest.mark.parametrize("name", CASES)
def test_the_default_json_of_pandas_is_read(name: str, tmp_path: Path) -> None:
    """An object of columns, each by row number. Cells that are lists of one length made a column look like a split."""
    rows = [CASES[name].row(n) for n in range(3)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    by_number = {column: {str(at): row.get(column) for at, row in enumerate(rows)} for column in columns}
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(by_number), encoding="utf-8")
    one_, other = (
        load_examples(DataConfig(dataset=str(path)), seed=1, eval_samples=0, eval_seed=1, to_train_on=False).examples
        for path in (file, jsonl(tmp_path, *rows))
    )
    assert [replace(example, where="") for example in one_] == [replace(example, where="") for example in other]


def test_json_that_is_an_answer_or_a_context_stays_text(tmp_path: Path) -> None:
    for text in ('{"name": "Bob", "value": 3}', '{"text": "x"}', "{1, 2}", "[1, 2]"):
        assert one(tmp_path, {"prompt": "Extract it.", "reasoning": "so", "answer": text}).answer == text
    table = '[{"name": "Bob", "age": 3}]'
    row = {"context": table, "question": "How old is Bob?", "reasoning": "so", "answer": "3"}
    assert one(tmp_path, row).question == f"{table}\n\nHow old is Bob?"
    prompt = '{"style": "short"}'
    assert one(tmp_path, {"system": prompt, "question": "?", "reasoning": "so", "answer": "3"}).system == prompt


def test_parquet_with_nulls_and_structs_is_read_like_json(tmp_path: Path) -> None:
    names = ("ShareGPT", "parts of a content", "CommonsenseQA, ARC", "prm800k", "OpenR1-Math without messages")
    for name in names:
        rows = [CASES[name].row(n) for n in range(1, 21)]
        path = tmp_path / "rows.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        assert load(path).examples == tuple(
            e.__class__(**{**vars(e), "where": f"{path}#{n}"})
            for n, e in enumerate(load(jsonl(tmp_path, *rows)).examples)
        )


def test_an_unknown_layout_is_an_error_of_the_settings_that_lists_all_names() -> None:
    with pytest.raises(ConfigError, match=r"--data-format: data\.data_format is 'gms8k'") as caught:
        load_config(None, {"data_format": "gms8k"})
    assert caught.value.name == "wrong_choice"
    assert all(f"'{name}'" in str(caught.value) for name in ("auto", *layouts.BY_NAME))


# What is reported about the layout.


def test_the_layout_and_unused_columns_are_reported(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": q(1)}, {"from": "gpt", "value": f"<think>{r(1)}</think>5"}]
    rows = [{"source": "x", "conversations": turns, "note": None}, {"source": "y", "conversations": turns, "note": "z"}]
    assert str(load(jsonl(tmp_path, *rows)).columns) == (
        "layout sharegpt: question ← conversations[human], answer ← conversations[gpt]; "
        "not used: source, note (in 1 of 2 rows)"
    )


def test_a_reasoning_column_beside_a_response_with_reasoning_is_reported_as_unused(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, {"prompt": "3 + 4?", "response": TAGGED, "reasoning": "IMPORTANT"}))
    assert thoughts(loaded.examples[0]) == "3 + 4 = 7"
    assert "not used: reasoning" in str(loaded.columns)


@pytest.mark.parametrize("switch", ["on", "off", True])
def test_an_on_off_switch_is_not_taken_for_reasoning(tmp_path: Path, switch: Any) -> None:
    example = one(tmp_path, {"input": "3 + 4?", "output": "<think>3 + 4 = 7</think>7", "reasoning": switch})
    assert thoughts(example) == "3 + 4 = 7"


def test_rows_of_other_layouts_in_the_same_file_are_read_by_their_own_layout(tmp_path: Path) -> None:
    rows = [CASES["GSM8K"].row(n) for n in range(5)] + [CASES["ShareGPT"].row(9), CASES["headings in <think>"].row(8)]
    loaded = load(jsonl(tmp_path, *rows))
    assert len(loaded.examples) == 7
    assert "read as sharegpt (in 1 of 7 rows); read as prompt_response (in 1 of 7 rows)" in str(loaded.columns)


def test_a_system_prompt_that_asks_for_other_tags_is_reported(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, {"system": "Reason in <think> tags.", "prompt": "3 + 4?", "response": TAGGED}))
    assert "system prompts ask for tags other than those that are trained (in 1 of 1 rows)" in str(loaded.columns)


# Columns that the settings name.


def test_columns_can_be_named_in_the_settings(tmp_path: Path) -> None:
    rows = [{"frage": q(n), "weg": r(n), "resultat": a(n), "rolle": "Rechne.", "input": "x"} for n in range(3)]
    loaded = load(
        jsonl(tmp_path, *rows),
        question_column="frage", reasoning_column="weg", answer_column="Resultat", system_column="rolle",
    )  # fmt: skip
    assert [(e.question, thoughts(e), e.answer, e.system) for e in loaded.examples] == [
        (q(n), r(n), a(n), "Rechne.") for n in range(3)
    ]
    assert "not used: input" in str(loaded.columns)


def test_a_named_column_takes_precedence_over_recognised_ones(tmp_path: Path) -> None:
    row = {"prompt": "wrong", "real": q(1), "cot": "wrong", "mine": r(1), "answer": "wrong", "right": "5"}
    example = one(tmp_path, row, question_column="real", reasoning_column="mine", answer_column="right")
    assert (example.question, thoughts(example), example.answer) == (q(1), r(1), "5")


def test_a_named_answer_beside_a_response_is_the_gold_answer(tmp_path: Path) -> None:
    example = one(tmp_path, {"prompt": q(1), "response": TAGGED, "key": 8}, answer_column="key")
    assert (example.answer, example.trace.output) == ("8", "7")


def test_a_named_answer_may_be_a_full_response(tmp_path: Path) -> None:
    example = one(tmp_path, {"x": q(1), "y": "<think>a</think>5"}, question_column="x", answer_column="y")
    assert (thoughts(example), example.answer) == ("a", "5")


def test_a_named_list_of_messages_is_a_conversation(tmp_path: Path) -> None:
    row = {"thread": [user(1), assistant(1)], "prompt": "no"}
    assert one(tmp_path, row, messages_column="thread").question == q(1)


def test_missing_named_columns_give_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(jsonl(tmp_path, {"Frage": "x", "weg": "y"}), question_column="fragen", answer_column="z")
    assert "--question-column fragen, --answer-column z; did you mean 'Frage' for 'fragen'?" in str(caught.value)
    assert "its columns: Frage, weg" in str(caught.value)


def test_a_missing_field_inside_an_object_is_explained_by_paths(tmp_path: Path) -> None:
    row = {"id": 1, "input": {"says": q(1), "date": "x"}, "end": "5"}
    with pytest.raises(DataError) as caught:
        load(jsonl(tmp_path, row), question_column="input.say", answer_column="end")
    assert "did you mean 'input.says' for 'input.say'?" in str(caught.value)
    assert "its columns: id, input.says, input.date, end" in str(caught.value)


# Gold answers.


@pytest.mark.parametrize(
    ("cell", "gold"),
    [
        ("72", "72"), (72, "72"), (72.0, "72"), (0.5, "0.5"), (-3, "-3"), (["72"], "72"), ({"answer": "72"}, "72"),
        ({"value": 72.0, "unit": None}, "72"), ({"value": 72.0, "unit": "kg"}, "72 kg"), ({"value": "72 kg", "unit": "kg"}, "72 kg"),
        ({"number": "", "date": {"day": "", "month": ""}, "spans": ["72"]}, "72"), (["72", "72"], "72"), ("<answer>72</answer>", "72"), ('["72"]', "72"),
        ({"text": ["72"], "answer_start": [3]}, "72"), ("#### 72", "72"), ([["72"]], "72"), ("[1, 2]", "[1, 2]"),
    ],
)  # fmt: skip
def test_gold_answers_of_many_types_are_read(tmp_path: Path, cell: Any, gold: str) -> None:
    assert one(tmp_path, {"prompt": "3 + 4?", "response": TAGGED, "answer": cell}).answer == gold
    assert one(tmp_path, {"prompt": "3 + 4?", "reasoning": "so", "answer": cell}).answer == gold


@pytest.mark.parametrize("cell", [["1", "2"], {"a": 1, "b": 2}, True, {"answer": ["1", "2"]}])
def test_a_gold_answer_that_cannot_be_read_rejects_its_row(tmp_path: Path, cell: Any) -> None:
    reason, detail = reject(tmp_path, {"prompt": "3 + 4?", "response": TAGGED, "answer": cell})
    assert reason == "wrong_type"
    assert detail.startswith("answer")


def test_no_row_raises_an_exception(tmp_path: Path) -> None:
    """A cell of any type in any column gives an example or a reject."""
    cells: list[Any] = [
        None, "", "7", "a b c", "<think>x</think>7", "s\n#### 7", 7, 7.5, True, float("nan"), [], ["a", 7], [[1]], {},
        {"text": ["a", "b"], "label": [1]}, {"stem": 1, "choices": 2}, {"problem": None, "steps": 3}, [{"role": "user"}],
        [{"role": 1, "content": [{"type": "text"}]}], [{"from": "human", "value": None}], "[{'a': 1}",
    ]  # fmt: skip
    names = ["question", "reasoning", "answer", "response", "messages", "options", "label", "history", "generations"]
    rows = [{"n": n, name: cell, other: "7"} for n, cell in enumerate(cells) for name in names for other in names[:4]]
    good = {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}
    for layout in ("auto", *layouts.BY_NAME):
        data = DataConfig(dataset=str(jsonl(tmp_path, good, *rows)), data_format=layout)
        loaded = readers._rows_to_examples(readers.files.read_rows(data), data, False)
        assert loaded.rows == len(rows) + 1 == len(loaded.examples) + len(loaded.rejects)


def test_gold_answers_of_python_types_are_read() -> None:
    numpy = pytest.importorskip("numpy")
    cells: list[Any] = [decimal.Decimal("72.00"), numpy.int64(72), numpy.float32(72), numpy.array(["72"]), ("72",)]
    for cell in cells:
        assert (
            layouts.example({"prompt": "?", "response": TAGGED, "answer": cell}, "prompt_response", "f:1").answer
            == "72"
        )


def test_an_empty_gold_answer_is_reported(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, {"prompt": "3 + 4?", "response": TAGGED, "answer": None}))
    assert loaded.examples[0].answer == "7"
    assert "answer is empty, so the row's own output is its gold answer (in 1 of 1 rows)" in str(loaded.columns)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("a\n#### 72", "72"),
        ("a\n#### 72 clips", "72 clips"),
        ("a\n#### 1,072.", "1072"),
        ("a\n#### 72\nShe did well.", "72"),
        ("a\n#### 72\n\nSource: a book\n", "72"),
        ("a\n#### 72. Therefore she sold 72 clips.", "72"),
        ("a\n#### The answer is 72", "72"),
        ("a\n#### Step 1\nb\n#### 72", "72"),
        ("a\n#### x^2 + 1", "x^2 + 1"),
    ],
)
def test_text_after_the_answer_mark_is_not_part_of_the_gold_answer(tmp_path: Path, answer: str, gold: str) -> None:
    example = one(tmp_path, {"question": "?", "answer": answer})
    assert (example.answer, example.trace.parts[0].text) == (gold, "a")
    assert "She" not in trace.render(example.trace)


def test_headings_are_not_taken_for_answer_marks(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "#### Step 1\nWe add 3 and 4.\n#### Step 2\nThat gives 7 in all."}
    assert reject(tmp_path, row)[0] == "no_reasoning"


# Choices.


@pytest.mark.parametrize(
    ("cell", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B) 5", "B"),
        ("Option B", "B"),
        (1, "B"),
        ("5", "B"),
        ("b.", "B"),
        (1.0, "B"),
        ("1", "B"),
    ],
)
def test_the_right_option_is_read_in_every_notation(tmp_path: Path, cell: Any, letter: str) -> None:
    row = {"question": "?", "options": ["three", "5", "x"], "answer": cell, "rationale": "We look."}
    assert one(tmp_path, row).answer == letter


def test_options_numbered_from_one_are_recognised(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "options": ["x", "y", "z"], "label": n % 3 + 1, "cot": "We look."} for n in range(6)]
    assert [e.answer for e in load(jsonl(tmp_path, *rows)).examples] == ["A", "B", "C", "A", "B", "C"]


@pytest.mark.parametrize("as_cell", [int, str, lambda n: [n]])
def test_the_number_of_an_option_is_read_alike_as_number_text_or_list(tmp_path: Path, as_cell: Any) -> None:
    """A CSV file has only text, and AGIEval lists; options may be numbers themselves, as in MMLU's algebra."""
    choices = (["0", "4", "2", "6"], ["8", "2", "24", "120"], ["1", "2", "3", "4"], ["x", "y", "z", "w"])
    rows = [
        {"question": f"{n}?", "choices": options, "answer": as_cell(answer), "cot": "We look."}
        for n, (options, answer) in enumerate(zip(choices, (1, 2, 0, 3), strict=True))
    ]
    assert [e.answer for e in load(jsonl(tmp_path, *rows)).examples] == ["B", "C", "A", "D"]


@pytest.mark.parametrize(
    ("question", "answer", "further", "is_rejected"),
    [
        ("Prove that 4 + 4 = 8.", "proof", {}, True),
        ("4 + 4?", "Proof", {"question_type": "proof"}, True),
        ("4 + 4?", "notfound", {}, True),
        ("What is evidence called?", "proof", {}, False),
    ],
)
def test_a_gold_answer_that_says_that_there_is_none_rejects_its_row(
    question: str, answer: str, further: Row, is_rejected: bool, tmp_path: Path
) -> None:
    """As in NuminaMath-1.5. A model that learned to answer "proof" would be scored as right on such problems."""
    good = {"problem": "3 + 4?", "solution": "3 + 4 = 7, as we see.", "answer": "7"}
    row = {"problem": question, "solution": "We add. Then we see it.", "answer": answer, **further}
    assert [reject.reason for reject in load(jsonl(tmp_path, good, row)).rejects] == ["no_answer"] * is_rejected


def test_a_number_may_be_the_text_of_an_option(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "options": [6, 1, 24], "answer": 24 if n else 1, "cot": "We look."} for n in range(4)]
    assert [e.answer for e in load(jsonl(tmp_path, *rows)).examples] == ["B", "C", "C", "C"]


def test_the_text_of_a_numbered_option_takes_precedence_where_all_rows_answer_with_text(tmp_path: Path) -> None:
    rows = [CASES["ECQA"].row(n) for n in range(4)]  # row 0: 4 is the text of option 2, and the number of option 4
    assert [e.answer for e in load(jsonl(tmp_path, *rows)).examples] == ["B"] * 4


def test_sampling_settings_are_not_taken_for_options_of_a_choice(tmp_path: Path) -> None:
    row = {"prompt": "3 + 4?", "options": {"temperature": 0.7, "top_p": 0.9}, "response": TAGGED, "answer": "7"}
    assert one(tmp_path, row).question == "3 + 4?"


def test_an_answer_beyond_the_options_rejects_the_row(tmp_path: Path) -> None:
    row = {"question": "?", "options": ["x", "y"], "answer": 7, "rationale": "We look."}
    assert reject(tmp_path, row) == ("wrong_type", "answer is 7, and there are 2 options")


def test_options_already_in_the_question_are_not_repeated(tmp_path: Path) -> None:
    question = "Which?\nA) x\nB) y"
    row = {"question": question, "options": ["x", "y"], "answer": "B", "rationale": "We look."}
    assert one(tmp_path, row).question == question


def test_a_right_answer_and_wrong_answers_become_lettered_options(tmp_path: Path) -> None:
    row = {
        "Question": "Which?", "Correct Answer": "yes", "Incorrect Answer 1": "n1", "Incorrect Answer 2": "n2",
        "Explanation": "We look.",
    }  # fmt: skip
    example = one(tmp_path, row)
    assert f"({example.answer}) yes" in example.question


# Rows without reasoning.

ANSWER_ONLY: dict[str, Row] = {
    "question and answer": {"question": "3 + 4?", "answer": "7"},
    "BBH": {"input": "3 + 4?", "target": "7"},
    "PAL": {"input": "3 + 4?", "target": 7.0},
    "Alpaca": {"instruction": "3 + 4?", "input": "", "output": "7"},
    "bare response beside its answer": {"prompt": "3 + 4?", "response": "The answer is 7.", "answer": "7"},
    "MMLU": {"question": "3 + 4?", "choices": ["6", "7"], "answer": 1},
    "conversation": {"messages": [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]},
    "GRPO": {"prompt": [{"role": "user", "content": "3 + 4?"}], "answer": "7"},
    "empty thinking": {"prompt": "3 + 4?", "response": "<think>\n\n</think>\n\n7"},
    "our output alone": {"prompt": "3 + 4?", "response": "<output>7</output>"},
}


@pytest.mark.parametrize("row", ANSWER_ONLY.values(), ids=ANSWER_ONLY)
def test_rows_without_reasoning_are_refused_for_training_and_accepted_for_scoring(tmp_path: Path, row: Row) -> None:
    path = jsonl(tmp_path, row)
    with pytest.raises(DataError) as caught:
        load(path)
    assert "hold answers but no reasoning, so there is nothing to teach a model to reason with" in str(caught.value)
    assert f"cot-unsloth evaluate --model MODEL --dataset {path}" in str(caught.value)
    (problem,) = load_problems(DataConfig(dataset=str(path)), eval_samples=9, eval_seed=1)
    assert (problem.answer, problem.trace.parts) == ("B" if "choices" in row else "7", ())


def test_rows_without_reasoning_among_others_are_rejected(tmp_path: Path) -> None:
    loaded = load(
        jsonl(tmp_path, *[{"question": q(1), "cot": r(1), "answer": "5"}] * 3, {"question": q(2), "answer": "6"})
    )
    assert (len(loaded.examples), [x.reason for x in loaded.rejects]) == (3, ["no_reasoning"])


PROSE = (
    "One should rest for some days, drink enough water, and see a doctor if it does not get better within a week or so."
)


def test_problems_whose_gold_answer_is_prose_are_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"{n}?", "answer": PROSE if n % 2 else "7"} for n in range(4)]
    problems = load_problems(DataConfig(dataset=str(jsonl(tmp_path, *rows))), eval_samples=9, eval_seed=1)
    assert [p.answer for p in problems] == ["7", "7"]
    output = capsys.readouterr().err
    assert output.startswith("layout question_answer: question ← question, answer ← answer\n")
    assert "2 of 4 gold answers are prose" in output
    all_problems = load_problems(
        DataConfig(dataset=str(jsonl(tmp_path, *rows))), eval_samples=9, eval_seed=1, to_score_on=False
    )
    assert len(all_problems) == 4  # an export compares texts, so prose is kept
    with pytest.raises(DataError, match="every gold answer is prose"):
        load_problems(DataConfig(dataset=str(jsonl(tmp_path, rows[1]))), eval_samples=9, eval_seed=1)


def test_prose_is_kept_unchanged_as_the_answer(tmp_path: Path) -> None:
    loaded = readers._read(
        DataConfig(dataset=str(jsonl(tmp_path, {"prompt": "?", "response": PROSE}))), to_train_on=False
    )
    assert loaded.examples[0].trace.parts == ()
    assert loaded.examples[0].answer == PROSE


def test_a_run_on_prose_answers_reports_before_training_that_nothing_will_be_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": q(n), "reasoning": r(n), "output": PROSE} for n in range(9)]
    flags = {"dataset": str(jsonl(tmp_path, *rows)), "test_fraction": 0.3, "run_dir": str(tmp_path / "run")}
    assert "would write to" in pipeline.dry_run(config.load(None, flags))
    output = capsys.readouterr().err
    assert output.startswith("layout reasoning_columns: question ← question, reasoning ← reasoning, answer ← output\n")
    assert (
        "3 of 3 gold answers are prose, which cannot be compared with a model's answer; nothing will be scored"
        in output
    )
    assert "rows: 9 in = 6 train + 3 test + 0 rejected" in output
    prepared = preparation.prepare(config.load(None, flags))
    assert prepared.problems == []
    assert len(prepared.test) == 3


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"question": "Is it?", "reasoning": "We look.", "answer": True}, "yes"),
        ({"question": "True or false: it is?", "reasoning": "We look.", "answer": False}, "false"),
        ({"question": "Is it?", "response": "<think>We look.</think>That is true.", "answer": True}, "true"),
        ({"question": "Is it?", "response": "<think>We look.</think>Yes.", "answer": True}, "yes"),
    ],
)
def test_a_truth_value_becomes_the_word_that_its_row_uses(tmp_path: Path, row: Row, gold: str) -> None:
    assert one(tmp_path, row).answer == gold


def test_the_think_layout_rejects_rows_without_think_tags(tmp_path: Path) -> None:
    rows = [
        {"messages": [user(3), assistant(3)]},
        {"prompt": q(3), "response": "<think>a</think>7"},
        {"prompt": q(3), "response": f"{r(3)}\n#### 7"},
        {"messages": [user(3), {"role": "assistant", "content": "7"}]},
    ]
    loaded = load(jsonl(tmp_path, *rows), data_format="think")
    assert (len(loaded.examples), [x.reason for x in loaded.rejects]) == (2, ["missing_thinking"] * 2)


# Conversations.

ASK, TELL = {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2", "reasoning_content": "1 + 1"}
EARLIER = "<thinking>\n1 + 1\n</thinking>\n<output>2</output>"


@pytest.mark.parametrize(
    "earlier",
    [
        TELL,
        {"role": "assistant", "content": "<think>1 + 1</think>2"},
        {"role": "assistant", "content": "<think>1 + 1</think>2", "reasoning_content": "1 + 1"},
        {"role": "assistant", "content": "<Thought>1 + 1</Thought><Output>2</Output>"},
        {"role": "assistant", "content": "<thinking>1 + 1</thinking>2"},
        {"role": "assistant", "content": "1 + 1</think>2"},
        {"role": "assistant", "content": EARLIER},
    ],
)
def test_earlier_turns_are_converted_to_our_tags(tmp_path: Path, earlier: Row) -> None:
    example = one(tmp_path, {"messages": [ASK, earlier, user(3), assistant(3)]})
    assert [dict(turn) for turn in example.history] == [ASK, {"role": "assistant", "content": EARLIER}]
    assert example.history_loss == ()


def test_the_weight_of_a_message_decides_whether_it_is_trained_on(tmp_path: Path) -> None:
    example = one(
        tmp_path, {"messages": [ASK, {**TELL, "weight": 0}, ASK, TELL, user(3), {**assistant(3), "weight": 1}]}
    )
    assert example.history_loss == (False, False, False, True)
    # Also in a `history` column, and in rows that are written as `sample` and `transfer` write them.
    history = [ASK, {**TELL, "weight": 0}, ASK, {**TELL, "train": True}]
    alpaca = one(tmp_path, {"instruction": q(3), "input": "", "output": TAGGED, "history": history})
    conversation = one(tmp_path, {"history": history[:2], "messages": [*history[2:], user(3), assistant(3)]})
    written = one(tmp_path, row_of(example))
    assert [e.history_loss for e in (alpaca, conversation, written)] == [(False, False, False, True)] * 3
    assert written.history == example.history


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"trainable": "false"}, {"loss": 0.0}])
def test_turns_after_the_last_trainable_one_are_removed_and_counted(tmp_path: Path, mark: Row) -> None:
    loaded = load(
        jsonl(tmp_path, {"messages": [user(3), assistant(3), {"role": "user", "content": "bye"}, {**TELL, **mark}]})
    )
    (example,) = loaded.examples
    assert (example.question, example.answer, example.history) == (q(3), "7", ())
    assert "turns after the last assistant turn that may be trained left out (in 1 of 1 rows)" in str(loaded.columns)


def test_a_final_user_turn_is_removed(tmp_path: Path) -> None:
    row = {"messages": [user(3), assistant(3), {"role": "user", "content": "thanks"}], "answer": "7"}
    assert one(tmp_path, row).question == q(3)


def test_a_system_column_and_a_history_column_are_used(tmp_path: Path) -> None:
    example = one(tmp_path, {"system": "You are a pirate.", "messages": [user(3), assistant(3)]})
    assert example.system == "You are a pirate."
    example = one(tmp_path, {"instruction": q(3), "input": "", "output": TAGGED, "history": [["1 + 1?", "2"]]})
    assert [dict(turn) for turn in example.history] == [ASK, {"role": "assistant", "content": "<output>2</output>"}]
    same = {"system": "Add.", "messages": [{"role": "system", "content": "Add."}, user(3), assistant(3)]}
    assert one(tmp_path, same).system == "Add."


def test_tools_without_a_call_are_reported_as_unused(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, {"tools": [{"name": "add"}], "messages": [user(3), {**assistant(3), "name": "Ada"}]}))
    assert "not used: tools, messages[].name" in str(loaded.columns)


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
REJECTED: dict[str, tuple[Row, str]] = {
    "a tool call": ({"messages": [ASK, CALL, user(3), assistant(3)]}, "tool_turn"),
    "a tool's turn": ({"messages": [ASK, {"role": "tool", "content": "2"}, user(3), assistant(3)]}, "tool_turn"),
    "ShareGPT's call": (
        {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]},
        "tool_turn",
    ),
    "an unknown role": ({"messages": [{"role": "narrator", "content": "x"}, assistant(3)]}, "unknown_role"),
    "no role": ({"messages": [{"content": "x"}, assistant(3)]}, "unknown_role"),
    "a text under an unknown key": ({"messages": [{"role": "user", "says": "x"}, assistant(3)]}, "no_content"),
    "null for a text": ({"messages": [{"role": "user", "content": None}, assistant(3)]}, "wrong_type"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, assistant(3)]},
        "image_part",
    ),
    "a column of images": ({"images": ["x.png"], "messages": [user(3), assistant(3)]}, "image_part"),
    "two system prompts": (
        {"system": "a", "messages": [{"role": "system", "content": "b"}, user(3), assistant(3)]},
        "two_system_prompts",
    ),
    "nothing to train": ({"messages": [user(3), {**assistant(3), "weight": 0}]}, "no_loss"),
    "two reasonings": ({"messages": [user(3), {**assistant(3), "reasoning_content": "other"}]}, "two_reasonings"),
    "unclosed": ({"messages": [user(3), {"role": "assistant", "content": "<think>never"}]}, "unclosed_thinking"),
    "an earlier turn unclosed": (
        {"messages": [ASK, {"role": "assistant", "content": "<think>x"}, user(3), assistant(3)]},
        "unclosed_thinking",
    ),
    "no question": ({"messages": [assistant(3)]}, "no_user_turn"),
    "no answer": ({"messages": [user(3)]}, "no_assistant_turn"),
    "an array as pandas prints it": (
        {"messages": "[{'role': 'user', 'content': 'x'}\n {'role': 'assistant', 'content': 'y'}]"},
        "printed_array",
    ),
    "only wrong generations": (
        {"problem": "?", "generations": ["<think>a</think>1"], "correctness_math_verify": [False]},
        "no_correct_generation",
    ),
}


@pytest.mark.parametrize(("row", "reason"), REJECTED.values(), ids=REJECTED)
def test_a_conversation_that_cannot_be_trained_on_is_rejected_with_its_reason(
    tmp_path: Path, row: Row, reason: str
) -> None:
    assert reject(tmp_path, row)[0] == reason


def refusal(tmp_path: Path, row: Row, **settings: Any) -> DataError:
    """The error for a file of which both rows are this one: the list of a single object would be taken for the rows."""
    with pytest.raises(DataError) as error:
        load(jsonl(tmp_path, row, row), **settings)
    return error.value


def test_other_roles_and_keys_are_named_with_those_that_are_read(tmp_path: Path) -> None:
    guests = {"dialogue": [{"speaker": "guest", "says": "3 + 4?"}, {"speaker": "waiter", "says": "<think>x</think>7"}]}
    hint = str(refusal(tmp_path, guests).hint)
    assert "has the role 'guest' and no content; it has 'speaker', 'says'" in hint
    assert "user (or human, prompter, usr, customer), assistant (or gpt," in hint
    assert "role, from, speaker or author" in hint
    renamed = {"dialogue": [{"speaker": "user", "says": "3 + 4?"}, {"speaker": "gpt", "says": "<think>x</think>7"}]}
    hint = str(refusal(tmp_path, renamed).hint)
    assert "a message of 'user' has no content; it has 'speaker', 'says'" in hint
    assert "content, value, text, message, utterance or parts" in hint
    unnamed = {"dialogue": [{"who": "user", "says": "3 + 4?"}]}
    assert "has no role or content; it has 'who', 'says'" in str(refusal(tmp_path, unnamed).hint)


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "guest", "content": "3 + 4?"}],
        [{"role": "user", "says": "3 + 4?"}],
        [{"role": "user", "content": 7}],
        ["3 + 4?", {"role": "user", "content": "?"}],
        [assistant(3)],
        [user(3)],
        [user(3), {"role": "assistant", "content": "<think>never"}],
    ],
)
def test_faults_of_messages_do_not_advise_to_name_a_question_column(tmp_path: Path, turns: list[Any]) -> None:
    hint = str(refusal(tmp_path, {"messages": turns}, data_format="messages").hint)
    assert "--question-column" not in hint
    assert ("--answer-column" in hint) is (turns == [user(3)])


def test_the_answer_column_that_a_refusal_advises_is_read(tmp_path: Path) -> None:
    row = {"messages": [user(3)], "reply to it": "<think>3 + 4 = 7</think>7"}
    assert one(tmp_path, row, answer_column="reply to it").answer == "7"


@pytest.mark.parametrize(
    ("column", "name", "remedy"),
    [
        ("turns.0.says", "turns", "--messages-column turns"),
        ("turns.says", "turns", "--messages-column turns"),
        ("item.options.0", "item.options", "columns of their own"),
    ],
)
def test_a_column_inside_a_list_is_refused_as_such(tmp_path: Path, column: str, name: str, remedy: str) -> None:
    row = {"turns": [{"role": "user", "says": "3 + 4?"}], "item": {"options": ["a", "b"], "text": "?"}}
    error = refusal(tmp_path, row, question_column=column)
    assert f"{name!r} is a list" in error.message
    assert "did you mean" not in error.message
    assert remedy in str(error.hint)
    assert "did you mean 'item.text'" in refusal(tmp_path, row, question_column="item.txt").message


def test_the_documented_script_renames_roles_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("\n## Conversations\n")[2].partition("\n## ")[0]
    script = section.partition("```python\n")[2].partition("```")[0]
    row = next(text for text in section.split("`") if text.startswith('{"dialogue"'))
    (tmp_path / "mine.jsonl").write_text(row + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "data.md", "exec"), {})
    (example,) = load(tmp_path / "renamed.jsonl").examples
    assert (example.question, thoughts(example), example.answer) == ("3 + 4?", "3 + 4 = 7", "7")
    known = layouts.REMEDIES["unknown_role"].partition("; the key of a message's text")[0]
    for name in re.findall(r"[a-z0-9]+", known.replace("the key of the role is", "").replace("roles are", "")):
        assert name in ("or", "and") or f"`{name}`" in section


def test_a_csv_written_by_hand_is_read(tmp_path: Path) -> None:
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["Question", "Thinking", "Answer"], *([q(n), r(n), a(n)] for n in range(20))])
    loaded = load(tmp_path / "rows.csv")
    assert [(e.question, thoughts(e), e.answer) for e in loaded.examples] == [(q(n), r(n), a(n)) for n in range(20)]


# Conversations already rendered by a chat template.

RENDERED = {
    "ChatML": "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n",
    "s1K": "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n<|im_start|>think\n"
    "{why}\n<|im_start|>answer\n7<|im_end|>",
    "Llama 3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nAdd.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\n{ask}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{answer}<|eot_id|>",
    "Llama 2": "<s>[INST] <<SYS>>\nAdd.\n<</SYS>>\n\n{ask} [/INST] {answer} </s>",
    "Gemma": "<bos><start_of_turn>system\nAdd.<end_of_turn>\n<start_of_turn>user\n{ask}<end_of_turn>\n<start_of_turn>model\n"
    "{answer}<end_of_turn>",
    "Zephyr": "<|system|>\nAdd.</s>\n<|user|>\n{ask}</s>\n<|assistant|>\n{answer}</s>",
    "DeepSeek": "<｜begin▁of▁sentence｜>Add.<｜User｜>{ask}<｜Assistant｜>{answer}<｜end▁of▁sentence｜>",
    "Guanaco": "### System: Add.\n### Human: {ask}### Assistant: {answer}",
    "Alpaca": "Add.\n\n### Instruction:\n{ask}\n\n### Response:\n{answer}",
    "Vicuna": "Add. USER: {ask} ASSISTANT: {answer}</s>",
    "Human and Assistant": "System: Add.\n\nHuman: {ask}\n\nAssistant: {answer}",
    "gpt-oss": "<|start|>system<|message|>Add.<|end|><|start|>user<|message|>{ask}<|end|><|start|>assistant<|channel|>analysis"
    "<|message|>{why}<|end|><|start|>assistant<|channel|>final<|message|>7<|return|>",
}


@pytest.mark.parametrize("text", RENDERED.values(), ids=RENDERED)
def test_a_conversation_already_rendered_by_a_chat_template_is_read(tmp_path: Path, text: str) -> None:
    written = text.format(ask=q(3), answer=f"<think>\n{r(3)}\n</think>\n\n7", why=r(3))
    example = one(tmp_path, {"text": written, "source": "x"})
    assert (example.system, example.question, thoughts(example), example.answer) == ("Add.", q(3), r(3), "7")


@pytest.mark.parametrize(
    "prompt", ["3 + 4?\n<think>\n", "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n<think>\n"]
)
def test_a_prompt_that_opens_the_reasoning_does_not_keep_the_tag(tmp_path: Path, prompt: str) -> None:
    example = one(tmp_path, {"prompt": prompt, "completion": f"{r(3)}</think>7<|im_end|>"})
    assert (example.question, thoughts(example), example.answer) == ("3 + 4?", r(3), "7")


def test_a_placeholder_for_no_input_is_not_part_of_the_question(tmp_path: Path) -> None:
    assert one(tmp_path, {"instruction": q(3), "input": "<noinput>", "output": "<think>b</think>7"}).question == q(3)


def test_text_that_is_not_a_conversation_is_refused(tmp_path: Path) -> None:
    for text in ("Once there was a pen.", "She asked: USER: what is it?", "### Answer: 7", "The Human: a story"):
        with pytest.raises(
            DataError, match="match no known layout: text; none of them is a known column for the question"
        ):
            load(jsonl(tmp_path, {"text": text}))


def test_rows_that_are_lists_of_turns_are_read_as_conversations(tmp_path: Path) -> None:
    assert [e.question for e in load(jsonl(tmp_path, [user(1), assistant(1)], [user(2), assistant(2)])).examples] == [
        q(1),
        q(2),
    ]


def chatgpt_conversation(*messages: Row, **further: Any) -> Row:
    """A conversation as ChatGPT exports it, with an abandoned branch."""
    nodes: Row = {"root": {"message": None, "parent": None}, "old": {"message": messages[0], "parent": "root"}}
    for n, message in enumerate(messages):
        nodes[str(n)] = {"id": str(n), "message": message, "parent": str(n - 1) if n else "root", "children": []}
    nodes["abandoned"] = {"message": chatgpt_message("assistant", "no"), "parent": "0"}
    return {"title": "x", "mapping": nodes, "current_node": str(len(messages) - 1), **further}


def chatgpt_message(role: str, text: str, **further: Any) -> Row:
    return {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}, **further}


def test_a_chatgpt_export_is_read_along_its_current_branch(tmp_path: Path) -> None:
    hidden = chatgpt_message("user", "About me.", metadata={"is_visually_hidden_from_conversation": True})
    rows = [
        chatgpt_conversation(
            chatgpt_message("system", ""),
            hidden,
            chatgpt_message("user", q(n)),
            chatgpt_message("assistant", f"<think>{r(n)}</think>7"),
        )
        for n in range(2)
    ]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(rows))
    loaded = load(path)
    assert [(e.question, thoughts(e), e.answer, e.history, e.system) for e in loaded.examples] == [
        (q(n), r(n), "7", (), None) for n in range(2)
    ]
    assert loaded.columns
    assert loaded.columns.layout == "messages"
    thought = {
        "author": {"role": "assistant"},
        "content": {"content_type": "thoughts", "thoughts": [{"content": r(3)}]},
    }
    recap = {
        "author": {"role": "assistant"},
        "content": {"content_type": "reasoning_recap", "content": "Thought for 3s"},
    }
    assert thoughts(
        one(
            tmp_path,
            chatgpt_conversation(chatgpt_message("user", q(3)), thought, recap, chatgpt_message("assistant", "7")),
        )
    ) == r(3)


def test_rows_of_a_chatgpt_export_that_cannot_be_trained_on_are_rejected(tmp_path: Path) -> None:
    question, answer = chatgpt_message("user", q(3)), chatgpt_message("assistant", "7")
    assert reject(tmp_path, chatgpt_conversation(question, answer))[1].startswith(
        "it holds an answer and no reasoning: put the reasoning"
    )
    assert (
        reject(tmp_path, chatgpt_conversation(question, chatgpt_message("assistant", "x", recipient="python"), answer))[
            0
        ]
        == "tool_turn"
    )
    image = {"author": {"role": "user"}, "content": {"content_type": "multimodal_text", "parts": [{}]}}
    assert reject(tmp_path, chatgpt_conversation(image, answer))[0] == "image_part"
    for broken in (
        {"a": {"message": {"content": 3, "author": None}}},
        {"a": {"message": 3}},
        {"a": {"message": None, "parent": "a"}},
    ):
        assert reject(tmp_path, {"title": "x", "mapping": broken})[0]


# Details of rejected rows: missing reasoning and wrong values.


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "?", "thinking": "", "answer": "7"},
            "its thinking column is empty: fill it in, or leave the row out",
        ),
        ({"question": "?", "thinking": "<think> </think>", "answer": "7"}, "its thinking column is empty: fill it in"),
        ({"question": "?", "answer": "7"}, "it has no thinking, which holds the reasoning of other rows: add it"),
        (
            {"messages": [ASK, {"role": "assistant", "content": "7"}]},
            "put the reasoning into the assistant's turn, between <think> and </think> before the answer or as its "
            "reasoning_content",
        ),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "7"}]},
            "between <think> and </think>",
        ),
    ],
)
def test_a_rejected_row_without_reasoning_is_told_what_to_add(row: Row, expected: str, tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, {"question": "?", "thinking": "a", "answer": "7"}, row))
    (rejected,) = loaded.rejects
    assert (rejected.reason, expected in rejected.detail) == ("no_reasoning", True)
    assert str(loaded.columns) == "layout reasoning_columns: question ← question, reasoning ← thinking, answer ← answer"
    if "messages" in row or "conversations" in row or "thinking" in row:
        path = jsonl(tmp_path, row)
        with pytest.raises(DataError) as caught:
            load(path)
        assert expected.partition(": ")[2] in str(caught.value)
        assert f"cot-unsloth evaluate --model MODEL --dataset {path} --out scores/NAME" in str(caught.value)
        assert "--reasoning-column" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ([1, 2], "the row is a list, not an object"),
        (7, "the row is a number, not an object"),
        ({"question": ["a", 2], "answer": "7"}, "question is a list (['a', 2]), not text"),
        ({"question": None, "answer": "7"}, "there is no question: question is empty"),
        ({"question": "?", "cot": 7, "answer": {"a": 1, "b": 2}}, "answer is an object with a, b"),
        ({"question": "?", "options": ["x", "y"], "answer": "E"}, "answer is 'E', and there are 2 options"),
        ({"messages": [ASK, {"role": "assistant", "content": 7}]}, "the content of an assistant message is a number (7), not text"),
        ({"prompt": "?", "response": "<think>a</think>7", "is_correct": False}, "is_correct (False) says that its response is wrong"),
    ],
)  # fmt: skip
def test_the_reason_names_the_wrong_value(row: Any, detail: str, tmp_path: Path) -> None:
    assert reject(tmp_path, row)[1] == detail


# Responses that are labelled wrong.


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": q(3), "completion": "<think>a</think>8", "label": False},
        {
            "question": q(3),
            "generated_solution": "So it is \\boxed{8}, as we see.",
            "expected_answer": "7",
            "is_correct": False,
        },
        {"question": q(3), "r1_solution": "<think>a</think>8", "r1_correctness": "False"},
        {"prompt": [user(3)], "completion": [assistant(4)], "label": False},
        {"prompt": q(3), "completions": ["We add.", "The answer is: 8"], "labels": [True, False]},
        {"prompt": q(3), "completions": ["We add.", "The answer is: 8"], "labels": [1, 0], "answer": "7"},
        {"prompt": q(3), "completions": ["We add.", "The answer is: 8"], "labels": [1.0, -1.0], "answer": "7"},
        {"prompt": q(3), "completion": "<think>a</think>8", "is_correct": 0},
        {"prompt": q(3), "completion": "<think>a</think>8", "verified": 0.0},
        {"prompt": q(3), "completion": "<think>a</think>8", "is_correct": "0"},
        {"prompt": q(3), "completion": "<think>a</think>8", "correct": "False"},
        {"prompt": q(3), "completion": "<think>a</think>8", "label": "False"},
    ],
)
def test_a_response_labelled_wrong_is_rejected(tmp_path: Path, row: Row) -> None:
    assert reject(tmp_path, row)[0] == "wrong_response"


@pytest.mark.parametrize(
    ("column", "value", "answer"),
    [
        ("label", 0, "8"),
        ("is_correct", 1, "8"),
        ("is_correct", 0.5, "8"),
        ("correct", "False", "It is false."),
        ("label", "False", "It is false."),
        ("label", "no", "8"),
    ],
)
def test_what_is_no_verdict_rejects_nothing(column: str, value: object, answer: str, tmp_path: Path) -> None:
    assert (
        one(tmp_path, {"prompt": q(3), "completion": f"<think>a</think>{answer}", column: value}).trace.output == answer
    )


@pytest.mark.parametrize(
    ("math_verify", "llama", "taken"),
    [
        (["False", "True"], None, 1),
        ([0, 1], None, 1),
        ([None, True], None, 1),
        ([False, None], None, 1),
        ([None, False], [False, True], 1),
        ([0.5, 0.9], None, 0),
        ([False], None, "wrong_type"),
        (["wrong", "wrong"], None, "no_correct_generation"),
        ([None, False], [False, False], "no_correct_generation"),
    ],
)
def test_verdicts_on_generations_are_read_whatever_their_type(
    math_verify: list[object], llama: list[object] | None, taken: int | str, tmp_path: Path
) -> None:
    row = {
        "problem": q(3),
        "answer": "7",
        "generations": ["<think>a</think>7", "<think>b</think>7"],
        "correctness_math_verify": math_verify,
        "correctness_llama": llama,
    }
    if isinstance(taken, str):
        assert reject(tmp_path, row)[0] == taken
    else:
        assert thoughts(one(tmp_path, row)) == "ab"[taken]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(5, "5"), (2.0, "2"), ([3, 1, 2], "[3, 1, 2]"), ({"é": True}, '{"é": true}'), ("none of it", "none of it")],
)
def test_the_input_of_an_instruction_may_be_any_value(value: object, shown: str, tmp_path: Path) -> None:
    example = one(tmp_path, {"instruction": "Sort it.", "input": value, "output": "<think>a</think>7"})
    assert example.question == f"Sort it.\n\n{shown}"
    passages = {"instruction": "Sort it.", "context": ["A b.", "C d."], "response": "<think>a</think>7"}
    assert one(tmp_path, passages).question == "Sort it.\n\nA b.\nC d."


def test_columns_with_the_numbers_of_a_problem_are_no_choices(tmp_path: Path) -> None:
    example = one(tmp_path, {"question": "3 - 2?", "a": 3, "b": 2, "reasoning": "We take 2 from 3.", "answer": "1"})
    assert (example.question, example.answer) == ("3 - 2?", "1")
    choice = one(tmp_path, {"question": "3 - 2?", "A": "3", "B": "1", "reasoning": "We take 2 from 3.", "answer": "B"})
    assert "(B) 1" in choice.question
    assert choice.answer == "B"


def test_choice_numbers_are_understood_in_a_file_sorted_by_them(tmp_path: Path) -> None:
    rows = [
        {"question": f"{n}?", "options": list("wxyz"), "label": 1 + n // 60, "reasoning": "We look."}
        for n in range(240)
    ]
    loaded = load(jsonl(tmp_path, *rows))
    assert not loaded.rejects
    assert [example.answer for example in loaded.examples] == [letter for letter in "ABCD" for _ in range(60)]
    from_zero = load(jsonl(tmp_path, *({**row, "label": row["label"] - 1} for row in reversed(rows))))
    assert [example.answer for example in from_zero.examples] == [letter for letter in "DCBA" for _ in range(60)]


@pytest.mark.parametrize(
    ("written", "gold"),
    [
        ("5: 3", "5: 3"),
        ("12; 15", "12; 15"),
        ("(2,100)", "(2,100)"),
        ("[1,200]", "[1,200]"),
        ("1,234", "1234"),
        ("3. Because it is so.", "3"),
        ("3 million people live in that city", "3 million people live in that city"),
        ("10 hours and 30 minutes in total", "10 hours and 30 minutes in total"),
        ("12 or 13 depending on the case", "12 or 13 depending on the case"),
        ("7 apples are left in the basket", "7"),
        ("18 because 9 * 2 = 18 apples", "18"),
        ("7 (3 + 4 = 7 apples in total)", "7"),
    ],
)
def test_several_numbers_at_a_mark_are_all_the_answer(written: str, gold: str, tmp_path: Path) -> None:
    assert one(tmp_path, {"question": "?", "answer": f"We look.\n#### {written}"}).answer == gold


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?", "reasoning": "Half of 48 is <<48/2=24>>24.", "answer": "48/2 = <<48/2=24>>24\n#### 24"},
        {"question": "?", "response": "<think>48/2 = <<48/2=24>>24</think>It is <<24=24>>24."},
        {"question": "?", "response": "Half of 48 is 48/2 = <<48/2=24>>24 clips.", "answer": "24"},
    ],
)
def test_calculator_annotations_are_trained_nowhere(row: Row, tmp_path: Path) -> None:
    example = one(tmp_path, row)
    assert "24" in thoughts(example)
    assert "<<" not in thoughts(example) + example.trace.output
    begins = one(tmp_path, {"question": "?", "reasoning": "<<3+4=7>> is 7", "answer": "7"})
    assert thoughts(begins) == "is 7"
    shifts = one(tmp_path, {"question": "?", "reasoning": "cout << x == y >> z", "answer": "cout << x; cin >> x"})
    assert thoughts(shifts) + shifts.trace.output == "cout << x == y >> zcout << x; cin >> x"


def test_a_gap_among_the_options_rejects_its_row_only(tmp_path: Path) -> None:
    """A file of such rows could not be read at all."""
    table = pyarrow.table(
        {
            "question": ["2 + 1?", "2 + 2?"],
            "options": [[3.0, 4.0], [float("nan"), 4.0]],
            "answer": ["A", "B"],
            "cot": ["We add."] * 2,
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    loaded = load(tmp_path / "rows.parquet")
    assert [example.answer for example in loaded.examples] == ["A"]
    assert loaded.rejects[0].reason == "broken_list"


def test_a_label_does_not_stand_in_for_an_empty_answer(tmp_path: Path) -> None:
    row = {"question": "?", "reasoning": "We look.", "label": "algebra"}
    assert one(tmp_path, row).answer == "algebra"
    full = {**row, "answer": "7"}
    loaded = load(jsonl(tmp_path, full, {**row, "answer": None}, full))
    assert [example.answer for example in loaded.examples] == ["7", "7"]
    assert loaded.rejects[0].reason == "missing_field"


def test_a_link_is_no_gold_answer(tmp_path: Path) -> None:
    row = {"question": "?", "response": "<think>We look.</think>7", "reference": "https://example.org/7"}
    loaded = load(jsonl(tmp_path, row))
    assert loaded.examples[0].answer == "7"
    assert loaded.columns is not None
    assert "reference" in loaded.columns.unused


def test_a_second_closing_tag_rejects_the_row(tmp_path: Path) -> None:
    assert reject(tmp_path, {"question": "?", "response": "<think>a</think>wait</think>7"})[0] == "stray_close"
    earlier = [["?", "<think>a</think>wait</think>7"]]
    assert reject(tmp_path, {"question": "?", "response": "<think>a</think>7", "history": earlier})[0] == "stray_close"
    quoted = one(tmp_path, {"question": "?", "response": "<think>a</think>Write `</think>` there."})
    assert quoted.trace.output == "Write `</think>` there."


def test_a_long_text_before_the_reasoning_is_reasoning(tmp_path: Path) -> None:
    example = one(tmp_path, {"question": "?", "response": f"{'We begin. ' * 40}<think>b</think>7", "answer": "7"})
    assert [part.text for part in example.trace.parts] == [("We begin. " * 40).strip(), "b"]


def test_end_tokens_are_removed_at_the_ends_of_turns_only(tmp_path: Path) -> None:
    text = "<s>[INST] What is <s>x</s>? [/INST] <think>a</think>It <s>strikes</s> out</s>"
    example = one(tmp_path, {"text": text})
    assert (example.question, example.trace.output) == ("What is <s>x</s>?", "It <s>strikes</s> out")


def test_line_ends_of_windows_are_read_as_line_breaks_and_counted(tmp_path: Path) -> None:
    row = {
        "question": "a\r\nb",
        "reasoning": "c\r\nd",
        "answer": "e\r\nf",
        "system": "g\r\nh",
        "history": [["i\r\nj", "k\r\nl"]],
    }
    loaded = load(jsonl(tmp_path, row))
    (example,) = loaded.examples
    assert "\r" not in repr(example).replace("\\r", "\r")
    assert (example.question, thoughts(example), example.trace.output) == ("a\nb", "c\nd", "e\nf")
    assert "line ends of Windows read as \\n (in 1 of 1 rows)" in str(loaded.columns)


@pytest.mark.parametrize(
    ("column", "value"),
    [("steps", "4"), ("reason", "stop"), ("trace", "3f2a77b0-1c44"), ("analysis", "correct"), ("exp", "run-12")],
)
def test_a_column_named_like_reasoning_that_holds_none_is_not_it(column: str, value: str, tmp_path: Path) -> None:
    row = {"question": "?", "solution": "3 + 4 = 7, so it is \\boxed{7}.", "answer": "7", column: value}
    loaded = load(jsonl(tmp_path, row))
    assert thoughts(loaded.examples[0]) == row["solution"]
    assert loaded.columns is not None
    assert column in loaded.columns.unused


def test_a_null_written_as_text_is_no_text(tmp_path: Path) -> None:
    """As `str(None)` and databases write it."""
    row = {"question": "?", "response": "<think>a</think>It is 7.", "answer": "null", "system": "None"}
    loaded = load(jsonl(tmp_path, row))
    assert (loaded.examples[0].answer, loaded.examples[0].system) == ("It is 7.", None)
    assert "answer says null" in str(loaded.columns)
    assert one(tmp_path, {**row, "response": "<think>a</think>None of them.", "answer": "None"}).answer == "None"
    assert reject(tmp_path, {**row, "question": "None"})[0] == "missing_field"
    alpaca = {"instruction": "Do it.", "input": "None", "output": "<think>a</think>7"}
    assert one(tmp_path, alpaca).question == "Do it."


@pytest.mark.parametrize(
    ("answers", "gold", "more", "taken"),
    [
        (["8", "7", "7"], "7", {}, 1),
        (["8", "It is \\boxed{7}."], "7", {}, 1),
        (["A", "B"], "(B) seven", {}, 1),
        (["8", "9"], "7", {}, "no_correct_generation"),
        (["x + 2", "2 + x"], "y", {}, 0),
        (["8", "7"], None, {"rewards": [0.0, 1.0]}, 1),
        (["7", "7"], "7", {"is_reasoning_complete": [False, True]}, 1),
        (["8", "7"], "7", {"is_reasoning_complete": [True, True]}, 1),
    ],
)
@pytest.mark.parametrize("column", ["generations", "response"])
def test_of_several_responses_the_first_with_the_gold_answer_is_taken(
    column: str, answers: list[str], gold: str | None, more: Row, taken: int | str, tmp_path: Path
) -> None:
    if column == "response" and more:
        return
    responses = [f"<think>{letter}</think>{answer}" for letter, answer in zip("abc", answers, strict=False)]
    row = {"problem": "?", column: responses, "answer": gold, **more}
    if isinstance(taken, str):
        assert reject(tmp_path, row)[0] == taken
    else:
        assert thoughts(one(tmp_path, row)) == "abc"[taken]


def test_a_truth_value_as_label_is_read_as_the_answer(tmp_path: Path) -> None:
    assert one(tmp_path, {"question": "Is it?", "reasoning": "We look.", "label": False}).answer == "no"
    assert (
        one(tmp_path, {"question": "Is it?", "response": "<think>We look.</think>No.", "label": False}).answer == "No."
    )


def test_labels_of_contexts_are_not_taken_for_the_answer(tmp_path: Path) -> None:
    row = {
        "QUESTION": "Is it?",
        "CONTEXTS": ["It is."],
        "LABELS": ["A"],
        "final_decision": "yes",
        "LONG_ANSWER": "As said.",
    }
    example = one(tmp_path, row)
    assert (example.question, thoughts(example), example.answer) == ("It is.\n\nIs it?", "As said.", "yes")


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"text": "All is.", "question": "Is it?"}, "All is.\n\nIs it?"),
        ({"theory": "All is.", "question": "It is."}, "All is.\n\nIt is."),
        ({"premise": "All is.", "hypothesis": "It is."}, "All is.\n\nIt is."),
        (
            {"context": {"title": ["x"], "sentences": [["All is.", "So."]]}, "question": "Is it?"},
            "All is. So.\n\nIs it?",
        ),
        ({"text": "Q: Is it? A: yes", "question": "Is it?"}, "Is it?"),
        ({"text": "Now: Is\nit? So yes", "question": "Is it?"}, "Is it?"),
        ({"text": "### Human: Is that it? ### Assistant: yes", "question": "Is it?"}, "Is it?"),
        ({"question": {"text": "Is it?"}}, "Is it?"),
        ({"query": "why not look", "question": "Is it?"}, "Is it?"),
    ],
)
def test_the_context_of_a_question_is_placed_before_it(tmp_path: Path, row: Row, question: str) -> None:
    assert one(tmp_path, {**row, "rationale": "We look.", "answer": "yes"}).question == question


# Dialects of tags.


@pytest.mark.parametrize(
    ("text", "reasoning", "output"),
    [
        ("<start_working_out>a<end_working_out><SOLUTION>7</SOLUTION>", "a", "7"),
        ("<|inner_prefix|>a<|inner_suffix|>7", "a", "7"),
        ("## Thinking\n\na\n\n## Final Response\n\n7", "a", "7"),
        ("<think>a <think>b</think> c</think>7", "a <think>b</think> c", "7"),
        ("<think>the tag <think> opens</think>7", "the tag <think> opens", "7"),
        ("<think>the tag `</think>` closes</think>7", "the tag `</think>` closes", "7"),
        ("<think>a</think>Write\n```\n<think>b</think>\n```\nso.", "a", "Write\n```\n<think>b</think>\n```\nso."),
        ("<think>a\n```\nb</think>```\nc\n```", "a\n```\nb", "```\nc\n```"),
        ("<think>a</think>7<|im_end|>", "a", "7"),
        ("<think>a</think>7</s>", "a", "7"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|><|start|>assistant"
            "<|channel|>final<|message|>7<|return|>",
            "a\nb",
            "7",
        ),
    ],
)
def test_tags_in_reasoning_and_in_code_are_distinguished(
    tmp_path: Path, text: str, reasoning: str, output: str
) -> None:
    example = one(tmp_path, {"prompt": q(3), "response": text})
    assert (thoughts(example), example.trace.output) == (reasoning, output)


@pytest.mark.parametrize(
    ("thinking", "answer", "reason", "expected"),
    [
        ("so it is 40.</thinking> So I am done: 5.", "40", "stray_text", "thinking: text follows </thinking> inside"),
        ("a </thinking> b", "3774", "stray_text", "'b'"),
        ("a </think> b", "7", "stray_text", "text follows </think>"),
        ("<think>a</think> <answer>41</answer>", "40", "stray_text", "'<answer>41</answer>'"),
        ("</think> a", "7", "misnested", "</think> closes what nothing opens"),
        ("a </reasoning> b", "7", "misnested", "</reasoning> closes what nothing opens"),
        ("a <output>5</output> b", "7", "misnested", "the reasoning holds <output>"),
        ("<think>a</think>", "7", None, ""),
        ("a</think>", "7", None, ""),
        ("a</reasoning>", "7", None, ""),
        ("<think>a", "7", None, ""),
        ("<think>a</think>7", "7", None, ""),
        ("<think>a</think>\n<answer> 7 </answer>", 7, None, ""),
    ],
)
@pytest.mark.parametrize("columns", ["thinking answer", "reasoning_content response", "cot output"])
def test_the_answer_comes_from_its_own_column_whatever_tags_the_reasoning_has(
    thinking: str, answer: Any, reason: str | None, expected: str, columns: str, tmp_path: Path
) -> None:
    reasoning, answers = columns.split()
    rows = [{"question": q(n), reasoning: r(n), answers: a(n)} for n in range(3)]
    plain = str(load(jsonl(tmp_path, *rows)).columns)
    loaded = load(jsonl(tmp_path, {"question": "?", reasoning: thinking, answers: str(answer)}, *rows))
    if reason is None:
        first = loaded.examples[0]
        assert (thoughts(first), first.trace.output, first.answer) == ("a", str(answer), str(answer))
        return
    (rejected,) = loaded.rejects
    assert (rejected.reason, expected.replace("thinking:", f"{reasoning}:") in rejected.detail) == (reason, True)
    assert str(loaded.columns) == plain


def test_a_stray_tag_in_the_reasoning_rejects_a_choice_or_a_conversation(tmp_path: Path) -> None:
    choice = {"question": "?", "options": ["x", "y"], "rationale": "a </think> b", "cop": 1}
    assert reject(tmp_path, choice)[0] == "stray_text"
    turn = {"role": "assistant", "content": "7", "reasoning_content": "a </think> b"}
    assert reject(tmp_path, {"messages": [user(3), turn]})[1].startswith("the reasoning of the assistant's turn: text")


@pytest.mark.parametrize(
    "answer", ["a\n##### 7", "a\n#### 7<|endoftext|>", "a\n#### Final Answer\n7", "<think>a</think>So.\n#### 7"]
)
def test_answer_marks_are_read_in_every_spelling(tmp_path: Path, answer: str) -> None:
    example = one(tmp_path, {"question": "?", "answer": answer})
    assert (example.answer, thoughts(example)) == ("7", "a")


def test_worked_answers_without_an_answer_mark_are_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="end each answer in a line '#### 7'"):
        load(jsonl(tmp_path, {"question": q(3), "answer": PROSE}))


def test_the_error_about_columns_names_the_missing_role_and_nested_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'question' is the question, and none is a known column for the answer"):
        load(jsonl(tmp_path, {"question": q(3), "code": "x"}))
    path = jsonl(tmp_path, {"id": 1, "item": {"ask": q(3), "cot": r(3), "say": "7"}})
    with pytest.raises(DataError, match=r"match no known layout: id, item\.ask, item\.cot, item\.say"):
        load(path)
    loaded = load(path, question_column="item.ask", reasoning_column="item.cot", answer_column="item.say")
    assert loaded.examples[0].answer == "7"


@pytest.mark.parametrize(
    "row",
    [
        {"response": {"reasoning": r(3), "answer": "7"}},
        {"output": json.dumps({"thinking": r(3), "response": "7"})},
        {
            "reannotated_assistant_content": f"<think>\n{r(3)}\n</think>\n7",
            "solution": "We see 7, of course, by adding both.",
        },
        {"r1_generation": f"<think>{r(3)}</think>7", "critique": "Fine."},
        {"reasoning (reasoning_content)": r(3), "response (content)": "7"},
    ],
)
def test_the_column_that_contains_reasoning_is_used_as_the_response(tmp_path: Path, row: Row) -> None:
    example = one(tmp_path, {"question": q(3), **row})
    assert (thoughts(example), example.trace.output) == (r(3), "7")


def test_turns_of_input_and_output_are_read_as_a_conversation(tmp_path: Path) -> None:
    turns = [{"system": "Add.", "input": "Hi", "output": "Hello"}, {"output": f"<think>{r(3)}</think>7", "input": q(3)}]
    rows = [{"conversation": turns, "source": "x"}] * 2
    example = load(jsonl(tmp_path, *rows)).examples[0]
    assert (example.system, example.question, thoughts(example), len(example.history)) == ("Add.", q(3), r(3), 2)


@pytest.mark.parametrize("right", ["option_b", "Option 2", "option2", "Choice B"])
def test_the_right_option_may_be_named_by_its_column(tmp_path: Path, right: str) -> None:
    row = {"question": "?", "option_a": "x", "option_b": "y", "correct_answer": right, "rationale": "We look."}
    assert one(tmp_path, row).answer == "B"


def test_reasoning_in_a_question_and_answer_text_is_read(tmp_path: Path) -> None:
    example = one(tmp_path, {"text": f"Question: {q(3)}\nReasoning: {r(3)}\nAnswer: 7"})
    assert (example.question, thoughts(example), example.answer) == (q(3), r(3), "7")


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("options", "['three' '5' 'x y']"),
        ("options", "array(['three', '5', 'x y'], dtype=object)"),
        (
            "choices",
            "{'text': array(['three', '5', 'x y'], dtype=object), 'label': array(['A', 'B', 'C'], dtype=object)}",
        ),
    ],
)
def test_options_printed_by_numpy_are_read(tmp_path: Path, column: str, cell: str) -> None:
    example = one(tmp_path, {"question": "?", column: cell, "answer": "B", "rationale": "We look."})
    assert example.question.startswith("?\n\n(A) three\n(B) 5\n(C) x y")


def test_a_letter_without_readable_options_rejects_the_row(tmp_path: Path) -> None:
    row = {"question": "?", "options": "three, five", "answer": "B", "rationale": "We look."}
    assert (
        reject(tmp_path, row)[1]
        == "the answer is a letter, and the options in options cannot be read; write them as a JSON list"
    )
    assert one(tmp_path, {**row, "question": "A) three B) five"}).answer == "B"


@pytest.mark.parametrize(
    ("cell", "text", "gold"),
    [("so", "so", "so"), (12.0, "12", "12"), (12, "12", "12"), (["so"], "so", "so"), (True, "wrong_type", "yes"),
     (None, "missing_field", "missing_field"), (" ", "missing_field", "missing_field"),
     ([], "missing_field", "missing_field"), (float("nan"), "missing_field", "missing_field"),
     ({"a": 1, "b": 2}, "wrong_type", "wrong_type"), ("<answer></answer>", "<answer></answer>", "missing_field")],
)  # fmt: skip
def test_a_layout_reads_its_own_columns_as_text_or_rejects_the_row(cell: Any, text: str, gold: str) -> None:
    def outcome(read: Callable[[layouts.Columns], str]) -> str:
        try:
            return read(layouts.Columns({"Step_1": cell}))
        except layouts.RowError as error:
            return error.reason

    assert outcome(lambda columns: base.read_text(columns, "step_1", "reasoning")) == text
    assert outcome(lambda columns: base.read_gold_text(columns, "step_1")) == gold


def test_a_layout_that_reads_a_column_which_the_row_lacks_rejects_it() -> None:
    with pytest.raises(layouts.RowError, match="there is no column result"):
        base.read_gold_text(layouts.Columns({"step_1": "so"}), "result")


def test_a_null_among_the_options_rejects_the_row(tmp_path: Path) -> None:
    cell = {"text": ["3", None, "7"], "label": ["A", "B", "C"]}
    reason, _ = reject(tmp_path, {"question": "3 + 4?", "choices": cell, "reasoning": "so", "answer": "C"})
    assert reason == "broken_list"


def test_the_second_sentence_of_a_question_must_be_text(tmp_path: Path) -> None:
    row = {"sent1": "A pen", "sent2": {"x": 1}, "ending0": "runs.", "ending1": "writes.", "label": 1}
    fields = layouts.read(row, "multiple_choice", "f:1").example
    assert "x" not in fields.question.splitlines()[0]
