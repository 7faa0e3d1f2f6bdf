"""Is the exported model the one that was trained?

The adapter on its 16-bit base and the file that was written are asked the same held-out questions,
answers forced; tokenizer, template and next-token distributions are compared. What an export may
differ by is rounding, so the bounds are small and stated in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_unsloth import trace
from cot_unsloth.errors import RenderError, VerificationError
from cot_unsloth.export.gguf_tokens import ANOTHER_DAY
from cot_unsloth.render import ChatTemplate
from cot_unsloth.values import IGNORE, Message, Sample

MIN_AGREEMENT = 0.99
"""Share of supervised positions whose most likely token is the same."""
MAX_MEAN_KL = 1e-3
"""Mean Kullback-Leibler divergence in nats a token, adapter to export."""
NASTY = (
    "Hello world", " leading and trailing  ", "tabs\tand\r\nlines\n\n", "café naïve ﬁ ①", "12345678901234567890",
    "<thinking>\n1 + 1 = 2\n</thinking>\n<output>2</output>", "<reflection>no</reflection>", "日本語 🙂", "\\boxed{\\frac{1}{2}}",
)  # fmt: skip


def check(name: str, passed: bool, **figures: Any) -> dict[str, Any]:
    """One line of `verified.json`."""
    return {"name": name, "passed": bool(passed), **figures}


CONVERSATION: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": trace.assistant_turn("Two.")},
    {"role": "user", "content": "And then?"},
)


def compare_tokenizers(chat: ChatTemplate, exported: Any) -> list[dict[str, Any]]:
    """Same ids for nasty strings, same prompts, same end."""
    trained = chat.tokenizer
    other = ChatTemplate(exported, date_string=ANOTHER_DAY, stops=chat.stops)
    prompts = [CONVERSATION, CONVERSATION[1:], CONVERSATION[:2]]
    wrong = [text for text in NASTY if trained(text)["input_ids"] != exported(text)["input_ids"]]
    return [
        check("token_ids", not wrong, strings=len(NASTY), different=wrong),
        check("chat_template", all(_said(chat, m) == _said(other, m) for m in prompts), conversations=len(prompts)),
        check("stop_token", trained.eos_token_id == exported.eos_token_id, token=trained.eos_token),
    ]


def check_generation(folder: Path, chat: ChatTemplate) -> dict[str, Any]:
    """Whether plain transformers, which reads `generation_config.json`, stops where a turn was trained to end."""
    from transformers import GenerationConfig

    found = GenerationConfig.from_pretrained(folder, trust_remote_code=False)
    listed = found.eos_token_id
    stops = set(listed) if isinstance(listed, list) else {listed}
    padded = found.pad_token_id is not None and found.pad_token_id != chat.turn_end
    fine = padded and chat.stops <= stops
    return check("generation_config", fine, eos_token_id=listed, pad_token_id=found.pad_token_id)


def _said(chat: ChatTemplate, messages: Sequence[Message]) -> str:
    try:
        return chat.text(messages, ask=True)
    except RenderError as error:
        return error.message


def distributions(model: Any, samples: Sequence[Sample]) -> list[Any]:
    """Log-probabilities at the supervised positions of each sample: one (positions, vocabulary) tensor each."""
    import torch

    found = []
    with torch.inference_mode():
        for sample in samples:
            ids = torch.tensor([sample.ids], device=model.device)
            logits = model(input_ids=ids).logits[0]
            before = [at - 1 for at, label in enumerate(sample.labels) if label != IGNORE]
            found.append(torch.log_softmax(logits[before].float(), dim=-1).cpu())
    return found


def compare_distributions(trained: Sequence[Any], exported: Sequence[Any]) -> list[dict[str, Any]]:
    """Next-token agreement and divergence over all supervised positions."""
    import torch

    old, new = torch.cat(list(trained)), torch.cat(list(exported))
    agreement = (old.argmax(-1) == new.argmax(-1)).float().mean().item()
    kl = torch.nn.functional.kl_div(new, old, log_target=True, reduction="batchmean").item()
    positions = len(old)
    return [
        check("next_token", agreement >= MIN_AGREEMENT, agreement=agreement, bound=MIN_AGREEMENT, positions=positions),
        check("kl", kl <= MAX_MEAN_KL, mean_nats=kl, bound=MAX_MEAN_KL, positions=positions),
    ]


def merged(
    folder: Path, chat: ChatTemplate, trained: Sequence[Any], samples: Sequence[Sample], device: str, dtype: Any
) -> list[dict[str, Any]]:
    """All checks of a merged folder, loaded by plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    checks = [*compare_tokenizers(chat, exported), check_generation(folder, chat)]
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    model = loaded.to(device).eval()
    return checks + compare_distributions(trained, distributions(model, samples))


def failure(checks: Sequence[dict[str, Any]], where: Path) -> VerificationError:
    """What to say of an export of which some check failed."""
    failed = [found for found in checks if not found["passed"]]
    names = "; ".join(
        f"{found.get('file', '')} {found['name']}: { {k: v for k, v in found.items() if k not in ('name', 'passed', 'file')} }"
        for found in failed
    )
    return VerificationError(
        f"the export is not the model that was trained: {names}", where=str(where), hint=f"{where / 'verified.json'}"
    )
