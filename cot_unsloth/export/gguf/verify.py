"""Is a GGUF file, as llama.cpp runs it, the model that was trained?

Three models are compared on held-out rows, answers forced: the adapter on its base, computed by
transformers (`trained`); the same network with the file's own weights put back into it (`expected`);
and the file in llama.cpp (`found`). What rounding to the file's type costs is the gap between the first
two, measured; so what is found may be that far from what was trained, and must be as good as equal
to what is expected. Beside that: every tensor against base and adapter, every token, the template,
the token that ends a turn, the tags, and answers to held-out questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from cot_unsloth.core import trace
from cot_unsloth.core.results.verification import Check
from cot_unsloth.core.statistics import mcnemar
from cot_unsloth.core.types import IGNORE, Completion, Example, Sample, SamplingParams
from cot_unsloth.evaluation import score
from cot_unsloth.export.gguf import writer
from cot_unsloth.export.gguf.tokenizers import ids_in_a_turn, split_of
from cot_unsloth.export.gguf.tokens import adds_bos, split_reasoning
from cot_unsloth.export.gguf.writer import Model, Tensor
from cot_unsloth.export.layerwise import Network
from cot_unsloth.export.verify import CLOSE, NASTY, check
from cot_unsloth.export.weights import blocks, in_order
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts.render import Renderer

WEIGHT_ERROR = {
    Type.F32: 1e-6, Type.F16: 1e-3, Type.BF16: 5e-3, Type.Q8_0: 0.02, Type.Q6_K: 0.05,
    Type.Q5_K: 0.1, Type.Q5_0: 0.1, Type.Q5_1: 0.1, Type.Q4_K: 0.2,
}  # fmt: skip
"""Most that a tensor may differ by, in the root mean square against its own. Normal weights were measured to
differ by 0.005 in Q8_0, 0.018 in Q6_K, 0.036 in Q5_K and 0.072 in Q4_K; those with outliers differ by more."""
MAX_KL = 0.02
"""Mean nats a token between what the file's weights give in transformers and what llama.cpp finds, which also
rounds activations to 8 bits where weights are quantized."""
MIN_AGREEMENT = 0.98
"""Share of tokens on which these two agree, or all but agree: within CLOSE."""
CLOSE_QUANTIZED = 0.5
"""The same as `CLOSE` for quantized weights."""
SIGNIFICANT = 0.01
"""McNemar's p below which answers that got worse are no chance."""
GREEDY_TOKENS = 48
_PLACES = 3
"""Places of a row at which distributions are compared, its first and last token among them."""
_MOST = 2000
"""Likeliest tokens that are compared; the others count together."""


@dataclass(frozen=True)
class Place:
    """Where in a row a next token is asked for."""

    ids: tuple[int, ...]
    """All before it."""
    stops: bool
    """Whether the row's own next token ends the turn."""


def places(samples: Sequence[Sample]) -> list[Place]:
    """A few places of each row: the first token of the answer, the one that ends it, and some between."""
    found = []
    for sample in samples:
        first, last = len(sample.ids) - _answer_length(sample), len(sample.ids) - 1
        at = sorted({round(first + (last - first) * i / (_PLACES - 1)) for i in range(_PLACES)})
        found += [Place(sample.ids[:i], i == last) for i in at]
    return found


def _answer_length(sample: Sample) -> int:
    first = next(at for at, label in enumerate(sample.labels) if label != IGNORE)
    return len(sample.ids) - first


def distributions(network: Network, asked: Sequence[Place]) -> list[Any]:
    """Log-probabilities over the vocabulary at each place, by transformers: (vocabulary,) float32 each."""
    rows: list[tuple[int, ...]] = []
    for ids in sorted({place.ids for place in asked}, key=len, reverse=True):
        if not any(row[: len(ids)] == ids for row in rows):  # the places of a row are prefixes of its longest place
            rows.append(ids)
    positions = [sorted({len(p.ids) - 1 for p in asked if row[: len(p.ids)] == p.ids}) for row in rows]
    at = {
        row[: position + 1]: logprobs
        for row, some, found in zip(rows, positions, network.logprobs(rows, positions), strict=True)
        for position, logprobs in zip(some, found, strict=True)
    }
    return [at[place.ids] for place in asked]


def found_by(llama: LlamaCpp, asked: Sequence[Place], vocabulary: int) -> list[dict[int, float]]:
    """The same by llama.cpp, of the likeliest tokens."""
    return [llama.logprobs(place.ids, min(_MOST, vocabulary)) for place in asked]


def read_file(file: Path) -> gguf.GGUFReader:
    """Open a file that was written.

    Raises:
        ValueError: it is no GGUF, or cut short.
    """
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ValueError(f"cannot be read back: {error}") from error
    return reader


class GgufSource:
    """Weights of a GGUF file, by their names in the base."""

    def __init__(self, reader: gguf.GGUFReader, model: Model) -> None:
        held = {tensor.name: tensor for tensor in reader.tensors}
        self._model = model
        self._held = {t.source: (t, held[t.name]) for t in writer.tensors(model) if t.name in held}

    def has(self, name: str) -> bool:
        """Whether the file holds it."""
        return name in self._held

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in the base."""
        return self._held[name][0].shape

    def rows(self, name: str, begin: int, end: int) -> Any:
        """Its rows as float32; if the file stores heads in pairs, whole heads only."""
        import torch

        tensor, held = self._held[name]
        vector = len(tensor.shape) < 2
        data = held.data.reshape(1, -1) if vector else held.data[begin:end]
        numbers = np.array(gguf.quants.dequantize(data, held.tensor_type), dtype=np.float32, copy=True)
        rows = torch.from_numpy(numbers).reshape(-1, *tensor.shape[1:])
        return writer.from_file(rows, tensor, self._model)


def check_weights(reader: gguf.GGUFReader, model: Model) -> Check:
    """Every tensor of the file against base and adapter."""
    wanted = writer.tensors(model)
    held = {tensor.name: tensor for tensor in reader.tensors}
    missing = [tensor.name for tensor in wanted if tensor.name not in held]
    surplus = sorted(set(held) - {tensor.name for tensor in wanted} - set(model.architecture.rope.tensors))
    if missing or surplus:
        return check("weights", False, missing=missing, surplus=surplus)
    source = GgufSource(reader, model)
    worst, worst_name, furthest = 0.0, "", 0.0
    for tensor in wanted:
        error = _error(source, tensor, model)
        share = error / WEIGHT_ERROR[held[tensor.name].tensor_type]
        if not share <= worst:
            worst, worst_name, furthest = share, tensor.name, error
    return check("weights", worst <= 1, tensors=len(wanted), worst=worst_name, relative_rmse=furthest)


def _error(source: GgufSource, tensor: Tensor, model: Model) -> float:
    """Root mean square difference from the weights that a tensor was made from, relative to theirs."""
    merged = model.merged(tensor.source)

    def work(block: tuple[int, int]) -> tuple[float, float]:
        truth = merged(*block).float()
        rows = source.rows(tensor.source, *block).reshape(truth.shape)
        return float((rows - truth).square().sum()), float(truth.square().sum())

    sums = list(in_order(work, blocks(model.weights, tensor.source, model.head_dim if tensor.heads else 1)))
    wrong, whole = (sum(pair[i] for pair in sums) for i in (0, 1))
    return math.sqrt(wrong / whole) if whole else math.sqrt(wrong)


def check_tokens(reader: gguf.GGUFReader, renderer: Renderer) -> list[Check]:
    """The vocabulary, and which tokens are control."""
    chat = renderer.chat
    names = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    vocabulary = chat.tokenizer.get_vocab()
    different = [text for text, id_ in vocabulary.items() if names[id_] != text]
    eos = int(reader.fields["tokenizer.ggml.eos_token_id"].contents())
    hidden = {gguf.TokenType.CONTROL, gguf.TokenType.UNUSED, gguf.TokenType.UNKNOWN}
    written = {tag: chat.ids(tag) for section in trace.SECTIONS for tag in trace.tags(section, chat.thinking_tags)}
    lost = [tag for tag, ids in written.items() if any(kinds[id_] in hidden for id_ in ids)]
    return [
        check("vocabulary", not different, tokens=len(names), different=different[:5]),
        check("stop_token", eos in chat.stops, token=names[eos]),
        check("tag_tokens", not lost, control=lost),
    ]


def check_text(llama: LlamaCpp, renderer: Renderer, examples: Sequence[Example]) -> list[Check]:
    """Token ids of plain and rendered text, and the template's prompts."""
    chat, tokenizer = renderer.chat, renderer.chat.tokenizer
    space = " " * split_of(tokenizer).space_prefix
    answers = [renderer.answer(example) for example in examples]
    # Of a control token written out, llama.cpp makes text where the tokenizer makes the token; rows hold none.
    nasty = [text for text in NASTY if chat.control_token(text) is None]
    plain = [*nasty, *(example.question for example in examples), *answers]
    wrong = [
        text for text in plain if llama.ids(text, special=False) != ids_in_a_turn(tokenizer, _normal(tokenizer, text))
    ]
    bos = [tokenizer.bos_token_id] * adds_bos(tokenizer)
    wrong += [text for text in NASTY[:3] if llama.ids(text) != bos + ids_in_a_turn(tokenizer, text)]
    lost = [
        text for text in answers if space + _normal(tokenizer, text) != llama.text_of(llama.ids(text, special=False))
    ]
    conversations = [renderer.prompt(example, "tuned").messages for example in examples]
    for messages, answer in zip(conversations[:3], answers, strict=False):
        reasoning, content = split_reasoning(answer, chat.thinking_tags)
        again = {"role": "user", "content": "And if it were one more?"}
        apart = {"role": "assistant", "content": content, "reasoning_content": reasoning}
        conversations.append((*messages, apart, again))
    turns = [_differs(llama, renderer, messages) for messages in conversations]
    return [
        check("token_ids", not wrong, strings=len(plain), different=wrong[:3]),
        check("tags", not lost, texts=len(answers), different=lost[:1]),
        check("prompt", not any(turns), conversations=len(conversations), different=[t for t in turns if t][:1]),
    ]


def _normal(tokenizer: Any, text: str) -> str:
    """Text as the tokenizer reads it: llama.cpp leaves composing letters to its caller."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or split_of(tokenizer).model == "llama":  # whose normalizer writes spaces in another way
        return text
    return str(normalizer.normalize_str(text))


def _differs(llama: LlamaCpp, renderer: Renderer, messages: Sequence[Mapping[str, str]]) -> str | None:
    """Where llama.cpp's prompt of a conversation, or its ids, are not ours; None where they are."""
    tags = renderer.data.thinking_tags
    joined = [
        {"role": m["role"], "content": trace.assistant_turn(m["content"], m["reasoning_content"], tags)}
        if "reasoning_content" in m
        else m
        for m in messages
    ]
    ours, theirs = renderer.chat.text(joined, ask=True), llama.render(messages)
    ids = llama.ids(theirs)
    if ids == renderer.chat.ids(_normal(renderer.chat.tokenizer, ours)):
        return None
    return f"{theirs[:400]!r} is {len(ids)} ids, trained with {ours[:400]!r}, {len(renderer.chat.ids(ours))}"


@dataclass(frozen=True)
class Compared:
    """Distributions at the same places."""

    asked: Sequence[Place]
    trained: Sequence[Any]
    expected: Sequence[Any]
    found: Sequence[Mapping[int, float]]


def check_distributions(both: Compared, exact: bool) -> list[Check]:
    """Next token and divergence; see the module."""
    near_by = CLOSE if exact else CLOSE_QUANTIZED
    agree = [_close(e, _likeliest(f), near_by) for e, f in zip(both.expected, both.found, strict=True)]
    same = [int(t.argmax()) == _likeliest(f) for t, f in zip(both.trained, both.found, strict=True)]
    near = [_close(t, _likeliest(f), near_by) for t, f in zip(both.trained, both.found, strict=True)]
    kl = _mean([divergence(e, f) for e, f in zip(both.expected, both.found, strict=True)])
    apart = _mean([divergence(t, f) for t, f in zip(both.trained, both.found, strict=True)])
    cost = _mean([divergence(t, _top(e)) for t, e in zip(both.trained, both.expected, strict=True)])
    share, bound = _mean(agree), 2 * cost + MAX_KL
    return [
        check("next_token", share >= MIN_AGREEMENT and (not exact or all(near)), agreement=share, bound=MIN_AGREEMENT,
              same_as_trained=_mean(same), places=len(same)),
        check("kl", kl <= MAX_KL, mean_nats=kl, bound=MAX_KL, places=len(same)),
        check("kl_to_trained", apart <= bound, mean_nats=apart, bound=bound, of_the_type=cost),
    ]  # fmt: skip


def _likeliest(found: Mapping[int, float]) -> int:
    return max(found, key=lambda id_: found[id_])


def _close(expected: Any, id_: int, within: float) -> bool:
    """Whether a token is the likeliest, or all but."""
    return bool(expected.max() - expected[id_] <= within)


def _top(expected: Any) -> dict[int, float]:
    values, ids = expected.topk(min(_MOST, len(expected)))
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def divergence(expected: Any, found: Mapping[int, float]) -> float:
    """Kullback-Leibler divergence in nats, from `expected` to `found`; tokens not in `found` count as one."""
    import torch

    ids = torch.tensor(list(found))
    p, q = expected[ids].double().exp(), torch.tensor(list(found.values()), dtype=torch.float64)
    total = float((p * (expected[ids].double() - q)).sum())
    rest_p, rest_q = max(0.0, 1 - float(p.sum())), max(1e-12, 1 - float(q.exp().sum()))
    return total + (rest_p * math.log(rest_p / rest_q) if rest_p > 1e-9 else 0.0)


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def check_greedy(llama: LlamaCpp, expected: Network, asked: Sequence[Place], exact: bool) -> Check:
    """llama.cpp's own greedy answers, token by token, against the network with the file's weights."""
    answers: list[list[int]] = []
    for place in asked:
        body = {"prompt": list(place.ids), "n_predict": GREEDY_TOKENS, "temperature": 0.0, "return_tokens": True}
        answers.append(llama.complete(body)["tokens"])
    rows = [[*place.ids, *new] for place, new in zip(asked, answers, strict=True)]
    positions = [range(len(place.ids) - 1, len(row) - 1) for place, row in zip(asked, rows, strict=True)]
    near_by = CLOSE if exact else CLOSE_QUANTIZED
    agree = [
        _close(logprobs, id_, near_by)
        for found, new in zip(expected.logprobs(rows, positions), answers, strict=True)
        for logprobs, id_ in zip(found, new, strict=True)
    ]
    return check(
        "greedy", _mean(agree) >= MIN_AGREEMENT, agreement=_mean(agree), bound=MIN_AGREEMENT, tokens=len(agree)
    )


def check_stop(llama: LlamaCpp, both: Compared, stops: frozenset[int], exact: bool) -> Check:
    """Whether llama.cpp ends its turn where the trained model does, if by more than rounding can change."""
    near_by = CLOSE if exact else CLOSE_QUANTIZED
    ends = [p for p, t in zip(both.asked, both.expected, strict=True) if p.stops and _ends(t, stops, near_by)]
    ran_on = 0
    for place in ends:
        said = llama.complete({"prompt": list(place.ids), "n_predict": 4, "temperature": 0.0})
        ran_on += said["stop_type"] != "eos"
    return check("stops", ran_on <= len(ends) * (1 - MIN_AGREEMENT), turns=len(ends), ran_on=ran_on)


def _ends(expected: Any, stops: frozenset[int], near_by: float) -> bool:
    """Whether the likeliest token ends the turn, by more than `near_by` nats over any token that does not."""
    others = expected.clone()
    others[list(stops)] = -math.inf
    return bool(expected.max() - others.max() > near_by)


def check_answers(
    llama: LlamaCpp,
    renderer: Renderer,
    examples: Sequence[Example],
    tuned: Mapping[str, bool],
    sampling: SamplingParams,
) -> Check:
    """Held-out questions answered by the file, beside the adapter's answers where there are any."""
    prompts = [renderer.prompt(example, "tuned") for example in examples]
    said: list[Completion] = llama.generate(prompts, sampling)
    tags = renderer.data.thinking_tags
    scores = [score.judge(e, c, tagged=True, thinking_tags=tags) for e, c in zip(examples, said, strict=True)]
    both = [(tuned[s.id], s.correct) for s in scores if s.id in tuned]
    gained = sum(after and not before for before, after in both)
    lost = sum(before and not after for before, after in both)
    figures: dict[str, Any] = {
        "n": len(scores),
        "accuracy": _mean([s.correct for s in scores]),
        "format_valid": _mean([s.fault is None for s in scores]),
    }
    if both:
        figures |= {"tuned_accuracy": _mean([b for b, _ in both]), "gained": gained, "lost": lost}
    return check("answers", lost <= gained or mcnemar(gained, lost) >= SIGNIFICANT, **figures)
