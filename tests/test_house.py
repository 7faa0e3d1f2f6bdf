"""The house stands as designed: imports go down only, and the way in is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cot_unsloth"
FLOORS = {
    0: ["config", "trace", "values", "errors"],
    1: ["answers", "tasks", "rundir", "progress", "stats", "templates", "threads", "dates", "tokenizer_files"],
    2: ["render", "score", "data", "plots", "verdict"],
    3: ["engines", "estimate", "preparation", "reflection", "report"],
    4: ["export", "recovery", "harness", "chat", "serve", "doctor", "inspection"],
    5: ["checks", "evaluate"],
    6: ["train", "curves", "tables"],
    7: ["api"],
    8: ["cli", "__main__"],
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
GROUND = set(FLOORS[0])
"""The nouns know each other."""
GUARDED = {
    ("train", "cli"),
    ("evaluate", "cli"),
    ("export", "cli"),
    ("chat", "cli"),
    ("serve", "cli"),
    ("__main__", "cli"),
}
"""`python -m cot_unsloth.VERB`: the hand-over at the end of the file, the one upward import."""


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "cot_unsloth" and len(parts) > 1 and parts[1] in FLOOR_OF:
                found.add(parts[1])
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(path)
    for other in imported(path) - {room}:
        if (room, other) in GUARDED or {room, other} <= GROUND:
            continue
        assert FLOOR_OF[other] < FLOOR_OF[room], (
            f"{room} (floor {FLOOR_OF[room]}) imports {other} (floor {FLOOR_OF[other]})"
        )


def test_every_room_has_a_floor_and_says_what_it_owns() -> None:
    for path in FILES:
        assert room_of(path) in FLOOR_OF
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_no_file_is_named_after_a_library() -> None:
    taken = {"unsloth", "gguf", "xllamacpp", "torch", "trl", "peft", "datasets", "transformers", "click"}
    assert not taken & {path.stem for path in FILES}


@pytest.mark.parametrize(
    "module", ["cot_unsloth", "cot_unsloth.cli", "cot_unsloth.train", "cot_unsloth.evaluate", "cot_unsloth.api"]
)
def test_the_way_in_imports_nothing_heavy(module: str) -> None:
    heavy = "'torch', 'transformers', 'trl', 'peft', 'datasets', 'unsloth', 'numpy', 'rich', 'pyarrow'"
    code = f"import sys, {module}; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_setting_without_torch() -> None:
    code = "import sys, runpy; sys.argv = ['train', '--help']\n" + (
        "try: runpy.run_module('cot_unsloth.train', run_name='__main__')\n"
        "except SystemExit as done: print(done.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    from cot_unsloth.config import LEAVES

    flags = set(re.findall(r"--[a-z0-9-]+", done.stdout))
    assert {f"--{leaf.replace('_', '-')}" for leaf in LEAVES} <= flags


def test_tags_are_spelt_in_one_place_only() -> None:
    """Prompts and messages for people may name them; code may not take a text apart by them."""
    pattern = re.compile(r"""["'](</?(?:thinking|reflection|output)>)["']""")
    found = [str(p.relative_to(PACKAGE)) for p in FILES if pattern.search(p.read_text(encoding="utf-8"))]
    assert found == ["trace.py"]
