"""bench/load.py: its clients accept what a server should do, and report what it should not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import module, running_server
from speaking import Speaker

from cot_unsloth.config import load_tree
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.models.protocols import Streamer
from cot_unsloth.server import Served, protection

load = module(Path(__file__).parent.parent / "bench" / "load.py")


class Counting(Speaker):
    """A model whose prompts have as many tokens as words."""

    def prompt_tokens(self, prompt: Prompt) -> int:
        return sum(len(message["content"].split()) for message in prompt.messages)


class Failing(Counting):
    """A model that fails in the middle of each answer."""

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        yield "<thinking>\n1"
        raise ValueError("broken")


def faults(engine: Streamer, behave: Callable[[Any], Any], times: int = 1) -> tuple[Any, list[str]]:
    """What some clients have counted that behaved in one way, one after another, and what they found wrong."""
    with running_server(Served({"m": engine}, load_tree({}, {}), slots=4)) as address:
        clients = load.Clients(int(address.rpartition(":")[2]), seed=1)

        async def several() -> list[str]:
            found = []
            for _ in range(times):
                try:
                    await behave(clients)
                except load.AnswerError as error:
                    found.append(str(error))
            assert (await load.freed(clients.port))["running"] == 0
            return found

        return clients.counts, asyncio.run(several())


@pytest.mark.parametrize("kind", ["stream", "slow", "leave", "whole", "stalled"])
def test_clients_find_nothing_wrong_with_a_whole_server(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protection, "BODY_SECONDS", 0.2)
    counts, found = faults(Counting(), getattr(load.Clients, kind))
    assert found == []
    if kind == "stream":
        assert len(counts.whole) == len(counts.first) == 1
        assert counts.tokens > 10


def test_bad_requests_are_refused_with_their_status() -> None:
    requests = load.bad_requests()
    counts, found = faults(Counting(), load.Clients.bad, len(requests))
    assert found == []
    assert sorted(counts.statuses) == sorted(f"{name}: {status}" for name, status, _ in requests)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("stream", "an error in the stream"), ("slow", "reads slowly got"), ("whole", "status 500, not 200")],
)
def test_clients_report_answers_that_are_cut_off(kind: str, message: str) -> None:
    # One of four clients that want a whole answer leaves before.
    _, found = faults(Failing(), getattr(load.Clients, kind), 1 if kind != "whole" else 8)
    assert found
    assert all(message in fault for fault in found)


def test_memory_that_grows_shows() -> None:
    samples = [{"second": 5.0 * i, "rss_bytes": 1e8 + 1e6 * i} for i in range(60)]
    figures = load.memory(samples)
    assert figures["late_bytes"] > figures["early_bytes"] + 4e7
    assert figures["slope_bytes_per_minute"] == pytest.approx(12e6)
