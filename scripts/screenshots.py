"""The two pictures of README, from a real run of the demo: `python -m scripts.screenshots TYPESCRIPT RUN`.

TYPESCRIPT is what the demo printed in a terminal, recorded by `script -c "python -m cot_unsloth.train"`; RUN is its folder.
docs/images/terminal.svg, drawn by rich, is an excerpt: the stages as they were recorded, then the scorecard of RUN as the
package prints it, without its table by steps and the answer that follows. docs/images/report.png is a screenshot of the top of
the report, by Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLUMNS = 120
"""What `print_scorecard` takes where stdout is not a terminal."""
REPORT_SIZE = (1000, 900)
"""Width and height of the screenshot in CSS pixels."""
_CURSOR_CODES = re.compile(r"\x1b\[[0-9;?]*[A-HJKSThlsu]")
"""Escape codes that move the cursor or clear; codes of colours end in m."""
_WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def recorded_stages(typescript: str) -> list[str]:
    """The lines of a recording up to the result; of a line that was redrawn, its last state."""
    lines = [_CURSOR_CODES.sub("", line.rsplit("\r", 1)[-1]) for line in typescript.replace("\r\n", "\n").split("\n")]
    end = next(index for index, line in enumerate(lines) if line.startswith("done in "))
    return [line for line in lines[:end] if not line.startswith("Script ")]


def printed_scorecard(run: Path) -> list[str]:
    """The scorecard of a run, in colour: the table of arms, the comparisons and the verdict."""
    code = (
        "import sys; from pathlib import Path; from cot_unsloth import print_scorecard; "
        "from cot_unsloth.core.results.scorecard import Scorecard; print_scorecard(Scorecard.read(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run / "scorecard.json")],
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    left_out = next(index for index, line in enumerate(lines) if "by steps of the solution" in line)
    verdict = next(index for index, line in enumerate(lines) if "Better than" in line)
    return [*lines[:left_out], "…", *lines[verdict:]]


def draw(lines: list[str], path: Path) -> None:
    """Lines of a terminal as SVG, without the web font that rich links: an image in a page may not load one."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(lines).strip("\n")))
    path.write_text(_WEB_FONT.sub("", console.export_svg(title="make demo")), encoding="utf-8")


def screenshot(report: Path, path: Path) -> None:
    """The top of a report, as Chromium shows it."""
    width, height = REPORT_SIZE
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}",
         "--force-device-scale-factor=1.5", f"--screenshot={path}", report.absolute().as_uri()],
        check=True, capture_output=True,
    )  # fmt: skip


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("typescript", type=Path)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    stages = recorded_stages(args.typescript.read_bytes().decode("utf-8"))
    draw([*stages, *printed_scorecard(args.run)], IMAGES / "terminal.svg")
    screenshot(args.run / "report.html", IMAGES / "report.png")


if __name__ == "__main__":
    main()
