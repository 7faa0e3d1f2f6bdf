"""A contender's process: `python -m bench.speed.worker SPEC`, with a JSON object of `Worker.spec`.

Reports go to the original stdout; what libraries print goes to stderr, which is the contender's log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from bench.speed.session import Session, Work


def main() -> None:
    """Run one contender."""
    spec = json.loads(sys.argv[1])
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session(reports, fresh=spec["fresh"])
    work = Work(Path(spec["folder"]), spec["rounds"], spec["settings"], spec["options"], spec["name"])
    module, _, function = spec["path"].partition(":")
    session.end(getattr(importlib.import_module(f"bench.speed.{module}"), function)(work, session) or {})
    reports.close()
    os._exit(0)  # some contenders leave threads behind that would keep the process


if __name__ == "__main__":
    main()
