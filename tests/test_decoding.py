"""Packed decoding: the answers of `generate`, in counted forward passes, and independent of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import models
import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig

from cot_unsloth import tasks
from cot_unsloth.config import load
from cot_unsloth.core.errors import EngineError
from cot_unsloth.core.types import Completion, Prompt, SamplingParams
from cot_unsloth.models import hf_generation
from cot_unsloth.models.decoding import Decoder, Slots, affordable_slots, sample
from cot_unsloth.models.hf import HfEngine
from cot_unsloth.models.merging import merged
from cot_unsloth.models.packing import can_pack
from cot_unsloth.models.position_table import positions_in_table
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.tokenizer import model_path

GREEDY = SamplingParams(max_new_tokens=20, batch_size=4)


@pytest.fixture(scope="module")
def engine() -> Iterator[HfEngine]:
    """The tiny base with an adapter that changes it."""
    config = load(None, {"lora_r": "4", "lora_alpha": "8"})
    engine = HfEngine(config, open_renderer(config.model, config.data).chat)
    torch.manual_seed(0)
    engine.attach_trainable_weights()
    for name, parameter in engine.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Prompts with the system prompt in common, of about 80 to 130 tokens."""
    config = load(None, {})
    renderer = open_renderer(config.model, config.data)
    return [renderer.prompt(e, "tuned") for e in tasks.generate("world:chains:1-6", split="test", n=12, seed=1)]


def ids_of(engine: HfEngine, prompts: list[Prompt]) -> list[list[int]]:
    return [engine.chat.ids(engine.chat.prompt_text(prompt)) for prompt in prompts]


def plain(model: Any, chat: Any, rows: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    return [hf_generation.generate_batch(model, chat, [row], sampling)[0] for row in rows]


def packed(model: Any, chat: Any, rows: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    finished: dict[int, list[int]] = {}
    for answers in hf_generation.answers(model, chat, rows, [str(i) for i in range(len(rows))], sampling):
        finished |= dict(answers)
    return [finished[i] for i in range(len(rows))]


def test_answers_are_those_of_generate(engine: HfEngine, prompts: list[Prompt]) -> None:
    rows = ids_of(engine, prompts)
    assert can_pack(engine.model)
    ours = packed(engine.model, engine.chat, rows, GREEDY)
    assert ours == plain(engine.model, engine.chat, rows, GREEDY)
    assert len({len(answer) for answer in ours}) > 1  # some end early, so that slots are refilled
    with engine.as_base():
        base = packed(engine.model, engine.chat, rows, GREEDY)
        assert base == plain(engine.model, engine.chat, rows, GREEDY)
    assert base != ours


@pytest.mark.parametrize("name", models.SHAPES)
def test_architectures(name: str, tmp_path: Path) -> None:
    """Those with plain full attention are packed; both ways of attending (row by row, and padded) agree with `generate`."""
    model, renderer = models.made(name, tmp_path, model_path("tiny-base"))
    tuned = models.tuned(model)
    rows = [renderer.chat.ids(text) for text in ("One", "Two and two", "A much longer question than the others?")]
    rows = [rows[0][:1] * 6 + row for row in rows]
    expected = plain(tuned, renderer.chat, rows, replace(GREEDY, max_new_tokens=8))
    assert can_pack(tuned) == (name != "gemma3")
    assert packed(tuned, renderer.chat, rows, replace(GREEDY, max_new_tokens=8, batch_size=2)) == expected


def test_the_padded_attention_of_a_gpu(
    engine: HfEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ids_of(engine, prompts)
    expected = packed(engine.model, engine.chat, rows, GREEDY)
    calls = []
    together = Slots._together
    monkeypatch.setattr(Slots, "_one_by_one", lambda *args: calls.append(1) or together(*args))
    # As of a GPU whose memory was used before: positions that nothing was written to yet hold anything, NaN too.
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **more: empty(*args, **more).fill_(float("nan")))
    assert packed(engine.model, engine.chat, rows, GREEDY) == expected
    assert calls


UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "doge": ("a mask of its own, made from the values", {"keep_window_size": 8}),
    "diffllama": ("the difference of two attentions", {}),
    "nemotron": ("attention that is not asked through transformers' interface", {}),
    "hrm_text": ("layers that run several times a token", {}),
    "lfm2": ("convolutions", {"layer_types": ["conv", "full_attention"]}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_attention_that_settings_do_not_tell_is_not_packed(name: str) -> None:
    """Doge and DiffLlama answered something else than with `generate`, and Nemotron failed."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    ends = {"vocab_size": 50, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, num_key_value_heads=2, **sizes, **ends, **UNUSUAL[name][1])
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    assert not can_pack(model)


def counted(engine: HfEngine, rows: list[list[int]], sampling: SamplingParams) -> tuple[list[int], list[list[int]]]:
    """Tokens of each forward pass, and the answers."""
    tokens: list[int] = []
    model = engine.model.get_base_model()
    assert can_pack(model)  # tries it once, which is not counted
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )  # fmt: skip
    try:
        return tokens, packed(engine.model, engine.chat, rows, sampling)
    finally:
        hook.remove()


def test_an_answer_beyond_the_table_of_positions_is_refused_with_its_length(engine: HfEngine) -> None:
    """Torch says "index out of range in self", after as many answers as fitted."""
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=600, n_positions=40)
    model = AutoModelForCausalLM.from_config(config).eval()
    row = list(range(3, 33))
    names, sampling = ["a"], replace(GREEDY, max_new_tokens=11)
    ((_, ids),) = next(hf_generation.batches(model, engine.chat, [row], names, sampling))  # the last one is not read
    assert 0 < len(ids) <= 11
    more = replace(sampling, max_new_tokens=12)
    message = "a prompt of 30 tokens and its answer take up to 41 tokens, but the model has a table of 40 positions"
    with pytest.raises(EngineError, match=message):
        next(hf_generation.answers(model, engine.chat, [row], names, more))
    with pytest.raises(EngineError, match=message):
        next(hf_generation.stream(model, engine.chat, row, more))
    rotary = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    rotary.max_position_embeddings = 40
    assert positions_in_table(AutoModelForCausalLM.from_config(rotary)) is None


def test_every_token_is_computed_once(engine: HfEngine, prompts: list[Prompt]) -> None:
    rows = ids_of(engine, prompts)
    shared = next(i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1)
    assert shared > 40
    tokens, answers = counted(engine, rows, GREEDY)
    assert tokens[0] == shared
    # Neither padding nor rows that have ended; the last token of an answer is not fed back.
    assert sum(tokens) == shared + sum(len(row) - shared for row in rows) + sum(len(answer) - 1 for answer in answers)


def test_slots_are_refilled(engine: HfEngine, prompts: list[Prompt]) -> None:
    """Fewer passes than in batches, each of which takes as many as its longest answer."""
    rows = sorted(ids_of(engine, prompts), key=len)
    tokens, answers = counted(engine, rows, replace(GREEDY, temperature=2.0, max_new_tokens=40))
    lengths = [len(answer) for answer in answers]
    assert len(tokens) - 1 <= sum(lengths) / 4 + max(lengths)
    assert len(tokens) - 1 < 0.9 * sum(max(lengths[at : at + 4]) for at in range(0, len(lengths), 4))


def test_the_cache_is_copied_rarely_and_holds_no_more_than_is_used(
    engine: HfEngine, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ids_of(engine, prompts)[:3]
    sampling = replace(GREEDY, max_new_tokens=300, batch_size=2)
    with merged(engine.model), torch.inference_mode():
        decoder = Decoder(engine.model, sampling, frozenset())  # nothing stops an answer
        lengths = {i: len(new) for finished in decoder.answers(rows, ["a", "b", "c"]) for i, new in finished}
    assert set(lengths.values()) == {300}
    assert decoder.slots.copies <= 2
    longest = max(map(len, rows)) + 300
    assert longest - 1 <= decoder.slots.capacity < 1.5 * longest
    assert all(keys.shape[0] == 2 for keys in decoder.slots.keys.values())


def test_what_is_sampled_depends_on_the_prompt_and_the_seed_alone(engine: HfEngine, prompts: list[Prompt]) -> None:
    sampling = SamplingParams(max_new_tokens=12, temperature=1.2, top_p=0.9, seed=3, batch_size=5)
    together = engine.generate(prompts, sampling)
    assert engine.generate(prompts, replace(sampling, batch_size=2)) == together
    assert engine.generate(prompts[7:], sampling) == together[7:]  # as after an interruption
    assert engine.generate(prompts, replace(sampling, seed=4)) != together


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(10_000, 4)
    draws = torch.arange(10_000) / 10_000
    shares = sample(logits, draws, SamplingParams(temperature=1.0)).bincount(minlength=4) / 10_000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.001)
    shares = sample(logits, draws, SamplingParams(temperature=1.0, top_p=0.7)).bincount(minlength=4) / 10_000
    assert shares.tolist() == pytest.approx([0.625, 0.375, 0, 0], abs=0.001)
    assert set(sample(logits, draws, SamplingParams(temperature=1.0, top_p=0.0)).tolist()) == {0}


def test_answers_are_reported_as_they_finish(engine: HfEngine, prompts: list[Prompt]) -> None:
    reported: list[Completion] = []
    calls: list[int] = []

    def advance(done: Any) -> None:
        assert done
        reported.extend(done)
        calls.append(len(done))

    completions = engine.generate(prompts, GREEDY, advance)
    assert sorted(c.id for c in reported) == sorted(p.id for p in prompts)
    assert len(calls) > len(prompts) // GREEDY.batch_size
    assert [c.id for c in completions] == [p.id for p in prompts]


def test_merging_changes_rounding_alone_and_is_undone_to_the_bit(engine: HfEngine, prompts: list[Prompt]) -> None:
    ids = torch.tensor([ids_of(engine, prompts)[0]])
    engine.model.eval()
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    parameters = dict(engine.model.named_parameters())
    with torch.inference_mode():
        beside = engine.model(ids).logits
        with merged(engine.model):
            assert all(m.merged for m in engine.model.modules() if isinstance(m, peft.tuners.lora.Linear))
            inside = engine.model(ids).logits
        assert torch.equal(engine.model(ids).logits, beside)
        assert not torch.equal(inside, beside)
        assert (inside - beside).abs().max() < 1e-5 * beside.abs().max()
        with engine.as_base(), merged(engine.model):  # the base is another model: nothing is added to it
            assert not any(m.merged for m in engine.model.modules() if isinstance(m, peft.tuners.lora.Linear))
    after = dict(engine.model.named_parameters())
    assert all(after[name] is parameters[name] and torch.equal(after[name], before[name]) for name in before)


def test_bfloat16_and_dora_are_not_merged() -> None:
    from transformers import AutoModelForCausalLM

    for dtype, dora in ((torch.bfloat16, False), (torch.float32, True)):
        base = AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=dtype)
        config = peft.LoraConfig(r=2, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
        model = peft.get_peft_model(base, config)
        with merged(model):
            assert not any(m.merged for m in model.modules() if isinstance(m, peft.tuners.lora.Linear))


def test_an_output_layer_that_follows_trained_tokens_is_not_merged() -> None:
    base = AutoModelForCausalLM.from_pretrained(model_path("tiny-base"), dtype=torch.float32)
    settings = peft.LoraConfig(
        target_modules=["q_proj", "lm_head"], trainable_token_indices=[5, 40], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, settings).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter) * parameter.requires_grad
    ids = torch.tensor([[5, 6, 40, 7]])
    with torch.inference_mode():
        expected = model(ids).logits
        with merged(model):
            assert any(m.merged for m in model.modules() if isinstance(m, peft.tuners.lora.Linear))
            torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-3)


def test_slots_are_bounded_by_memory(engine: HfEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine.model.get_base_model()
    token = 5 * 2 * 6 * 32 * 4  # layers, keys and values, heads, head size, bytes of a float32
    monkeypatch.setattr("cot_unsloth.models.decoding.available_memory", lambda device: 4 * 10 * 100 * token)
    assert affordable_slots(model, 100) == 10
    assert affordable_slots(model, 100_000) == 1
    assert affordable_slots(model, 1) == 64


def test_an_automatic_batch_size_leaves_the_hash_of_older_runs() -> None:
    assert load(None, {}).fingerprint("evaluate") == load(None, {"eval_batch_size": "16"}).fingerprint("evaluate")
    assert load(None, {}).fingerprint("evaluate") != load(None, {"eval_batch_size": "8"}).fingerprint("evaluate")


def test_a_batch_that_continues_its_prompts_draws_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same, each budget of budget forcing would repeat the draws of the one before it."""
    seeds = []

    def generate(model: Any, chat: Any, rows: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
        seeds.append(torch.initial_seed())
        return rows

    monkeypatch.setattr(hf_generation, "generate_batch", generate)
    for rows in ([[1], [2]], [[1], [2]], [[1, 5], [2, 6]]):
        list(hf_generation.batches(None, cast(Any, None), rows, ["a", "b"], SamplingParams(temperature=1.0)))
    assert seeds[0] == seeds[1] != seeds[2]
