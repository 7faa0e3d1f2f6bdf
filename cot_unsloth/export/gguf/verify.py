"""Is a GGUF file, as llama.cpp runs it, the model that was trained?

Three models are compared on held-out rows, with the rows' own answers forced: the adapter on its base, computed by
transformers (`trained`); the same network with the file's weights put back into it (`expected`); and the file in
llama.cpp (`measured`). The gap between the first two is what rounding to the file's type costs, so no fixed bound on
it is needed: llama.cpp may be that far from what was trained, and must be nearly equal to what is expected. A fault of
ours (rows in the wrong order, a wrong rope) shows in the second comparison, whatever the type.

Also checked: every tensor against base and adapter, every token, the template, the token that ends a turn, the tags,
and answers to held-out questions.
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
from cot_unsloth.export.gguf.writer import Tensor
from cot_unsloth.export.layerwise import Network
from cot_unsloth.export.model import Model
from cot_unsloth.export.verify import TIE, TRICKY_TEXTS, check
from cot_unsloth.export.weights import blocks, in_order
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts.render import Renderer

WEIGHT_ERROR = {
    Type.F32: 1e-6, Type.F16: 1e-3, Type.BF16: 5e-3, Type.Q8_0: 0.02, Type.Q6_K: 0.05,
    Type.Q5_K: 0.1, Type.Q5_0: 0.1, Type.Q5_1: 0.1, Type.Q4_K: 0.2,
}  # fmt: skip
"""Largest relative error of a tensor: root mean square of the difference over that of the weights. Normally distributed
weights were measured at 0.005 in Q8_0, 0.018 in Q6_K, 0.036 in Q5_K and 0.072 in Q4_K; outliers raise it, hence the
factor of 3 to 4. Of a tensor with permuted rows or a missing merge it is about 1."""
MAX_KL = 0.02
"""Mean nats a token between transformers and llama.cpp with the same weights. llama.cpp also rounds activations to 8
bits if weights are quantized, which no type-independent bound below this allows."""
MIN_AGREEMENT = 0.98
"""Share of tokens on which these two agree, or nearly: within `TIE`."""
TIE_QUANTIZED = 0.5
"""The same as `TIE` for quantized weights."""
SIGNIFICANT = 0.01
"""McNemar's p below which lost answers are not chance. Lower than the usual 0.05 because every file is tested."""
GREEDY_TOKENS = 48
"""Tokens of each greedy answer."""
_GREEDY_ANSWERS = 5
_POSITIONS = 3
"""Positions of a row at which distributions are compared, its first and last token among them."""
_TOP = 2000
"""Most likely tokens that are compared; the others count together. Asking llama.cpp for all 150k of a Qwen vocabulary
would mostly measure the transfer as JSON."""


@dataclass(frozen=True)
class Position:
    """Where in a row the next token is compared."""

    prefix: tuple[int, ...]
    """The token ids before it."""
    ends_turn: bool
    """Whether the row's own next token ends the turn."""


def positions_of(samples: Sequence[Sample]) -> list[Position]:
    """A few positions of each row: the first token of the answer, the one that ends it, and one between."""
    found = []
    for sample in samples:
        first, last = len(sample.ids) - _answer_length(sample), len(sample.ids) - 1
        step = (last - first) / (_POSITIONS - 1)
        lengths = sorted({round(first + step * i) for i in range(_POSITIONS)})
        found += [Position(sample.ids[:length], length == last) for length in lengths]
    return found


def _answer_length(sample: Sample) -> int:
    first = next(at for at, label in enumerate(sample.labels) if label != IGNORE)
    return len(sample.ids) - first


def distributions(network: Network, positions: Sequence[Position]) -> list[Any]:
    """Log-probabilities over the vocabulary at each position, by transformers: (vocabulary,) float32 each."""
    rows: list[tuple[int, ...]] = []
    for ids in sorted({position.prefix for position in positions}, key=len, reverse=True):
        if not any(row[: len(ids)] == ids for row in rows):  # the positions of a row share one pass over its longest
            rows.append(ids)
    indices = [sorted({len(p.prefix) - 1 for p in positions if row[: len(p.prefix)] == p.prefix}) for row in rows]
    by_prefix = {
        row[: index + 1]: logprobs
        for row, some, of_row in zip(rows, indices, network.logprobs(rows, indices), strict=True)
        for index, logprobs in zip(some, of_row, strict=True)
    }
    return [by_prefix[position.prefix] for position in positions]


def llama_logprobs(llama: LlamaCpp, positions: Sequence[Position], vocabulary: int) -> list[dict[int, float]]:
    """The same by llama.cpp, for the most likely tokens."""
    return [llama.logprobs(position.prefix, min(_TOP, vocabulary)) for position in positions]


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
    nasty = [text for text in TRICKY_TEXTS if chat.control_token(text) is None]
    plain = [*nasty, *(example.question for example in examples), *answers]
    wrong = [
        text for text in plain if llama.ids(text, special=False) != ids_in_a_turn(tokenizer, _normal(tokenizer, text))
    ]
    bos = [tokenizer.bos_token_id] * adds_bos(tokenizer)
    wrong += [text for text in TRICKY_TEXTS[:3] if llama.ids(text) != bos + ids_in_a_turn(tokenizer, text)]
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
    """Distributions at the same positions, of three models; see the module."""

    positions: Sequence[Position]
    trained: Sequence[Any]
    """(vocabulary,) float32 each."""
    expected: Sequence[Any]
    """(vocabulary,) float32 each."""
    measured: Sequence[Mapping[int, float]]
    """Log-probabilities of the most likely tokens, by id."""


def check_predictions(
    llama: LlamaCpp,
    network: Network,
    positions: Sequence[Position],
    trained: Sequence[Any],
    stops: frozenset[int],
    *,
    exact: bool,
) -> list[Check]:
    """Distributions, greedy answers and the end of the turn.

    Args:
        llama: the file in llama.cpp.
        network: the network with the file's weights, in transformers.
        positions: where next tokens are compared.
        trained: log-probabilities of the trained model there.
        stops: ids that end a turn.
        exact: whether the file's type is precise enough for the tighter bounds.
    """
    expected = distributions(network, positions)
    both = Compared(positions, trained, expected, llama_logprobs(llama, positions, len(expected[0])))
    starts = [position for position in positions if not position.ends_turn][::2][:_GREEDY_ANSWERS]
    return [
        *check_distributions(both, exact),
        check_greedy(llama, network, starts, exact),
        check_stop(llama, both, stops, exact),
    ]


def check_distributions(both: Compared, exact: bool) -> list[Check]:
    """Next token and Kullback-Leibler divergence; see the module for what is compared with what."""
    tie = TIE if exact else TIE_QUANTIZED
    tops = [_top_token(measured) for measured in both.measured]
    agree = [_is_top(e, top, tie) for e, top in zip(both.expected, tops, strict=True)]
    same = [int(t.argmax()) == top for t, top in zip(both.trained, tops, strict=True)]
    near = [_is_top(t, top, tie) for t, top in zip(both.trained, tops, strict=True)]
    kl = _mean([divergence(e, m) for e, m in zip(both.expected, both.measured, strict=True)])
    to_trained = _mean([divergence(t, m) for t, m in zip(both.trained, both.measured, strict=True)])
    # What rounding to the type costs, without llama.cpp. Twice that is allowed, since both errors add up, and they
    # are not independent.
    of_the_type = _mean([divergence(t, _top_logprobs(e)) for t, e in zip(both.trained, both.expected, strict=True)])
    agreement, bound = _mean(agree), 2 * of_the_type + MAX_KL
    return [
        check("next_token", agreement >= MIN_AGREEMENT and (not exact or all(near)), agreement=agreement,
              bound=MIN_AGREEMENT, same_as_trained=_mean(same), places=len(same)),
        check("kl", kl <= MAX_KL, mean_nats=kl, bound=MAX_KL, places=len(same)),
        check("kl_to_trained", to_trained <= bound, mean_nats=to_trained, bound=bound, of_the_type=of_the_type),
    ]  # fmt: skip


def _top_token(measured: Mapping[int, float]) -> int:
    return max(measured, key=lambda id_: measured[id_])


def _is_top(logprobs: Any, id_: int, tie: float) -> bool:
    """Whether a token is the most likely one, or within `tie` nats of it."""
    return bool(logprobs.max() - logprobs[id_] <= tie)


def _top_logprobs(logprobs: Any) -> dict[int, float]:
    values, ids = logprobs.topk(min(_TOP, len(logprobs)))
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def divergence(expected: Any, measured: Mapping[int, float]) -> float:
    """Kullback-Leibler divergence KL(expected || measured) in nats; tokens that are not in `measured` count as one."""
    import torch

    ids = torch.tensor(list(measured))
    # In float64: between nearly equal distributions, positive and negative terms cancel to far less than their size.
    p, q = expected[ids].double().exp(), torch.tensor(list(measured.values()), dtype=torch.float64)
    total = float((p * (expected[ids].double() - q)).sum())
    rest_p, rest_q = max(0.0, 1 - float(p.sum())), max(1e-12, 1 - float(q.exp().sum()))
    return total + (rest_p * math.log(rest_p / rest_q) if rest_p > 1e-9 else 0.0)


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def check_greedy(llama: LlamaCpp, expected: Network, starts: Sequence[Position], exact: bool) -> Check:
    """llama.cpp's own greedy answers, token by token, against the network with the file's weights.

    The answers are forced through the network, so one early difference does not make all later tokens differ.
    """
    answers: list[list[int]] = []
    for start in starts:
        body = {"prompt": list(start.prefix), "n_predict": GREEDY_TOKENS, "temperature": 0.0, "return_tokens": True}
        answers.append(llama.complete(body)["tokens"])
    rows = [[*start.prefix, *answer] for start, answer in zip(starts, answers, strict=True)]
    indices = [range(len(start.prefix) - 1, len(row) - 1) for start, row in zip(starts, rows, strict=True)]
    tie = TIE if exact else TIE_QUANTIZED
    agree = [
        _is_top(logprobs, id_, tie)
        for of_row, answer in zip(expected.logprobs(rows, indices), answers, strict=True)
        for logprobs, id_ in zip(of_row, answer, strict=True)
    ]
    agreement = _mean(agree)
    return check("greedy", agreement >= MIN_AGREEMENT, agreement=agreement, bound=MIN_AGREEMENT, tokens=len(agree))


def check_stop(llama: LlamaCpp, both: Compared, stops: frozenset[int], exact: bool) -> Check:
    """Whether llama.cpp ends its turn where the trained model does, if by more than rounding can change."""
    tie = TIE if exact else TIE_QUANTIZED
    pairs = zip(both.positions, both.expected, strict=True)
    ends = [position for position, logprobs in pairs if position.ends_turn and _ends(logprobs, stops, tie)]
    ran_on = 0
    for position in ends:
        answer = llama.complete({"prompt": list(position.prefix), "n_predict": 4, "temperature": 0.0})
        ran_on += answer["stop_type"] != "eos"
    return check("stops", ran_on <= len(ends) * (1 - MIN_AGREEMENT), turns=len(ends), ran_on=ran_on)


def _ends(logprobs: Any, stops: frozenset[int], tie: float) -> bool:
    """Whether the most likely token ends the turn, by more than `tie` nats over any token that does not."""
    others = logprobs.clone()
    others[list(stops)] = -math.inf
    return bool(logprobs.max() - others.max() > tie)


def check_answers(
    llama: LlamaCpp,
    renderer: Renderer,
    examples: Sequence[Example],
    tuned_correct: Mapping[str, bool],
    sampling: SamplingParams,
) -> Check:
    """Held-out questions answered by the file, beside the adapter's answers if it was scored on them.

    Fails only if the file loses more answers than it gains by more than chance (McNemar's test on the pairs).
    """
    prompts = [renderer.prompt(example, "tuned") for example in examples]
    completions: list[Completion] = llama.generate(prompts, sampling)
    tags = renderer.data.thinking_tags
    scores = [score.judge(e, c, tagged=True, thinking_tags=tags) for e, c in zip(examples, completions, strict=True)]
    both = [(tuned_correct[s.id], s.correct) for s in scores if s.id in tuned_correct]
    gained = sum(after and not before for before, after in both)
    lost = sum(before and not after for before, after in both)
    figures: dict[str, float] = {
        "n": len(scores),
        "accuracy": _mean([s.correct for s in scores]),
        "format_valid": _mean([s.fault is None for s in scores]),
    }
    if both:
        figures |= {"tuned_accuracy": _mean([before for before, _ in both]), "gained": gained, "lost": lost}
    return check("answers", lost <= gained or mcnemar(gained, lost) >= SIGNIFICANT, **figures)
