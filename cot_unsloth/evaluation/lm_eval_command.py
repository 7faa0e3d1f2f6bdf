"""The command that scores a run independently, in EleutherAI's lm-evaluation-harness.

It names the harness's task for a benchmark, our model, prompt and token limit; the harness cuts an answer off at the end
of our thinking before it reads it. Nothing is run here: `pip install "lm_eval[hf]"` installs the harness.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from cot_unsloth.config import BENCHMARKS, RunConfig
from cot_unsloth.core import trace
from cot_unsloth.core.results import FitReport
from cot_unsloth.models.target import as_trained
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import RunDir, is_full_model

TASKS = {name: benchmark.lm_eval_task for name, benchmark in BENCHMARKS.items()}
"""The harness's names of our benchmarks."""


def command(run: RunDir, benchmark: str) -> str:
    """The command line, in one string that a shell takes.

    Raises:
        RunDirError: the run has no trained weights yet.
    """
    config, fitted = as_trained(run, run.read_config()), run.require_trained_weights()
    given = [
        "lm_eval", "run", "--model", "hf",
        "--model_args", _model_args(run, config, fitted),
        "--tasks", TASKS[benchmark],
        "--apply_chat_template",
        "--gen_kwargs", f"do_sample=False,max_gen_toks={BENCHMARKS[benchmark].max_new_tokens}",
        "--batch_size", "auto",
        "--log_samples",
        "--output_path", str(run.path.resolve() / "lm_eval"),
    ]  # fmt: skip
    if config.data.system_prompt:
        given += ["--system_instruction", config.data.system_prompt]
    return shlex.join(given)


def _model_args(run: RunDir, config: RunConfig, fitted: Path) -> str:
    model, whole = config.model, is_full_model(fitted)
    args = {
        "pretrained": str(fitted.resolve()) if whole else model_path(model.model_name_or_path),
        "revision": None if whole else model.model_revision,
        "peft": None if whole else str(fitted.resolve()),
        # A full model is saved in float32; it is scored in the type that training computed in.
        "dtype": FitReport.read(run.fit_report).extra.dtype if whole else model.dtype,
        "load_in_4bit": True if model.load_in_4bit else None,
        "load_in_8bit": True if model.load_in_8bit else None,
        "think_end_token": trace.tags("thinking", config.data.thinking_tags)[1],
    }
    return ",".join(f"{name}={value}" for name, value in args.items() if value is not None)
