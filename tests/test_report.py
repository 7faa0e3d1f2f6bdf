"""The report agrees with the files of the run, is one self-contained page, and works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import short_run

from cot_unsloth.core import verdict
from cot_unsloth.core.results import Scorecard
from cot_unsloth.reporting import report
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.records import read_jsonl, write_jsonl
from cot_unsloth.storage.run_folder import RunDir

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--timeout=20000",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A short run with constructed answers, so that each group of the report has some."""
    made = short_run(tmp_path_factory.mktemp("report") / "run", "--gguf", "")
    texts = {
        "base_tags": ["<output>1</output>", "7", "<output>2</output>", ""],
        "tuned": [
            "<thinking>\n1 + 1 = 3\n<reflection>no: 1 + 1 = 2</reflection>\n</thinking>\n<output>2</output>",
            "<thinking>\n<script>alert(1)</script> & so on",
            "<thinking>\nx\n</thinking>\n<output>2</output>",
            "no tags </output> <img src=http://example.com/x>",
        ],
    }
    right = {"base_tags": [False, True, True, False], "tuned": [True, False, True, False]}
    for arm, answers in texts.items():
        rows = read_jsonl(made.completions(arm))
        changed = [row | {"text": t, "correct": c} for row, t, c in zip(rows, answers, right[arm], strict=True)]
        write_jsonl(made.completions(arm), changed)
    report.write(made)
    return made


def browse(run: RunDir, *flags: str, page: str | None = None) -> subprocess.CompletedProcess[str]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    file = run.path / "page.html"
    file.write_text(page if page is not None else run.report.read_text())
    user = f"--user-data-dir={run.path / 'browser'}"
    command = [BROWSER, *QUIET, user, *flags, file.absolute().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def test_the_report_agrees_with_the_scorecard(run: RunDir) -> None:
    page, card = html.unescape(run.report.read_text()), Scorecard.read(run.scorecard)
    assert verdict.of(card).sentence in page
    assert verdict.readings(card) in page
    for arm in card.arms:
        assert arm in page
    for name in ("won: 1", "lost: 1", "both right: 1", "both wrong: 1", "training loss", "tokens of an answer"):
        assert name in page
    assert '<span class="reflection">no: 1 + 1 = 2</span>' in page
    assert "lora_r: 8" in page
    assert json.loads(run.manifest.read_text())["engine"]["why"] in page


class Fetched(HTMLParser):
    """What a page would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "img"):
            self.found.append(tag)
        self.found += [f"{name}={value}" for name, value in attrs if name.startswith("on")]
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.found.append(value)


def test_the_report_runs_and_loads_nothing_whatever_a_model_answers(run: RunDir) -> None:
    reader = Fetched()
    reader.feed(run.report.read_text())
    assert reader.found == []
    assert not re.search(r"url\((?!['\"]?#)", run.report.read_text())


def test_a_browser_shows_the_report_without_errors(run: RunDir) -> None:
    done = browse(run, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert "won: 1" in done.stdout
    bad = browse(run, "--dump-dom", page="<script>console.error('seen')</script>")
    assert "CONSOLE" in bad.stderr, "the browser does not report errors"


WIDTH = """<iframe id=f style="width:380px;height:900px;border:0" srcdoc="{page}"></iframe><p id=w></p><script>
f.onload = () => {{ w.textContent = "width " + f.contentDocument.documentElement.scrollWidth; }}
</script>"""


def width(run: RunDir, page: str) -> int:
    result = re.search(r"width (\d+)", browse(run, "--dump-dom", page=WIDTH.format(page=html.escape(page))).stdout)
    assert result
    return int(result[1])


def test_the_report_fits_the_width_of_a_phone(run: RunDir) -> None:
    assert 350 < width(run, run.report.read_text()) <= 380
    assert width(run, "<div style='width:700px'>wide</div>") >= 700


def test_the_printed_report_shows_every_answer(run: RunDir) -> None:
    paper = run.path / "page.pdf"
    browse(run, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF")
    pages = len(re.findall(rb"/Type /Page\b(?!s)", paper.read_bytes()))
    closed = run.report.read_text().replace(
        "details::details-content { content-visibility: visible; height: auto; }", ""
    )
    assert closed != run.report.read_text()
    browse(run, f"--print-to-pdf={paper}", "--no-pdf-header-footer", page=closed)
    assert pages > len(re.findall(rb"/Type /Page\b(?!s)", paper.read_bytes())), "collapsed answers are missing in print"


def test_an_evaluation_of_one_arm_has_a_report(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    arm = {
        "accuracy": 0.5, "ci95": [0.1, 0.9], "strict": 0.5, "lenient": 0.5, "format_valid": 1.0, "truncated": 0.0,
        "mean_tokens": 3.0, "faults": {}, "by_task": {}, "n": 2,
    }  # fmt: skip
    decoding = {"temperature": 0.0, "max_new_tokens": 8}
    card = {"model": "m", "dataset": "d", "n": 2, "seed": 1, "decoding": decoding, "versions": {}, "paired": []}
    write_json(run.scorecard, card | {"arms": {"base_cot": arm}})
    page = report.write(run).read_text()
    assert "Nothing was compared, as base_cot alone was scored: 50.0% right (95% CI 10.0 to 90.0, n = 2)." in page
    write_json(run.scorecard, card | {"arms": {}})
    assert "Nothing was scored." in report.write(run).read_text()
