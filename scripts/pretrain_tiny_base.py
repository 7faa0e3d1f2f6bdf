"""Pre-train the embedded tiny base: `python scripts/pretrain_tiny_base.py --out DIR`.

The base in `cot_unsloth/assets/tiny-base` was trained by this script in three stages; its card has their commands. It is
taught *component skills* and direct answers only:

- lines: below a problem, in random order, one named step at a time from a *given* value; the statement that comes after a
  named one; whether a given line is right;
- targets: below a countdown problem, a first operation, a last one from given numbers, what a given operation leaves, whether
  the result of a given one is the target;
- facts: unrelated sums, and whether a given one is right;
- direct answers to whole problems, under each of the prompts that the base arms are scored with;
- lookups: entries of a numbered list of random words; and copies of random lines;
- mark-up: put a word between tags, write an empty pair of tags.

No text carries a result into a next step, and none is a trace: `<thinking>` with steps inside never occurs, nor does a
reflection that corrects a step. So doing the steps one after the other, correcting a wrong one and trying again come from the
fine-tune. Problems are from the tasks' train split only. Loss is taken on answers, not on their context.

Some heads of the first layer are initialised to attend one, two and three tokens back, and every layer to add nothing.
Otherwise finding a token by the tokens before it would have to be learnt in two layers at once, which takes long. The first
steps are copies alone. The matrices inside the layers are trained with Muon (K. Jordan et al., 2024; `torch.optim.Muon`), the
rest with AdamW. Texts are packed into rows of equal length, so that the step can be compiled (`--compile`, if there is a C++
compiler).
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cot_unsloth.core.threads import limit_spinning

limit_spinning()  # before torch is imported

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cot_unsloth.config import DEFAULT_SYSTEM_PROMPT
from cot_unsloth.core.types import IGNORE
from cot_unsloth.prompts.arms import ANSWER_ONLY, STEP_BY_STEP
from cot_unsloth.tasks import TASKS, countdown
from cot_unsloth.tasks.chained import Op, Problem, equation, error_and_correction, statement, step_line
from cot_unsloth.tasks.countdown import Target
from cot_unsloth.tasks.task import wrong_result
from cot_unsloth.tasks.words import LARGEST

QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokenizer of Qwen2: each digit is a token."""

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' and message.get('reasoning_content') %}"
    "{{- '<thinking>\\n' + message['reasoning_content'] + '\\n</thinking>\\n' }}"
    "{%- endif %}"
    "{{- message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TAGS = ("thinking", "reflection", "output")
SHARPNESS, FREQUENCIES = 20.0, 4
"""Of the heads that look back: they start with three quarters of their attention on the right token."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDER = 20
"""The largest number of a countdown problem that asks only for its first operation; up to the task's own there are too few."""
STEPS = {"chains": (1, 12), "words": (1, 7), "countdown": (2, 2)}
"""Fewest and most steps of a problem in the training texts."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained base depends on."""

    hidden_size: int = 192
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    intermediate_size: int = 512
    vocab_size: int = 512
    initializer_range: float = 0.06
    stage: str = "first"
    """One of STAGES."""
    looking_back: str = "123"
    """How many tokens back the first heads of the first layer attend initially, one digit per head."""
    steps: int = 11000
    opening_steps: int = 500
    """The first steps, on copies only."""
    row_length: int = 256
    """Tokens per row."""
    long_row_length: int = 640
    """The same in the last part of the run, where texts are longer, to learn to look further back."""
    long_share: float = 0.15
    """The share of the steps in that part."""
    tokens_per_step: int = 4096
    muon_rate: float = 0.02
    """Learning rate of the matrices inside the layers."""
    learning_rate: float = 2e-3
    """Learning rate of the rest."""
    warmup: int = 200
    weight_decay: float = 0.02
    adam_beta2: float = 0.98
    seed: int = 3407


@dataclass
class Text:
    """One training text: strings, each with the skill that it shows; None for context, which carries no loss."""

    question: str = ""
    """The problem it is about; empty if it is about none."""
    pieces: list[tuple[str, str | None]] = field(default_factory=list)

    def context(self, text: str) -> Text:
        """Add text without loss."""
        self.pieces.append((text, None))
        return self

    def learn(self, skill: str, text: str) -> Text:
        """Add text with loss."""
        self.pieces.append((text, skill))
        return self

    def numbered(self, skill: str, index: int, line: str) -> Text:
        """Add a line of a solution; its number is context, the rest is learnt."""
        number = f"({index})"
        return self.context(number).learn(skill, f"{line.removeprefix(number)}\n")

    def chat_turn(self, skill: str, ask: str, answer: str) -> Text:
        """Add a question and its answer as a chat."""
        self.context(f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n")
        return self.learn(skill, f"{answer}<|im_end|>").context("\n")

    @property
    def full_text(self) -> str:
        """All pieces as one string."""
        return "".join(piece for piece, _ in self.pieces)


def below(question: str, rng: random.Random) -> Text:
    """A text whose lines follow a question, as plain text or as a reply in a chat."""
    text = Text(question)
    if rng.random() < 0.4:
        return text.context(f"{question}\n\n")
    if rng.random() < 0.6:
        text.context(f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n")
    return text.context(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")


def draw(rng: random.Random, name: str) -> Any:
    """A problem of the train split, of any length in STEPS."""
    task = TASKS[name]
    while True:
        problem = task.draw(rng, rng.randint(*STEPS[name]))
        if problem.split == "train":
            return problem


def value_for(problem: Problem, op: Op, rng: random.Random) -> int:
    """A value that the operation can start from, drawn without regard to the problem's own."""
    while True:
        value = rng.randrange(problem.modulus) if problem.modulus else rng.randint(2, LARGEST)
        if problem.modulus or (1 <= op.raw(value) <= LARGEST and (op.operator != "/" or value % op.number == 0)):
            return value


def lines(
    rng: random.Random, most: int = 14, onward: bool = False, worlds: Sequence[str] = ("chains", "words", "words")
) -> Text:
    """Below a problem of numbered statements, steps in random order, each from a given value.

    With `onward`, the verdict on a right step also says whether a statement follows, and which. No step starts from the result
    of the step above it, or from the result of the step with the number before its own.
    """
    problem: Problem = draw(rng, rng.choice(worlds))
    text, task = below(problem.question, rng), problem.task
    made: set[tuple[int, int]] = set()
    last: tuple[int, ...] = ()
    for _ in range(rng.randint(3, most)):
        index = rng.randint(1, len(problem.ops))
        op = problem.ops[index - 1]
        value = value_for(problem, op, rng)
        if value in last or (index - 1, value) in made:
            continue
        kind = rng.random()
        if kind < 0.15 and (onward or index < len(problem.ops)):
            more = statement(index + 1, problem.ops[index]) if index < len(problem.ops) else "no more"
            text.context(f"({index}) {op.phrase} then ").learn("after", f"{more}\n")
            continue
        right = step_line(problem, index, value)
        last = (_end(right),)
        text.context(f"{value}\n")
        if kind < 0.4:
            wrong = error_and_correction(problem, index, value, rng)[0].text
            last = (_end(right), _end(wrong))
            text.context(f"{wrong}\n")
            text.learn(f"{task}: no", f"no, {equation(problem, op, value)}\n")
        else:
            text.numbered(f"{task}: step", index, right)
            if kind < 0.7:
                more = f", then ({index + 1})" if index < len(problem.ops) else ", no more"
                text.learn(f"{task}: ok", f"ok{more}\n" if onward else "ok\n")
        made |= {(index, end) for end in last}
    return text


def _end(line: str) -> int:
    """The number that a line ends in."""
    return int(line.rpartition(" ")[2])


def targets(rng: random.Random) -> Text:
    """Below a countdown problem, single operations; none goes on from what another made."""
    problem: Target = draw(rng, "countdown")
    text = below(problem.question, rng)
    made: set[int] = set()
    kinds = ["first", *rng.choices(("last", "left", "missed", "whole"), k=rng.randint(1, 4))]
    rng.shuffle(kinds)
    for kind in kinds:
        number = rng.choice(problem.numbers)
        step = rng.choice(problem.solutions)[0] if kind == "first" else _last(problem, number, rng)
        numbers = problem.numbers if kind == "first" else (_other(step, number), number)
        if numbers[0] in made and kind in ("last", "missed"):
            continue
        match kind:
            case "first" | "last":
                index = 1 if kind == "first" else 2
                if kind == "last":
                    text.context(f"{', '.join(map(str, numbers))}\n")
                made |= _line(text, kind, index, numbers, step, rng)
            case "left":
                step = rng.choice(rng.choice(problem.ways))[0]
                left = countdown.left_after(problem.numbers, step)
                text.context(f"{countdown.line(1, problem.numbers, step)}\nleaves ")
                text.learn("left", f"{', '.join(map(str, left))}\n")
                made.add(left[0])
            case "missed":
                got = countdown.result(step)
                text.context(f"{countdown.line(2, numbers, step)}\n")
                text.learn("hit" if got == problem.target else "missed", _verdict(got, problem.target))
                made.add(got)
            case _:
                way = rng.choice(rng.choice(problem.ways))
                (a, one, b), (c, two, d) = way
                text.context(f"{a} {one} {b} in {c} {two} {d}: ").learn("whole", f"{countdown.expression(way)}\n")
    return text


def firsts_and_lasts(rng: random.Random) -> Text:
    """A good first operation, or a last one from given numbers, or both, for each of a few countdown problems.

    Some problems have larger numbers; seldom, operations that are no good first ones are named before.
    """
    text = Text()
    made: set[int] = set()
    for _ in range(3):
        largest = rng.choice((max(countdown.NUMBERS), WIDER))
        numbers = tuple(rng.randint(1, largest) for _ in range(3))
        ways = Target(numbers, 0).ways
        problem = Target(numbers, countdown.result(rng.choice(ways)[0][-1]))
        if problem.split != "train":
            continue
        good = {way[0] for way in problem.solutions}
        others = sorted({way[0] for found in ways for way in found} - good)
        text.context(f"{problem.question}\n\n")
        made |= {countdown.result(step) for step in good}
        number = rng.choice(numbers)
        last = _last(problem, number, rng)
        left = (_other(last, number), number)
        if countdown.result(last) == problem.target and left[0] not in made:
            text.context(f"{left[0]}, {left[1]}\n").numbered("last", 2, countdown.line(2, left, last))
            made.add(problem.target)
        if rng.random() < 0.3:
            for a, operator, b in rng.sample(others, min(len(others), rng.randint(1, 3))):
                text.context(f"not {a} {operator} {b}\n")
        text.numbered("first", 1, countdown.line(1, numbers, rng.choice(sorted(good)))).context("\n")
    return text


def _verdict(got: int, target: int) -> str:
    return "ok\n" if got == target else f"{countdown.verdict_line(got, target)}\n"


def _line(
    text: Text, skill: str, index: int, numbers: Sequence[int], step: countdown.Step, rng: random.Random
) -> set[int]:
    """A line to write, or seldom a wrong one to be seen through; returns what it makes, by its word and in truth."""
    right = countdown.line(index, numbers, step)
    if rng.random() < 0.25:
        wrong = countdown.error_and_correction(index, numbers, step, rng)[0].text
        a, operator, b = step
        text.context(f"{wrong}\n").learn("sum: no", f"no, {a} {operator} {b} = {countdown.result(step)}\n")
        return {_end(wrong), _end(right)}
    text.numbered(skill, index, right)
    if rng.random() < 0.3:
        text.learn("sum: ok", "ok\n")
    return {_end(right)}


def _other(step: countdown.Step, number: int) -> int:
    return step[2] if step[0] == number else step[0]


def _last(problem: Target, number: int, rng: random.Random) -> countdown.Step:
    """An operation on one of the numbers and a number that leads to the target or, seldom, does not."""
    target = problem.target
    leading = [target - number, target + number, number - target] + [target // number] * (target % number == 0)
    leading = [n for n in leading if 1 <= n <= countdown.LARGEST]
    if not leading or rng.random() < 0.3:
        leading = [rng.randint(1, 99)]
    other = rng.choice(leading)
    a, b = max(number, other), min(number, other)
    steps: list[countdown.Step] = [(a, "+", b), (a, "-", b), (a, "*", b)]
    good = [step for step in steps if countdown.result(step) == target]
    return rng.choice(good or [step for step in steps if 1 <= countdown.result(step) <= countdown.LARGEST] or steps[:1])


def facts(rng: random.Random) -> Text:
    """Unrelated sums, to be done or to be judged; none starts from the result of the one before."""
    text = Text()
    last: tuple[int, ...] = ()
    while len(text.pieces) < 20:
        task = rng.choice(("words", "words", "chains", "countdown"))
        problem = draw(rng, task)
        if task == "countdown":
            step = rng.choice(rng.choice(problem.solutions))
            start, raw = step[0], countdown.result(step)
            sum_ = f"{step[0]} {step[1]} {step[2]} = {raw}"
        else:
            op = rng.choice(problem.ops)
            start = value_for(problem, op, rng)
            raw, sum_ = op.raw(start), equation(problem, op, start)
        if start in last:
            continue
        left, right = sum_.split("= ")
        last = (_end(right),)
        if task != "chains" and rng.random() < 0.25:
            wrong = wrong_result(raw, rng)
            last = (*last, wrong)
            text.context(f"{left}= {wrong}\n").learn("sum: no", f"no, {sum_}\n")
        else:
            text.context(f"{left}=").learn(f"{task}: sum", f" {right}\n")
            if rng.random() < 0.2:
                text.learn("sum: ok", "ok\n")
    return text


def direct(rng: random.Random) -> Text:
    """A whole problem and its bare answer, under one of the prompts of the base arms."""
    problem = draw(rng, rng.choice(("chains", "words", "countdown")))
    text = Text(problem.question)
    match rng.randrange(4):
        case 0:
            return text.chat_turn("direct", problem.question + STEP_BY_STEP, f"Answer: {problem.answer}")
        case 1:
            text.context(f"<|im_start|>system\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\n")
            return text.chat_turn("direct", problem.question, f"<output>{problem.answer}</output>")
        case _:
            return text.chat_turn("direct", problem.question + ANSWER_ONLY, problem.answer)


def markup(rng: random.Random) -> Text:
    """Words between tags, and empty pairs of tags."""
    text = Text()
    for _ in range(3):
        tag = rng.choice(TAGS) if rng.random() < 0.7 else _word(rng)
        inside = str(rng.randint(0, LARGEST)) if rng.random() < 0.6 else _word(rng)
        match rng.randrange(3):
            case 0:
                text.chat_turn("markup", f"Write an empty <{tag}> section.", f"<{tag}>\n</{tag}>")
            case 1:
                text.chat_turn("markup", f"Write {inside} between <{tag}> tags, apart.", f"<{tag}>\n{inside}\n</{tag}>")
            case _:
                text.chat_turn("markup", f"Write {inside} between <{tag}> tags.", f"<{tag}>{inside}</{tag}>")
    return text


def copying(rng: random.Random) -> Text:
    """Short random lines over all of printable ASCII."""
    line = "".join(chr(rng.randint(32, 126)) for _ in range(rng.randint(4, 24))).strip() or "x"
    words = " ".join(_word(rng) for _ in range(rng.randint(1, 6)))
    return Text().chat_turn("copy", "Repeat: " + line, line).chat_turn("copy", "Repeat: " + words, words)


def lookups(rng: random.Random) -> Text:
    """A numbered list of random words or numbers, then some of its entries in random order."""
    entries = [
        " ".join(_word(rng) if rng.random() < 0.6 else str(rng.randint(0, 99)) for _ in range(rng.randint(1, 2)))
        for _ in range(rng.randint(2, 12))
    ]
    text = Text().context("".join(f"({i}) {entry}\n" for i, entry in enumerate(entries, start=1)) + "\n")
    for _ in range(rng.randint(4, 12)):
        at = rng.randrange(len(entries))
        if rng.random() < 0.3 and at + 1 < len(entries):
            text.context(f"({at + 1}) {entries[at]} then ").learn("look: after", f"({at + 2}) {entries[at + 1]}\n")
        else:
            text.context(f"({at + 1})").learn("look", f" {entries[at]}\n")
    return text


def repeats(rng: random.Random) -> Text:
    """A random line of words, numbers, words of the tasks and signs, repeated once or twice."""
    makers = rng.sample(_ITEMS, rng.randint(1, len(_ITEMS)))
    line = " ".join(rng.choice(makers)(rng) for _ in range(rng.randint(3, 40)))
    text = Text().context(f"{line}\n")
    for _ in range(rng.randint(1, 2)):
        text.learn("repeat", f"{line}\n")
    return text


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 6)))


def _word_of_a_task(rng: random.Random) -> str:
    return rng.choice(draw(rng, rng.choice(tuple(STEPS))).question.split())


Maker = Callable[[random.Random], Text]
_ITEMS: tuple[Callable[[random.Random], str], ...] = (
    _word,
    _word_of_a_task,
    lambda rng: str(rng.randint(0, 99)),
    lambda rng: chr(rng.randint(33, 126)),
)


Mix = tuple[tuple[Maker, float], ...]
MIX: Mix = (
    (lines, 0.34),
    (targets, 0.30),
    (facts, 0.12),
    (direct, 0.09),
    (lookups, 0.04),
    (repeats, 0.02),
    (markup, 0.05),
    (copying, 0.04),
)
"""Functions that make texts, each with its weight."""
OPENING: Mix = ((repeats, 1.0),)
"""The first steps."""
LATER_MIX: Mix = (
    (partial(lines, onward=True), 0.28),
    (targets, 0.12),
    (firsts_and_lasts, 0.28),
    (facts, 0.12),
    (direct, 0.08),
    (lookups, 0.03),
    (markup, 0.05),
    (copying, 0.04),
)
"""The second stage."""
CHAIN_LINES = partial(lines, onward=True, worlds=("chains",))
LAST_MIX: Mix = (
    (partial(lines, onward=True), 0.24),
    (CHAIN_LINES, 0.16),
    (targets, 0.10),
    (firsts_and_lasts, 0.24),
    (facts, 0.10),
    (direct, 0.06),
    (lookups, 0.03),
    (markup, 0.04),
    (copying, 0.03),
)
"""The third stage: more of chains, whose statements are most alike."""
STAGES: dict[str, tuple[Mix, Mix, Mix]] = {
    "first": (OPENING, MIX, (*MIX, (partial(lines, most=40), 0.4))),
    "second": (OPENING, LATER_MIX, (*LATER_MIX, (partial(lines, most=40, onward=True), 0.4))),
    "third": (OPENING, LAST_MIX, (*LAST_MIX, (partial(CHAIN_LINES, most=40), 0.4))),
}
"""For each stage: the texts of its first steps, of its main part, and of its last part with long rows."""


def texts(seed: int, mix: Mix = MIX) -> Iterator[Text]:
    """An endless stream of texts; the same seed gives the same stream."""
    rng = random.Random(f"tiny-base|{seed}")
    makers, weights = zip(*mix, strict=True)
    while True:
        yield rng.choices(makers, weights)[0](rng)


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE over 20,000 texts of the corpus: every ASCII character, single digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = texts(recipe.seed + 1)
    corpus = (piece for _ in range(20_000) for piece, _ in next(stream).pieces)
    tokenizer.train_from_iterator((_without_specials(piece) for piece in corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _without_specials(text: str) -> str:
    for special in SPECIALS:
        text = text.replace(special, "")
    return text


def encode(tokenizer: PreTrainedTokenizerFast, chosen: Sequence[Text]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of texts, each ended by the padding token."""
    pieces = [piece for text in chosen for piece, _ in text.pieces]
    encodings = iter(tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False))
    rows = []
    for text in chosen:
        ids: list[int] = []
        labels: list[int] = []
        for _, skill in text.pieces:
            new = next(encodings).ids
            ids += new
            labels += new if skill else [IGNORE] * len(new)
        rows.append(([*ids, tokenizer.pad_token_id], [*labels, IGNORE]))
    return rows


def rows(
    tokenizer: PreTrainedTokenizerFast, stream: Iterator[Text], length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Texts one after the other in rows of `length` tokens; a text that does not fit is cut at the end of its row."""
    ids: list[int] = []
    labels: list[int] = []
    while True:
        for new_ids, new_labels in encode(tokenizer, [next(stream) for _ in range(256)]):
            ids += new_ids
            labels += new_labels
            if len(ids) >= length:
                yield ids[:length], labels[:length]
                ids, labels = [], []


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of each step, (rows, length); rows are long in the last `long_share` of the run."""
    long_steps = round(recipe.steps * recipe.long_share)
    opening, stream, long = (texts(recipe.seed, mix) for mix in STAGES[recipe.stage])
    for source, length, steps in (
        (opening, recipe.row_length, recipe.opening_steps),
        (stream, recipe.row_length, recipe.steps - recipe.opening_steps - long_steps),
        (long, recipe.long_row_length, long_steps),
    ):
        made = rows(tokenizer, source, length)
        for _ in range(steps):
            batch = [next(made) for _ in range(recipe.tokens_per_step // length)]
            yield torch.tensor([ids for ids, _ in batch]), torch.tensor([labels for _, labels in batch])


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model with its initial weights, seeded."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_hidden_layers,
            num_attention_heads=recipe.num_attention_heads,
            num_key_value_heads=recipe.num_key_value_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            initializer_range=recipe.initializer_range,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        _look_back(model, [int(lag) for lag in recipe.looking_back])
    return model


def _look_back(model: LlamaForCausalLM, lags: Sequence[int]) -> None:
    """Make the first heads of the first layer attend to the token `lag` positions back, initially.

    All embeddings get a common component. A head's query and key read only that component, and the query is rotated as rotary
    positions rotate it over `lag` positions, so that query and key agree best at that distance.
    """
    config = model.config
    size, half = config.head_dim, config.head_dim // 2
    embedding, attention = model.get_input_embeddings().weight, model.model.layers[0].self_attn
    common = torch.nn.functional.normalize(torch.randn(config.hidden_size), dim=0)
    embedding += common * config.initializer_range * config.hidden_size**0.5
    sharp = (SHARPNESS / (config.hidden_size / 2)) ** 0.5
    for head, lag in enumerate(lags):
        query, key = (p.weight[head * size : (head + 1) * size] for p in (attention.q_proj, attention.k_proj))
        query *= 0.1
        key *= 0.1
        for at in range(FREQUENCIES):
            angle = lag * config.rope_parameters["rope_theta"] ** (-at / half)
            key[at], key[at + half] = sharp * common, 0.0
            query[at], query[at + half] = sharp * math.cos(angle) * common, -sharp * math.sin(angle) * common


def pretrain(
    recipe: Recipe, steps: int, out: Path | None = None, compiled: bool = False, init_from: Path | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Train for `steps` of the recipe's schedule; returns model, tokenizer and the loss of each step.

    With `init_from`, the tokenizer and the initial weights are those of an earlier stage. Every 1,000 steps the accuracy of
    each skill is printed and the weights are saved under `out`.
    """
    if init_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(init_from)
        model = LlamaForCausalLM.from_pretrained(init_from, dtype=torch.float32).train()
    else:
        tokenizer = train_tokenizer(recipe)
        model = new_model(recipe, tokenizer).train()
    model.set_attn_implementation("eager")  # on a CPU, the fastest for rows as short as these
    optimizers = _optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe)) for optimizer in optimizers
    ]

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(input_ids=ids, labels=labels, use_cache=False).loss

    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.compile(loss_of) if compiled else loss_of
    losses, began, seen = [], time.monotonic(), 0
    for step, (ids, labels) in enumerate(itertools.islice(batches(tokenizer, recipe), steps), start=1):
        loss = forward(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses.append(loss.item())
        seen += ids.numel()
        if step % 100 == 0:
            mean = sum(losses[-100:]) / 100
            print(f"step {step}/{steps} loss {mean:.4f} tokens {seen:,} {time.monotonic() - began:.0f}s", flush=True)
        if out and step % 1000 == 0:
            shown = {
                skill: f"{right / n:.2f}"
                for skill, (right, n) in skills(model, tokenizer, texts(999, STAGES[recipe.stage][1]), 300).items()
            }
            print(json.dumps(shown), flush=True)
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)
    return model.eval(), tokenizer, losses


def skills(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stream: Iterator[Text], n: int
) -> dict[str, tuple[int, int]]:
    """By skill, over `n` texts: answers that greedy decoding gives exactly, and answers in all.

    Greedy decoding gives an answer exactly if each of its tokens is the likeliest after the tokens before it, so one forward
    pass per text is enough.
    """
    counts: dict[str, tuple[int, int]] = {}
    training = model.training
    model.eval()
    for text in itertools.islice(stream, n):
        ids: list[int] = []
        spans: list[tuple[int, int, str]] = []
        for piece, skill in text.pieces:
            new = tokenizer.encode(piece, add_special_tokens=False)
            if skill and ids:
                spans.append((len(ids), len(ids) + len(new), skill))
            ids += new
        if not spans:
            continue
        with torch.inference_mode():
            likeliest = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        for start, end, skill in spans:
            right, of = counts.get(skill, (0, 0))
            counts[skill] = right + (likeliest[start - 1 : end - 1] == ids[start:end]), of + 1
    model.train(training)
    return dict(sorted(counts.items()))


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, recipe.adam_beta2), weight_decay=0.0, fused=True),
    ]


def _rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = min(1.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def main() -> None:
    """Pre-train, save in 16 bits, and write down how it was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--init-from", type=Path, help="go on from the base in this folder, with its tokenizer")
    parser.add_argument("--compile", action="store_true", help="compile the step; needs a C++ compiler")
    parser.add_argument("--stop-after", type=int, help="stop early, with the schedule of the whole run")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    out, threads, stop, compiled, start = (
        args.pop(name) for name in ("out", "threads", "stop_after", "compile", "init_from")
    )
    recipe = Recipe(**args)
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    on_the_way = out.parent / f"{out.name}-partial"
    model, tokenizer, losses = pretrain(recipe, stop or recipe.steps, on_the_way, compiled, start)
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    stage = {
        "recipe": asdict(recipe),
        "steps": len(losses),
        "seconds": round(time.monotonic() - began),
        "threads": threads,
        "compiled": compiled,
        "torch": torch.__version__,
        "first_losses": [round(loss, 4) for loss in losses[:20]],
        "last_loss": round(sum(losses[-200:]) / len(losses[-200:]), 4),
    }
    before = json.loads((start / "pretrain.json").read_text())["stages"] if start else []
    made = {"parameters": sum(p.numel() for p in model.parameters()), "stages": [*before, stage]}
    (out / "pretrain.json").write_text(json.dumps(made, indent=2) + "\n")
    print(json.dumps(made))


if __name__ == "__main__":
    main()
