"""The pictures of README and docs, from a real run: `python -m scripts.screenshots TYPESCRIPT RUN`.

TYPESCRIPT is what a run printed in a terminal of 80 columns, recorded by
`script -c "stty cols 80; python -m cot_unsloth.train --run-dir runs/demo" TYPESCRIPT`; RUN is its folder. In docs/images,
terminal.svg is that recording, of a line that was redrawn its last state; report-WIDTH-SCHEME.png the top of the report;
chat-page.png and chat-terminal.svg answers of the exported file to an example of its task, in `serve` and in `chat`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLUMNS = 80
SIZES = ((1280, 1130), (380, 1000))
"""Width and height of the screenshots in CSS pixels."""
COLOURS = 64
"""Of a screenshot: its palette, which keeps a file below 150 kB."""
QUESTION = (
    "Start with 7 and work modulo 11.\n(1) add 6\n(2) multiply by 5\n(3) subtract 3\n(4) add 8\nWhat is the result?"
)
_CURSOR_CODES = re.compile(r"\x1b\[[0-9;?]*[A-HJKSThlsu]")
"""Escape codes that move the cursor or clear; codes of colours end in m."""
_WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_PROGRAM = re.compile(r"\S+/python\d? -m cot_unsloth ")


def recorded(typescript: str) -> list[str]:
    """The lines of a recording up to the answer that follows the scores; of a line that was redrawn, its last state."""
    lines = [_CURSOR_CODES.sub("", line.rsplit("\r", 1)[-1]) for line in typescript.replace("\r\n", "\n").split("\n")]
    lines = [_PROGRAM.sub("cot-unsloth ", line) for line in lines if not line.startswith("Script ")]
    answer = next(index for index, line in enumerate(lines) if line.startswith("An answer of the tuned model"))
    last = next(index for index, line in enumerate(lines) if line.startswith("run: "))
    return [*lines[:answer], "…", "", *lines[last:]]


def draw(text: str, path: Path, title: str) -> None:
    """Lines of a terminal as SVG, without the web font that rich links: an image in a page may not load one."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text.strip("\n")))
    path.write_text(_WEB_FONT.sub("", console.export_svg(title=title)), encoding="utf-8")


def save(page: Any, path: Path) -> None:
    """A screenshot of what is visible, in a palette."""
    from PIL import Image

    image = Image.open(io.BytesIO(page.screenshot()))
    image.convert("RGB").quantize(COLOURS).save(path, optimize=True)


@contextlib.contextmanager
def served(model: Path) -> Iterator[str]:
    """The address of `serve` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cot_unsloth", "serve", str(model), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health")
                break
            time.sleep(0.2)
        try:
            yield address
        finally:
            process.terminate()


def screenshots(run: Path, model: Path) -> None:
    """Report and chat page, in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, served(model) as address:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for width, height in SIZES:
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto((run / "report.html").absolute().as_uri())
                save(page, IMAGES / f"report-{width}-{scheme}.png")
                page.close()
        page = browser.new_page(viewport={"width": 800, "height": 720})
        page.goto(address)
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        page.wait_for_selector("text=tokens in")
        page.click("details.thinking summary")
        save(page, IMAGES / "chat-page.png")
        browser.close()


def conversation(model: Path) -> str:
    """What `chat` shows in a terminal: a pasted question, and its answer."""
    import pexpect

    child = pexpect.spawn(
        sys.executable, ["-m", "cot_unsloth", "chat", str(model)], dimensions=(60, COLUMNS), encoding="utf-8",
        env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}, timeout=120,
    )  # fmt: skip
    ready = "\x1b[?2004h"
    child.expect_exact(ready)
    head = child.before
    child.send(f"\x1b[200~{QUESTION}\x1b[201~\r")
    child.expect_exact("\x1b[?2004l")
    child.expect_exact(ready)
    answer = child.before
    child.sendeof()
    child.close()
    asked = "\n… ".join(QUESTION.split("\n"))
    return _CURSOR_CODES.sub("", f"{head}> {asked}\n{answer.lstrip()}".replace("\r", ""))


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("typescript", type=Path)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    lines = recorded(args.typescript.read_bytes().decode("utf-8"))
    draw("\n".join(lines), IMAGES / "terminal.svg", "cot-unsloth train")
    model = next((args.run / "export").glob("*.gguf"))
    draw(conversation(model), IMAGES / "chat-terminal.svg", "cot-unsloth chat")
    screenshots(args.run, model)


if __name__ == "__main__":
    main()
