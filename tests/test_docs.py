"""README and docs: links resolve; the tree, functions and commands in them exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest
from helpers import module

from cot_unsloth.cli.app import group

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("README.md"),
    ]
)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_the_option_reference_lists_the_settings() -> None:
    options = module(ROOT / "scripts" / "make_options.py")
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options.options()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_is_linked_from_the_first_page() -> None:
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert [page for page in sorted(pages) if f"]({page})" not in first] == []
    assert "docs/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_in_the_architecture_page_matches_the_package() -> None:
    """Every path of the tree exists, and every package and entry module is in it."""
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    package = ROOT / "cot_unsloth"
    words = set(tree.split())
    paths = {word for word in words if word.endswith((".py", "/"))}
    folders = [ROOT, package, *(package / name for name in ("export", "data", "models"))]
    for path in paths - {"results/"}:
        assert any((folder / path).exists() for folder in folders), path
    packages = {f"{init.parent.name}/" for init in package.glob("*/__init__.py")}
    assert packages | {file.name for file in package.glob("*.py")} <= words


def commands() -> list[tuple[str, str]]:
    """Every `cot-unsloth ...` and `python -m cot_unsloth...` line of a code block or after `Run:`, with its page."""
    named = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = re.findall(r"^Run: `([^`]+)`", text, re.MULTILINE)
        for block in re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines += block.splitlines()
        named += [(page.name, line) for line in lines if line.startswith(("cot-unsloth ", "python -m cot"))]
    return named


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_in_the_docs_use_existing_flags(page: str, line: str) -> None:
    """The verb exists, and every flag is one of its own."""
    words = shlex.split(line, comments=True)
    verb, flags = (words[1], words[2:]) if words[0] == "cot-unsloth" else (words[2].rpartition(".")[2], words[3:])
    command = group.commands[verb]
    assert isinstance(command, click.Command)
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    assert {word for word in flags if word.startswith("-")} <= known


def functions() -> list[tuple[str, str]]:
    """Every (module, function or method) pair of the call trees in docs/architecture.md."""
    _, *trees = re.findall(
        r"^```\n(.*?)^```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    calls = [line.split() for tree in trees for line in tree.splitlines()]
    return [(module, name) for name, module, *_ in calls]


def defined_in(path: Path) -> set[str]:
    """Functions, classes and `Class.method` of a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_the_path_of_a_row_names_functions_that_exist() -> None:
    assert len(functions()) > 40
    missing = {
        f"{module}: {name}" for module, name in functions() if name not in defined_in(ROOT / "cot_unsloth" / module)
    }
    assert missing == set()


def imports() -> list[tuple[str, str, str]]:
    """Every (page, module of the package, imported name) of the Python blocks, less modules that the page itself adds."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        added = {path.removesuffix(".py").replace("/", ".") for path in re.findall(r"^`(\S+\.py)`", text, re.MULTILINE)}
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cot_unsloth"):
                    found += [(page.name, node.module or "", name.name) for name in node.names]
        found = [entry for entry in found if entry[1] not in added]
    return found


@pytest.mark.parametrize(("page", "source", "name"), imports())
def test_what_the_docs_import_exists(page: str, source: str, name: str) -> None:
    module = importlib.import_module(source)
    assert hasattr(module, name) or importlib.util.find_spec(f"{source}.{name}")
