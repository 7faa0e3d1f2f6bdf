"""Dates that templates print: the same in training, in plain transformers and in llama.cpp, on every day."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from models import TINY, made, opened

from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core.errors import ConfigError
from cot_unsloth.core.types import Example, Part, Trace
from cot_unsloth.export.gguf import tokens, writer
from cot_unsloth.export.gguf.verify import check_text
from cot_unsloth.export.model import open_model
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts import dates
from cot_unsloth.prompts.chat_template import ChatTemplate
from cot_unsloth.prompts.opening import open_renderer

EXAMPLES = [Example("a", "How many are 3 and 4?", Trace((Part("think", "3 + 4 = 7"),), "7"), "7")]
TURNS = (
    "{%- for m in messages %}{%- if m.role != 'system' %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{- m.content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- m.content + '<|im_end|>\\n' }}{%- endif %}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PLAIN_TURNS = TURNS.replace("{% generation %}", "").replace("{% endgeneration %}", "")
SYSTEM = "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}{{- '<|im_end|>\\n' }}"
TEMPLATES = {
    "once": "{{- '<|im_start|>system\\nToday is ' + strftime_now('%d %B %Y') + '.\\n' }}" + SYSTEM + PLAIN_TURNS,
    "several formats": (
        "{{- '<|im_start|>system\\n' + strftime_now('%A, %-d %b %y') + ' ' + strftime_now(\"%Y-%m-%d\") + ' week ' "
        "+ strftime_now('%V, day %j, 100%%') + '\\n' }}" + SYSTEM + PLAIN_TURNS
    ),
    "in a macro": (
        "{%- macro day(form) %}{{- strftime_now(form) }}{%- endmacro %}"
        "{{- '<|im_start|>system\\n' + day('%B %d, %Y') + '\\n' }}" + SYSTEM + PLAIN_TURNS
    ),
    "set, with a default": (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '1 Jan 1970' %}{%- endif %}"
        "{%- endif %}{%- set today = strftime_now('%Y-%m-%d') %}{%- set form = '%A' %}"
        "{{- '<|im_start|>system\\n' + date_string + ' ' + today + ' ' + (strftime_now(form) | upper) + '\\n' }}"
        + SYSTEM + PLAIN_TURNS
    ),
    "in a loop, with an exception": (
        "{%- if messages[0].role == 'assistant' %}{{- raise_exception('the user speaks first') }}{%- endif %}"
        "{%- for form in ['%a', '%d'] %}{{- '<|im_start|>system\\n' + strftime_now(form) + '<|im_end|>\\n' }}{%- endfor %}"
        "{{- '<|im_start|>system\\n' }}" + SYSTEM + PLAIN_TURNS
    ),
    "with generation tags": "{{- '<|im_start|>system\\n' + strftime_now('%d/%m/%Y') + '\\n' }}" + SYSTEM + TURNS,
}  # fmt: skip
SAID = {
    "once": "Today is 26 July 2024.",
    "several formats": "Friday, 26 Jul 24 2024-07-26 week 30, day 208, 100%",
    "in a macro": "July 26, 2024",
    "set, with a default": "26 Jul 2024 2024-07-26 FRIDAY",
    "in a loop, with an exception": "Fri<|im_end|>\n<|im_start|>system\n26",
    "with generation tags": "26/07/2024",
}
ASKED = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many are 3 and 4?"})


@pytest.mark.parametrize("day", ["6 Jul 2024", "1 Jan 2023", "31 Dec 2020", "3 Jan 2021", "29 Feb 2024", "10 Oct 1999"])
def test_every_directive_gives_the_same_text_as_python(day: str) -> None:
    midnight = datetime.datetime.combine(dates.parse(day), datetime.time())
    for directive, text in dates.directives(day).items():
        if directive not in ("%s", "%z", "%Z"):  # of the machine's own zone
            assert text == midnight.strftime(directive), directive


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_with_a_date_gives_the_same_day_in_training_and_in_every_export(name: str, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATES[name])
    made("qwen2", tmp_path, TINY)
    model_config = ModelConfig(model_name_or_path=str(tmp_path / "base"), chat_template=str(file))
    renderer = open_renderer(model_config, DataConfig())
    trained = renderer.chat.text(ASKED, ask=True)
    assert SAID[name] in trained
    template = tokens.exported_template(renderer.chat)
    plain = renderer.chat.tokenizer.apply_chat_template(
        list(ASKED), chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert plain == trained, "as plain transformers renders it, today"
    model = open_model(tmp_path / "base", None, renderer.chat, "small")
    writer.write(model, {"q8_0": tmp_path / "small.gguf"})
    llama = LlamaCpp(tmp_path / "small.gguf", context=1024)
    try:
        assert llama.render(ASKED) == trained
        assert all(check.passed for check in check_text(llama, renderer, EXAMPLES)), check_text(
            llama, renderer, EXAMPLES
        )
    finally:
        llama.close()


def test_a_date_string_that_is_not_a_date_is_refused_before_training(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATES["once"])
    with pytest.raises(ConfigError, match=r"'some day' is not a date.*strftime_now") as refused:
        open_renderer(ModelConfig(chat_template=str(file), date_string="some day"), DataConfig())
    assert refused.value.where == "model.date_string"
    file.write_text("{{- '<|im_start|>system\\n' }}" + SYSTEM + PLAIN_TURNS)
    open_renderer(ModelConfig(chat_template=str(file), date_string="some day"), DataConfig())


def test_an_exported_template_that_prints_the_current_date_is_refused(tmp_path: Path) -> None:
    """It is tried on another day."""
    _, renderer = opened(Path(TINY), None)
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATES["once"])
    renderer = open_renderer(ModelConfig(chat_template=str(file)), DataConfig())
    other = ChatTemplate(renderer.chat.tokenizer, date_string="3 May 2030", stops=renderer.chat.stops)
    assert "03 May 2030" in other.text(ASKED, ask=True)
    renderer.chat.use(tokens.exported_template(renderer.chat))
    assert "26 July 2024" in other.text(ASKED, ask=True)
