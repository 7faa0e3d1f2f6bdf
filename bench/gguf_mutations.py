"""GGUF files that are damaged, in llama.cpp itself: `python bench/gguf_mutations.py --file FILE.gguf --out bench/results/gguf_mutations.json`.

llama.cpp runs inside our process, and ends it where one of its assertions fails. Each input is the file with one to four changes in its
header (values of the metadata, lengths, types, offsets, names), and is loaded and asked for four tokens in a process of its own, as
`chat` and `evaluate` do. Refusing it with an error of ours is right, and so is answering; a process that ends without a message, a
traceback, or no end within SECONDS is a fault. Inputs are seeded by number, so that one can be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import gguf
import xllamacpp  # noqa: F401  (once, not in every process)

from cot_unsloth.core.errors import CotError
from cot_unsloth.core.progress import bar
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.models.llamacpp import LlamaCpp
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

SECONDS = 60.0
REFUSED, TRACEBACK = 10, 11
"""Exit codes of a process."""
OUTCOMES = {0: "answered", REFUSED: "refused"}


@dataclass(frozen=True)
class Header:
    """Where a file can be changed."""

    size: int
    """Bytes before the tensors' data."""
    numbers: Sequence[int]
    """Where the numbers of the metadata begin, such as the context length."""
    tensors: Sequence[int]
    """Where the names' lengths, shapes, types and offsets of the tensors begin."""


def mutated(data: bytes, header: Header, rng: random.Random) -> bytes:
    """A file with one to three changes in its header.

    A third of the inputs change numbers of the metadata, and are whole otherwise; a third change the list of tensors; the others
    are changed anywhere, which may also move what follows.
    """
    changed = bytearray(data)
    places = rng.choice((header.numbers, header.tensors, range(4, header.size - 8)))
    anywhere = isinstance(places, range)
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(places)
        match rng.randrange(6 if anywhere else 4):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2, 7, 31, 255, 2**16, 2**31 - 1, 2**32 - 1)))
            case 2:
                changed[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**32, 2**63 - 1, 2**64 - 1)))
            case 3:
                changed[at : at + 4] = struct.pack("<f", rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan"))))
            case 4:
                del changed[at : at + rng.choice((1, 4, 8))]
            case _:
                changed[at:at] = bytes(rng.choice((1, 4, 8)))
    return bytes(changed)


def header_of(file: Path) -> Header:
    """The header of a file."""
    reader = gguf.GGUFReader(file)
    texts = {gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY}
    plain = [field for field in reader.fields.values() if field.types and field.types[0] not in texts]
    tensors: list[int] = []
    for tensor in reader.tensors:
        at = tensor.field.offset
        for part in tensor.field.parts:
            tensors += [at] if part.dtype.itemsize >= 4 else []  # not the characters of the name
            at += int(part.nbytes)
    numbers = [field.offset + sum(int(part.nbytes) for part in field.parts[:-1]) for field in plain]
    return Header(int(reader.data_offset), numbers, tensors)


def outcome(file: Path, log: Path) -> str:
    """What loading and asking a file leads to."""
    pid = os.fork()
    if pid == 0:
        _load(file, log)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return OUTCOMES.get(code, "traceback" if code == TRACEBACK else f"ended with {code}")
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"no end within {SECONDS:g} s"


def _load(file: Path, log: Path) -> NoReturn:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = 0
    try:
        engine = LlamaCpp(file, context=64, slots=1)
        prompt = Prompt("1", ({"role": "user", "content": "1 + 1?"},))
        engine.generate([prompt], SamplingParams(max_new_tokens=4))
    except CotError:
        code = REFUSED
    except BaseException:
        import traceback

        traceback.print_exc()
        code = TRACEBACK
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Make the inputs, load each, and write how many ended how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="a GGUF file, such as an export of the embedded model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.environ["GGML_NO_BACKTRACE"] = "1"
    data, header = args.file.read_bytes(), header_of(args.file)
    counts: Counter[str] = Counter()
    faults: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, bar("load", args.inputs) as progress:
        file, log = Path(folder) / "m.gguf", Path(folder) / "log"
        for number in range(args.inputs):
            file.write_bytes(mutated(data, header, random.Random(f"{args.seed}|{number}")))
            how = outcome(file, log)
            counts[how] += 1
            if how not in OUTCOMES.values():
                faults.append({"input": number, "how": how, "said": log.read_text(errors="replace")[-400:]})
            progress.advance(1, faults=str(len(faults)))
    result = {
        "command": f"python bench/gguf_mutations.py --file FILE --inputs {args.inputs} --seed {args.seed} --out {args.out}",
        "environment": environment().as_json(),
        "header_bytes": header.size,
        "inputs": args.inputs,
        "outcomes": dict(counts.most_common()),
        "faults": faults,
    }
    write_json(args.out, result)


if __name__ == "__main__":
    main()
