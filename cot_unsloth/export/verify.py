"""Checks that the merged folder is the model that was trained.

The adapter on its base and the folder that was written predict the same held-out rows, with the rows' own answers
forced; tokenizer, template and next-token distributions are compared. The only difference allowed is rounding, so the
bounds are small, and stated in the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_unsloth.core import trace
from cot_unsloth.core.errors import RenderError, VerificationError
from cot_unsloth.core.results.verification import VERIFIED, Check
from cot_unsloth.core.types import IGNORE, Message, Sample
from cot_unsloth.export.gguf.tokens import ANOTHER_DAY
from cot_unsloth.export.layerwise import FolderSource, Network, open_network
from cot_unsloth.export.weights import Weights
from cot_unsloth.prompts.chat_template import ChatTemplate

MIN_AGREEMENT = 0.99
"""Share of supervised positions whose most likely token is the same, or within `TIE` of it."""
TIE = 0.1
"""Nats by which a token may be less likely than the most likely one and still overtake it after rounding to 16 bits:
bfloat16 has 8 significant bits, so each weight moves by up to 0.4%."""
MAX_MEAN_KL = 1e-3
"""Mean Kullback-Leibler divergence in nats a token, from the adapter on its base to the export."""
POSITIONS = 12
"""Most positions of a row at which distributions are compared, evenly spaced."""
TRICKY_TEXTS = (
    "Hello world", " leading and trailing  ", "tabs\tand\r\nlines\n\n", "café naïve ﬁ ①", "12345678901234567890",
    "<thinking>\n1 + 1 = 2\n</thinking>\n<output>2</output>", "<reflection>no</reflection>", "日本語 🙂", "\\boxed{\\frac{1}{2}}",
)  # fmt: skip
"""Texts on which tokenizers differ: spaces at the ends, line ends of both kinds, composed and compatibility characters
(Qwen normalizes to NFC, llama.cpp does not), long numbers, our tags, several bytes a character."""


def check(name: str, passed: bool, **figures: Any) -> Check:
    """The result of a check, without the name of the file, which `targets.target.of_file` adds."""
    return Check.model_validate({"name": name, "passed": bool(passed), **figures})


_CONVERSATION: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": trace.assistant_turn("Two.")},
    {"role": "user", "content": "And then?"},
)


def compare_tokenizers(chat: ChatTemplate, exported: Any) -> list[Check]:
    """Whether both give the same ids and the same prompts, and end a turn with the same token."""
    trained = chat.tokenizer
    other = ChatTemplate(exported, date_string=ANOTHER_DAY, stops=chat.stops)
    # All of it, without its system turn, and only its first two turns.
    prompts = [_CONVERSATION, _CONVERSATION[1:], _CONVERSATION[:2]]
    different = [text for text in TRICKY_TEXTS if trained(text)["input_ids"] != exported(text)["input_ids"]]
    return [
        check("token_ids", not different, strings=len(TRICKY_TEXTS), different=different),
        check("chat_template", all(_prompt(chat, m) == _prompt(other, m) for m in prompts), conversations=len(prompts)),
        check("stop_token", trained.eos_token_id == exported.eos_token_id, token=trained.eos_token),
    ]


def check_generation(folder: Path, chat: ChatTemplate) -> Check:
    """Whether plain transformers, which reads `generation_config.json`, stops at the end of a trained turn."""
    from transformers import GenerationConfig

    settings = GenerationConfig.from_pretrained(folder, trust_remote_code=False)
    eos, pad = settings.eos_token_id, settings.pad_token_id
    stops = set(eos) if isinstance(eos, list) else {eos}
    # Padding with the token that ends a turn would mask the end of every turn in further training.
    passed = pad is not None and pad != chat.turn_end and chat.stops <= stops
    return check("generation_config", passed, eos_token_id=eos, pad_token_id=pad)


def _prompt(chat: ChatTemplate, messages: Sequence[Message]) -> str:
    """A prompt, or why there is none: both templates must refuse the same conversations."""
    try:
        return chat.text(messages, ask=True)
    except RenderError as error:
        return error.message


def distributions(network: Network, samples: Sequence[Sample]) -> list[Any]:
    """Log-probabilities at supervised positions of each sample: one (positions, vocabulary) float32 tensor each.

    At most `POSITIONS` a row, evenly spaced: over a vocabulary of 128k each takes half a MiB.
    """
    positions = []
    for sample in samples:
        # Logits at a position are those of the token after it.
        supervised = [at - 1 for at, label in enumerate(sample.labels) if label != IGNORE]
        step = max(1, math.ceil(len(supervised) / POSITIONS))
        positions.append(supervised[::-1][::step][::-1])  # includes the token that ends the turn
    return network.logprobs([sample.ids for sample in samples], positions)


def compare_distributions(trained: Sequence[Any], exported: Sequence[Any]) -> list[Check]:
    """Next-token agreement and divergence over all these positions."""
    import torch

    positions = sum(map(len, trained))
    pairs = list(zip(trained, exported, strict=True))
    # Nats by which the export's choice is less likely than the most likely token, both by the trained model.
    short = [old.amax(-1) - old.gather(-1, new.argmax(-1, keepdim=True)).squeeze(-1) for old, new in pairs]
    agreement = sum(int((nats <= TIE).sum()) for nats in short) / positions
    kl = sum(
        # torch's kl_div(input, target) is KL(target || input): the trained model is the second argument.
        torch.nn.functional.kl_div(new, old, log_target=True, reduction="sum").item() for old, new in pairs
    ) / positions  # fmt: skip
    return [
        check("next_token", agreement >= MIN_AGREEMENT, agreement=agreement, bound=MIN_AGREEMENT, positions=positions),
        check("kl", kl <= MAX_MEAN_KL, mean_nats=kl, bound=MAX_MEAN_KL, positions=positions),
    ]


def merged(
    folder: Path, chat: ChatTemplate, trained: Sequence[Any], samples: Sequence[Sample], device: str
) -> list[Check]:
    """All checks of a merged folder: its tokenizer, its parameters' names and what it answers."""
    from transformers import AutoTokenizer

    exported = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    network = open_network(folder, FolderSource(Weights(folder)), device=device)
    checks = [*compare_tokenizers(chat, exported), check_generation(folder, chat)]
    return checks + compare_distributions(trained, distributions(network, samples))


def failure(checks: Sequence[Check], where: Path) -> VerificationError:
    """The error for an export that failed some of its checks, with what they measured."""
    failed = [check for check in checks if not check.passed]
    names = "; ".join(f"{check.file} {check.name}: {dict(check.figures)}" for check in failed)
    return VerificationError(
        f"the export is not the model that was trained: {names}", where=str(where), hint=str(where / VERIFIED)
    )
