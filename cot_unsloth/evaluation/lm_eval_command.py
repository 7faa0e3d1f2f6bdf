"""The command that scores a run independently, in EleutherAI's lm-evaluation-harness.

It names the harness's task for a benchmark, our model, prompt and token limit; the harness cuts an answer off at the end
of our thinking before it reads it. Nothing is run here: `pip install "lm_eval[hf]"` installs the harness.
"""

from __future__ import annotations

import shlex

from cot_unsloth.config import BENCHMARKS
from cot_unsloth.core import trace
from cot_unsloth.core.results import FitReport
from cot_unsloth.models.target import Target, resolve_target
from cot_unsloth.prompts.tokenizer import model_path
from cot_unsloth.storage.run_folder import RunDir, is_full_model

TASKS = {name: benchmark.lm_eval_task for name, benchmark in BENCHMARKS.items()}
"""The harness's names of our benchmarks."""


def command(run: RunDir, benchmark: str) -> str:
    """The command line, in one string that a shell takes.

    Raises:
        RunDirError: the run has no trained weights yet.
    """
    target = resolve_target(run.path)
    arguments = [
        "lm_eval", "run", "--model", "hf",
        "--model_args", _model_args(run, target),
        "--tasks", TASKS[benchmark],
        "--apply_chat_template",
        "--gen_kwargs", f"do_sample=False,max_gen_toks={BENCHMARKS[benchmark].max_new_tokens}",
        "--batch_size", "auto",
        "--log_samples",
        "--output_path", str(run.path.resolve() / "lm_eval"),
    ]  # fmt: skip
    if target.config.data.system_prompt:
        arguments += ["--system_instruction", target.config.data.system_prompt]
    return shlex.join(arguments)


def _model_args(run: RunDir, target: Target) -> str:
    model, weights = target.config.model, run.require_trained_weights()
    is_full, folder = is_full_model(weights), str(weights.resolve())
    args = {
        "pretrained": folder if is_full else model_path(model.model_name_or_path),
        "revision": None if is_full else model.model_revision,
        "peft": None if is_full else folder,
        # A full model is saved in float32; it is scored in the type that training computed in.
        "dtype": FitReport.read(run.fit_report).extra.dtype if is_full else model.dtype,
        "load_in_4bit": True if model.load_in_4bit else None,
        "load_in_8bit": True if model.load_in_8bit else None,
        "think_end_token": trace.tags("thinking", target.config.data.thinking_tags)[1],
    }
    return ",".join(f"{name}={value}" for name, value in args.items() if value is not None)
