"""`serve` under load, with clients that behave badly among them: `python bench/load.py --out bench/results/load.json`.

A small run of the embedded model is exported to GGUF, and `cot-unsloth serve` answers with that file, in a process of its own.
STREAMS clients ask for one streamed answer after another. Beside them, all the time, are clients that read slowly, that leave
in the middle of an answer, that want the whole answer at once, whose requests stop half way, and that send what is no request.
Every answer is checked: a stream ends with a reason and [DONE], a whole answer has its text, and a bad request is refused with
the status that it should have. The memory of the server is read every few seconds. In the end everybody leaves, and the slots
must be free.

The clients are asyncio sockets, so that one process can be all of them beside the server on one core: a client of httpx takes
more CPU time for a token than the server. Latencies are those that a client sees, queue included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from cot_unsloth.core.progress import note
from cot_unsloth.core.threads import limit_spinning
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment

TRAIN = (
    "--dataset", "world:words:1-2", "--world-samples", "160", "--per-device-train-batch-size", "4", "--gradient-accumulation-steps",
    "1", "--learning-rate", "8e-3", "--eval-samples", "0", "--export-samples", "1", "--gguf", "q8_0",
)  # fmt: skip
"""Enough to write traces of some length; whether they are right does not matter here."""
MOST_TOKENS = 128
SAMPLE_SECONDS = 5.0
TIMEOUT = 120.0
"""A client that waits longer for anything counts as a fault."""
QUESTIONS = (
    "Tom has 24 marbles. (1) He gives away 23. How many does he have?",
    "A shelf holds 7 books. (1) Five more are put on it. (2) Three are taken. How many are left?",
    "Start: 12. (1) double it (2) take away 4. What is it?",
)


class AnswerError(Exception):
    """An answer that is not as it should be."""


@dataclass
class Counts:
    """What all clients have seen."""

    answered: Counter[str] = field(default_factory=Counter)
    """By kind of client."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Refusals of bad requests, as `NAME: STATUS`."""
    faults: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """Seconds until the first text of a stream."""
    whole: list[float] = field(default_factory=list)
    """Seconds until the end of a stream."""
    tokens: int = 0


# --- a client ---------------------------------------------------------------------------------------------------------


class Connection:
    """One HTTP request on a socket of its own."""

    def __init__(self, port: int, *, buffer: int | None = None) -> None:
        self.port, self.buffer = port, buffer

    async def __aenter__(self) -> Connection:
        plain = socket.socket()
        plain.setblocking(False)
        if self.buffer is not None:  # before connecting: it decides the window that the server may fill
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        self.reader, self.writer = await asyncio.open_connection(sock=plain, limit=self.buffer or 1 << 20)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def ask(
        self, body: bytes, *, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
    ) -> int:
        """Send a request; the status of its answer. Headers are given as `content_type=...`."""
        given = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json", "content-length": str(len(body))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()} | {"connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await self.writer.drain()
        return await self.status()

    async def status(self) -> int:
        """The status line of an answer; its headers are read too."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1])

    async def events(self) -> AsyncIterator[dict[str, object]]:
        """The events of a stream, up to [DONE].

        Raises:
            AnswerError: it ends without it.
        """
        async for line in self.reader:  # chunk sizes and empty lines between them do not begin with "data: "
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                event: dict[str, object] = json.loads(line[6:])
                yield event
        raise AnswerError("the stream ended without [DONE]")


def request(rng: random.Random, *, stream: bool, most_tokens: int = MOST_TOKENS) -> bytes:
    """The body of a valid request."""
    body: dict[str, object] = {
        "messages": [{"role": "user", "content": rng.choice(QUESTIONS)}],
        "temperature": 1.0,
        "seed": rng.randrange(2**31),
        "max_tokens": most_tokens,
    }
    return json.dumps(body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})).encode()


def _has_text(event: dict[str, object]) -> bool:
    choices = event.get("choices")
    return isinstance(choices, list) and any(
        choice["delta"].get("content") or choice["delta"].get("reasoning_content") for choice in choices
    )


def _reason(event: dict[str, object]) -> str | None:
    choices = event.get("choices")
    return choices[0]["finish_reason"] if isinstance(choices, list) and choices else None


# --- kinds of clients -------------------------------------------------------------------------------------------------


class Clients:
    """All clients of a server; each method behaves in one way, once."""

    def __init__(self, port: int, seed: int) -> None:
        self.port, self.counts = port, Counts()
        self.rng = random.Random(seed)
        self._bad = itertools.cycle(bad_requests())

    async def stream(self) -> None:
        """Reads a stream as fast as it comes."""
        began, first, reason, usage = time.monotonic(), None, None, 0
        async with Connection(self.port) as connection:
            _expect(await connection.ask(request(self.rng, stream=True)), 200)
            async for event in connection.events():
                if "error" in event:
                    raise AnswerError(f"an error in the stream: {event['error']}")
                if first is None and _has_text(event):
                    first = time.monotonic() - began
                reason = reason or _reason(event)
                counted = event.get("usage")
                usage = counted["completion_tokens"] if isinstance(counted, dict) else usage
        if reason not in ("stop", "length") or not usage:
            raise AnswerError(f"a stream with finish_reason {reason} and {usage} tokens")
        # A model may answer with its stop token at once: then there is no first text.
        self.counts.first += [first] if first is not None else []
        self.counts.whole.append(time.monotonic() - began)
        self.counts.tokens += usage

    async def slow(self) -> None:
        """Takes 256 bytes every quarter of a second, into the smallest buffer that the system gives."""
        async with Connection(self.port, buffer=2048) as connection:
            _expect(await connection.ask(request(self.rng, stream=True)), 200)
            text = b""
            while piece := await connection.reader.read(256):
                text += piece
                await asyncio.sleep(0.25)
        if b"data: [DONE]" not in text or b'{"error"' in text:
            raise AnswerError(f"a client that reads slowly got {len(text)} bytes that end in {text[-160:]!r}")

    async def leave(self) -> None:
        """Leaves with a reset after some events, or while it waits."""
        after = self.rng.randrange(0, 6)
        async with Connection(self.port) as connection:
            _expect(await connection.ask(request(self.rng, stream=True, most_tokens=4096)), 200)
            if after:
                async for _ in connection.events():
                    after -= 1
                    if not after:
                        break
            linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
            connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def whole(self) -> None:
        """Wants the whole answer at once; every fourth leaves before it comes."""
        async with Connection(self.port) as connection:
            asking = connection.ask(request(self.rng, stream=False))
            if self.rng.randrange(4) == 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asking, 0.2)
                return
            _expect(await asking, 200)
            answer = json.loads(await connection.reader.read())
        if "content" not in answer["choices"][0]["message"] or not answer["usage"]["completion_tokens"]:
            raise AnswerError(f"a whole answer without its text: {answer}")

    async def bad(self) -> None:
        """Sends one of the bad requests, and is refused as it should be."""
        name, status, send = next(self._bad)
        async with Connection(self.port) as connection:
            got = await send(connection)
        self.counts.statuses[f"{name}: {got}"] += 1
        if got != status:
            raise AnswerError(f"{name}: status {got}, not {status}")
        await asyncio.sleep(0.05)

    async def stalled(self) -> None:
        """Announces a body that never comes, and waits until it is told so."""
        async with Connection(self.port) as connection:
            _expect(await connection.ask(b"", content_length="100"), 408)

    async def repeat(self, once: Callable[[], Coroutine[object, object, None]], until: float) -> None:
        """One request after another."""
        name = once.__name__
        while time.monotonic() < until:
            try:
                await asyncio.wait_for(once(), TIMEOUT)
                self.counts.answered[name] += 1
            except (AnswerError, OSError, ValueError, KeyError, EOFError, TimeoutError) as error:
                self.counts.faults.append(f"{name}: {type(error).__name__} {error}")
                await asyncio.sleep(0.5)


def _expect(status: int, expected: int) -> None:
    if status != expected:
        raise AnswerError(f"status {status}, not {expected}")


Bad = tuple[str, int, Callable[[Connection], Coroutine[object, object, int]]]


def bad_requests() -> list[Bad]:
    """Requests that are refused: each with a name, its status, and what sends it."""
    question = '{"messages": [{"role": "user", "content": "1 + 1"}], '

    def body(text: bytes | str, **headers: str) -> Callable[[Connection], Coroutine[object, object, int]]:
        data = text.encode() if isinstance(text, str) else text
        return lambda connection: connection.ask(data, **headers)

    async def noise(connection: Connection) -> int:
        connection.writer.write(bytes(range(256)) * 8 + b"\r\n\r\n")
        return await connection.status()

    return [
        ("half a JSON object", 400, body(question)),
        ("no JSON", 400, body(b"\xff\x00" * 50)),
        ("100,000 brackets", 400, body(b"[" * 100_000)),
        ("a number of 5,000 digits", 400, body(f'{question}"max_tokens": 1{"0" * 5000}}}')),
        ("no messages", 400, body("{}")),
        ("text that is null", 400, body('{"messages": [{"role": "user", "content": null}]}')),
        ("a role that there is not", 400, body('{"messages": [{"role": "robot", "content": "x"}]}')),
        ("1,000 choices", 400, body(f'{question}"n": 1000}}')),
        ("a prompt beyond the context", 400, body(json.dumps({"messages": [{"role": "user", "content": "x y " * 9000}]}))),
        ("a form", 415, body("a=b", content_type="application/x-www-form-urlencoded")),
        ("5 MB announced", 413, body("", content_length=str(5 << 20))),
        ("another host", 403, body("{}", host="attacker.example")),
        ("another origin", 403, body("{}", origin="http://attacker.example")),
        ("an address that there is not", 404, body("{}", path="/v2/chat")),
        ("a wrong method", 405, body("", method="GET")),
        ("bytes that are no HTTP", 400, noise),
    ]  # fmt: skip


# --- the server -------------------------------------------------------------------------------------------------------


def exported(folder: Path) -> Path:
    """A GGUF file of a short run."""
    run = folder / "run"
    if not any(run.glob("export/*.gguf")):
        command = [sys.executable, "-m", "cot_unsloth", "train", "--run-dir", str(run), *TRAIN]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return next(run.glob("export/*.gguf"))


@contextlib.contextmanager
def started(file: Path, log: Path) -> Iterator[tuple[psutil.Process, int]]:
    """`serve` in a process of its own, and its port; ended by SIGTERM."""
    with log.open("w") as output:
        command = [sys.executable, "-m", "cot_unsloth", "serve", str(file), "--port", "0"]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        while "(Ctrl-C ends)" not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.1)
        address = log.read_text().split("http://127.0.0.1:")[1]
        yield psutil.Process(process.pid), int(address.split("/")[0])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def gauge(port: int, name: str) -> int:
    """A figure of /metrics."""
    async with Connection(port) as connection:
        _expect(await connection.ask(b"", path="/metrics", method="GET"), 200)
        text = (await connection.reader.read()).decode()
    return int(float(text.split(f"\n{name} ")[1].split("\n")[0]))


async def watch(server: psutil.Process, began: float, until: float) -> list[dict[str, float]]:
    """Memory, threads and open files of the server, every few seconds."""
    samples = []
    while time.monotonic() < until:
        with server.oneshot():
            cpu = server.cpu_times()
            samples.append(
                {
                    "second": round(time.monotonic() - began, 1),
                    "rss_bytes": server.memory_info().rss,
                    "threads": server.num_threads(),
                    "files": server.num_fds(),
                    "cpu_seconds": round(cpu.user + cpu.system, 2),
                }
            )
        await asyncio.sleep(SAMPLE_SECONDS)
    return samples


async def freed(port: int) -> dict[str, float]:
    """Seconds after the last client has gone until no slot is taken and nobody waits."""
    began = time.monotonic()
    while True:
        left = {name: await gauge(port, f"cot_unsloth_{name}") for name in ("running", "waiting")}
        seconds = time.monotonic() - began
        if not any(left.values()) or seconds > TIMEOUT:
            return {**left, "seconds": round(seconds, 2)}
        await asyncio.sleep(0.05)


async def load(server: psutil.Process, port: int, seconds: float, streams: int, seed: int) -> dict[str, object]:
    """Everybody at once for some seconds."""
    clients = Clients(port, seed)
    began = time.monotonic()
    until = began + seconds
    crowd = {
        clients.stream: streams,
        clients.slow: 4,
        clients.leave: 4,
        clients.whole: 4,
        clients.bad: 2,
        clients.stalled: 2,
    }
    watching = asyncio.create_task(watch(server, began, until))
    await asyncio.gather(*(clients.repeat(once, until) for once, count in crowd.items() for _ in range(count)))
    wall = time.monotonic() - began
    samples, counts = await watching, clients.counts
    return {
        "clients": {once.__name__: count for once, count in crowd.items()},
        "seconds": round(wall, 1),
        "answered": dict(counts.answered),
        "faults": len(counts.faults),
        "first_faults": counts.faults[:20],
        "refusals": dict(sorted(counts.statuses.items())),
        "tokens_per_second": round(counts.tokens / wall, 1),
        "first_text_seconds": percentiles(counts.first),
        "answer_seconds": percentiles(counts.whole),
        "memory": memory(samples),
        "server_cpu_share": round(samples[-1]["cpu_seconds"] / samples[-1]["second"], 3),
        "left_when_all_have_gone": await freed(port),
        "samples": samples,
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Number, median, 95th and 99th percentile, and maximum."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    figures = {"p50": p50, "p95": p95, "p99": p99, "max": max(values)}
    return {"n": len(values), **{name: round(float(value), 3) for name, value in figures.items()}}


def memory(samples: list[dict[str, float]]) -> dict[str, float]:
    """Median resident bytes in the second and in the last tenth of the time, and the slope of the second half."""
    rss = np.array([sample["rss_bytes"] for sample in samples], dtype=float)
    at = np.array([sample["second"] for sample in samples])
    tenth, half = max(1, len(rss) // 10), len(rss) // 2
    slope = np.polyfit(at[half:], rss[half:], 1)[0] if len(rss) - half > 1 else 0.0
    return {
        "early_bytes": int(np.median(rss[tenth : 2 * tenth])),
        "late_bytes": int(np.median(rss[-tenth:])),
        "slope_bytes_per_minute": round(60 * float(slope)),
    }


def main() -> None:
    """Export, serve, load, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, help="folder for the run and the log of the server; default: a temporary one"
    )
    args = parser.parse_args()
    limit_spinning()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        file = exported(work)
        log = work / "serve.log"
        with started(file, log) as (server, port):
            note(f"{args.streams} streams for {args.seconds:.0f} s at port {port}")
            result = asyncio.run(load(server, port, args.seconds, args.streams, args.seed))
        lines = log.read_text(errors="replace").splitlines()
    # Beside a line for each request, the server writes three: the engine, the address, and that it stopped.
    result["other_lines_of_the_log"] = [line for line in lines if " '/" not in line][3:23]
    write_json(
        args.out,
        {
            "command": f"python bench/load.py --seconds {args.seconds:g} --streams {args.streams} --seed {args.seed}",
            "cores": len(os.sched_getaffinity(0)),
            "environment": environment().as_json(),
            **result,
        },
    )
    note(json.dumps({name: value for name, value in result.items() if name != "samples"}, indent=1))


if __name__ == "__main__":
    main()
