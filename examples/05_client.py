"""Ask a server and read the answer as it is written: `python examples/05_client.py "What is 17 * 3?"`.

First `cot-unsloth serve runs/first/export/FILE.gguf`. Any client of the OpenAI API does the same:
`OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")`. Thinking comes as `reasoning_content`, the answer as `content`.
"""

from __future__ import annotations

import argparse
import json

import httpx


def main() -> None:
    """Print the thinking, then the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="none")
    args = parser.parse_args()
    body = {"messages": [{"role": "user", "content": args.question}], "stream": True}
    headers = {"Authorization": f"Bearer {args.api_key}"}
    with httpx.stream("POST", f"{args.url}/chat/completions", json=body, headers=headers, timeout=600) as response:
        response.raise_for_status()
        last = ""
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:  # in the middle of an answer: the status has been sent
                raise SystemExit(f"error: {chunk['error']['message']}")
            for field, text in chunk["choices"][0]["delta"].items():
                if field in ("reasoning_content", "content") and text:
                    print("" if field == last else f"\n{field}:\n", end="")
                    print(text, end="", flush=True)
                    last = field
    print()


if __name__ == "__main__":
    main()
