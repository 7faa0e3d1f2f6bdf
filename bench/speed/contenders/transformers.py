"""transformers: `generate` in padded batches, and its continuous batching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.speed import scoring
from bench.speed.session import Session, Work


def model_of(work: Work, **more: Any) -> Any:
    """The run's model in float32: merged, or the base with its adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    from cot_unsloth.storage.run_folder import RunDir

    run = RunDir(scoring.run_folder(work))
    if work.options.get("merged", True):
        folder = next(path.parent for path in run.export.glob("*/config.json"))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, **more).eval()
    from peft import PeftModel

    config = run.read_config()
    from cot_unsloth.prompts.tokenizer import model_path

    base = AutoModelForCausalLM.from_pretrained(
        model_path(config.model.model_name_or_path), dtype=torch.float32, trust_remote_code=False, **more
    )
    return PeftModel.from_pretrained(base, str(run.adapter)).eval()


def generate(work: Work, session: Session) -> dict[str, Any]:
    """Greedy, in batches of `batch` prompts in their order, padded on the left."""
    import torch
    from transformers import GenerationConfig

    config, renderer = scoring.trained_run(work)
    chat, model, batch = renderer.chat, model_of(work), work.settings["batch"]
    stops, pad = sorted(chat.stops), chat.tokenizer.pad_token_id
    chat.tokenizer.padding_side = "left"
    decoding = GenerationConfig(
        max_new_tokens=config.evaluate.max_new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=pad
    )

    def answer(prompts: Sequence[Any]) -> list[tuple[str, int]]:
        texts = [chat.prompt_text(prompt) for prompt in prompts]
        answers: list[tuple[str, int]] = []
        for first in range(0, len(texts), batch):
            inputs = chat.tokenizer(
                texts[first : first + batch], return_tensors="pt", padding=True, add_special_tokens=False
            )
            inputs.pop("token_type_ids", None)
            with torch.inference_mode():
                out = model.generate(**inputs, generation_config=decoding)
            answers += [text_of(chat, row) for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
        return answers

    return scoring.answer_all(work, session, scoring.questions(work, renderer), answer)


def text_of(chat: Any, ids: Sequence[int]) -> tuple[str, int]:
    """Text and number of tokens up to the stop token, which counts."""
    end = next((at for at, id_ in enumerate(ids) if id_ in chat.stops), len(ids))
    return chat.decode(ids[:end]), min(end + 1, len(ids))


def continuous(work: Work, session: Session) -> dict[str, Any]:
    """`generate_batch`, whose cache is in pages; a sequence that ends makes room for the next one.

    The size of its cache is given: by default it takes 90% of the machine's memory (17 GiB of 24 here).
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config, renderer = scoring.trained_run(work)
    chat, model = renderer.chat, model_of(work, attn_implementation="paged|sdpa")
    decoding = GenerationConfig(
        max_new_tokens=config.evaluate.max_new_tokens, do_sample=False, eos_token_id=sorted(chat.stops),
        pad_token_id=chat.tokenizer.pad_token_id,
    )  # fmt: skip

    rounds = scoring.questions(work, renderer)
    longest = max(len(chat.ids(chat.prompt_text(p))) for prompts in rounds for p in prompts) + decoding.max_new_tokens
    at_once = work.settings["batch"]
    cache = ContinuousBatchingConfig(
        block_size=32, num_blocks=at_once * (longest // 32 + 1), max_requests_per_batch=at_once, max_batch_tokens=1024
    )

    def answer(prompts: Sequence[Any]) -> list[tuple[str, int]]:
        ids = [chat.ids(chat.prompt_text(prompt)) for prompt in prompts]
        outputs = model.generate_batch(
            inputs=ids, generation_config=decoding, continuous_batching_config=cache, progress_bar=False
        )
        return [text_of(chat, output.generated_tokens) for output in outputs.values()]  # in the order of the prompts

    return scoring.answer_all(work, session, rounds, answer)
