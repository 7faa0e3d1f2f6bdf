"""Which chat template is used: the model's own, one that the user names, or the training template of its family."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core import trace
from cot_unsloth.core.errors import ModelError, RenderError
from cot_unsloth.core.types import IGNORE, Example, Part, Reject, Sample, ThinkingTags, Trace
from cot_unsloth.export.gguf import tokens
from cot_unsloth.models.streaming import history
from cot_unsloth.prompts import opening, templates
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.prompts.tokenizer import model_path, note_once

TINY = model_path("tiny-base")
TRACE = Trace((Part("think", "3 + 4 = 8"), Part("reflect", "that is 7"), Part("think", "3 + 4 = 7")), "7")
EXAMPLE = Example("e", "3 + 4?", TRACE, "7", where="rows.jsonl:1", system="Be brief.")
FIRST = trace.render(Trace((Part("think", "1 + 1 = 2"), Part("reflect", "right")), "2"))
HISTORY = ({"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": FIRST})
TWO_TURNS = replace(EXAMPLE, history=HISTORY)

CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<pad>")
GEMMA = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<pad>")
V1 = ("<s>", "</s>", "<pad>")
V3 = (*V1, "[INST]", "[/INST]")
V7 = (*V3, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")

SMOLLM2_OWN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_V1_OWN = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "{{ ' [INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_LAST_USER = (
    "{% set ns = namespace(system='') %}{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n\n' %}{% elif m.role == 'user' %}[INST] {% if m == (messages | "
    "selectattr('role', 'equalto', 'user') | list | last) %}{{ ns.system }}{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
"""A template that puts the system text before the last user turn."""
QWEN3_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def of_trl(name: str) -> str:
    """The original template of a model, of which trl ships a copy."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer(
    folder: Path, tokens: tuple[str, ...], template: Any, *, eos: str, bos: str | None = None, words: bool = False
) -> ModelConfig:
    """A small tokenizer with a family's control tokens, byte-level or (words) with SentencePiece's spaces."""
    made = Tokenizer(models.BPE(unk_token="<unk>" if words else None))
    if words:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [*tokens, "<unk>"] if words else list(tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    made.train_from_iterator(["3 + 4 = 7 <thinking> </thinking> <output> </output> How many are Be brief."], trainer)
    pad = "<|endoftext|>" if "<|endoftext|>" in tokens else "<pad>"
    whole = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos, bos_token=bos, pad_token=pad)
    whole.chat_template = template
    whole.save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder))


@pytest.fixture(autouse=True)
def _said_anew() -> None:
    note_once.cache_clear()


def trained_text(renderer: Renderer, sample: Sample | Reject) -> str:
    """The text with loss; | separates segments."""
    assert isinstance(sample, Sample), sample
    runs = re.findall(r"1+", "".join(str(int(label != IGNORE)) for label in sample.labels))
    at, pieces = 0, []
    flags = "".join(str(int(label != IGNORE)) for label in sample.labels)
    for run in runs:
        at = flags.index(run, at)
        pieces.append(renderer.chat.decode(sample.ids[at : at + len(run)]))
        at += len(run)
    return "|".join(pieces)


ANSWER = trace.render(TRACE)
SYSTEM, ASK, AGAIN = "Be brief.", "1 + 1?", "3 + 4?"
CHATML_TEXT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n{FIRST}<|im_end|>\n"
    f"<|im_start|>user\n{AGAIN}<|im_end|>\n<|im_start|>assistant\n{ANSWER}<|im_end|>"
)
GOLDEN: dict[str, tuple[str, tuple[str, ...], dict[str, Any], str]] = {
    "qwen2.5": ("qwen2.5", CHATML, {"eos": "<|im_end|>"}, CHATML_TEXT),
    "qwen3": ("qwen3", (*CHATML, "<think>"), {"eos": "<|im_end|>"}, CHATML_TEXT),
    "smollm2": ("smollm2", CHATML, {"eos": "<|im_end|>", "bos": "<|im_start|>"}, CHATML_TEXT),
    "chatml": ("chatml", CHATML, {"eos": "<|im_end|>"}, CHATML_TEXT),
    "llama3": (
        "llama3",
        LLAMA,
        {"eos": "<|eot_id|>", "bos": "<|begin_of_text|>"},
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{ASK}<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{FIRST}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{AGAIN}<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{ANSWER}<|eot_id|>",
    ),
    "gemma3": (
        "gemma3",
        GEMMA,
        {"eos": "<end_of_turn>", "bos": "<bos>"},
        f"<bos><start_of_turn>user\n{SYSTEM}\n\n{ASK}<end_of_turn>\n<start_of_turn>model\n{FIRST}<end_of_turn>\n"
        f"<start_of_turn>user\n{AGAIN}<end_of_turn>\n<start_of_turn>model\n{ANSWER}<end_of_turn>",
    ),
    "r1-distill": (
        "r1-distill",
        R1,
        {"eos": "<｜end▁of▁sentence｜>", "bos": "<｜begin▁of▁sentence｜>"},
        f"<｜begin▁of▁sentence｜>{SYSTEM}<｜User｜>{ASK}<｜Assistant｜>{FIRST}<｜end▁of▁sentence｜>"
        f"<｜User｜>{AGAIN}<｜Assistant｜>{ANSWER}<｜end▁of▁sentence｜>",
    ),
    "mistral v1": (
        "mistral",
        V1,
        {"eos": "</s>", "bos": "<s>", "words": True},
        f"<s> [INST] {SYSTEM}\n\n{ASK} [/INST] {FIRST}</s> [INST] {AGAIN} [/INST] {ANSWER}</s>",
    ),
    "mistral v3": (
        "mistral",
        V3,
        {"eos": "</s>", "bos": "<s>", "words": True},
        f"<s>[INST] {SYSTEM}\n\n{ASK}[/INST] {FIRST}</s>[INST] {AGAIN}[/INST] {ANSWER}</s>",
    ),
    "mistral v3-tekken": (
        "mistral",
        V3,
        {"eos": "</s>", "bos": "<s>"},
        f"<s>[INST]{SYSTEM}\n\n{ASK}[/INST]{FIRST}</s>[INST]{AGAIN}[/INST]{ANSWER}</s>",
    ),
    "mistral v7": (
        "mistral",
        V7,
        {"eos": "</s>", "bos": "<s>", "words": True},
        f"<s>[SYSTEM_PROMPT] {SYSTEM}[/SYSTEM_PROMPT][INST] {ASK}[/INST] {FIRST}</s>[INST] {AGAIN}[/INST] {ANSWER}</s>",
    ),
    "mistral v7-tekken": (
        "mistral",
        V7,
        {"eos": "</s>", "bos": "<s>"},
        f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][INST]{ASK}[/INST]{FIRST}</s>[INST]{AGAIN}[/INST]{ANSWER}</s>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
def test_a_training_template_renders_every_turn_unchanged(case: str, tmp_path: Path) -> None:
    name, tokens, settings, golden = GOLDEN[case]
    model = tokenizer(tmp_path, tokens, None, **settings).model_copy(update={"chat_template": name})
    renderer = open_renderer(model, DataConfig(loss_on="all"))
    assert not opening.probe(renderer).any
    sample = renderer.sample(TWO_TURNS)
    assert isinstance(sample, Sample), sample
    whole = renderer.chat.text(
        [*renderer.prompt(TWO_TURNS, "tuned").messages, {"role": "assistant", "content": ANSWER}], ask=False
    )
    assert whole.rstrip("\n") == golden
    stop, space = settings["eos"], " " if "words" in settings else ""
    assert [piece.strip() for piece in trained_text(renderer, sample).split("|") if piece.strip("\n ")] == [
        piece.strip() for piece in f"{space}{FIRST}{stop}|{space}{ANSWER}{stop}".split("|")
    ]
    without = renderer.sample(replace(EXAMPLE, system=""))
    assert isinstance(without, Sample)
    assert "system" not in renderer.chat.decode(without.ids).lower(), "no system turn of the vendor's is added"
    last = Renderer(renderer.chat, DataConfig()).sample(TWO_TURNS)
    assert isinstance(last, Sample)
    assert last.ids == sample.ids
    assert 0 < last.supervised < sample.supervised


@pytest.mark.parametrize(("folder", "name"), [("qwen2.5", "qwen2.5"), ("qwen2.5", "qwen3"), ("llama3.2", "llama3")])
def test_a_training_template_works_with_the_real_tokenizer(published_data: Path, folder: str, name: str) -> None:
    model = ModelConfig(model_name_or_path=str(published_data / "tokenizers" / folder), chat_template=name)
    renderer = open_renderer(model, DataConfig(loss_on="all"))
    sample = renderer.sample(TWO_TURNS)
    assert isinstance(sample, Sample)
    assert renderer.chat.decode(sample.ids) == GOLDEN[name][3]
    stop = renderer.chat.tokenizer.eos_token
    assert trained_text(renderer, sample).replace(f"{stop}|", f"{stop}\n\n").split("\n\n") == [
        FIRST + stop,
        ANSWER + stop,
    ]
    assert "Date" not in renderer.chat.decode(sample.ids)
    # Control tokens are single tokens, not spelled as text.
    assert sample.ids.count(renderer.chat.tokenizer.eos_token_id) == 5


# Model's own template → (tokens, settings), what becomes of it: None used as it is, else the training template and why.
OWN: dict[str, tuple[str, tuple[str, ...], dict[str, Any], str | None, str]] = {
    "Qwen2.5": (of_trl("qwen2_5"), CHATML, {"eos": "<|im_end|>"}, None, ""),
    "Qwen3": (of_trl("qwen3"), (*CHATML, "<think>"), {"eos": "<|im_end|>"}, "qwen3", "adds an empty <think> block"),
    "Qwen3 2507 Instruct": (of_trl("qwen3_instruct_2507"), CHATML, {"eos": "<|im_end|>"}, None, ""),
    "Qwen3 Thinking": (QWEN3_THINKING, CHATML, {"eos": "<|im_end|>"}, "qwen3", "opens a <think> block in the prompt"),
    "Qwen3.5 thinking": (of_trl("qwen3_5_think"), CHATML, {"eos": "<|im_end|>"}, "qwen3", "opens a <think> block"),
    "R1 distill": (
        of_trl("deepseek_r1_distill"), R1, {"eos": R1[1], "bos": R1[0]}, "r1-distill", "opens a <think> block in the prompt",
    ),
    "Llama 3": (of_trl("llama3"), LLAMA, {"eos": "<|eot_id|>", "bos": LLAMA[0]}, None, ""),
    "Llama 3.1": (of_trl("llama3_1"), LLAMA, {"eos": "<|eot_id|>", "bos": LLAMA[0]}, None, ""),
    "Llama 3.2": (of_trl("llama3_2"), LLAMA, {"eos": "<|eot_id|>", "bos": LLAMA[0]}, None, ""),
    "SmolLM2": (SMOLLM2_OWN, CHATML, {"eos": "<|im_end|>", "bos": "<|im_start|>"}, None, ""),
    "Gemma 3": (of_trl("gemma3"), GEMMA, {"eos": "<end_of_turn>", "bos": "<bos>"}, None, ""),
    "Gemma": (of_trl("gemma"), GEMMA, {"eos": "<end_of_turn>", "bos": "<bos>"}, "gemma3", "System role not supported"),
    "Mistral v1": (MISTRAL_V1_OWN, V1, {"eos": "</s>", "bos": "<s>", "words": True}, "mistral", "must alternate"),
    "Mistral v3": (MISTRAL_LAST_USER, V3, {"eos": "</s>", "bos": "<s>", "words": True}, None, ""),
    "Phi 3": (of_trl("phi3"), ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"), {"eos": "<|end|>"}, None, ""),
}  # fmt: skip


@pytest.mark.parametrize("model_name", OWN)
def test_a_models_own_template_trains_or_is_replaced(
    model_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, tokens, settings, taken, why = OWN[model_name]
    renderer = open_renderer(tokenizer(tmp_path, tokens, own, **settings), DataConfig())
    output = capsys.readouterr().err
    if taken is None:
        assert renderer.chat.tokenizer.chat_template == own
        assert "template" not in output
    else:
        assert renderer.chat.tokenizer.chat_template == templates.text(taken, renderer.chat.tokenizer)
        assert f"using the training template {taken}" in output
        assert why in output
        assert "--chat-template" in output
    for example in (EXAMPLE, TWO_TURNS, replace(EXAMPLE, system="")):
        sample = renderer.sample(example)
        assert trained_text(renderer, sample).strip() == ANSWER + settings["eos"]
    open_renderer(ModelConfig(model_name_or_path=str(tmp_path)), DataConfig())
    assert "template" not in capsys.readouterr().err, "the replacement is reported more than once"


def test_with_loss_on_all_a_template_that_moves_the_system_text_is_replaced(tmp_path: Path) -> None:
    model = tokenizer(tmp_path, V3, MISTRAL_LAST_USER, eos="</s>", bos="<s>", words=True)
    renderer = open_renderer(model, DataConfig(loss_on="all"))
    assert "state.system" in renderer.chat.tokenizer.chat_template
    assert isinstance(renderer.sample(TWO_TURNS), Sample)
    named = Renderer(open_renderer(model, DataConfig()).chat, DataConfig(loss_on="all"))
    made = named.sample(TWO_TURNS)
    assert isinstance(made, Reject)
    assert made.reason == "not_a_prefix"


def trl_templates() -> Iterator[str]:
    import trl

    for file in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        yield file.stem


@pytest.mark.parametrize("name", trl_templates())
def test_no_template_from_trl_causes_a_traceback(name: str, tmp_path: Path) -> None:
    own = of_trl(name)
    written = set(re.findall(r"<[|｜][^|｜<>\s]+[|｜]>|<(?:start|end)_of_turn>|\[/?[A-Z_]{3,}\]", own))
    ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|end|>", "<|END_OF_TURN_TOKEN|>")
    eos = next((token for token in ends if token in written), "</s>")
    tokens = tuple(sorted({*written, eos, "<bos>", "<pad>"} - {"<|endoftext|>"}))
    model = tokenizer(tmp_path, tokens, own, eos=eos, bos="<bos>")
    try:
        made = open_renderer(model, DataConfig()).sample(EXAMPLE)
    except RenderError as error:
        said = str(error)
    else:
        assert isinstance(made, Sample)
        said = "--chat-template"
    assert "--chat-template" in said


@pytest.mark.parametrize(
    ("own", "hint", "says"),
    [
        (of_trl("qwen3"), "--chat-template qwen3", "adds an empty <think> block before the answer"),
        (QWEN3_THINKING, "--chat-template qwen3", "opens a <think> block in the prompt"),
        (of_trl("deepseek_r1_distill"), "--chat-template qwen2.5", "does not end|opens a <think> block"),
        (SMOLLM2_OWN.replace("+ message['content']", "+ message['content'].split('</thinking>')[-1]"), "qwen2.5", "thinking"),
    ],
)  # fmt: skip
def test_a_template_named_by_the_user_is_never_replaced(own: str, hint: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(own)
    with pytest.raises(RenderError, match=says) as caught:
        open_renderer(ModelConfig(chat_template=str(file)), DataConfig())
    assert hint in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_model_used_only_for_generation_may_have_any_template(tmp_path: Path) -> None:
    tokens = ("<|user|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>", "<pad>")
    model = tokenizer(tmp_path, tokens, of_trl("glm4moe"), eos="<|user|>")
    with pytest.raises(RenderError, match="adds an empty <think> block"):
        open_renderer(model, DataConfig())
    asked = open_renderer(model, DataConfig(), prompts_only=True)
    assert asked.chat.prompt_text(asked.prompt(EXAMPLE, "base_cot")).endswith("<|assistant|>")


def test_an_error_in_a_template_gives_the_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.jinja"
    file.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(RenderError, match="is not Jinja: line 2"):
        open_renderer(ModelConfig(chat_template=str(file)), DataConfig())


def test_a_template_without_system_turns_is_reported_if_no_training_template_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    model = tokenizer(tmp_path, ("</s>", "<pad>"), own, eos="</s>")
    with pytest.raises(RenderError, match="no system turns") as caught:
        open_renderer(model, DataConfig())
    assert "--system-prompt ''" in str(caught.value)
    renderer = open_renderer(model, DataConfig(system_prompt=""))
    assert "rows with a system turn will be rejected" in capsys.readouterr().err
    made = renderer.samples([EXAMPLE, replace(EXAMPLE, system=None)])
    assert (len(made.samples), [r.reason for r in made.rejects]) == (1, ["template_refused"])


NAMED = {"default": SMOLLM2_OWN, "rag": SMOLLM2_OWN.replace("helpful", "well-read")}


def test_of_several_templates_the_default_or_the_requested_one_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tokenizer(tmp_path, CHATML, NAMED, eos="<|im_end|>")
    assert (tmp_path / "additional_chat_templates" / "rag.jinja").is_file()
    assert open_renderer(model, DataConfig()).chat.tokenizer.chat_template == NAMED["default"]
    assert "taking 'default' (the others: --chat-template rag)" in capsys.readouterr().err
    for name, text in NAMED.items():
        asked = open_renderer(model.model_copy(update={"chat_template": name}), DataConfig())
        assert asked.chat.tokenizer.chat_template == text
    assert capsys.readouterr().err == ""


def test_the_other_templates_are_listed_if_the_default_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_renderer(tokenizer(tmp_path, CHATML, NAMED | {"default": of_trl("qwen3")}, eos="<|im_end|>"), DataConfig())
    output = capsys.readouterr().err
    assert "--chat-template rag" in output
    assert "using the training template qwen3" in output


def test_named_templates_in_the_old_format_are_read(tmp_path: Path) -> None:
    model = tokenizer(tmp_path, CHATML, SMOLLM2_OWN, eos="<|im_end|>")
    (tmp_path / "chat_template.jinja").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": text} for name, text in NAMED.items() if name == "rag"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert open_renderer(model, DataConfig()).chat.tokenizer.chat_template == NAMED["rag"], "the only one there is"
    settings["chat_template"].append({"name": "tool_use", "template": SMOLLM2_OWN})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="several chat templates and none is the default: rag, tool_use"):
        open_renderer(model, DataConfig())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("qwen-3", "did you mean qwen3?"),
        ("Mistral", "did you mean mistral?"),
        ("nowhere/mine.jinja", "training template: qwen2.5, qwen3, r1-distill, llama3, smollm2, mistral, gemma3"),
        ("raag", "did you mean rag?"),
        ("llama3", "has no token <|start_header_id|>, which the llama3 template writes"),
    ],
)
def test_the_error_about_an_unknown_template_lists_the_known_ones(asked: str, says: str, tmp_path: Path) -> None:
    model = tokenizer(tmp_path, CHATML, NAMED, eos="<|im_end|>")
    with pytest.raises(ModelError) as caught:
        open_renderer(model.model_copy(update={"chat_template": asked}), DataConfig())
    assert says in str(caught.value)


def test_the_error_about_a_missing_template_suggests_one(tmp_path: Path) -> None:
    model = tokenizer(tmp_path, CHATML, None, eos="<|im_end|>")
    with pytest.raises(ModelError, match="it has no chat template") as caught:
        open_renderer(model, DataConfig())
    assert "--chat-template qwen2.5" in str(caught.value)


def test_a_reasoning_model_scored_as_a_base_starts_as_in_its_own_template(tmp_path: Path) -> None:
    own, tokens, settings, _, _ = OWN["R1 distill"]
    renderer = open_renderer(tokenizer(tmp_path, tokens, own, **settings), DataConfig())
    asked = {arm: renderer.chat.prompt_text(renderer.prompt(EXAMPLE, arm)) for arm in ("base_direct", "base_cot", "base_tags", "tuned")}  # type: ignore[arg-type]  # fmt: skip
    assert asked["base_direct"].endswith("<｜Assistant｜><think>\n")
    assert asked["base_cot"].endswith("<｜Assistant｜><think>\n")
    assert asked["base_tags"] == asked["tuned"]
    assert asked["tuned"].endswith("<｜Assistant｜>")
    trained = tmp_path / "adapter"
    renderer.chat.tokenizer.save_pretrained(trained)
    again = open_renderer(ModelConfig(model_name_or_path=str(tmp_path)), DataConfig(), trained, prompts_only=True)
    assert again.chat.base_opening == "<think>\n", "scored again later, it is asked the same"
    assert tiny().chat.base_opening == ""


def tiny(**data: Any) -> Renderer:
    return open_renderer(ModelConfig(), DataConfig(**data))


def test_loss_on_all_trains_the_earlier_turns_that_the_data_does_not_exempt() -> None:
    stop = "<|im_end|>"
    more = (*HISTORY, {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<output>4</output>"})
    example = replace(EXAMPLE, history=more)
    renderer = tiny(loss_on="all")
    whole = trained_text(renderer, renderer.sample(example)).replace(f"{stop}|", f"{stop}@").split("@")
    assert whole == [FIRST + stop, "<output>4</output>" + stop, ANSWER + stop]
    exempt = renderer.sample(replace(example, history_loss=(True, False, True, True)))
    assert trained_text(renderer, exempt) == f"<output>4</output>{stop}|{ANSWER}{stop}"
    assert trained_text(tiny(), tiny().sample(example)) == ANSWER + stop
    assert tiny().sample(example).ids == renderer.sample(example).ids  # type: ignore[union-attr]


def test_loss_on_all_skips_an_empty_turn() -> None:
    example = replace(EXAMPLE, history=(HISTORY[0], {"role": "assistant", "content": " "}))
    renderer = tiny(loss_on="all")
    assert trained_text(renderer, renderer.sample(example)) == ANSWER + "<|im_end|>"


def test_loss_on_all_masks_a_corrupted_step() -> None:
    wrong = Trace((Part("think", "3 + 4 = 9", injected=True), Part("reflect", "it is 7", injected=True)), "7")
    renderer = tiny(loss_on="all")
    left = trained_text(renderer, renderer.sample(replace(TWO_TURNS, trace=wrong)))
    assert "= 9" not in left
    assert left.startswith(FIRST)
    assert "it is 7" in left


def test_an_earlier_turn_is_written_in_the_layout_of_the_run() -> None:
    for loss_on in ("last", "all"):
        renderer = tiny(trace_layout="sequential", loss_on=loss_on)
        sample = renderer.sample(TWO_TURNS)
        assert isinstance(sample, Sample)
        text = renderer.chat.decode(sample.ids)
        assert "1 + 1 = 2\n</thinking>\n<reflection>right</reflection>\n<output>2</output>" in text
        assert "</thinking>\n<reflection>that is 7</reflection>\n<output>7</output>" in text


def test_a_template_that_removes_an_earlier_turn_rejects_the_row(tmp_path: Path) -> None:
    drops = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last or m.role != 'assistant' else '...' }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    file = tmp_path / "drops.jinja"
    file.write_text(drops)
    renderer = open_renderer(ModelConfig(chat_template=str(file)), DataConfig())
    made = renderer.samples([EXAMPLE, TWO_TURNS])
    assert (len(made.samples), [r.reason for r in made.rejects]) == (1, ["section_lost"])
    assert "message 3, of the assistant" in made.rejects[0].detail


@pytest.mark.parametrize("tags", ["thinking", "think"])
@pytest.mark.parametrize("own", ["tiny", "qwen3", "llama3.2", "llama3.2 as published"])
def test_training_chat_and_the_exported_template_render_earlier_turns_the_same(
    own: str, tags: ThinkingTags, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = ModelConfig()
    if own == "qwen3":
        model = tokenizer(tmp_path, CHATML, of_trl("qwen3"), eos="<|im_end|>")
        own_tokens = AutoTokenizer.from_pretrained(tmp_path)
        own_tokens.add_tokens(["<think>", "</think>"])  # tokens of text, as Qwen3 has them
        own_tokens.save_pretrained(tmp_path)
    elif own.startswith("llama3.2"):
        folder = request.getfixturevalue("shared_data" if own.endswith("published") else "own_data")
        model = ModelConfig(model_name_or_path=str(folder / "tokenizers" / "llama3.2"))
    renderer = open_renderer(model, DataConfig(thinking_tags=tags))
    chat = renderer.chat
    exported = tokens.exported_template(chat)
    if own == "qwen3":
        assert exported.endswith(templates.text("qwen3", chat.tokenizer))
    read = trace.render(Trace((Part("think", "1 + 1 = 2"),), "2"))  # as data sets are kept
    thought = trace.render(Trace((Part("think", "1 + 1 = 2"),), "2"), thinking_tags=tags)
    reasoning, tagged = tokens.split_reasoning(thought, tags)
    kept_by_clients: dict[str, tuple[dict[str, str], str]] = {
        "whole": ({"content": thought}, read),
        "apart": ({"content": tagged, "reasoning_content": reasoning}, read),
        "apart, without tags": ({"content": "2", "reasoning_content": "1 + 1 = 2"}, read),
        "the answer alone": ({"content": "2"}, "<output>2</output>"),
    }
    for kept, stored in kept_by_clients.values():
        example = replace(EXAMPLE, history=({"role": "user", "content": ASK}, {"role": "assistant", "content": stored}))
        prompt = renderer.prompt(example, "tuned")
        trained = chat.ids(chat.prompt_text(prompt))
        messages = [*prompt.messages[:2], {"role": "assistant", **kept}, prompt.messages[-1]]
        spoken = chat.ids(chat.text([history(message, tags) for message in messages], ask=True))
        text = chat.tokenizer.apply_chat_template(
            messages, chat_template=exported, tokenize=False, add_generation_prompt=True
        )
        assert trained == spoken == chat.ids(text)
        sample = renderer.sample(example)
        assert isinstance(sample, Sample)
        assert list(sample.ids[: len(trained)]) == trained


def test_thinking_tags_that_are_control_tokens_stop_the_run(tmp_path: Path) -> None:
    model = tokenizer(tmp_path, (*CHATML, "<think>"), of_trl("qwen3"), eos="<|im_end|>")
    with pytest.raises(RenderError, match="treats <think> as a control token") as stopped:
        open_renderer(model, DataConfig(thinking_tags="think"))
    assert stopped.value.hint == "set --thinking-tags thinking"
    assert open_renderer(model, DataConfig()).chat.thinking_tags == "thinking"


def test_the_template_beside_trained_weights_takes_precedence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = SMOLLM2_OWN.replace("helpful", "careful")
    saved = AutoTokenizer.from_pretrained(TINY)
    saved.chat_template = other
    saved.save_pretrained(tmp_path)
    assert open_renderer(ModelConfig(), DataConfig(), tmp_path).chat.tokenizer.chat_template == other
    assert "was saved with the trained weights" in capsys.readouterr().err
    named = ModelConfig(chat_template="qwen3")
    assert open_renderer(named, DataConfig(), tmp_path).chat.tokenizer.chat_template != other
    (tmp_path / "chat_template.jinja").unlink()
    assert open_renderer(ModelConfig(), DataConfig(), tmp_path).chat.tokenizer.chat_template != other


@pytest.mark.parametrize("tags", ["thinking", "think"])
def test_llama_cpp_separates_reasoning_and_keeps_any_answer_unchanged(tags: ThinkingTags, tmp_path: Path) -> None:
    """Output tags in the last turn would make it refuse each answer without them."""
    pytest.importorskip("xllamacpp")
    from cot_unsloth.export.gguf import writer
    from cot_unsloth.export.model import open_model
    from cot_unsloth.models.llamacpp import LlamaCpp

    file = tmp_path / "tiny.gguf"
    writer.write(open_model(Path(TINY), None, tiny(thinking_tags=tags).chat, "tiny"), {"f16": file})
    llama = LlamaCpp(file, context=512, slots=1)

    def answered(text: str) -> tuple[str, str]:
        body = {
            "messages": [{"role": "user", "content": "?"}],
            "max_tokens": 60,
            "grammar": f"root ::= {json.dumps(text)}",
        }
        message = llama._post("/v1/chat/completions", body)["choices"][0]["message"]
        return message["content"], (message.get("reasoning_content") or "").strip()

    assert answered(f"<{tags}>\n1 + 1 = 2\n</{tags}>\n<output>2</output>") == ("<output>2</output>", "1 + 1 = 2")
    assert answered("<output>2</output>") == ("<output>2</output>", "")
    assert answered("2") == ("2", "")
    llama.close()
