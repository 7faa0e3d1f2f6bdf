"""Checks that a GGUF file in llama.cpp predicts what the trained model predicts.

Three models are compared on held-out rows, with the rows' own answers forced: the adapter on its base, computed by
transformers (`trained`); the same network with the file's weights put back into it (`expected`); and the file in
llama.cpp (`measured`). The gap between the first two is what rounding to the file's type costs, so no fixed bound on
it is needed: llama.cpp may be that far from what was trained, and must be nearly equal to what is expected. A fault of
ours (rows in the wrong order, a wrong rope) shows in the second comparison, whatever the type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_unsloth.core.results.verification import Check
from cot_unsloth.core.statistics import mcnemar
from cot_unsloth.core.types import IGNORE, Completion, Example, Sample, SamplingParams
from cot_unsloth.evaluation import score
from cot_unsloth.export.layerwise import Network
from cot_unsloth.export.verify import TIE, check
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts.render import Renderer

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
    positions = []
    for sample in samples:
        first, last = len(sample.ids) - _answer_length(sample), len(sample.ids) - 1
        step = (last - first) / (_POSITIONS - 1)
        # A set, because the positions in an answer of one or two tokens coincide.
        lengths = sorted({round(first + step * i) for i in range(_POSITIONS)})
        positions += [Position(sample.ids[:length], length == last) for length in lengths]
    return positions


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
    # The first position of five rows (two of a row's three do not end the turn): 240 tokens, which reach well into the cache.
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
    # `same` is only reported: rounding to 4 bits changes some tokens. In an exact type, all have to be `near`.
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
    # 1e-12 keeps the logarithm finite if llama.cpp gives the rest no probability at all.
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
        # Ids, not text: text that is tokenized again may give other ids than were generated.
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
