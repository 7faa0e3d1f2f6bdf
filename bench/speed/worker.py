"""A contender's process: `python -m bench.speed.worker SPEC`, with a JSON object of `Worker.spec`.

Reports go to the original stdout; what libraries print goes to stderr, which is the contender's log.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path

from bench.speed.session import Session, Work


def versions() -> dict[str, str]:
    """What is installed beside the benchmark, of what can change a figure."""
    installed = {}
    for name in ("torch", "transformers", "trl", "peft", "datasets", "unsloth", "unsloth_zoo", "llamafactory"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def main() -> None:
    """Run one contender."""
    spec = json.loads(sys.argv[1])
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session(reports, fresh=spec["fresh"])
    work = Work(Path(spec["folder"]), spec["rounds"], spec["settings"], spec["options"], spec["name"])
    module, _, function = spec["path"].partition(":")
    facts = getattr(importlib.import_module(f"bench.speed.{module}"), function)(work, session)
    session.end(facts | ({"versions": versions()} if spec["own_python"] else {}))
    reports.close()
    os._exit(0)  # some contenders leave threads behind that would keep the process


if __name__ == "__main__":
    main()
