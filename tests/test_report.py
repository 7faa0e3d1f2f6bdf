"""The report agrees with the files of the run, is one self-contained page, and works in a browser."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import subprocess
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers import BROWSER, short_run

from cot_unsloth.config import Arm
from cot_unsloth.core import verdict
from cot_unsloth.core.results import Contamination, Scorecard, Settings, Share
from cot_unsloth.core.types import Score, StopReason
from cot_unsloth.evaluation.scorecard import compare
from cot_unsloth.reporting import answers, page, plots, report, tables
from cot_unsloth.storage.atomic import write_json
from cot_unsloth.storage.records import read_jsonl, write_jsonl
from cot_unsloth.storage.run_folder import RunDir

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
    made = short_run(tmp_path_factory.mktemp("report") / "run", "--gguf", "", "--arms", "base_tags,tuned")
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
    for arm, made_up in texts.items():
        rows = read_jsonl(made.completions(arm))
        changed = [row | {"text": t, "correct": c} for row, t, c in zip(rows, made_up, right[arm], strict=True)]
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
    assert verdict.headline(card) in page
    assert verdict.of(card).sentence in page
    assert verdict.readings(card) in page
    assert f"cot-unsloth chat {run.path}" in page
    fit = json.loads(run.fit_report.read_text())
    assert f"{fit['steps']} steps on {fit['rows']} rows" in page
    for arm in card.arms:
        assert arm in page
    for name in ("won: 1", "lost: 1", "both right: 1", "both wrong: 1", "training loss", "tokens of an answer"):
        assert name in page
    assert '<span class="questioned">1 + 1 = 3</span>' in page
    assert '<span class="reflection">no: 1 + 1 = 2</span>' in page
    assert "Thinking: 2 lines, 1 reflection" in page
    assert "lora_r: 8" in page
    assert json.loads(run.manifest.read_text())["engine"]["why"] in page


ONE = Score("0", "sums", "1 + 1?", "2", "", "2", True, None, 5, "stop")
REFLECTS = "<thinking>\n1 + 1 = 3\n<reflection>no: 1 + 1 = 2</reflection>\n</thinking>\n<output>2</output>"
PLAIN = "<thinking>\n1 + 1 = 2\n</thinking>\n<output>2</output>"


def answered(text: str, *, correct: bool = True, fault: str | None = None, stopped: StopReason = "stop") -> Score:
    return dataclasses.replace(ONE, text=text, correct=correct, fault=fault, stopped=stopped)


MALFORMED = answered("2", fault="no_output")
CUT = answered(REFLECTS, stopped="length")
WRONG = answered(REFLECTS, correct=False)
CORRECTS = dataclasses.replace(answered(REFLECTS), id="corrects")


@pytest.mark.parametrize(
    ("scores", "text", "blemishes"),
    [
        ([MALFORMED, CUT, WRONG, answered(PLAIN), CORRECTS], REFLECTS, []),
        ([MALFORMED, CUT, WRONG, answered(PLAIN), answered(REFLECTS)], PLAIN, []),
        ([WRONG, MALFORMED, CUT], REFLECTS, ["cut off"]),
        ([WRONG, MALFORMED], "2", ["no output"]),
        ([WRONG], REFLECTS, ["wrong"]),
    ],
)
def test_the_example_of_an_answer_is_right_complete_and_corrects_an_error_if_one_does(
    scores: list[Score], text: str, blemishes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = answers.example(scores, ["corrects"])
    assert shown is not None
    assert (shown.text, answers.blemishes(shown)) == (text, blemishes)
    write_jsonl(tmp_path / "tuned.jsonl", [dataclasses.asdict(score) for score in scores])
    tables.print_answer(tmp_path / "tuned.jsonl", ["corrects"])
    printed = capsys.readouterr().out
    assert text.splitlines()[0] in printed
    assert ("None of its answers is right, complete and ended by itself." in printed) is bool(blemishes)
    assert all(blemish in printed for blemish in blemishes)
    bases = [answered("3", correct=False)] * len(scores)
    groups = answers.groups({"base_tags": bases, "tuned": scores}, "base_tags", ["corrects"])
    opened = answers.shown_first(groups)
    assert (opened.tuned.text if opened else None) == (text if shown.correct else None)


def test_an_open_answer_that_is_no_example_says_so_and_empty_groups_are_one_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    arms = {"base_tags": [answered("3", correct=False)] * 2, "tuned": [MALFORMED, WRONG]}
    arms = {arm: [dataclasses.replace(s, id=str(i)) for i, s in enumerate(scores)] for arm, scores in arms.items()}
    for arm, scores in arms.items():
        write_jsonl(run.completions(arm), [dataclasses.asdict(score) for score in scores])
    card = compare(arms, Settings(n=2, model="m", dataset="d"))
    found = Contamination(training_rows=160, exact=3, ngram_13=16, ngram_8=30, dropped=3)
    card.model_copy(update={"contamination": found}).write(run.scorecard)
    page = html.unescape(report.write(run).read_text())
    assert "No right answer is complete and ended by itself; faults of the open one: no output." in page
    assert page.count("<details open>") == 1
    assert re.findall(r"<h3>.*?</span>([a-z ]+: \d)", page) == ["won: 1", "both wrong: 1"]
    assert "No answers in: both right, lost." in page
    assert "Of 160 training rows, 3 ask the same question as one of these problems, 16 share 13 words in a row" in page
    assert "3 were left out of training for it. Rows that share 13 words are left out only if" in page


def test_measures_of_reasoning_have_their_counts_and_a_dash_where_nothing_reflects(run: RunDir, tmp_path: Path) -> None:
    folder, card = RunDir(tmp_path), Scorecard.read(run.scorecard)
    share, none = Share(share=0.5, of=36), Share(share=0.0, of=40)
    aims = card.aims["tuned"].model_copy(update={"transparency": share, "self_correction": none})
    reflection = card.reflection["tuned"]
    for n, says in ((0, "–"), (3, '+0.0<br><span class="dim">of 40</span>')):
        of = {"aims": {"tuned": aims}, "reflection": {"tuned": reflection.model_copy(update={"n": n})}}
        card.model_copy(update=of).write(folder.scorecard)
        page = report.write(folder).read_text()
        assert '50.0%<br><span class="dim">of 36</span>' in page
        assert f"corrupted, in points)</span></td><td>{says}</td>" in page
        assert ("What its reflections do" in page) is (n > 0)


def test_groups_compare_with_the_arm_of_the_verdict(tmp_path: Path) -> None:
    """Else a report has other problems "right before" in its bars than in its groups."""
    run = RunDir(tmp_path / "a run")
    right = {"base_direct": [True, True], "base_tags": [False, False], "tuned": [True, True]}
    arms = {
        arm: [dataclasses.replace(ONE, id=str(i), correct=correct) for i, correct in enumerate(of_arm)]
        for arm, of_arm in right.items()
    }
    for arm, scores in arms.items():
        write_jsonl(run.completions(arm), [dataclasses.asdict(score) for score in scores])
    compare(arms, Settings(n=2, model="m", dataset="d")).write(run.scorecard)
    run.config.write_text("")
    run.adapter.mkdir()
    page = report.write(run).read_text()
    assert f"cot-unsloth chat '{tmp_path / 'a run'}'" in html.unescape(page)
    assert "Before: base, asked directly" in page
    assert "both right: 2" in page
    assert "won: 0" in page


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


def test_the_caption_of_the_loss_says_where_harder_rows_begin(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.config.write_text("data:\n  world_error_rate: 0.1\n")
    assert "rises" not in report._loss_caption(folder)
    folder.config.write_text("data:\n  world_clean_first: 0.3\n  world_error_rate: 0.1\n")
    assert "After 30% of the steps, rows with corrected errors begin" in report._loss_caption(folder)


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
    assert (
        "Nothing was compared, as the base asked step by step alone was scored: 50.0% right (95% CI 10.0 to 90.0, n = 2)."
        in page
    )
    write_json(run.scorecard, card | {"arms": {}})
    assert "Nothing was scored." in report.write(run).read_text()


@pytest.mark.parametrize("name", ["a$^$b", "from $5 to $6", "模型", "a\\$b$c"])
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    """What is between dollar signs was read as a formula, or was an error; of other scripts a warning for each letter was printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for drawn in (
            plots.bars("runs", [(name, 0.5, (0.4, 0.6))], plots.Axes("right", "", share=True)),
            plots.lines("t", [plots.Line(name, [(1, 0.5)]), plots.Line("b", [(1, 0.5)])], plots.Axes("x", "y")),
            plots.panels("settings", [plots.Panel("n", [(name, 0.5)])], "right"),
            plots.heat_map("t", [name], ["c"], [[plots.Heat(0.1, "a")]], "points", tmp_path / "m.png"),
        ):
            assert f">{name}<" in drawn


def test_figures_in_the_fields_of_a_heat_map_do_not_take_the_colour_of_a_dark_page(tmp_path: Path) -> None:
    fields = [[plots.Heat(0.0, "12.3"), plots.Heat(-0.9, "45.6")]]
    drawn = plots.heat_map("t", ["a"], ["x", "y"], fields, "points", tmp_path / "heat.png")
    texts = {text: style for style, text in re.findall(r'<text style="([^"]*)"[^>]*>([^<]*)</text>', drawn)}
    assert "currentColor" not in texts["12.3"] + texts["45.6"]
    assert re.search(r"fill: (#1b1b1b)", texts["12.3"])
    assert re.search(r"fill: (#ffffff)", texts["45.6"])


def test_dollar_signs_and_powers_of_ten_are_text(tmp_path: Path) -> None:
    """Matplotlib takes what is between two dollar signs for a formula, and writes small rates as one."""
    axes = plots.Axes("cost in $, less $1", "right", log_x=True, share=True)
    lines = plots.lines("$a$", [plots.Line("$b$", [(1, 0.1)]), plots.Line("c", [(2, 0.2)])], axes, tmp_path / "l.png")
    panels = plots.panels("$d$", [plots.Panel("rate", [(1e-4, 0.3), (1e-3, 0.5)], log=True)], "right")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", lines + panels)
    assert {"$a$", "$b$", "cost in $, less $1", "$d$", "1e−04", "1e−03"} <= set(texts)


@pytest.fixture(scope="module", params=["report", "page"])
def written(request: pytest.FixtureRequest, run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report, and a page of the look that comparisons and sweeps have."""
    if request.param == "report":
        return run.report
    grid = page.Grid("A wide table", [f"column {i}" for i in range(14)], [["12.3%"] * 14] * 3)
    figure = plots.lines("t", [plots.Line("a", [(0, 0.1), (1, 0.9)])], plots.Axes("x", "y", share=True))
    made = page.Page("title", "A is better than B.", "good", ["A note."], [grid], [figure], [("More", "text")])
    return made.write(tmp_path_factory.mktemp("page") / "page.html")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (380, "dark")])
def test_the_pages_have_no_serious_fault_of_accessibility(browser: Any, written: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown = context.new_page()
    shown.goto(written.absolute().as_uri())
    shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    # axe is injected as a script, which the policy of the page forbids; its context ignores it here only.
    found = axe.run(shown).response["violations"]
    overflow = shown.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    text = "getComputedStyle(document.querySelector('figure svg text')).fill"
    ink = "getComputedStyle(document.body).color"
    assert shown.evaluate(text) == shown.evaluate(ink), "figures do not follow the colours of the page"
    context.close()
    faults = [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found]
    assert [fault for fault, kind in zip(faults, found, strict=True) if kind["impact"] in ("serious", "critical")] == []
    assert overflow == 0


def test_every_table_fits_a_computer_s_screen_with_all_arms_and_scrolls_on_a_phone(
    browser: Any, run: RunDir, tmp_path: Path
) -> None:
    """Where all arms reflect, which gives the report its widest tables."""
    folder, card = RunDir(tmp_path), Scorecard.read(run.scorecard)
    arms = [*get_args(Arm), "start", "gguf"]
    of = {name: dict.fromkeys(arms, getattr(card, name)["tuned"]) for name in ("aims", "reflection", "arms")}
    figures = {
        arm: one.model_copy(update={"n": 4, "repaired": 100, "corrupted": 100}) for arm, one in of["reflection"].items()
    }
    wide = dict.fromkeys(("decomposition", "sequential_reasoning", "transparency"), Share(share=1.0, of=20_460))
    aims = {arm: one.model_copy(update=wide) for arm, one in of["aims"].items()}
    card.model_copy(update={**of, "reflection": figures, "aims": aims}).write(folder.scorecard)
    report.write(folder)
    for width in (1280, 380):
        context = browser.new_context(viewport={"width": width, "height": 900})
        shown = context.new_page()
        shown.goto(folder.report.absolute().as_uri())
        tables = "[...document.querySelectorAll('.wide')]"
        cut = shown.evaluate(f"{tables}.filter(e => e.scrollWidth > e.clientWidth).map(e => e.ariaLabel)")
        assert "What its reflections do" in shown.evaluate(f"{tables}.map(e => e.ariaLabel)")
        scrolls = shown.evaluate(f"{tables}.every(e => getComputedStyle(e).overflowX == 'auto')")
        shaded = shown.evaluate(f"{tables}.every(e => getComputedStyle(e).backgroundImage.includes('gradient'))")
        context.close()
        assert (cut == []) is (width == 1280), cut
        assert scrolls
        assert shaded


def test_an_answer_is_split_into_blocks_that_hold_all_of_its_text() -> None:
    text = (
        "before<thinking>\none\ntwo = 3\n<reflection>two = 2</reflection>\n<reflection>yes</reflection>\nthree\n</thinking>"
        "\n<output>2</output>"
    )
    made = answers.blocks(text, "thinking")
    assert [block.kind for block in made] == ["outside", "thinking", "output"]
    assert [(piece.kind, piece.text.strip()) for piece in made[1].pieces if piece.text.strip()] == [
        ("thinking", "one"),
        ("questioned", "two = 3"),
        ("reflection", "two = 2"),
        ("reflection", "yes"),
        ("thinking", "three"),
    ]
    assert (made[1].reflections, made[2].text) == (2, "2")
    assert answers.blocks("", "thinking") == []
    assert [block.kind for block in answers.blocks("<reflection>alone</reflection>", "thinking")] == ["thinking"]
