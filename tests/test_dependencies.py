"""What the package imports is declared, and what is declared is pinned."""

from __future__ import annotations

import ast
import importlib.metadata as metadata
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import make_sbom

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"jinja2": "jinja2", "math_verify": "math-verify", "yaml": "pyyaml", "unsloth_zoo": "unsloth-zoo"}
"""Distributions whose name is not that of their module."""
ONLY_IF_INSTALLED = {
    "vllm": "on a GPU, by --fast-inference; Unsloth says which version fits it",
    "unsloth_zoo": "comes with unsloth, in its own version",
    **dict.fromkeys(("mlflow", "trackio", "wandb"), "by --report-to"),
}


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    """Requirements by canonical name; comments, options and empty lines are left out."""
    texts = (line.partition("#")[0].strip() for line in lines)
    parsed = [Requirement(text) for text in texts if text and not text.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def pins(file: str) -> dict[str, str]:
    """Version by canonical name of a constraints file."""
    parsed = requirements((ROOT / file).read_text(encoding="utf-8").splitlines())
    return {name: str(requirement.specifier).removeprefix("==") for name, requirement in parsed.items()}


CORE = requirements(PROJECT["dependencies"])
EXTRAS = {extra: requirements(lines) for extra, lines in PROJECT["optional-dependencies"].items()}


def third_party_imports() -> dict[str, list[str]]:
    """Files of the package by the module of somebody else that they import, lazily or not."""
    importers: dict[str, list[str]] = {}
    for path in sorted((ROOT / "cot_unsloth").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"cot_unsloth"}:
                importers.setdefault(module, []).append(str(path.relative_to(ROOT)))
    return importers


def test_every_import_is_declared() -> None:
    declared = {*CORE, *EXTRAS["gpu"], *EXTRAS["gym"], *EXTRAS["lab"]}
    undeclared = {
        module: files
        for module, files in third_party_imports().items()
        if canonicalize_name(DISTRIBUTIONS.get(module, module)) not in declared and module not in ONLY_IF_INSTALLED
    }
    assert not undeclared, "add them to dependencies in pyproject.toml"


def test_every_declared_dependency_is_imported() -> None:
    imported = {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in third_party_imports()}
    assert set(CORE) <= imported


@pytest.mark.parametrize("group", ["core", "dev"])
def test_constraints_pin_all_dependencies_and_their_dependencies(group: str) -> None:
    pinned = pins("constraints.txt")
    waiting = list((CORE if group == "core" else EXTRAS["dev"]).values())
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement} has no pin in constraints.txt"
        assert requirement.specifier.contains(pinned[name], prereleases=True), f"{requirement}, but {pinned[name]}"
        if name not in seen:
            seen.add(name)
            needed = [Requirement(line) for line in metadata.requires(name) or [] if name != "torch"]
            # The pin of torch is the CUDA build's on Linux too, whose own libraries pip chooses.
            waiting += [one for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]


def test_the_gpu_requirements_are_within_the_declared_bounds() -> None:
    pinned, named = pins("constraints-gpu.txt"), requirements((ROOT / "requirements.txt").read_text().splitlines())
    for name, requirement in [*named.items(), *CORE.items(), *EXTRAS["gpu"].items()]:
        if name in pinned:
            assert requirement.specifier.contains(pinned[name]), (
                f"{requirement}, but constraints-gpu.txt: {name}=={pinned[name]}"
            )
    assert set(EXTRAS["gpu"]) <= {*named}, "requirements.txt is the GPU stack"
    assert set(named) <= {*pinned}


@pytest.mark.parametrize("file", make_sbom.SETS)
def test_a_bill_of_materials_has_every_pin_and_only_references_that_exist(file: str) -> None:
    bill: Any = make_sbom.bill(file, make_sbom.pins(ROOT / file))
    assert {part["name"]: part["version"] for part in bill["components"]} == pins(file)
    references = {part["bom-ref"] for part in [bill["metadata"]["component"], *bill["components"]]}
    assert len(references) == len(bill["components"]) + 1
    assert {line["ref"] for line in bill["dependencies"]} == references
    assert {name for line in bill["dependencies"] for name in line["dependsOn"]} < references
    assert bill == make_sbom.bill(file, make_sbom.pins(ROOT / file))


def test_a_bill_of_materials_follows_requirements_and_names_licences() -> None:
    bill: Any = make_sbom.bill("constraints.txt", make_sbom.pins(ROOT / "constraints.txt"))
    needs = {line["ref"].partition("@")[0]: line["dependsOn"] for line in bill["dependencies"]}
    assert any(name.startswith("pkg:pypi/tokenizers@") for name in needs["pkg:pypi/transformers"])
    assert any(name.startswith("pkg:pypi/torch@") for name in needs["pkg:pypi/cot-unsloth"])
    named = [part for part in bill["components"] if "licenses" in part]
    assert len(named) > 0.9 * len(bill["components"])
