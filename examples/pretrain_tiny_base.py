"""Make the embedded tiny base: `python examples/pretrain_tiny_base.py --out DIR`.

The base that ships in `cot_unsloth/assets/tiny-base` was made by this script, with the defaults.
It is taught *component skills* and direct answers only:

- direct answers to whole problems, under each of the prompts that the base arms are scored with;
- arithmetic facts;
- workbooks: about one problem, in random order, copy statement (k), copy the start, carry out
  statement (k) from a *given* value that is no earlier turn's result;
- mark-up: put a word between tags, write an empty pair of tags;
- copying short random lines.

`--mix drills` is another diet, which holds countdown too: below one problem, many lines that each
carry out a named step from a given value, whether a written fact is right, and longer copies.

No text carries a result on into a next step, and none is a trace: `<thinking>` with steps inside
never occurs. So what a fine-tune adds (doing the steps one after the other, noticing a wrong one,
trying again) is the fine-tune's. Problems come from the worlds' train split only. Loss is taken on
answers, not on prompts. `--optimizer muon` trains the matrices inside the layers with Muon
(K. Jordan and others, 2024, as in `torch.optim.Muon`), the rest with AdamW.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cot_unsloth.config import DEFAULT_SYSTEM_PROMPT
from cot_unsloth.render import ANSWER_ONLY, STEP_BY_STEP
from cot_unsloth.tasks import WORLDS, countdown
from cot_unsloth.tasks.chained import Op, Problem, equation, error_and_mend, statement, step_line
from cot_unsloth.tasks.countdown import Target
from cot_unsloth.tasks.words import LARGEST
from cot_unsloth.tasks.world import wrong_result
from cot_unsloth.values import IGNORE

QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pre-tokenizer of Qwen2: digits stand alone."""

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
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STEPS = {"chains": (1, 12), "words": (1, 5), "countdown": (2, 2)}
"""Fewest and most steps of a problem that the base reads about."""
HARDER = ("chains", "words", "words")
"""Words are harder to read, so there are more lines of them."""
WRONG = 0.4
"""Share of the lines that are given, wrong, and to be mended."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the base becomes."""

    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 6
    intermediate_size: int = 512
    vocab_size: int = 512
    initializer_range: float = 0.06
    mix: str = "workbooks"
    """One of MIXES."""
    steps: int = 6500
    tokens_per_step: int = 4096
    """Upper bound, padding counted."""
    optimizer: str = "adamw"
    """adamw, or muon for the matrices inside the layers."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    muon_rate: float = 0.02
    """Of Muon."""
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 3407


Turn = tuple[str, str]
"""What is asked, and the answer that carries loss."""


@dataclass(frozen=True)
class Text:
    """One training text: turns of a conversation, or (`plain`) lines whose answers follow at once."""

    turns: tuple[Turn, ...]
    system: str | None = None
    plain: bool = False
    opening: str | None = None
    """The user's message that plain lines reply to in a chat."""


def draw_problem(rng: random.Random, *names: str) -> Problem | Target:
    """A problem of the train split, of one of the worlds named, of any length the base reads about."""
    world = WORLDS[rng.choice(names)]
    while True:
        problem = world.draw(rng, rng.randint(*STEPS[world.name]))
        if problem.split == "train":
            return problem


def draw_chained(rng: random.Random, names: Sequence[str] = ("chains", "words")) -> Problem:
    """A problem of numbered statements."""
    problem = draw_problem(rng, *names)
    assert isinstance(problem, Problem)
    return problem


def draw_target(rng: random.Random) -> Target:
    """A countdown problem."""
    problem = draw_problem(rng, "countdown")
    assert isinstance(problem, Target)
    return problem


def direct(rng: random.Random) -> Text:
    """A whole problem and its bare answer, under one of the prompts of the base arms."""
    return _direct(draw_problem(rng, "chains", "words"), rng)


def direct_anywhere(rng: random.Random) -> Text:
    """The same over all worlds."""
    return _direct(draw_problem(rng, *WORLDS), rng)


def _direct(problem: Problem | Target, rng: random.Random) -> Text:
    match rng.randrange(4):
        case 0:
            return Text(((problem.question + STEP_BY_STEP, f"Answer: {problem.answer}"),))
        case 1:
            return Text(((problem.question, f"<output>{problem.answer}</output>"),), DEFAULT_SYSTEM_PROMPT)
        case _:
            return Text(((problem.question + ANSWER_ONLY, problem.answer),))


def facts(rng: random.Random) -> Text:
    """Eight unrelated equations, each with the result as its answer."""
    turns = []
    for _ in range(8):
        problem = draw_chained(rng)
        op = rng.choice(problem.ops)
        left, right = equation(problem, op, _given(problem, op, rng)).split(" = ", 1)
        turns.append((f"{left} = ", right))
    return Text(tuple(turns), plain=True)


def checks(rng: random.Random) -> Text:
    """Unrelated equations, half of them wrong, each with what is to be said of it; none starts from the result before."""
    turns: list[Turn] = []
    last = None
    while len(turns) < 10:
        if rng.random() < 0.25:
            step = rng.choice(rng.choice(draw_target(rng).solutions))
            start, operator, number = step
            problem, raw = None, countdown.result(step)
        else:
            problem = draw_chained(rng)
            op = rng.choice(problem.ops)
            start, operator, number = _given(problem, op, rng), op.operator, op.number
            raw = op.raw(start)
        if start == last:
            continue
        modulus = problem.modulus if problem else None
        wrong = wrong_result(raw, rng, lambda made: not modulus or (made - raw) % modulus != 0)  # noqa: B023
        shown = rng.choice((raw, wrong))
        tail = f" -> {shown % modulus}" if modulus else ""
        says = "ok" if shown == raw else f"<reflection>{start} {operator} {number} is {raw}, not {wrong}.</reflection>"
        turns.append((f"{start} {operator} {number} = {shown}{tail}\n", says))
        last = raw % modulus if modulus else raw
    return Text(tuple(turns), plain=True)


def lines(rng: random.Random) -> Text:
    """Below a problem, lines as a solution writes them, each from a given value, in random order.

    What is said of a line stands below it: "ok", or the reflection that mends it.
    """
    return _lines_of_target(rng) if rng.random() < 0.3 else _lines_of_chained(rng)


def _lines_of_chained(rng: random.Random) -> Text:
    problem = draw_chained(rng, HARDER)
    turns: list[Turn] = []
    made: set[tuple[int, int]] = set()
    last = None
    wanted = rng.randint(4, 10)
    for _ in range(50):
        index = rng.randint(1, len(problem.ops))
        op = problem.ops[index - 1]
        value = _given(problem, op, rng)
        # Two lines chain if the second goes on from the first, by its number or by standing next to it.
        if value == last or (index - 1, value) in made:
            continue
        given = f"{value}</reflection>\n" if rng.random() < 0.15 else f"{value}\n"
        if rng.random() < WRONG:
            wrong, mend = error_and_mend(problem, index, value, rng)
            turns.append((f"{given}{wrong.text}\n", f"<reflection>{mend.text}</reflection>"))
            made.add((index, _end(wrong.text)))
        else:
            turns.append((given, f"{step_line(problem, index, value)}\nok"))
        last = problem.reduce(op.raw(value))
        made.add((index, last))
        if len(turns) == wanted:
            break
    return _below(problem.question, turns, rng)


def _lines_of_target(rng: random.Random) -> Text:
    """Good first operations, last ones from given numbers, what is left after one, and what is to be said of them."""
    problem = draw_target(rng)
    turns: list[Turn] = []
    made: set[int] = set()
    for _ in range(rng.randint(5, 9)):
        match rng.choice(("first", "first", "first", "last", "last", "left", "missed", "whole")):
            case "first":
                step = rng.choice(problem.solutions)[0]
                turns.append(_line(1, problem.numbers, step, rng, made))
            case "last":
                numbers = _given_pair(problem, rng)
                if numbers[0] in made:
                    continue
                step = _towards(problem.target, numbers, rng)
                ask, answer = _line(2, numbers, step, rng, made)
                turns.append((f"{numbers[0]}, {numbers[1]}\n{ask}", answer))
            case "left":
                step = rng.choice(rng.choice(problem.ways))[0]
                left = countdown.left_after(problem.numbers, step)
                turns.append((f"{countdown.line(1, problem.numbers, step)}\nleft ", ", ".join(map(str, left))))
                made.add(left[0])
            case "missed":
                numbers = _given_pair(problem, rng)
                step = _towards(problem.target, numbers, rng) if rng.random() < 0.5 else _any(numbers, rng)
                number = countdown.result(step)
                if numbers[0] in made:
                    continue
                says = f"<reflection>{countdown.verdict_line(number, problem.target)}</reflection>"
                turns.append((f"{countdown.line(2, numbers, step)}\n", says if number != problem.target else "ok"))
                made.add(number)
            case _:
                way = rng.choice(rng.choice(problem.ways))
                (a, one, b), (c, two, d) = way
                turns.append((f"{a} {one} {b} in {c} {two} {d}: ", countdown.expression(way)))
    return _below(problem.question, turns, rng)


def _line(index: int, numbers: Sequence[int], step: countdown.Step, rng: random.Random, made: set[int]) -> Turn:
    """A line to write, or a wrong one to mend; adds to `made` what it makes, by its own word and in truth."""
    made.add(countdown.result(step))
    if rng.random() < WRONG:
        wrong, mend = countdown.error_and_mend(index, numbers, step, rng)
        made.add(_end(wrong.text))
        return f"{wrong.text}\n", f"<reflection>{mend.text}</reflection>"
    return "", f"{countdown.line(index, numbers, step)}\nok"


def _end(line: str) -> int:
    """The number that a line ends in."""
    return int(line.rpartition(" ")[2])


def _given_pair(problem: Target, rng: random.Random) -> tuple[int, int]:
    """One of the numbers, and a number from which it leads to the target (or, seldom, does not)."""
    number, target = rng.choice(problem.numbers), problem.target
    leading = [target - number, target + number, number - target] + [target // number] * (target % number == 0)
    leading = [n for n in leading if 1 <= n <= countdown.LARGEST]
    if not leading or rng.random() < 0.2:
        return rng.randint(1, 99), number
    return rng.choice(leading), number


def _towards(target: int, numbers: tuple[int, int], rng: random.Random) -> countdown.Step:
    a, b = max(numbers), min(numbers)
    good = [step for step in _steps(a, b) if countdown.result(step) == target]
    return rng.choice(good) if good else _any(numbers, rng)


def _any(numbers: tuple[int, int], rng: random.Random) -> countdown.Step:
    steps = _steps(max(numbers), min(numbers))
    return rng.choice([step for step in steps if 1 <= countdown.result(step) <= countdown.LARGEST] or steps[:1])


def _steps(a: int, b: int) -> list[countdown.Step]:
    return [(a, "+", b), (a, "-", b), (a, "*", b)]


def _below(question: str, turns: list[Turn], rng: random.Random) -> Text:
    """Half of them as the reply to the question in a chat, half as plain lines."""
    if rng.random() < 0.5:
        system = DEFAULT_SYSTEM_PROMPT if rng.random() < 0.7 else None
        return Text(tuple(turns), system, plain=True, opening=f"{question}\n\nLines.")
    ask, answer = turns[0]
    return Text(((f"{question}\n\n{ask}", answer), *turns[1:]), plain=True)


def workbook(rng: random.Random) -> Text:
    """Turns about one problem, in random order; no given value is an earlier turn's result."""
    problem = draw_chained(rng)
    turns: list[Turn] = []
    for _ in range(rng.randint(3, 6)):
        kind, index = rng.random(), rng.randint(1, len(problem.ops))
        op = problem.ops[index - 1]
        if kind < 0.1:
            turns.append(("Copy the start.", str(problem.start)))
        elif kind < 0.4:
            turns.append((f"Copy ({index}).", statement(index, op)))
        else:
            results = {answer.split(" ")[-1] for _, answer in turns}
            value = _given(problem, op, rng, unlike=results)
            turns.append((f"From {value}, do ({index}).", step_line(problem, index, value)))
    ask, answer = turns[0]
    turns[0] = (f"{problem.question}\n\n{ask}", answer)
    return Text(tuple(turns), DEFAULT_SYSTEM_PROMPT if rng.random() < 0.3 else None)


def _given(problem: Problem, op: Op, rng: random.Random, unlike: Collection[str] = ()) -> int:
    """A value that the operation can start from, drawn without regard to the problem's own."""
    while True:
        value = rng.randrange(problem.modulus) if problem.modulus else rng.randint(2, LARGEST)
        if str(value) in unlike:
            continue
        if problem.modulus or (1 <= op.raw(value) <= LARGEST and (op.operator != "/" or value % op.number == 0)):
            return value


def markup(rng: random.Random) -> Text:
    """Words between tags, and empty pairs of tags."""
    turns: list[Turn] = []
    for _ in range(4):
        tag = rng.choice(TAGS) if rng.random() < 0.7 else _word(rng)
        inside = str(rng.randint(0, LARGEST)) if rng.random() < 0.6 else _word(rng)
        match rng.randrange(3):
            case 0:
                turns.append((f"Write an empty <{tag}> section.", f"<{tag}>\n</{tag}>"))
            case 1:
                turns.append((f"Write {inside} between <{tag}> tags, on its own line.", f"<{tag}>\n{inside}\n</{tag}>"))
            case _:
                turns.append((f"Write {inside} between <{tag}> tags.", f"<{tag}>{inside}</{tag}>"))
    return Text(tuple(turns), DEFAULT_SYSTEM_PROMPT if rng.random() < 0.3 else None)


def copying(rng: random.Random) -> Text:
    """Short random lines over all of printable ASCII."""
    line = "".join(chr(rng.randint(32, 126)) for _ in range(rng.randint(4, 24))).strip() or "x"
    words = " ".join(_word(rng) for _ in range(rng.randint(1, 6)))
    return Text((("Repeat: " + line, line), ("Repeat: " + words, words)))


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 6)))


Maker = Callable[[random.Random], Text]
MIXES: dict[str, tuple[tuple[Maker, float], ...]] = {
    "workbooks": ((direct, 0.15), (facts, 0.2), (workbook, 0.5), (markup, 0.08), (copying, 0.07)),
    "lines": ((lines, 0.5), (checks, 0.16), (direct_anywhere, 0.1), (workbook, 0.1), (markup, 0.08), (copying, 0.06)),
}
"""What a base is fed on: makers of texts, with their shares."""


def texts(seed: int, mix: str = "workbooks") -> Iterator[Text]:
    """The endless corpus, the same for the same seed."""
    rng = random.Random(f"tiny-base|{seed}")
    makers, weights = zip(*MIXES[mix], strict=True)
    while True:
        yield rng.choices(makers, weights)[0](rng)


def spoken(text: Text) -> list[tuple[str, bool]]:
    """A text as pieces of string, each with whether it carries loss."""
    pieces: list[tuple[str, bool]] = []
    if text.system:
        pieces.append((f"<|im_start|>system\n{text.system}<|im_end|>\n", False))
    if text.plain:
        if text.opening:
            pieces.append((f"<|im_start|>user\n{text.opening}<|im_end|>\n<|im_start|>assistant\n", False))
        return pieces + [piece for ask, answer in text.turns for piece in ((ask, False), (answer + "\n", True))]
    for ask, answer in text.turns:
        pieces.append((f"<|im_start|>user\n{ask}<|im_end|>\n<|im_start|>assistant\n", False))
        pieces.append((answer + "<|im_end|>", True))
        pieces.append(("\n", False))
    return pieces


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
    stream = texts(recipe.seed + 1, recipe.mix)
    corpus = (piece for _ in range(20_000) for piece, _ in spoken(next(stream)))
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


def encode(tokenizer: PreTrainedTokenizerFast, text: Text) -> tuple[list[int], list[int]]:
    """Ids and labels of one text."""
    ids: list[int] = []
    labels: list[int] = []
    for piece, loss in spoken(text):
        new = tokenizer.encode(piece, add_special_tokens=False)
        ids += new
        labels += new if loss else [IGNORE] * len(new)
    return ids, labels


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of similar lengths, at most `tokens_per_step` with padding."""
    stream = texts(recipe.seed, recipe.mix)
    rng = random.Random(f"batches|{recipe.seed}")
    while True:
        pool = sorted((encode(tokenizer, next(stream)) for _ in range(2048)), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in pool:
            if (len(groups[-1]) + 1) * len(row[0]) > recipe.tokens_per_step:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([labels + [IGNORE] * (width - len(labels)) for _, labels in group]),
            )


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The model with seeded random weights."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
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


def pretrain(
    recipe: Recipe, steps: int, out: Path | None = None, init_from: Path | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Train for `steps` of the recipe's schedule; returns model, tokenizer and the loss of each step.

    With `init_from`, the tokenizer and the first weights are those of an earlier stage.
    """
    if init_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(init_from)
        model = LlamaForCausalLM.from_pretrained(init_from, dtype=torch.float32).train()
    else:
        tokenizer = train_tokenizer(recipe)
        model = new_model(recipe, tokenizer).train()
    model.set_attn_implementation("eager")  # for short rows the faster one on a CPU
    optimizers = _optimizers(model, recipe)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, recipe)) for each in optimizers]
    losses, began, seen = [], time.monotonic(), 0
    for step, (ids, labels) in enumerate(batches(tokenizer, recipe), start=1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        for each in optimizers:
            each.zero_grad()
        losses.append(loss.item())
        seen += ids.numel()
        if step % 100 == 0:
            mean = sum(losses[-100:]) / 100
            print(f"step {step}/{steps} loss {mean:.4f} tokens {seen:,} {time.monotonic() - began:.0f}s", flush=True)
        if out and step % 1000 == 0:
            model.save_pretrained(out / f"step-{step}")
            tokenizer.save_pretrained(out / f"step-{step}")
        if step == steps:
            return model.eval(), tokenizer, losses
    raise AssertionError("the corpus is endless")


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in named if p.ndim != 2 or "embed" in name]
    if recipe.optimizer == "muon":
        return [
            torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, momentum=0.95),
            torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))]


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
    parser.add_argument("--init-from", type=Path, help="go on from the base in this folder, with its tokenizer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stop-after", type=int, help="stop early, with the schedule of the whole run")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    out, threads, stop, start = (args.pop(name) for name in ("out", "threads", "stop_after", "init_from"))
    recipe = Recipe(**args)
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model, tokenizer, losses = pretrain(recipe, stop or recipe.steps, out.parent / f"{out.name}-partial", start)
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    stage = {
        "recipe": asdict(recipe),
        "steps": len(losses),
        "seconds": round(time.monotonic() - began),
        "threads": threads,
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
