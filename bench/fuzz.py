"""Random inputs for everything that reads what others wrote: `python bench/fuzz.py --out bench/results/fuzz.json`.

Each reader gets inputs that look like its own (its tags, columns, keys, bytes), put together and damaged at random. It may
refuse them with an error of `core.errors`, or the reader's own; any other exception is a fault, and so is an input that
takes more than SECONDS of CPU time. Inputs come in blocks that are seeded by number, so that an interrupted command
continues, and an input that fails is found again from its block.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cot_unsloth import config
from cot_unsloth.config import DataConfig
from cot_unsloth.core import answers, trace
from cot_unsloth.core.errors import CotError
from cot_unsloth.core.progress import collected, note
from cot_unsloth.data import formats, layouts
from cot_unsloth.data.layouts import column_names
from cot_unsloth.export.gguf import verify
from cot_unsloth.export.lora_settings import read_lora_settings
from cot_unsloth.export.weights import Weights, read_header
from cot_unsloth.models import llamacpp
from cot_unsloth.server import requests
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

SECONDS = 2.0
"""CPU time that one input may take."""
BLOCK = 500
Value = object
JSON = "JSON value"


# --- inputs -----------------------------------------------------------------------------------------------------------

_TAGS = [
    f"<{slash}{name}>"
    for name in ("thinking", "think", "reflection", "output", "answer", "reason")
    for slash in ("", "/")
]
_CHARACTERS = [
    "\0",
    "\ufeff",
    "\u2028",
    "\x1b[2J",
    "\r",
    "\n",
    "é",
    "💥",
    "\ud800",
    "\\",
    '"',
    "'",
    "`",
    "{",
    "}",
    "%",
    "|",
    ",",
    " ",
]
_WORDS = ["7", "-3.5", "1,000", "1e999", "\\boxed{", "}", "####", "The answer is", "Final answer:", "(B)", "=", "x^2", "\\frac{1}{", "3 p.m.",
          "yes", "km/h", "sqrt", "(" * 30, "[" * 30, "**", "<th", "nk>", "half", "and", "or", "%", "1/0", "10**10**10", "NaN"]  # fmt: skip


def text(rng: random.Random, words: Sequence[str] = (), most: int = 12) -> str:
    """Words, tags and odd characters; now and then one of them thousands of times."""
    pool = [*words, *_WORDS, *_CHARACTERS, *_TAGS]
    pieces = [rng.choice(pool) for _ in range(rng.randrange(most))]
    if rng.random() < 0.005:
        pieces.append(rng.choice(pool) * rng.choice((500, 5000)))
    return rng.choice(("", " ", "\n")).join(pieces)


def value(rng: random.Random, depth: int = 0) -> Value:
    """A value of JSON."""
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind < 3:
        return text(rng)
    if kind == 3:
        return rng.choice([None, True, False, 0, -1, 10**30, 0.5, float("1e308"), 7])
    if kind == 4:
        return rng.choice(["", " ", "7", [], {}])
    if kind < 7:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(_KEYS): value(rng, depth + 1) for _ in range(rng.randrange(4))}


_KEYS = [
    "role",
    "content",
    "from",
    "value",
    "type",
    "text",
    "user",
    "assistant",
    "messages",
    "answer",
    "label",
    "parts",
    "1",
    "",
]


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes with some of them changed, removed, repeated, or cut off."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 8)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randrange(1, 9)]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                data[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\xff" * 7 + b"\x7f", b"\1" + b"\0" * 7))
            case _ if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


# --- readers ----------------------------------------------------------------------------------------------------------


def _trace(rng: random.Random, folder: Path) -> None:
    said = text(rng, most=40)
    tags = rng.choice(("thinking", "think"))
    parsed = trace.parse(said, tags)
    at = rng.randrange(len(said) + 1)
    events = [e for pieces in ([said], [said[:at], said[at:]]) for e in [_joined(trace.scan(pieces, tags))]]
    if events[0] != events[1]:
        raise AssertionError("a split changes the events")
    spans = trace.section_spans(said, tags)
    if "".join(said[begin:end] for _, begin, end in spans) != said:
        raise AssertionError("the spans leave text out")
    list(trace.thinking_lines(said, tags))
    with contextlib.suppress(trace.TraceError):
        trace.from_text(said)
    if parsed.trace is not None and trace.parse(trace.render(parsed.trace)).output != parsed.output:
        raise AssertionError("a valid trace does not parse back")


def _joined(events: Iterator[trace.Event]) -> list[tuple[str, object, str]]:
    joined: list[tuple[str, object, str]] = []
    for event in events:
        if joined and event.kind == "text" and joined[-1][:2] == ("text", event.section):
            joined[-1] = ("text", event.section, joined[-1][2] + event.text)
        else:
            joined.append((event.kind, event.section, event.text))
    return joined


def _answers(rng: random.Random, folder: Path) -> None:
    said, gold = text(rng, most=20), text(rng, most=4)
    limit = answers.TimeLimit(0.0)  # what needs the symbolic process, which has a limit of its own, is too costly
    for reading in answers.output_readings(said):
        answers.compare(answers.gold_answer(gold), reading, limit)
    answers.is_prose(said)
    list(answers.readings(said))


_COLUMNS = sorted(
    {
        name
        for group in vars(column_names).values()
        if isinstance(group, tuple)
        for name in group
        if isinstance(name, str)
    }
)


def _rows(rng: random.Random, folder: Path) -> None:
    row: object = {rng.choice([*_COLUMNS, *_KEYS]): _cell(rng) for _ in range(rng.randrange(1, 7))}
    if rng.random() < 0.1:
        row = [_turn(rng) for _ in range(rng.randrange(4))]
    row = layouts.unwrap_conversation(row)
    if not isinstance(row, dict):
        return
    layout = layouts.detect(row) if rng.random() < 0.7 else rng.choice(list(layouts.BY_NAME))
    if layout is None:
        return
    try:
        layouts.read(row, layout, "f:1", strictly=rng.random() < 0.5)
    except layouts.RowError:
        layouts.explain_missing_reasoning(row, layout, layouts.NamedColumns(), ())


def _cell(rng: random.Random) -> Value:
    if rng.random() < 0.3:
        return [_turn(rng) for _ in range(rng.randrange(5))]
    return text(rng) if rng.random() < 0.6 else value(rng)


def _turn(rng: random.Random) -> Value:
    role = rng.choice(["user", "assistant", "system", "human", "gpt", "tool", None, 3])
    content = text(rng) if rng.random() < 0.7 else value(rng)
    return {"role": role, "content": content} if rng.random() < 0.6 else {"from": role, "value": content}


_FILES = {
    "rows.jsonl": b'{"question": "3 + 4?", "answer": "3 + 4 = 7\\n#### 7"}\n{"question": "a\\u2028", "answer": null}\n'
    * 2,
    "rows.json": b'{"train": [{"q": "1?", "a": "2"}, {"q": "3?", "a": "4"}], "n": 12345678901234567890}',
    "rows.csv": b'question,"an ""answer""",n\n"a, b\nc",d,1\ne,f,2\n',
    "rows.tsv": b"question\tanswer\na\tb\n",
}


def _files(rng: random.Random, folder: Path) -> None:
    name = rng.choice(list(_FILES))
    file = folder / name
    file.write_bytes(damaged(rng, _FILES[name]))
    for row in formats.read_file(file, "train"):
        if isinstance(row.row, dict):
            layouts.detect(row.row)


_YAML = config.load().to_yaml()
_LINES = _YAML.splitlines()
_YAML_VALUES = ["2026-11-27", "!!binary aGk=", "&a [*a]", "~", "1e400", "0x7f", "[1, 2", "{a: b}", "'", "? x", "!!python/object:os.system x", "- 1",
                "nan", ".inf", "-1", "true", "q_proj", "99999999999999999999", "*b", "|", "2:30:15", '"\\ud800"', "!!set {a}", "<<: 1"]  # fmt: skip


def _config(rng: random.Random, folder: Path) -> None:
    lines = rng.sample(_LINES, rng.randrange(1, 12))
    for at in range(len(lines)):
        if rng.random() < 0.5:
            key = lines[at].partition(":")[0]
            lines[at] = f"{key}: {rng.choice(_YAML_VALUES)}"
    lines = [
        f"{rng.choice(['model', 'lora', 'data', 'train', 'evaluate', 'export', '2026-11-27', '!!binary aGk=', '1'])}:",
        *lines,
    ]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    file = folder / rng.choice(("c.yaml", "c.json"))
    file.write_bytes(damaged(rng, content) if rng.random() < 0.5 else content)
    loaded, errors = config.load_all(file)
    for error in errors:
        str(error)
    if loaded is not None and not errors:
        loaded.fingerprint()


def _requests(rng: random.Random, folder: Path) -> None:
    body = {"messages": [_turn(rng) for _ in range(rng.randrange(1, 4))], "prompt": text(rng), "answers": [text(rng)]}
    for _ in range(rng.randrange(4)):
        body[rng.choice([*requests._NEUTRAL, *requests.ChatRequest.model_fields])] = value(rng)
    raw = json.dumps(body).encode()
    if rng.random() < 0.5:
        raw = damaged(rng, raw)
    if rng.random() < 0.02:
        raw = rng.choice((b"[" * 50_000, b'{"messages":' * 5_000, b'{"n":' + b"9" * 5_000 + b"}"))
    try:
        asked = requests.parse(rng.choice((requests.ChatRequest, requests.TextRequest, requests.VotesRequest)), raw)
        if isinstance(asked, requests.ChatRequest):
            requests.messages_of(asked, DataConfig())
    except requests.RequestError:
        pass


def _gguf_bytes(folder: Path) -> bytes:
    import gguf

    file = folder / "whole.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("t", np.zeros((2, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return file.read_bytes()


def _gguf(rng: random.Random, folder: Path) -> None:
    file = folder / "m.gguf"
    file.write_bytes(damaged(rng, _original(folder, "gguf", _gguf_bytes)))
    with contextlib.suppress(ValueError):
        verify.read_file(file)
    llamacpp._context_length(file)


def _safetensors_bytes(folder: Path) -> bytes:
    from safetensors.numpy import save

    return save({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)})


def _safetensors(rng: random.Random, folder: Path) -> None:
    file = folder / "m.safetensors"
    file.write_bytes(damaged(rng, _original(folder, "safetensors", _safetensors_bytes)))
    read_header(file)


def _model_files(rng: random.Random, folder: Path) -> None:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header: Value = {"model.embed_tokens.weight": entry, "__metadata__": {"format": "pt"}}
    index: Value = {"weight_map": {"model.embed_tokens.weight": "a.safetensors"}}
    settings: Value = {"model_type": "llama", "tie_word_embeddings": True}
    match rng.randrange(6):
        case 0:
            entry[rng.choice(list(entry))] = value(rng)
        case 1:
            header = value(rng)
        case 2:
            index = {"weight_map": value(rng)} if rng.random() < 0.5 else value(rng)
        case 3:
            settings = {
                **settings,
                rng.choice(["model_type", "tie_word_embeddings", "text_config", "transformers_weights"]): value(rng),
            }
        case 4:
            settings = value(rng)
    raw = b"[" * 5000 if rng.random() < 0.01 else json.dumps(header).encode()
    (model / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(24))
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "config.json").write_text(json.dumps(settings))
    Weights(model)


_ORIGINALS: dict[str, bytes] = {}


def _original(folder: Path, name: str, make: Callable[[Path], bytes]) -> bytes:
    if name not in _ORIGINALS:
        _ORIGINALS[name] = make(folder)
    return _ORIGINALS[name]


_ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "x", "bias": "none",
            "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "use_rslora": False, "trainable_token_indices": None}  # fmt: skip


def _adapter(rng: random.Random, folder: Path) -> None:
    settings = dict(_ADAPTER)
    for _ in range(rng.randrange(4)):
        settings[rng.choice(list(_ADAPTER))] = value(rng)
    raw = json.dumps(settings).encode()
    (folder / "adapter_config.json").write_bytes(damaged(rng, raw) if rng.random() < 0.5 else raw)
    (folder / "adapter_model.safetensors").touch()
    found = read_lora_settings(folder)
    found.scale("model.layers.0.self_attn.q_proj")


@dataclass(frozen=True)
class Target:
    """A reader, and how many of a million inputs it gets."""

    read: Callable[[random.Random, Path], None]
    share: int


TARGETS = {
    "trace parser": Target(_trace, 250_000),
    "answer reading": Target(_answers, 200_000),
    "row functions": Target(_rows, 250_000),
    "data files": Target(_files, 60_000),
    "config loader": Target(_config, 20_000),
    "server requests": Target(_requests, 150_000),
    "GGUF headers": Target(_gguf, 20_000),
    "safetensors headers": Target(_safetensors, 20_000),
    "model files": Target(_model_files, 20_000),
    "adapter settings": Target(_adapter, 10_000),
}


@dataclass
class Outcome:
    """What the inputs of one reader led to."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    """CPU seconds."""
    faults: int = 0
    first_fault: str = ""

    def run(self, target: Target, block: int, seed: int, count: int, folder: Path) -> None:
        """Give the reader one block of inputs."""
        rng = random.Random(f"{seed} {block}")
        for number in range(count):
            state = random.Random(rng.getrandbits(64))
            began = time.process_time()
            fault = ""
            try:
                with collected():
                    target.read(state, folder)
            except CotError as error:
                str(error)
                self.refused += 1
            except Exception as error:
                fault = f"block {block}, input {number}: {type(error).__name__}: {str(error)[:200]}"
            took = time.process_time() - began
            self.inputs += 1
            self.slowest = max(self.slowest, took)
            if took > SECONDS:
                fault = fault or f"block {block}, input {number}: {took:.1f} s"
            if fault:
                self.faults += 1
                self.first_fault = self.first_fault or fault


def fuzz(outcomes: dict[str, Outcome], seed: int, total: int) -> Iterator[str]:
    """Go on until `total` inputs are reached, in blocks, all readers in turn; yields after each block."""
    with tempfile.TemporaryDirectory() as name:
        for library in ("peft", "transformers", "gguf"):  # imported by readers where they need them: seconds
            importlib.import_module(library)
        for target in TARGETS.values():
            Outcome().run(target, -1, seed, 5, Path(name))
        block = 0
        while True:
            left = {k: round(t.share * total / 1_000_000) for k, t in TARGETS.items()}
            todo = [k for k in TARGETS if left[k] > block * BLOCK]
            if not todo:
                return
            for key in todo:
                outcome = outcomes.setdefault(key, Outcome())
                if outcome.inputs <= block * BLOCK:
                    outcome.run(TARGETS[key], block, seed, min(BLOCK, left[key] - block * BLOCK), Path(name))
                    yield key
            block += 1


def main() -> None:
    """Fuzz, and write the result every half minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    outcomes: dict[str, Outcome] = {}
    if args.out.is_file():
        outcomes = {name: Outcome(**kept) for name, kept in json.loads(args.out.read_text())["readers"].items()}
    began = written = time.monotonic()

    def write() -> None:
        result = {
            "command": f"python bench/fuzz.py --inputs {args.inputs} --seed {args.seed}",
            "environment": environment().as_json(),
            "limit_cpu_seconds": SECONDS,
            "inputs": sum(outcome.inputs for outcome in outcomes.values()),
            "faults": sum(outcome.faults for outcome in outcomes.values()),
            "readers": {name: vars(outcome) for name, outcome in outcomes.items()},
        }
        write_json(args.out, result)

    for _ in fuzz(outcomes, args.seed, args.inputs):
        if time.monotonic() - written > 30:
            write()
            written = time.monotonic()
    write()
    note(
        f"{sum(o.inputs for o in outcomes.values())} inputs, {sum(o.faults for o in outcomes.values())} faults, {time.monotonic() - began:.0f} s"
    )
    for name, outcome in outcomes.items():
        note(f"{name}: {outcome}")


if __name__ == "__main__":
    main()
