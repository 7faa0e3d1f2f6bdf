"""Rendering in several processes: the same rows as in one, one clear error, and no process left behind."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cot_unsloth import tasks
from cot_unsloth.config import DataConfig, ModelConfig, load
from cot_unsloth.core.errors import EngineError, RenderError
from cot_unsloth.core.types import Example, Message
from cot_unsloth.core.workers import allowed_cores, in_workers
from cot_unsloth.prompts import render
from cot_unsloth.prompts.opening import open_renderer
from cot_unsloth.training import rendered_cache

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
HISTORY: tuple[Message, ...] = ({"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"})


def rows(n: int) -> list[Example]:
    made = list(tasks.generate("world:chains:2-4", split="train", n=n, seed=1, error_rate=0.5))
    made[3] = replace(made[3], question="<|im_end|>")
    made[n - 1] = replace(made[n - 1], system="Add.", history=HISTORY)
    return made


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Returns the processes that this test has started; other tests may have left some that serve the whole session."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [child for child in psutil.Process().children(recursive=True) if child not in before]


def test_processes_render_the_same_rows_and_rejects_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Callable[[], list[psutil.Process]]
) -> None:
    monkeypatch.setattr(render, "CHUNK", 8)
    made = rows(42)
    results, counts = [], []
    for processes in (1, 2):
        settings = DataConfig(mask_wrong_steps=True, loss_on="all", dataset_num_proc=processes, max_seq_length=230)
        advanced: list[int] = []
        renderer = open_renderer(ModelConfig(), settings)
        results.append(renderer.samples(made, advanced.append, into=tmp_path / str(processes)))
        counts.append(sum(advanced))
    one, two = results
    assert list(two.samples) == list(one.samples)
    assert (list(two.rejected), two.rejects, two.kept) == (list(one.rejected), one.rejects, one.kept)
    assert counts == [42, 42]
    assert {reject.reason for reject in two.rejects} == {"control_token", "too_long"}
    assert not children()


def test_results_come_in_the_order_of_the_chunks(children: Callable[[], list[psutil.Process]]) -> None:
    assert list(in_workers(pickle.dumps(math.sqrt), (n * n for n in range(50)), 3, "count")) == list(range(50))
    assert not children()


def refuse(chunk: int) -> int:
    if chunk == 3:
        raise RenderError("no row 3", where="file:3", hint="leave it out")
    return chunk


class UnpicklableError(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("not good")


def fail(chunk: int) -> int:
    raise UnpicklableError(chunk, 2)


def end(chunk: int) -> None:
    if chunk == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)


@pytest.mark.parametrize(
    ("function", "expected", "message"),
    [
        (refuse, RenderError, "file:3: no row 3\n  hint: leave it out"),
        (fail, EngineError, "UnpicklableError: not good"),
        (end, EngineError, "a process that was to count has ended \\(killed by SIGKILL\\)\n  hint: .*--dataset-num-proc 1"),
        ("nothing", EngineError, "has ended \\(exit code 1\\): .*Error"),
    ],
)  # fmt: skip
def test_a_failure_in_a_process_is_one_error(
    function: Any, expected: type[Exception], message: str, children: Callable[[], list[psutil.Process]]
) -> None:
    job = b"no pickle" if function == "nothing" else pickle.dumps(function)
    with pytest.raises(expected, match=message):
        list(in_workers(job, range(100), 2, "count"))
    assert not children()


def test_processes_end_where_the_results_are_not_read_to_the_end(
    children: Callable[[], list[psutil.Process]],
) -> None:
    results = in_workers(pickle.dumps(time.sleep), [0.01] * 1000, 2, "wait")
    next(results)
    assert len(children()) == 2
    results.close()  # type: ignore[attr-defined]
    assert not children()


# Without a guard of __main__, which a script that calls the API need not have.
SCRIPT = """
import pickle, time
from cot_unsloth.core.workers import in_workers
for _ in in_workers(pickle.dumps(time.sleep), [0.05] * 100000, 2, "wait"):
    print("one", flush=True)
"""


@pytest.mark.parametrize(
    "stop",
    [lambda p: os.killpg(p.pid, signal.SIGINT), lambda p: p.send_signal(signal.SIGINT), subprocess.Popen.kill],
    ids=["Ctrl-C", "SIGINT", "SIGKILL"],
)
def test_no_process_is_left_behind(stop: Callable[[subprocess.Popen[bytes]], None]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    stop(process)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    assert errors.count(b"KeyboardInterrupt") <= 1
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_only_many_rows_are_rendered_in_processes() -> None:
    def processes(n: int, asked: int | None = None) -> int:
        return open_renderer(ModelConfig(), DataConfig(dataset_num_proc=asked))._workers(n)

    most = min(allowed_cores(), render.MOST_WORKERS)
    assert [processes(n) for n in (1, render.FEWEST_ROWS - 1, render.FEWEST_ROWS)] == [1, 1, most]
    assert [processes(n, 3) for n in (1, render.CHUNK, render.CHUNK + 1, 10**6)] == [1, 1, 2, 3]
    assert processes(10**6, 1) == 1


def test_a_tokenizer_that_cannot_be_pickled_is_used_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "CHUNK", 8)
    renderer = open_renderer(ModelConfig(), DataConfig(dataset_num_proc=2))
    renderer.chat.files = lambda: None  # type: ignore[assignment]
    monkeypatch.setattr(render, "in_workers", lambda *_: pytest.fail("processes were started"))
    assert len(renderer.samples(rows(20)).samples) == 19


def test_the_number_of_processes_changes_neither_the_run_nor_what_was_rendered() -> None:
    one, four = load(None, {}), load(None, {"dataset_num_proc": "4"})
    assert one.fingerprint() == four.fingerprint()
    assert one.fingerprint("data") == four.fingerprint("data")
    keys = {rendered_cache._key(open_renderer(config.model, config.data), rows(5)) for config in (one, four)}
    assert len(keys) == 1
