"""Write a run for llama.cpp and Ollama, verified, and ask the file: `python examples/03_export.py runs/first`."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from cot_unsloth import CotError, RunDir, ask, export_run

QUESTION = "Start with 4 and work modulo 11.\n(1) add 2\n(2) multiply by 3\nWhat is the result?"


def main() -> None:
    """Export, and let the file itself answer in llama.cpp."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--gguf", default="q4_k_m")
    parser.add_argument("--out", help="another folder than the run's export/")
    args = parser.parse_args()
    run = RunDir.open(args.run)
    verified = export_run(run, out=args.out, gguf=args.gguf)
    for check in verified.checks:
        print(f"{check.file}: {check.name} {'passed' if check.passed else 'FAILED'}")
    file = (run.export if args.out is None else Path(args.out)) / verified.files[-1]
    print(
        f"\n{QUESTION}\n\n{ask(file, QUESTION, max_new_tokens=200)}\n\nollama create my-model -f {quote(str(file.parent / 'Modelfile'))}"
    )


if __name__ == "__main__":
    try:
        main()
    except CotError as error:
        raise SystemExit(f"error: {error}") from None
