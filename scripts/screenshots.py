"""The two pictures of README, from a real run of the demo: `python scripts/screenshots.py TYPESCRIPT RUN`.

TYPESCRIPT is what the demo printed in a terminal of 100 columns, recorded by `script -c "python -m cot_unsloth.train"`;
RUN is its folder. rich draws docs/images/terminal.svg, and Chromium photographs the report: docs/images/report.png.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
from pathlib import Path

from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLUMNS = 100
REPORT_SIZE = (1000, 900)
"""Width and height of the report's picture in CSS pixels; what is below is cut off."""
_WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def final_lines(recorded: str) -> list[str]:
    """The lines that stay on the screen: of a line that was redrawn, its last state."""
    lines = [line.rsplit("\r", 1)[-1] for line in recorded.replace("\r\n", "\n").split("\n")]
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-HJKSThlsu]", "", line) for line in lines]  # cursor movement; colours end in m
    return [line for line in lines if not line.startswith("Script ")]


def draw_terminal(recorded: str, path: Path) -> None:
    """The recording as SVG, without the web font that rich links: an image in a page may not load one."""
    lines = final_lines(recorded)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(lines).strip("\n")))
    svg = console.export_svg(title="make demo", clear=False)
    path.write_text(_WEB_FONT.sub("", svg), encoding="utf-8")


def photograph(report: Path, path: Path) -> None:
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
    draw_terminal(args.typescript.read_bytes().decode("utf-8"), IMAGES / "terminal.svg")
    photograph(args.run / "report.html", IMAGES / "report.png")


if __name__ == "__main__":
    main()
