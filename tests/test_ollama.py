"""Ollama's grammar reads a Modelfile back unchanged, and its Go template renders prompts as in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from modelfiles import ModelfileError, commands, go
from models import TINY
from test_templates import GEMMA, MISTRAL_LAST_USER, MISTRAL_V1_OWN, V1, V3, of_trl, tokenizer

from cot_unsloth.config import RunConfig, load_tree
from cot_unsloth.core import trace
from cot_unsloth.core.errors import RenderError
from cot_unsloth.core.types import ThinkingTags
from cot_unsloth.export import ollama
from cot_unsloth.export.gguf.tokens import adds_bos
from cot_unsloth.export.ollama import Pieces
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.prompts.opening import open_renderer

SYSTEM = {"role": "system", "content": "Think in <thinking> tags."}
ASK, AGAIN = {"role": "user", "content": "How many?"}, {"role": "user", "content": "And then?\nWhat of 3?"}
LAST = {"role": "user", "content": "Are you sure?"}
ANSWER = {"role": "assistant", "content": "<output>2</output>"}
THOUGHT = {"role": "assistant", "content": "<output>2</output>", "thinking": "1 + 1 = 2"}
CONVERSATIONS = {
    "no system": [ASK],
    "system": [SYSTEM, ASK],
    "several turns": [ASK, ANSWER, AGAIN],
    "system, several turns": [SYSTEM, ASK, ANSWER, AGAIN, ANSWER, LAST],
    "reasoning in history": [SYSTEM, ASK, THOUGHT, AGAIN],
}
LLAMA2 = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}{% elif m.role == 'user' %}"
    "{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SYSTEM_IN_USER_TURN: dict[str, tuple[tuple[str, ...], Any, dict[str, Any], str]] = {
    "gemma3": (GEMMA, lambda: of_trl("gemma3"), {"eos": "<end_of_turn>", "bos": "<bos>"}, "first user"),
    "llama2": (V3, lambda: LLAMA2, {"eos": "</s>", "bos": "<s>", "words": True}, "first user"),
    "mistral v3": (V3, lambda: MISTRAL_LAST_USER, {"eos": "</s>", "bos": "<s>", "words": True}, "last user"),
}
"""Templates that write the system prompt into a user turn: added tokens, template, special tokens, which turn."""


def chat_of(name: str, request: pytest.FixtureRequest, thinking_tags: ThinkingTags = "thinking") -> ChatTemplate:
    path = TINY
    if name != "tiny":
        family, _, published = name.partition(" as ")
        folder = request.getfixturevalue("shared_data" if published else "own_data")
        path = str(folder / "tokenizers" / family)
    config = load_tree({"model": {"model_name_or_path": path}}, {"thinking_tags": thinking_tags})
    return open_renderer(config.model, config.data).chat


def chat_with_system_in_user_turn(name: str, folder: Path) -> ChatTemplate:
    tokens, template, special, _ = SYSTEM_IN_USER_TURN[name]
    model = tokenizer(folder, tokens, template(), **special)
    return open_renderer(model, load_tree({}, {}).data).chat


def prompt(chat: ChatTemplate, messages: list[dict[str, str]]) -> str:
    """The prompt of training, without the BOS token that Ollama adds itself if the tokenizer does."""
    opening, closing = trace.tags("thinking", chat.thinking_tags)
    joined = [
        {
            "role": m["role"],
            "content": f"{opening}\n{m['thinking']}\n{closing}\n{m['content']}" if "thinking" in m else m["content"],
        }
        for m in messages
    ]
    text = chat.text(joined, ask=True)  # type: ignore[arg-type]
    if adds_bos(chat.tokenizer):
        assert text.startswith(chat.tokenizer.bos_token)
        text = text.removeprefix(chat.tokenizer.bos_token)
    return text


@pytest.fixture(scope="module")
def chats() -> dict[tuple[str, ThinkingTags], ChatTemplate]:
    """Chat templates by name and tags, opened at first use: Llama's published tokenizer takes 2 s to load."""
    return {}


@pytest.mark.parametrize("tags", ["thinking", "think"])
@pytest.mark.parametrize("name", ["tiny", "llama3.2", "qwen2.5", "llama3.2 as published", "qwen2.5 as published"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_go_template_renders_as_the_jinja_template(
    name: str,
    conversation: str,
    tags: ThinkingTags,
    chats: dict[tuple[str, ThinkingTags], ChatTemplate],
    request: pytest.FixtureRequest,
) -> None:
    if (name, tags) not in chats:
        chats[name, tags] = chat_of(name, request, tags)
    chat = chats[name, tags]
    messages = CONVERSATIONS[conversation]
    assert go(ollama.pieces(chat).template(), messages) == prompt(chat, messages)


def test_the_go_template_asks_for_a_system_turn_only_where_it_matters(tiny: ChatTemplate) -> None:
    plain = replace(ollama.pieces(tiny), opening="", opening_without_system="")
    assert plain.template().startswith("{{ range .Messages }}")
    other = replace(plain, opening_without_system="<bos>")
    assert other.template().startswith('{{ if eq (index .Messages 0).Role "system" }}{{ else }}<bos>{{ end }}')


@pytest.mark.parametrize("name", SYSTEM_IN_USER_TURN)
def test_a_system_prompt_inside_a_user_turn_is_rendered_as_in_training(name: str, tmp_path: Path) -> None:
    chat = chat_with_system_in_user_turn(name, tmp_path)
    pieces = ollama.pieces(chat)
    assert pieces.system_in == SYSTEM_IN_USER_TURN[name][-1]
    for messages in CONVERSATIONS.values():
        assert go(pieces.template(), messages) == prompt(chat, messages)
        with_system = messages if messages[0] == SYSTEM else [SYSTEM, *messages]
        assert go(pieces.template(SYSTEM["content"]), messages) == prompt(chat, with_system)
    cut = [SYSTEM, ANSWER, AGAIN]  # Ollama cuts the first turns of a long conversation but keeps the system turn
    assert SYSTEM["content"] in go(pieces.template(), cut)


def test_a_template_without_system_turns_is_written_only_without_a_system_prompt(tmp_path: Path) -> None:
    model = tokenizer(tmp_path, V1, MISTRAL_V1_OWN, eos="</s>", bos="<s>", words=True)
    data = load_tree({}, {"system_prompt": None}).data
    chat = open_renderer(model, data).chat
    chat.use(MISTRAL_V1_OWN)
    text = ollama.modelfile("./x.gguf", chat, load_tree({}, {"system_prompt": None}), 2048)
    template = dict(commands(text))["template"]
    for messages in ([ASK], [ASK, ANSWER, AGAIN]):
        assert go(template, messages) == prompt(chat, messages)
    with pytest.raises(RenderError, match="takes no system turn"):
        ollama.modelfile("./x.gguf", chat, load_tree({}, {}), 2048)


def test_a_modelfile_sets_system_prompt_stops_context_and_temperature(request: pytest.FixtureRequest) -> None:
    config = load_tree({}, {"max_seq_length": 640, "max_new_tokens": 700})
    text = ollama.modelfile("./x.gguf", chat_of("tiny", request), config, 2048)
    assert text.splitlines()[1] == "FROM ./x.gguf"
    assert f'SYSTEM """{config.data.system_prompt}"""' in text
    for line in ('PARAMETER stop "<|im_end|>"', "PARAMETER num_ctx 1340", "PARAMETER temperature 0"):
        assert line in text
    assert "ADAPTER ./a.gguf" in ollama.modelfile("base", chat_of("tiny", request), config, 2048, "./a.gguf")


@pytest.mark.parametrize("change", [".replace('\\n\\n', ' ')", "[:500]", " | escape"])
def test_a_template_that_rewrites_what_users_write_is_refused(
    request: pytest.FixtureRequest, change: str, tmp_path: Path
) -> None:
    chat = chat_of("tiny", request)
    chat.use(_CHATML.replace("m.content", f"m.content{change}" if change[0] != " " else f"(m.content{change})"))
    with pytest.raises(RenderError, match="cannot be written for Ollama"):
        ollama.pieces(chat)


def test_a_modelfile_says_if_the_template_strips_turns(request: pytest.FixtureRequest) -> None:
    """As Llama 3's does; Go templates of Ollama have no function for it."""
    chat = chat_of("tiny", request)
    line = "# in training, white space around the text of a turn was left out: Ollama keeps it"
    for template, stripped in ((_CHATML, False), (_CHATML.replace("m.content", "(m.content | trim)"), True)):
        chat.use(template)
        assert (line in ollama.modelfile("./x.gguf", chat, load_tree({}, {}), 2048).splitlines()) is stripped


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_modelfile_samples_from_all_tokens_as_scoring_does(request: pytest.FixtureRequest) -> None:
    """Ollama's default is top_k 40."""
    for temperature, sampled in (("0", False), ("0.7", True)):
        config = load_tree({}, {"temperature": temperature})
        text = ollama.modelfile("./x.gguf", chat_of("tiny", request), config, 2048)
        assert ("PARAMETER top_k 1000000" in text.splitlines()) is sampled


def test_a_template_with_loop_indices_is_refused(request: pytest.FixtureRequest) -> None:
    chat = chat_of("tiny", request)
    chat.tokenizer.chat_template = "{% for m in messages %}{{ loop.index }} {{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    with pytest.raises(RenderError, match="cannot be written for Ollama"):
        ollama.pieces(chat)


# Difficult texts: one to four quotes, every kind of line end, what Go reads as an action, characters that the parser drops
# (no-break space, zero-width joiner, controls, private use), and white space at the ends of a text.
PIECES = st.sampled_from(
    [
        *"\"'\\\n\r \t{}#é\xa0\u200b\ufeff\x00\x0b\x1b\ue000\u2028",
        '""',
        '"""',
        '""""',
        "\\n",
        "\r\n",
        "{{",
        "}}",
        "{{ .Content }}",
        "{{-",
        "FROM x",
        "SYSTEM",
        "思考",
        "👩\u200d🚀",
        "word",
    ]
)
TEXTS = st.lists(PIECES | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).map("".join)
EXAMPLES = [
    '"',
    '"""',
    '""""',
    'a\n"""',
    '"""\nb',
    'a """ b',
    'a """\nb',
    'a """ \t\r\nb',
    " a ",
    "\n\na\n",
    'a"',
    '"a',
    "a\xa0b",
    '""\n"',
]


def with_examples(test: Any) -> Any:
    for text in EXAMPLES:
        test = example(text)(test)
    return test


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest) -> ChatTemplate:
    return chat_of("tiny", request)


def config_with(system: str, chat: ChatTemplate) -> RunConfig:
    config = load_tree({}, {})
    return config.model_copy(update={"data": config.data.model_copy(update={"system_prompt": system})})


@with_examples
@given(TEXTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_system_prompt_is_read_back(tiny: ChatTemplate, system: str) -> None:
    read = commands(ollama.modelfile("./x.gguf", tiny, config_with(system, tiny), 2048))
    names = [name for name, _ in read]
    assert names.count("from") == names.count("template") == 1
    assert dict(read)["from"] == "./x.gguf"
    # Ollama puts SYSTEM before a conversation that has no system turn.
    system_turns = [{"role": "system", "content": value} for name, value in read if name == "system"]
    if system_turns:
        assert system_turns == [{"role": "system", "content": system}]
    template = dict(read)["template"]
    assert go(template, [*system_turns, ASK]) == prompt(tiny, [{"role": "system", "content": system}, ASK])
    assert go(template, [SYSTEM, ASK, ANSWER, AGAIN]) == prompt(tiny, [SYSTEM, ASK, ANSWER, AGAIN])


@pytest.mark.parametrize("system", EXAMPLES)
def test_a_system_prompt_that_the_grammar_allows_is_under_system(tiny: ChatTemplate, system: str) -> None:
    read = dict(commands(ollama.modelfile("./x.gguf", tiny, config_with(system, tiny), 2048)))
    allowed = system not in ('"""\nb', 'a """\nb', 'a """ \t\r\nb', "a\xa0b")
    assert read.get("system") == (system if allowed else None)


@with_examples
@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_any_text_around_turns_is_read_back(text: str) -> None:
    turn = (text, text)
    pieces = Pieces("", "", {"system": turn, "user": turn, "assistant": turn}, text)
    for position in ("turn", "first user", "last user"):
        placed = replace(pieces, system_in=position)
        source = f"FROM x\nTEMPLATE {ollama._quoted(placed.template(text))}\n"
        template = dict(commands(source))["template"]
        for messages in CONVERSATIONS.values():
            with_system = messages if messages[0] == SYSTEM else [{"role": "system", "content": text}, *messages]
            assert go(template, messages) == placed.text(with_system)


@with_examples
@given(TEXTS)
@settings(max_examples=150, deadline=None)
def test_any_name_and_stop_token_is_read_back_or_refused(text: str) -> None:
    for name, quotes in (("FROM", False), ("PARAMETER stop", True)):
        try:
            value = ollama._argument(text, "it", quotes=quotes)
        except RenderError:
            assert ollama._quoted(text) is None
            continue
        source = f"{name} {value}\n" + ("FROM x\n" if quotes else "")
        assert (name.split()[-1].lower(), text) in commands(source)
        assert len(commands(source)) == 1 + quotes


@pytest.mark.parametrize("stop", ["<|im_end|>", 'a"b', "\n", '"""', "\n\nQ: ", "<｜end▁of▁sentence｜>", " "])
def test_stop_tokens_keep_their_quotes_and_line_ends(stop: str) -> None:
    assert commands(f"FROM x\nPARAMETER stop {ollama._argument(stop, 'it', quotes=True)}\n")[1] == ("stop", stop)


def test_half_of_a_surrogate_pair_is_refused(tiny: ChatTemplate) -> None:
    with pytest.raises(RenderError, match="half of a character"):
        ollama.modelfile("./x.gguf", tiny, config_with("a\ud800", tiny), 2048)


def test_a_local_base_is_named_relative_to_the_modelfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out = tmp_path / "my models" / "base", tmp_path / "exports" / "x"
    base.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given_name in ("my models/base", str(base), "./my models/base/"):
        config = load_tree({"model": {"model_name_or_path": given_name}}, {})
        assert ollama.base_name(config, out) == "../../my models/base"
        assert ollama.base_name(config, base) == "."
    named = load_tree({"model": {"model_name_or_path": "Qwen/Qwen2.5-7B-Instruct"}}, {})
    assert ollama.base_name(named, out) == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ('FROM x\nSYSTEM """a\n"b""" c"""\n', 'a\n"b""" c'),
        ('FROM x\nSYSTEM """a"""\n', "a"),
        ('FROM x\nSYSTEM "a\nb"\n', "a\nb"),
        ("FROM x\nSYSTEM  a b \n", "a b"),
        ('FROM x\nSYSTEM """', ModelfileError),
        ('FROM x\nSYSTEM """a"""\nb"""\n', ModelfileError),
        ("SYSTEM a\n", ModelfileError),
    ],
)
def test_the_modelfile_reader_of_the_tests_reads_as_ollama(text: str, read: Any) -> None:
    """Shortened cases of parser_test.go of ollama."""
    if read is ModelfileError:
        with pytest.raises(ModelfileError):
            commands(text)
    else:
        assert dict(commands(text))["system"] == read


def test_the_template_reader_of_the_tests_runs_as_go() -> None:
    template = 'a{{ range .Messages }}{{ if eq .Role "user" }}[{{ .Content }}]{{ else }}-{{ end }}{{ end }}z'
    assert go(template, [ASK, ANSWER]) == "a[How many?]-z"
    assert go('{{ "{{ \\"\\u200b" }}x', []) == '{{ "\u200bx'
    with pytest.raises(ModelfileError, match="no action"):
        go("{{{ .Content }}", [ASK])
