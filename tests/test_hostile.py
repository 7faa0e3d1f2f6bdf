"""Small inputs that would take much time or memory, and damaged files of others: refused at once, with one message."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import module, run_cli
from transformers import AutoTokenizer

from cot_unsloth.config import load, load_all
from cot_unsloth.core.errors import ConfigError, CotError, DataError, ModelError, RunDirError
from cot_unsloth.data import expansion, formats
from cot_unsloth.export import weights
from cot_unsloth.models import adapter_patterns
from cot_unsloth.models.gguf_header import require_whole
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.prompts import template_limits
from cot_unsloth.prompts.chat_template import ChatTemplate, TemplateError
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage import records

ROOT = Path(__file__).parent.parent
fuzz = module(ROOT / "bench" / "fuzz.py")


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def suppressed(work: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(CotError):
        work(*args)


# --- settings ---------------------------------------------------------------------------------------------------------

LEVELS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
MERGES = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a0: &a0 [x, x]\n{LEVELS}", "aliases .* stand for more than 10,000 values"),
        (f"a0: &a0 {{x: 1}}\n{MERGES}", "aliases .* stand for more than 10,000 values"),
        ("train: &a\n  seed: *a\n", "aliases .* stand for more than 10,000 values"),
        ("train: " + "[" * 3000, "recursion|nested"),
        ("train:\n" + "".join(f"  k{n}: {n}\n" for n in range(20_000)), "bytes; a settings file has a few thousand"),
        ("2026-11-27: 1\n", "2026-11-27 is not a section"),
        ("!!binary aGk=: 1\n", "b'hi' is not a section"),
        ("train:\n  2026-11-27: 3\n", "train.2026-11-27 is not a setting"),
        ("train: !!set {a, b}\n", "train must hold settings"),
        ("train:\n  seed: " + "9" * 5000 + "\n", "digits"),
    ],
)
def test_a_settings_file_that_expands_or_has_odd_keys_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(file)
    assert seconds(lambda: load_all(file)) < 5


def test_an_alias_that_is_used_twice_is_no_bomb(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lora:\n  target_modules: &names [q_proj, v_proj]\nexport:\n  gguf: []\n")
    assert load(file).lora.target_modules == ("q_proj", "v_proj")


# --- data -------------------------------------------------------------------------------------------------------------


def many_columns(path: Path, count: int) -> Path:
    names = ["question", "answer", *(f"c{n}" for n in range(count))]
    path.write_text(",".join(names) + "\n" + ",".join(["3 + 4?", "3 + 4 = 7 #### 7", *("x" * count)]) + "\n")
    return path


def test_the_time_for_columns_is_linear(tmp_path: Path) -> None:
    """40,000 columns took 60 s, because every name was counted in all names."""
    few, many = (many_columns(tmp_path / f"{n}.csv", n) for n in (4_000, 40_000))
    list(formats.read_file(few, "train"))
    times = [
        min(seconds(lambda path=path: list(formats.read_file(path, "train"))) for _ in range(3)) for path in (few, many)
    ]  # type: ignore[misc]
    assert times[1] < 40 * times[0] + 0.5, times


def test_a_repeated_key_after_many_is_found_in_linear_time(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    pairs = [*(f'"k{n}": 1' for n in range(60_000)), '"k59999": 2']
    file.write_text("{" + ", ".join(pairs) + "}\n" + '{"question": "?", "answer": "1 #### 1"}\n')
    assert seconds(lambda: list(formats.read_file(file, "train"))) < 5


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_file_that_repeats_a_long_value_is_refused_before_it_is_read(nested: bool, tmp_path: Path) -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["a" * 1_000_000]))
    column = (
        pa.ListArray.from_arrays(pa.array(range(3001), pa.int32()), pa.StructArray.from_arrays([long], ["content"]))
        if nested
        else long
    )
    pq.write_table(pa.table({"messages": column}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="over 500 times its size"):
        list(formats.read_file(tmp_path / "bomb.parquet", "train"))
    assert pa.total_allocated_bytes() - before < 100 << 20


def test_compressed_text_that_expands_beyond_all_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "ALWAYS_ALLOWED", 1 << 20)
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wb", 9) as out:
        for _ in range(40):
            out.write(b" " * (1 << 20))
    with pytest.raises(DataError, match="over 500 times its size"):
        list(formats.read_file(file, "train"))


def test_a_data_set_that_repeats_a_long_prompt_is_no_bomb(tmp_path: Path) -> None:
    rows = [{"system": "Think. " * 2000, "question": f"{n} + 4?", "answer": f"s\n#### {n + 4}"} for n in range(2000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert sum(1 for _ in formats.read_file(tmp_path / "rows.parquet", "train")) == 2000


# --- models -----------------------------------------------------------------------------------------------------------


def gguf(pairs: int, tensors: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + rest


def pair(key: bytes, kind: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + content


def texts(*values: bytes) -> bytes:
    return struct.pack("<IQ", 8, len(values)) + b"".join(struct.pack("<Q", len(value)) + value for value in values)


def tensor(dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return (
        struct.pack("<Q", 1)
        + b"t"
        + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "complete GGUF"),
        (b"GGUF", "cut off or damaged"),
        (b"GGUX" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "its version is 99"),
        (gguf(10**18), "cut off or damaged"),
        (gguf(1, rest=pair(b"x", 9, struct.pack("<IQ", 0, 10**12)) + bytes(100)), "1,000,000,000,000 bytes should follow"),
        (gguf(1, rest=pair(b"x", 9, struct.pack("<IQ", 8, 10**9)) + bytes(100)), "should follow"),
        (gguf(1, rest=pair(b"x", 9, struct.pack("<IQ", 9, 1) * 3000)), "an array holds values of type 9"),
        (gguf(1, rest=pair(b"x", 77, b"")), "a value is of type 77"),
        (gguf(1, rest=pair(b"general.alignment", 4, struct.pack("<I", 3))), "its alignment is 3"),
        (gguf(1, rest=pair(b"llama.context_length", 4, struct.pack("<I", 0))), "llama.context_length is 0, not between"),
        (gguf(1, rest=pair(b"llama.context_length", 4, b"\xff" * 4)), "is 4294967295, not between 1 and 2,147,483,647"),
        (gguf(1, rest=pair(b"qwen3.block_count", 10, struct.pack("<Q", 2**31))), "is 2147483648, not between 1 and 512"),
        (gguf(1, rest=pair(b"a.layer_norm_rms_epsilon", 6, struct.pack("<f", -1))), "is -1.0, not between 0 and 1"),
        (gguf(1, rest=pair(b"a.layer_norm_epsilon", 12, struct.pack("<d", float("nan")))), "is nan, not between"),
        (gguf(1, rest=pair(b"tokenizer.ggml.tokens", 9, texts(b"ab", b"", b"", b"ab\0c"))), "'ab' is in its vocabulary 2 times"),
        (gguf(0, 1, tensor([2**40, 2**40])), r"cut off: 65 of [\d,]+ bytes"),
        (gguf(0, 1, tensor([1] * 9)), "9 dimensions"),
        (gguf(0, 1, tensor([1], kind=999)), "type 999"),
        (gguf(0, 1, tensor([1], offset=2**60)), "cut off: "),
    ],
)  # fmt: skip
def test_absurd_sizes_in_a_gguf_file_are_refused_before_memory_is_taken(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        require_whole(file)
    with pytest.raises(ModelError, match="is not a complete GGUF file"):
        LlamaCpp(file)
    assert seconds(lambda: suppressed(require_whole, file)) < 1


@pytest.mark.parametrize(
    "header",
    [[], "x", 7, None, {"a": []}, {"a": {}}, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]}},
     {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, {"a": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}},
     {"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}],
)  # fmt: skip
def test_a_header_of_safetensors_that_is_none_is_refused(header: Any, tmp_path: Path) -> None:
    raw = json.dumps(header).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(4))
    with pytest.raises(ModelError, match="is not a safetensors file"):
        weights.read_header(file)


@pytest.mark.parametrize("length", [2**63, 10**8, 5000])
def test_a_header_of_safetensors_that_is_too_long_or_deep_is_refused(length: int, tmp_path: Path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"[" * 5000)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        weights.read_header(file)


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": []}, {"weight_map": [1]}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../b"}}]
)
def test_an_index_of_shards_that_is_none_is_refused(index: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    if index == {"weight_map": []}:  # an index of nothing
        assert weights.weight_files(tmp_path)[1] == []
        return
    with pytest.raises(ModelError, match="is not an index of shards"):
        weights.weight_files(tmp_path)


ENDLESS = [
    {"target_modules": r"(.+)+\$"},
    {"target_modules": ["q_proj"], "exclude_modules": r"((\w|\.)+)+!"},
    {"rank_pattern": {r"((a|\w|\.)+)+!": 3}},
    {"alpha_pattern": {r"((a|\w|\.)+)+!": 3}},
    {"layers_pattern": [r"((\w|\.)+)+!"]},
]


@pytest.mark.parametrize("settings", ENDLESS, ids=lambda settings: next(reversed(settings)))
def test_a_pattern_that_takes_exponential_time_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_patterns, "SECONDS", 1.0)
    with pytest.raises(ModelError, match="take more than 1 s to match"):
        adapter_patterns.require_quick(settings, tmp_path)


def test_patterns_of_usual_adapters_are_accepted(tmp_path: Path) -> None:
    unsloths = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)))"
    )
    for settings in (
        {"target_modules": unsloths},
        {"target_modules": r".*\.(q|v)_proj$", "rank_pattern": {r"^model.*q_proj": 8}},
        {"target_modules": "("},
    ):
        adapter_patterns.require_quick(settings, tmp_path)


# --- templates --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat() -> ChatTemplate:
    return ChatTemplate(
        AutoTokenizer.from_pretrained(model_path("tiny-base")), date_string="27 Nov 2026", stops=frozenset()
    )


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
WRITES = "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}"
GROWS = "{% set n = namespace(l=[]) %}{% for a in range(99999) %}{% set n.l = n.l + [('x' * 50000) ~ a] %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NESTED, "it takes more than 1 s"),
        ("{% macro f() %}" + NESTED + "{% endmacro %}{{ f() }}", "it takes more than 1 s"),
        (WRITES, "it writes more than"),
        ("{% macro f() %}" + WRITES + "{% endmacro %}{{ f() }}", "it writes more than"),
        ("{{ 10 ** 10 ** 10 }}", "computes a power"),
        ("{{ 'x' * 99999999999 }}", "number above 100,000"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ range(10000000) | list }}", "Range too big|number above"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "loader"),
        ("{{ messages | map(attribute='x') | sum }}", "refuses"),
        ("{% if %}", "is not Jinja"),
    ],
)  # fmt: skip
def test_a_template_that_never_ends_or_fails_is_refused(
    template: str, message: str, chat: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 1.0)
    monkeypatch.setattr(template_limits, "MOST_MEMORY", 100 << 20)
    chat.use(template)
    began = time.monotonic()
    with pytest.raises(TemplateError, match=message):
        chat.text([{"role": "user", "content": "?"}], ask=True)
    assert time.monotonic() - began < 60


def test_memory_that_a_template_takes_is_bounded(chat: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MOST_MEMORY", 100 << 20)
    chat.use(GROWS)
    with pytest.raises(TemplateError, match="2 GiB of memory"):
        chat.text([{"role": "user", "content": "?"}], ask=True)


def test_limits_of_templates_hold_in_every_thread_and_leave_no_exception_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)
    outcomes = []

    def work() -> None:
        try:
            with template_limits.limited():
                while True:
                    pass
        except template_limits.TemplateLimitError as error:
            outcomes.append(str(error))
        began = time.monotonic()
        while time.monotonic() - began < 0.6:  # an exception that was left behind would arrive here
            pass
        outcomes.append("went on")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert outcomes == ["it takes more than 0 s", "went on"]


# --- files of a run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b'{"id": "a"', b"\xff\xfe", b"[1]", b"[" * 5000, b'"x"'])
def test_a_damaged_row_of_a_run_is_named_by_its_line(damage: bytes, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id": "a"}\n' + damage + b"\n")
    for read in (records.read_jsonl, records.read_appended):
        with pytest.raises(RunDirError, match=re.escape(f"{file}:2: is damaged")):
            read(file)


def test_completions_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(RunDirError, match="a line is not a score"):
        records.read_completions(tmp_path / "a.jsonl")


def test_errors_show_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert run_cli("evaluate", "--api", "http://me:swordfish@127.0.0.1:1/v1", "--benchmark", "gsm8k", "--out", out) != 0
    said = capsys.readouterr()
    assert "127.0.0.1:1" in said.err
    assert "swordfish" not in said.out + said.err


# --- random inputs ----------------------------------------------------------------------------------------------------


def test_random_inputs_raise_only_errors_of_ours() -> None:
    outcomes: dict[str, Any] = {}
    for _ in fuzz.fuzz(outcomes, seed=7, total=8_000):
        pass
    assert sum(outcome.inputs for outcome in outcomes.values()) == 8_000
    assert not {name: outcome.first_fault for name, outcome in outcomes.items() if outcome.faults}
    assert all(outcome.refused for name, outcome in outcomes.items() if "headers" in name), "the inputs damage nothing"


def test_a_fault_and_a_slow_input_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = fuzz.Outcome()

    def read(rng: Any, folder: Path) -> None:
        if rng.random() < 0.5:
            raise KeyError("x")
        raise CotError("refused")

    outcome.run(fuzz.Target(read, 1), 0, 1, 20, tmp_path)
    assert outcome.faults + outcome.refused == outcome.inputs == 20
    assert outcome.first_fault.startswith("block 0, input ")
    monkeypatch.setattr(fuzz, "SECONDS", -1.0)
    outcome = fuzz.Outcome()
    outcome.run(fuzz.Target(lambda rng, folder: None, 1), 0, 1, 3, tmp_path)
    assert outcome.faults == 3
