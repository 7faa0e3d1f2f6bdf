"""How OpenMP's threads wait: asleep, so that a run shares the machine with other programs.

By default torch's threads spin while they wait for each other, and so take the cores that the slower threads need when
another program is running: with one other busy process on two cores, 16 training steps took 128 s with spinning
threads and 13 s with sleeping ones.
"""

from __future__ import annotations

import os
import sys

_USER_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that set it: OpenMP's, GNU's, and Intel's and LLVM's."""


def wait_passively() -> None:
    """Make OpenMP's threads sleep while they wait, unless the user has set that.

    The OpenMP runtime reads its variables once, when torch loads it. If torch is loaded already, nothing is set: it would
    only reach child processes. The command line and the functions of the API that compute call this; importing the
    package does not, because an import should not change the environment of the program.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _USER_SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
