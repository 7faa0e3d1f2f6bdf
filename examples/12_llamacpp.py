"""Ask an exported file with llama.cpp's Python binding alone: `python examples/12_llamacpp.py FILE.gguf CONFIG "QUESTION"`.

CONFIG is the run's config.yaml, for its system prompt, which a GGUF file does not hold. Needs: pip install xllamacpp pyyaml
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import xllamacpp
import yaml


def main() -> None:
    """Print the thinking, then the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("question")
    args = parser.parse_args()
    for path in (args.file, args.config):
        if not path.is_file():
            raise SystemExit(f"error: there is no file {path}")
    system = yaml.safe_load(args.config.read_text(encoding="utf-8"))["data"]["system_prompt"]
    params = xllamacpp.CommonParams()
    params.model.path = str(args.file)
    params.n_ctx = 4096
    params.verbosity = -1
    server = xllamacpp.Server(params)
    turns = [{"role": "system", "content": system}] if system else []  # a run may have been trained without one
    turns.append({"role": "user", "content": args.question})
    answer = server.handle_chat_completions({"messages": turns, "temperature": 0, "max_tokens": 1024})
    message = answer["choices"][0]["message"]
    print(message.get("reasoning_content") or "")
    print(re.sub(r"</?output>", "", message["content"]).strip())


if __name__ == "__main__":
    main()
