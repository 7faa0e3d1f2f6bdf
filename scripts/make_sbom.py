"""Bills of materials of the tested sets, as CycloneDX 1.6 JSON: `python scripts/make_sbom.py`, or `make sbom`.

One for each constraints file: every pinned package with its version and package URL, and its licence and requirements where it
is installed here. Nothing is fetched and there is no time in it, so that the same pins give the same file.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cot_unsloth import __version__

ROOT = Path(__file__).parent.parent
SETS = ("constraints.txt", "constraints-gpu.txt")
_URL_NAMESPACE = uuid.NAMESPACE_URL


def pins(file: Path) -> dict[str, str]:
    """Versions by canonical name, of a constraints file whose lines are NAME==VERSION."""
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in parsed}


def bill(name: str, versions: Mapping[str, str]) -> dict[str, object]:
    """The bill of materials of a set.

    Args:
        name: of the constraints file.
        versions: by canonical name.
    """
    root = f"pkg:pypi/cot-unsloth@{__version__}"
    references = {package: f"pkg:pypi/{package}@{version}" for package, version in versions.items()}
    content = json.dumps([name, root, sorted(references.values())])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_URL_NAMESPACE, content)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": root, "name": "cot-unsloth", "version": __version__, "purl": root,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
            "properties": [{"name": "cot-unsloth:constraints", "value": name}],
        },
        "components": [_component(package, version, references[package]) for package, version in versions.items()],
        "dependencies": [
            {"ref": root, "dependsOn": _needed("cot-unsloth", references)},
            *({"ref": references[package], "dependsOn": _needed(package, references)} for package in versions),
        ],
    }  # fmt: skip


def _component(package: str, version: str, reference: str) -> dict[str, object]:
    component: dict[str, object] = {
        "type": "library",
        "bom-ref": reference,
        "name": package,
        "version": version,
        "purl": reference,
    }
    licence = _licence(package, version)
    return component | ({"licenses": [licence]} if licence else {})


def _licence(package: str, version: str) -> dict[str, object] | None:
    """What the metadata of the installed package says, if it is of this version: an SPDX expression, or a name."""
    try:
        described = metadata.metadata(package)
    except metadata.PackageNotFoundError:
        return None
    if described["Version"].partition("+")[0] != version:
        return None
    if described["License-Expression"]:
        return {"expression": described["License-Expression"]}
    named = [
        value.rpartition(" :: ")[2] for value in described.get_all("Classifier") or [] if value.startswith("License ::")
    ]
    text = (described["License"] or "").strip()  # often the whole text of the licence
    name = named[0] if named else text.splitlines()[0] if text and len(text) < 100 else ""
    return {"license": {"name": name}} if name else None


def _needed(package: str, references: Mapping[str, str]) -> list[str]:
    """The packages of the set that an installed package requires, with whatever extras and on whatever system."""
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    names = {canonicalize_name(Requirement(line).name) for line in lines}
    return sorted(references[name] for name in names if name in references)


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sbom", help="folder; default: %(default)s")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        file = folder / f"{Path(name).stem}.cdx.json"
        file.write_text(json.dumps(bill(name, pins(ROOT / name)), indent=2) + "\n", encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
