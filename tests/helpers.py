"""What several test files do alike."""

from __future__ import annotations

import pytest

from cot_unsloth.cli import main


def run_cli(*args: str) -> int:
    """The exit code of a command line, run in this process."""
    with pytest.raises(SystemExit) as done:
        main(list(args))
    assert isinstance(done.value.code, int)
    return done.value.code
