"""The layout of the package: imports point down, without cycles, and importing it is fast."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cot_unsloth"
LAYERS = [
    ["core"],
    ["config"],
    ["storage", "tasks"],
    ["data"],
    ["prompts"],
    ["models"],
    ["reporting"],
    ["evaluation"],
    ["export"],
    ["sampling"],
    ["training"],
    ["lab"],
    ["server"],
    ["api"],
    ["cli"],
]
"""Packages from the lowest to the highest; a package imports only packages of lower layers."""
LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRY_MODULES = {"__init__", "__main__", "train", "evaluate", "chat", "serve", "export.__main__"}
"""The package itself and `python -m cot_unsloth.VERB`: above every layer."""


def module_name(path: Path) -> str:
    """The dotted name of a file inside the package, such as `core.trace`; a package is named by its folder."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MOST_LINES = 400
LONGER_MODULES: dict[str, str] = {}
"""Modules above MOST_LINES, each with its reason. Take a module out when it has been split."""
MOST_UNTYPED = 11
"""Occurrences of `dict[str, Any]` and `Mapping[str, Any]`: it only goes down."""

USED_OUTSIDE = {
    "summarize": "the figures of injected errors, which bench/recovery.py computes",
    "AIMS": "the columns of the table of aims, which its test is held to",
}
"""Names of modules that nothing in the package uses, each with its reason."""

MODULES = {module_name(path): path for path in FILES}
LAYERED = sorted(set(MODULES) - ENTRY_MODULES)


def imported_modules(path: Path, *, lazily: bool) -> set[str]:
    """Modules of ours that a file imports.

    Args:
        path: the file.
        lazily: whether imports inside functions count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside_functions = {id(node) for function in functions for node in ast.walk(function)}
    names: list[str] = []
    for node in ast.walk(tree):
        if not lazily and id(node) in inside_functions:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    ours = {name.removeprefix("cot_unsloth.") for name in names if name.startswith("cot_unsloth.")}
    return {name for name in ours if name in MODULES}


@pytest.mark.parametrize("module", LAYERED)
def test_imports_point_down(module: str) -> None:
    package = module.partition(".")[0]
    others = {name.partition(".")[0] for name in imported_modules(MODULES[module], lazily=True)} - {package}
    upward = {other for other in others if LAYER_OF.get(other, len(LAYERS)) >= LAYER_OF[package]}
    assert not upward, f"{module} imports {', '.join(sorted(upward))}"


def test_no_import_cycle() -> None:
    """Packages are left out of the graph: their `__init__` re-exports what modules inside define."""
    graph = {name: imported_modules(MODULES[name], lazily=True) for name in LAYERED if not is_package(name)}
    sorter = graphlib.TopologicalSorter(
        {name: {other for other in others if other in graph} for name, others in graph.items()}
    )
    sorter.prepare()


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


def test_every_module_docstring_says_what_it_owns() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_modules_are_short_or_give_a_reason() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    too_long = {name: n for name, n in lengths.items() if n > MOST_LINES and name not in LONGER_MODULES}
    assert not too_long, "split these modules, or give a reason in LONGER_MODULES"
    short = {name for name in LONGER_MODULES if lengths.get(name, 0) <= MOST_LINES}
    assert not short, "remove these from LONGER_MODULES: they are short or deleted"


def test_the_number_of_untyped_mappings_does_not_grow() -> None:
    pattern = re.compile(r"\b(?:dict|Mapping)\[str, Any\]")
    counts = {name: len(pattern.findall(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()}
    most = sorted(((n, name) for name, n in counts.items() if n), reverse=True)[:5]
    assert sum(counts.values()) <= MOST_UNTYPED, f"use a dataclass, a pydantic model or a TypedDict; most are in {most}"


def test_every_name_is_used() -> None:
    """Functions, classes and constants of a module; what is decorated may be registered by that."""
    files = [*FILES, *PACKAGE.rglob("*.j2"), ROOT / "pyproject.toml"]
    words = Counter(word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))
    defined = Counter(name for path in FILES for name in names_of(path))
    unused = {name for name, times in defined.items() if words[name] <= times and not name.startswith("__")}
    assert unused == set(USED_OUTSIDE)


def names_of(path: Path) -> list[str]:
    """Names that a module defines at its top."""
    names: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def test_no_file_is_named_after_a_library() -> None:
    taken = {"unsloth", "gguf", "xllamacpp", "torch", "trl", "peft", "datasets", "transformers", "click"}
    assert not taken & {path.stem for path in FILES}


@pytest.mark.parametrize(
    "module", ["cot_unsloth", "cot_unsloth.cli", "cot_unsloth.train", "cot_unsloth.evaluate", "cot_unsloth.api"]
)
def test_entry_modules_import_nothing_heavy(module: str) -> None:
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


def test_tags_are_spelled_in_one_module_only() -> None:
    """Prompts and messages for people may name them; code may not parse a text by them."""
    pattern = re.compile(r"""["'](</?(?:thinking|reflection|output)>)["']""")
    result = [str(p.relative_to(PACKAGE)) for p in FILES if pattern.search(p.read_text(encoding="utf-8"))]
    assert result == ["core/trace/grammar.py"]
