"""The site builds without a broken link and loads nothing from elsewhere; the tutorial's commands work; messages are ours."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does; any warning is an error."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "REPOSITORY": "https://host/owner/name/blob/main"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_site_has_every_page_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in DOCS.glob("*.md"):
        file = site / "index.html" if page.stem == "index" else site / page.stem / "index.html"
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?:[^\">\s]+)", file.read_text("utf-8"))
        assert loaded == [], page.name


def test_links_to_the_repository_lead_there(site: Path) -> None:
    text = (site / "sampling" / "index.html").read_text("utf-8")
    assert "https://host/owner/name/blob/main/bench/results/self_training.json" in text
    assert "../bench/" not in text


def constants() -> str:
    """The constant parts of every text in the package, one per line."""
    texts = []
    for file in (ROOT / "cot_unsloth").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_message_that_is_explained_exists() -> None:
    ours, text = constants(), (DOCS / "troubleshooting.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(messages) > 25
    missing = [m for m in messages if any(part.strip() not in ours for part in m.split("…"))]
    assert missing == []


def commands(page: str) -> list[list[str]]:
    """The command lines of a page's code blocks, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", (DOCS / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("cot-unsloth ")]


@pytest.mark.slow
def test_the_commands_of_the_tutorial_work_in_order(tmp_path: Path) -> None:
    """As written, but for fewer problems, and where the model need not learn much, fewer rows."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    few = {("--world-samples", "200"): "40", ("--eval-samples", "100"): "8", ("--num-train-epochs", "10"): "1"}
    for command in commands("tutorial.md"):
        if any(part.startswith("configs/") for part in command):
            continue
        words = [few.get((flag, word), word) for flag, word in zip(["", *command], command, strict=False)]
        gate = ["--no-gate"] if command[0] == "train" else []
        line = [sys.executable, "-m", "cot_unsloth", *words, *gate]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, input="What is 2 + 3?", check=False)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        # All rows that the file holds out were scored: there are no more.
        assert "runs/mine" not in words or "score more" not in done.stdout
    assert list((tmp_path / "runs" / "mine" / "export").glob("*.gguf"))
