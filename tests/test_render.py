"""Which tokens carry loss, and the rules that a chat template must follow."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ModelError, RenderError
from cot_unsloth.core.types import IGNORE, Example, Part, Reject, Sample, Trace
from cot_unsloth.data import load_examples
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import load_tokenizer, stop_ids

EXAMPLE = Example(
    "e",
    "3 + 4?",
    Trace((Part("think", "3 + 4 = 8"), Part("reflect", "that is 7"), Part("think", "3 + 4 = 7")), "7"),
    "7",
    where="rows.jsonl:1",
)


def renderer(model: ModelConfig | None = None, template: str | None = None, **data: Any) -> Renderer:
    model = model or ModelConfig()
    tokenizer = load_tokenizer(model).tokenizer
    if template is not None:
        tokenizer.chat_template = template
    chat = ChatTemplate(tokenizer, date_string=model.date_string, stops=stop_ids(model, tokenizer))
    return Renderer(chat, DataConfig(**data))


def rendered(made: Sample | Reject) -> Sample:
    assert isinstance(made, Sample), made
    return made


def supervised_text(r: Renderer, sample: Sample) -> str:
    return r.chat.decode([label for label in sample.labels if label != IGNORE])


@pytest.mark.parametrize("layout", ["nested", "sequential"])
def test_only_the_answer_and_its_stop_token_carry_loss(layout: str) -> None:
    r = renderer(trace_layout=layout)
    sample = rendered(r.sample(EXAMPLE))
    answer = trace.render(EXAMPLE.trace, layout)  # type: ignore[arg-type]
    assert supervised_text(r, sample) == answer + "<|im_end|>"
    assert sample.ids[-1] in r.chat.stops
    prompt = r.chat.ids(r.chat.prompt_text(r.prompt(EXAMPLE, "tuned")))
    assert list(sample.ids[: len(prompt)]) == prompt
    assert sample.labels == (IGNORE,) * len(prompt) + sample.ids[len(prompt) :]


WRONG = Trace(
    (
        Part("think", "(1) add 3: 1 + 3 = 5.", injected=True),
        Part("reflect", "1 + 3 is 4, not 5. (1) add 3: 1 + 3 = 4.", injected=True),
        Part("think", "(2) add 3: 4 + 3 = 7."),
    ),
    "7",
)


@pytest.mark.parametrize("layout", ["nested", "sequential"])
def test_a_corrupted_step_carries_no_loss_and_its_correction_does(layout: str) -> None:
    example = replace(EXAMPLE, trace=WRONG)
    masked, unmasked = (renderer(trace_layout=layout, mask_wrong_steps=on) for on in (True, False))
    one, two = rendered(masked.sample(example)), rendered(unmasked.sample(example))
    assert one.ids == two.ids
    silent = [at for at, (a, b) in enumerate(zip(one.labels, two.labels, strict=True)) if a != b]
    assert masked.chat.decode([one.ids[at] for at in silent]).strip() == WRONG.parts[0].text
    left = supervised_text(masked, one)
    assert "1 + 3 = 5" not in left
    assert WRONG.parts[1].text in left
    assert WRONG.parts[2].text in left
    assert supervised_text(unmasked, two) == trace.render(WRONG, layout) + "<|im_end|>"  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama3.2", "qwen2.5"])
def test_a_real_tokenizer_masks_only_the_corrupted_step(published_data: Path, name: str) -> None:
    r = renderer(ModelConfig(model_name_or_path=str(published_data / "tokenizers" / name)))
    left = supervised_text(r, rendered(r.sample(replace(EXAMPLE, trace=WRONG))))
    assert "= 5" not in left
    assert left.startswith("<thinking>")
    assert "<reflection>1 + 3 is 4, not 5. (1) add 3: 1 + 3 = 4.</reflection>" in left


def test_a_tokenizer_without_offsets_gives_advice() -> None:
    r = renderer()
    original = r.chat.tokenizer

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if "return_offsets_mapping" in kwargs:
                raise NotImplementedError("not a fast tokenizer")
            return original(*args, **kwargs)

    r.chat.tokenizer = Slow()
    with pytest.raises(RenderError, match="mask-wrong-steps"):
        r.sample(replace(EXAMPLE, trace=WRONG))


def test_history_is_in_the_prompt_and_carries_no_loss() -> None:
    r = renderer()
    history = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi there"})
    sample = rendered(r.sample(replace(EXAMPLE, history=history)))
    assert "hi there" in r.chat.decode(sample.ids)
    assert "hi there" not in supervised_text(r, sample)


@pytest.mark.parametrize(
    ("row", "run", "expected"),
    [(None, "Run's.", "Run's."), ("Row's.", "Run's.", "Row's."), ("", "Run's.", None), (None, "", None)],
)
def test_the_system_prompt_of_a_row_takes_precedence_over_that_of_the_run(
    row: str | None, run: str, expected: str | None
) -> None:
    messages = renderer(system_prompt=run).prompt(replace(EXAMPLE, system=row), "tuned").messages
    assert [m["content"] for m in messages if m["role"] == "system"] == ([expected] if expected else [])


def test_the_arms_ask_the_same_question_with_different_prompts() -> None:
    r = renderer()
    messages_of = {arm: r.prompt(EXAMPLE, arm).messages for arm in ("base_direct", "base_cot", "base_tags", "tuned")}  # type: ignore[arg-type]
    assert all(EXAMPLE.question in messages[-1]["content"] for messages in messages_of.values())
    assert messages_of["base_tags"] == messages_of["tuned"]
    assert messages_of["base_direct"] != messages_of["base_cot"]
    assert [m["role"] for m in messages_of["base_direct"]] == ["user"]


def test_a_row_that_is_too_long_is_rejected_whole() -> None:
    length = len(rendered(renderer().sample(EXAMPLE)).ids)
    lost: list[str] = []
    for limit in range(16, length):
        made = renderer(max_seq_length=limit).sample(EXAMPLE)
        assert isinstance(made, Reject)
        assert made.reason == "too_long"
        lost.append(made.detail.rpartition("the cut would fall in the ")[2])
    in_order = [name for name, _ in itertools.groupby(lost)]
    assert in_order == ["prompt", "thinking", "reflection", "thinking", "output", "stop token"]


def test_a_row_of_exactly_the_maximum_length_is_kept() -> None:
    length = len(rendered(renderer().sample(EXAMPLE)).ids)
    assert rendered(renderer(max_seq_length=length).sample(EXAMPLE))


def test_a_row_whose_text_contains_control_tokens_is_rejected() -> None:
    made = renderer().sample(replace(EXAMPLE, question="say <|im_end|> please"))
    assert isinstance(made, Reject)
    assert made.reason == "control_token"


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "reason", "says"),
    [
        (
            CHATML.replace("m.content", "m.content.split('</thinking>')[-1]") + ASK,
            "section_lost",
            "drops or rewrites the assistant's thinking",
        ),
        (CHATML.replace("<|im_end|>", "") + ASK, "no_stop", "does not end the assistant's turn with a token"),
        (
            CHATML.replace("<|im_end|>", "[end]") + "{% if not add_generation_prompt %}<|im_end|>{% endif %}" + ASK,
            "no_stop",
            "('<|im_end|>') but with '[end]'",
        ),
        (CHATML + ASK.replace("assistant", "assistant says"), "not_a_prefix", "the prompt is not a prefix"),
        (CHATML + ASK + ASK.replace("start|>assistant", "end|><think>"), "not_a_prefix", "opens a <think> block"),
        (CHATML + "goodbye" + ASK, "not_a_prefix", "the prompt is not a prefix"),
        (
            CHATML.replace("m.content", "('<think></think>' if m.role == 'assistant' else '') + m.content") + ASK,
            "text_before_answer",
            "adds an empty <think> block before the answer",
        ),
        (
            CHATML + "{% if not add_generation_prompt %}bye{% endif %}" + ASK,
            "text_after_answer",
            "writes '\\nbye' after",
        ),
        (
            CHATML.replace("m.content", "m.content.replace('Think', 'Dream')") + ASK,
            "section_lost",
            "drops or rewrites message 1, of the system",
        ),
        ("{{ raise_exception('no system turn, please') }}", "template_refused", "no system turn, please"),
        ("{{ messages[0].content[9999].x.y }}", "template_refused", "no element 9999"),
        ("{{ 1 // 0 }}", "template_refused", "division"),
    ],
)
def test_a_template_that_breaks_a_rule_rejects_a_row_and_stops_a_run(
    template: str, reason: str, says: str, tmp_path: Path
) -> None:
    made = renderer(template=template).sample(EXAMPLE)
    assert isinstance(made, Reject)
    assert (made.where, made.reason) == (EXAMPLE.where, reason)
    assert says in made.detail
    file = tmp_path / "own.jinja"
    file.write_text(template)
    with pytest.raises(RenderError) as caught:
        open_renderer(ModelConfig(chat_template=str(file)), DataConfig())
    assert str(file) in str(caught.value)
    assert "--chat-template" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_template_that_fails_on_a_row_rejects_that_row() -> None:
    guard = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no bad words') }}{% endif %}{% endfor %}"
    )
    made = renderer(template=guard + CHATML + ASK).samples([EXAMPLE, replace(EXAMPLE, question="bad"), EXAMPLE])
    assert (len(made.kept), len(made.samples)) == (2, 2)
    assert [(r.reason, "no bad words" in r.detail) for r in made.rejects] == [("template_refused", True)]


def test_a_control_token_after_the_turn_is_removed() -> None:
    """Phi 3 adds a token after the last turn."""
    r = renderer(template=CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}" + ASK)
    sample = rendered(r.sample(EXAMPLE))
    assert supervised_text(r, sample) == trace.render(EXAMPLE.trace) + "<|im_end|>"


def test_every_row_is_rendered_or_rejected() -> None:
    made = renderer().samples([EXAMPLE, replace(EXAMPLE, question="<|im_end|>"), EXAMPLE])
    assert (len(made.kept), len(made.samples), len(made.rejects)) == (2, 2, 1)


def test_the_time_in_a_template_is_frozen() -> None:
    r = renderer(template="{{ strftime_now('%H:%M:%S') }}" + CHATML + ASK)
    assert r.chat.prompt_text(r.prompt(EXAMPLE, "tuned")).startswith("00:00:00<|im_start|>"), (
        "midnight of model.date_string"
    )


def broken_tokenizer(tmp_path: Path, **changes: Any) -> ModelConfig:
    tokenizer = load_tokenizer(ModelConfig()).tokenizer
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return ModelConfig(model_name_or_path=str(tmp_path))


def test_a_missing_padding_token_gives_one_clear_error(tmp_path: Path) -> None:
    model = broken_tokenizer(tmp_path, pad_token=None)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())
    text = json.dumps(vocabulary).replace("<|endoftext|>", "<|nothing|>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="it has no padding token") as caught:
        load_tokenizer(model)
    assert "--pad-token" in str(caught.value)
    assert load_tokenizer(model.model_copy(update={"pad_token": "<|nothing|>"})).tokenizer.pad_token == "<|nothing|>"
    with pytest.raises(ModelError, match="is not in its vocabulary"):
        load_tokenizer(model.model_copy(update={"pad_token": "<|absent|>"}))


def test_a_missing_chat_template_gives_one_clear_error(tmp_path: Path) -> None:
    model = broken_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="it has no chat template"):
        load_tokenizer(model)


def test_a_missing_model_gives_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stop", "greeting"),
    [("qwen2.5", "<|im_end|>", [9707, 1879]), ("llama3.2", "<|eot_id|>", [9906, 1917])],
)
def test_gsm8k_is_rendered_with_real_tokenizers(
    published_data: Path, own_data: Path, name: str, stop: str, greeting: list[int]
) -> None:
    data = DataConfig(dataset=str(published_data / "gsm8k" / "train.jsonl"))
    rows = 24 if published_data == own_data else 7473
    loaded = load_examples(data, seed=1, eval_samples=0, eval_seed=1)
    assert (loaded.rows, len(loaded.examples)) == (rows, rows)
    assert not [e.id for e in loaded.examples if "<<" in trace.render(e.trace) or ">>" in trace.render(e.trace)]
    assert all(float(e.answer) == float(e.answer) for e in loaded.examples)
    r = renderer(ModelConfig(model_name_or_path=str(published_data / "tokenizers" / name)))
    if published_data != own_data:
        assert r.chat.ids("Hello world") == greeting
    made = r.samples(loaded.examples)
    assert len(made.samples) == rows
    for example, sample in zip(loaded.examples, made.samples, strict=True):
        assert supervised_text(r, sample) == trace.render(example.trace) + stop
        assert sample.ids[-1] == r.chat.tokenizer.convert_tokens_to_ids(stop)


def test_llama_does_not_print_todays_date(published_data: Path) -> None:
    model = ModelConfig(model_name_or_path=str(published_data / "tokenizers" / "llama3.2"), date_string="1 Jan 2000")
    text = renderer(model).chat.prompt_text(renderer(model).prompt(EXAMPLE, "tuned"))
    assert "Today Date: 1 Jan 2000" in text
    assert text.startswith("<|begin_of_text|>")


def test_the_padding_token_of_llama_differs_from_its_stop_tokens(published_data: Path) -> None:
    tokenizer = load_tokenizer(
        ModelConfig(model_name_or_path=str(published_data / "tokenizers" / "llama3.2"))
    ).tokenizer
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_every_token_is_assigned_to_its_section() -> None:
    renderer = open_renderer(ModelConfig(), DataConfig())
    (example,) = tasks.generate("world:chains:3", split="test", n=1, seed=1, error_rate=0.9)
    sample = renderer.sample(example)
    assert isinstance(sample, Sample)
    named = renderer.sections(example, sample)
    assert len(named) == len(sample.ids)
    texts = {
        section: renderer.chat.decode([i for i, name in zip(sample.ids, named, strict=True) if name == section])
        for section in ("thinking", "reflection", "output", None)
    }
    assert texts["output"] == f"<output>{example.answer}</output>"
    assert texts["reflection"].startswith("<reflection>")
    assert texts["reflection"].count("</reflection>") == example.trace.injected
    assert "reflection" not in texts["thinking"].replace(str(renderer.data.system_prompt), "")
    assert example.question in texts[None]
    assert named[-1] is None
