"""What preparing rows costs, in counts that need no clock, and that what is left out changes nothing."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bench.preparation import write_rows
from cot_unsloth import config as settings
from cot_unsloth import tasks
from cot_unsloth.config import DataConfig, ModelConfig
from cot_unsloth.core.types import Example, Message
from cot_unsloth.data import duplicates, text_files
from cot_unsloth.models import registry
from cot_unsloth.prompts import outline, render
from cot_unsloth.prompts.encoder import Encoder, safe_cuts
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.prompts.render import Renderer
from cot_unsloth.storage import cache, stored_rows
from cot_unsloth.storage.run_folder import RunDir
from cot_unsloth.training import pipeline, preparation, rendered_cache, run_record, sft
from tests.helpers import count_calls

ROWS = 20


def rows(n: int, **settings: Any) -> list[Example]:
    return list(tasks.generate("world:chains:2-4", split="train", n=n, seed=1, **settings))


def tokenized(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text is given to the tokenizer, from now on."""
    encoder, texts = renderer.chat._encoder, Counter[str]()
    assert encoder is not None
    backend = encoder._backend

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch(self, batch: list[str], **settings: Any) -> Any:
            texts.update(batch)
            return backend.encode_batch(batch, **settings)

        def encode_batch_fast(self, batch: list[str], **settings: Any) -> Any:
            texts.update(batch)
            return backend.encode_batch_fast(batch, **settings)

    monkeypatch.setattr(encoder, "_backend", Counting())
    return texts


def test_a_template_runs_for_a_sequence_of_roles_and_not_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = open_renderer(ModelConfig(), DataConfig(loss_on="all"))
    renders = count_calls(monkeypatch, type(renderer.chat.tokenizer), "apply_chat_template")
    history: tuple[Message, ...] = ({"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"})
    made = rows(ROWS)
    assert len(renderer.samples([*made, *(replace(row, history=history) for row in made)]).samples) == 2 * ROWS
    # A row and its prompt, alone and with earlier turns, of which the first prompt is the prompt alone.
    assert len(renders) <= 4


def test_a_template_that_looks_into_contents_runs_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ '!' if 'bad' in m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = open_renderer(ModelConfig(), DataConfig())
    renderer.chat.use(source)
    renders = count_calls(monkeypatch, type(renderer.chat.tokenizer), "apply_chat_template")
    made = rows(ROWS)
    made[3] = replace(made[3], question="bad")
    samples = renderer.samples(made).samples
    assert len(samples) == ROWS
    assert ["!" in renderer.chat.decode(sample.ids) for sample in samples] == [at == 3 for at in range(ROWS)]
    assert len(renders) >= 2 * ROWS


@pytest.mark.parametrize("error_rate", [0.0, 1.0])
def test_no_text_is_tokenized_twice(error_rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = open_renderer(ModelConfig(), DataConfig(mask_wrong_steps=True))
    texts = tokenized(renderer, monkeypatch)
    made = rows(ROWS, error_rate=error_rate)
    assert len(renderer.samples(made).samples) == ROWS
    assert set(texts.values()) == {1}
    # Of each row its question and its answer; of all together the system turn, the opening of an answer, the end of a turn.
    assert len(texts) <= 2 * ROWS + 5


CONTENTS = [["one", "two", "three"], ["  one\n", "\ttwo ", " three"], ["0", "</think> x", "<tool_call>"]]


@pytest.mark.parametrize(
    ("source", "has_outline"),
    [
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", True),
        ("{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] | trim + '.' }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content.strip() }}{% if m.content is string and m.content %}.{% endif %}{% endfor %}", True),
        ("{% set s = messages[0].content %}{% for m in messages[1:] %}{{ s + m.content }}{% endfor %}", True),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content | length }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content | int }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content[0] }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content == 'one' }}{% endfor %}", False),
        ("{% for m in messages %}{{ 'x' in m.content }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content in 'one two' }}{% endfor %}", False),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", False),
        ("{% for m in messages %}{{ m }}{% endfor %}", False),
        ("{% for m in messages %}{{ (m.content ~ '.') | trim }}{% endfor %}", False),
        ("{% for m in messages %}{{ (m.content + '.') | trim }}{% endfor %}", False),
        ("{% for m in messages %}{{ '%s' | format(m.content) }}{% endfor %}", False),
        ("{% for m in messages %}{% set t %}{{ m.content }}{% endset %}{{ t | upper }}{% endfor %}", False),
        ("{% macro w(t) %}{{ t }}{% endmacro %}{% for m in messages %}{{ w(m.content) | trim }}{% endfor %}", False),
        ("{% for m in messages %}{% filter upper %}{{ m.content }}{% endfilter %}{% endfor %}", False),
        ("{{ raise_exception(messages[0].content) }}", False),
        ("{{ messages | map(attribute='content') | join }}", False),
        ("{% for m in messages | sort(attribute='content') %}{{ m.content }}{% endfor %}", False),
    ],
)  # fmt: skip
def test_an_outline_writes_what_the_template_writes(source: str, has_outline: bool) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    roles = ["system", "user", "assistant"]
    found = outline.outline(source, roles, {})
    assert (found is not None) == has_outline
    for contents in CONTENTS if found else ():
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        assert found is not None
        assert found.fill(contents) == _compile_jinja_template(source).render(messages=messages)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": " \n"},
        {"role": "user", "content": ""},
        {"role": "user", "content": "a", "x": "y"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"content": "a"},
    ],
)
def test_blank_contents_and_other_fields_are_left_to_the_template(message: Message) -> None:
    assert not outline.can_fill([message])


def test_only_tokens_that_are_matched_wherever_they_occur_are_cut_at() -> None:
    kept = ["<b>", "<|a|>"]
    others = [
        AddedToken("<c>", special=True, rstrip=True),
        AddedToken("<d>", special=True, lstrip=True),
        AddedToken("<e>", special=True, single_word=True),
        AddedToken("<f>", special=True, normalized=True),
        AddedToken("<g>", special=True),
        AddedToken("<g>>", special=False, normalized=False),  # longer: it takes the place of <g>
        AddedToken("<h>", special=True),
        AddedToken("x<h", special=False, normalized=False),  # begins before <h> and ends in it
        AddedToken("word", special=True),  # a neighbour that is a single word would no longer be one
        AddedToken("<i><i", special=True),  # overlaps with itself
    ]
    assert safe_cuts([AddedToken(text, special=True) for text in kept] + others) == kept


def unigram() -> Tokenizer:
    """SentencePiece's kind: a space is put before the first word of a text, and only there."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<u>", "<|im_start|>"], unk_token="<u>")
    tokenizer.train_from_iterator(["one two three, and 3 + 4 = 7."] * 9, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """A space before each text, offsets without white space, and tokens that take in white space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["one two three, and 3 + 4 = 7."] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<end>", rstrip=True), AddedToken("<|im_")])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("one", single_word=True)])
    return tokenizer


@pytest.mark.parametrize("name", ["tiny", "unigram", "byte_level"])
def test_a_text_in_pieces_has_the_tokens_and_offsets_of_the_whole(name: str) -> None:
    tokenizer = (
        open_renderer(ModelConfig(), DataConfig()).chat.tokenizer.backend_tokenizer
        if name == "tiny"
        else {"unigram": unigram, "byte_level": byte_level}[name]()
    )
    draw, encoder = random.Random(3), Encoder(tokenizer)
    words = [
        "one",
        " ",
        "\n",
        "\n\n",
        "é",
        "e\u0301",
        "🙂",
        "3 + 4",
        "<|im_start|>",
        "<|im_",
        "<end>",
        "  ",
        "ﬁ",
        "user",
        ".",
    ]
    for _ in range(300):
        text = "".join(draw.choices(words, k=draw.randrange(12)))
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert encoder.ids(text) == whole.ids, text
        assert encoder.offsets(text) == whole.offsets, text
        first = draw.randrange(len(text) + 1)
        late = [at for at, (_, end) in enumerate(whole.offsets) if end > first]
        assert [encoder.offsets(text, first)[at] for at in late] == [whole.offsets[at] for at in late]


def test_memory_does_not_grow_with_the_text_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(rendered_cache, "FEWEST_ROWS", 1)
    # Buffers of a fixed size, small beside what few rows take.
    for module, name, value in (
        (stored_rows, "_BUFFER", 1 << 12), (text_files, "_BLOCK", 1 << 12), (render, "CHUNK", 64), (duplicates, "_AT_ONCE", 8),
        (duplicates, "_REMEMBERED", 8),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    _, fewer, more = (_peaks(n, tmp_path / str(n)) for n in (20, 300, 900))
    # As Python objects a row takes about 3,000 bytes, as ids and labels in memory 2,000, and checked for duplicates 10,000.
    assert [(after - before) / 600 < 200 for before, after in zip(fewer, more, strict=True)] == [True, True]


def _peaks(n: int, folder: Path) -> tuple[int, int]:
    """Most bytes that Python and arrow hold while n rows of about 250 tokens are prepared, and are checked and recorded."""
    folder.mkdir()
    write_rows(folder / "rows.jsonl", n)
    config = settings.load(None, {"dataset": str(folder / "rows.jsonl"), "eval_samples": "20", "run_dir": str(folder)})
    gc.collect()
    tracemalloc.start()
    try:
        prepared = preparation.prepare(config)
        first = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes()
        assert len(prepared.train) + len(prepared.test) == n
        tracemalloc.reset_peak()
        pipeline._check(config, prepared)
        hashes = run_record.identity(prepared)
        facts = run_record.manifest(config, prepared, registry.choose(config.model), hashes)
        run_record.write(RunDir(folder / "run"), config, prepared, facts, resume=False)
        sft.assert_counts(sft._dataset(prepared.samples), prepared.samples)
        return first, tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes()
    finally:
        tracemalloc.stop()
