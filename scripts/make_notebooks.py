"""Writes the two notebooks of examples/: `python scripts/make_notebooks.py [--run]`.

Their text and cells are here, once; they differ in model and config. With `--run`, both are executed from top to bottom with the
embedded model (`SHOWN`), without the cells that install, and the outputs are kept in them; without it, outputs of cells that have not
changed are kept. What is committed must be what this writes: a test compares the sources.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SHOWN: dict[str, Any] = {
    "model_name_or_path": "tiny-base", "method": "sft", "engine": "hf", "load_in_4bit": False, "gradient_checkpointing": False,
    "dataset": "world:chains", "dataset_config_name": None, "benchmark": None, "world_samples": 600, "eval_samples": 100,
    "max_new_tokens": 200, "learning_rate": 4e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    "lora_r": 16, "forgetting": None, "gguf": "", "logging_steps": 5, "run_dir": "runs/notebook",
}  # fmt: skip
"""The settings of the outputs that are kept in the notebooks."""
QUESTION = (
    "Start with 7 and work modulo 11.\n(1) add 5\n(2) multiply by 3\n(3) subtract 4\n(4) add 6\nWhat is the result?"
)
"""The question that the embedded model is asked there."""


@dataclass(frozen=True)
class Notebook:
    """What the two differ in."""

    file: str
    title: str
    config: str
    name: str
    weights: str
    gated: str = ""
    export_note: str = ""


NOTEBOOKS = (
    Notebook(
        "finetuning-llama3.2-3b.ipynb", "Llama-3.2-3B-Instruct", "configs/llama3.2-3b.yaml", "my-llama3.2", "3.2",
        gated=" The model is gated: accept its licence on its hub page, and put a token of yours into Colab's secrets (the key in "
        "the left margin) as `HF_TOKEN`.",
    ),
    Notebook(
        "finetuning-qwen2.5-7b.ipynb", "Qwen2.5-7B-Instruct", "configs/qwen2.5-7b.yaml", "my-qwen2.5", "7.6",
        export_note="\n\nThe comparison needs one layer in memory at a time, not the whole model in 16 bits. It has not been run for "
        "a 7B model on a T4: if memory or disk runs out, keep the adapter (`run.adapter`, plain PEFT) and export on a larger machine.",
    ),
)  # fmt: skip


def cells(book: Notebook) -> list[tuple[str, str, tuple[str, ...]]]:
    """Kind ("markdown" or "code"), source and tags of each cell."""
    return [
        ("markdown", f"""# Teach {book.title} to reason, and measure whether it does

This notebook teaches an instruct model to think between `<thinking>` tags, correct its own errors between `<reflection>` tags and answer between `<output>` tags. It learns from its own right answers: solutions that other people wrote make an instruct model worse ([why](../docs/recipes.md)). The steps: prepare the problems, look at one, sample and train, score, chat, export. It is sized for a Colab T4 (*Runtime → Change runtime type → T4 GPU*). The package does the work, so every cell is short; the same run as one command: `python -m cot_unsloth.train {book.config}`.

Time and GPU memory on a T4: not measured yet. The outputs that you see are not from a T4 either: they are from the embedded model of 2.3M parameters on a CPU, with the settings that the cell under *Settings* has printed.""", ()),
        ("markdown", f"""## 1. Install

It installs the project, and Unsloth, bitsandbytes and xformers in versions that resolve together. If Colab has loaded other versions already, the session restarts by itself: then choose *Runtime → Run all* again.{book.gated}""", ()),
        ("code", """import importlib
import os
import sys
from importlib.metadata import version

REPOSITORY = "https://github.com/OWNER/cot_unsloth"  # the only line to change: where you found this notebook
loaded = {name: version(name) for name in ("numpy", "torch", "transformers") if name in sys.modules}
!test -d /content/cot-unsloth-project || git clone --depth 1 {REPOSITORY} /content/cot-unsloth-project
%cd /content/cot-unsloth-project
%pip install -q -r requirements.txt -c constraints-gpu.txt
importlib.invalidate_caches()
if any(version(name) != before for name, before in loaded.items()):
    print("The session restarts now, with the new versions: choose Runtime → Run all again.")
    os.kill(os.getpid(), 9)""", ("install",)),
        ("code", f"!cot-unsloth doctor {book.config} || true  # each fault comes with the command that fixes it", ("install",)),
        ("code", """import os

DRIVE = False  # True: the run is kept on your Google Drive, and a later session continues it
try:
    from google.colab import drive, userdata
except ImportError:  # not in Colab: `hf auth login`, or HF_TOKEN in the environment
    DRIVE = False
else:
    if DRIVE:
        drive.mount("/content/drive")
    try:
        os.environ["HF_TOKEN"] = userdata.get("HF_TOKEN")
    except Exception as error:
        print(f"no token in Colab's secrets ({error}): gated models and uploads need one")
RUNS = "/content/drive/MyDrive/cot_unsloth" if DRIVE else "runs\"""", ()),
        ("markdown", f"""## 2. Chain of thought and LoRA, in a few sentences

A *chain of thought* is the working that a person would write down: the problem is split into steps, and each step does one thing and starts from the result of the one before. A model that writes its steps has more computation for a hard problem than one that has to answer at once. It can also look back: a *reflection* says what is wrong with a step and corrects it.

*LoRA* leaves the model's {book.weights} billion weights frozen and trains two thin matrices beside each projection, together one or two percent of the weights. Loaded in 4 bits, the frozen weights take about a quarter of their 16-bit memory. Only the answer carries loss, with its tags and its stop token; the question carries none.""", ()),
        ("markdown", f"""## 3. Settings

`{book.config}` lists what differs from the defaults, each line with its reason. Any setting can be overridden here by its name, such as `sample_problems=300` for a quick look. `QUESTION` is asked at the end. For problems of your own: `dataset="mine.jsonl", benchmark=None`; to imitate traces of your own, the config `{book.config.replace(".yaml", "-sft.yaml")}`.""", ()),
        ("code", f"""CONFIG = "{book.config}"
SETTINGS = {{"run_dir": f"{{RUNS}}/{book.name}"}}
QUESTION = "A shelf holds 3 rows of 8 jars. 5 jars are empty. How many are full?\"""", ("parameters",)),
        ("code", """from cot_unsloth import load_config

config = load_config(CONFIG, **SETTINGS)
print(config.to_yaml())""", ()),
        ("markdown", """## 4. Prepare the data and look at a row

The data set is read and rendered with the model's own chat template. The text under *loss on* is all that the model is trained to write; with `rft`, the model's own right answers will take the place of the solution that stands there now. Read it: this is where a wrong template or mask is visible.""", ()),
        ("code", """from cot_unsloth import dry_run

print(dry_run(config))""", ()),
        ("markdown", """## 5. Train and score

The base answers questions of GSM8K's test set in three ways: asked directly, told to think step by step, and under our system prompt. Then it tries each training problem several times; the attempts that a checker accepts, and its own errors with their corrections, are what the adapter is trained on; the trained model tries again, until a round no longer helps. The tuned model answers the same held-out questions, and the table at the end compares them question by question. *Forgetting* compares the two on a task that was not trained on. After an interruption, run this cell again: it continues from the newest complete checkpoint.""", ()),
        ("code", """from pathlib import Path

from cot_unsloth import print_scorecard, train_run

begun = (Path(config.train.run_dir) / "manifest.json").is_file()
run, card = train_run(config, resume=begun)""", ()),
        ("code", "print_scorecard(card)", ()),
        ("code", """import pandas

losses = pandas.read_json(run.metrics, lines=True)
losses.plot(x="step", y="loss", title="loss per supervised token", ylabel="nats", legend=False);""", ()),
        ("markdown", "The report: the verdict, every answer before and after, and the curves.", ()),
        ("code", """import html

from IPython.display import HTML

HTML(f'<iframe srcdoc="{html.escape(run.report.read_text())}" style="width: 100%; height: 700px; border: 0"></iframe>')""", ("large",)),
        ("markdown", """## 6. Chat

The thinking comes first, then the output. In a terminal, `cot-unsloth chat RUN` streams both.""", ()),
        ("code", """from cot_unsloth import ask

print(ask(run, QUESTION))""", ()),
        ("markdown", f"""## 7. Export

This writes a 4-bit GGUF file from base and adapter, without a 16-bit copy on disk. The file gets its final name only after llama.cpp has read it back and agrees with the adapter on token ids, prompts, next tokens, the stop token and answers. `verified.json` lists what was compared.{book.export_note}""", ()),
        ("code", """from cot_unsloth import export_run

verified = export_run(run, gguf="q4_k_m")
print(verified.status, *sorted(file.name for file in run.export.glob("[!.]*")), sep="\\n")""", ()),
        ("code", """[file] = run.exported_models()
try:
    from google.colab import files
except ImportError:
    print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB, with its Modelfile")
else:
    files.download(str(file))
    files.download(str(run.export / "Modelfile"))""", ()),
        ("markdown", f"""## 8. Ollama

Put both files into one folder. The `Modelfile` contains the trained template, system prompt, stop tokens and context length:

```
ollama create {book.name} -f Modelfile
ollama run {book.name}
```

Alternatively, `cot-unsloth serve FILE.gguf` offers a chat page and the OpenAI interface, with the reasoning separate from the content. To push everything that was verified to private repositories of yours: `export_run(run, push_to_hub="you/{book.name}")`.""", ()),
    ]  # fmt: skip


def notebook(book: Notebook) -> Any:
    """The notebook, without outputs."""
    node = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    for number, (kind, source, tags) in enumerate(cells(book)):
        make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        cell = make(source, id=f"cell-{number}")  # type: ignore[no-untyped-call]
        if tags:
            cell.metadata["tags"] = list(tags)
        node.cells.append(cell)
    node.metadata = {
        "accelerator": "GPU", "colab": {"gpuType": "T4"}, "language_info": {"name": "python"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    }  # fmt: skip
    return node


def keep_outputs(node: Any, earlier: Any) -> None:
    """Take over the outputs of cells whose source is the same."""
    known = {cell.source: cell for cell in earlier.cells if cell.cell_type == "code"}
    for cell in node.cells:
        if cell.cell_type == "code" and cell.source in known:
            cell.outputs = known[cell.source].outputs
            cell.execution_count = known[cell.source].execution_count


def execute(node: Any) -> None:
    """Fill in the outputs of a run with `SHOWN`; the large ones, which are pages of their own, are left out."""
    ran = nbformat.from_dict({**node, "cells": [cell for cell in node.cells if not _installs(cell)]})  # type: ignore[no-untyped-call]
    [parameters] = [cell for cell in ran.cells if cell.metadata.get("tags") == ["parameters"]]
    source = parameters.source
    config = source.splitlines()[0].partition('"')[2].rstrip('"')
    shown = f"SETTINGS = {SHOWN!r}\nQUESTION = {QUESTION!r}"
    parameters.source = (
        f"CONFIG = {str(ROOT / config)!r}\n{shown}\nprint('The outputs here are from this:\\n' + {shown!r})"
    )
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(ran, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    parameters.source = source
    for cell in ran.cells:
        if cell.metadata.get("tags") == ["large"]:
            cell.outputs = []
        if cell.cell_type == "code":
            # Progress on stderr says nothing to a reader, and may name a folder of this machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    keep_outputs(node, ran)


def _installs(cell: Any) -> bool:
    return cell.metadata.get("tags") == ["install"]


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="execute them for their outputs")
    args = parser.parse_args()
    for book in NOTEBOOKS:
        node, file = notebook(book), EXAMPLES / book.file
        if args.run:
            execute(node)
        elif file.is_file():
            keep_outputs(node, nbformat.read(file, as_version=4))  # type: ignore[no-untyped-call]
        nbformat.write(node, file)  # type: ignore[no-untyped-call]
        print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
