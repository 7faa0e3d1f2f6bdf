"""How OpenMP's threads wait: asleep, so that a run does not fight whatever else this machine does.

By default each of torch's threads spins while it waits for the others. On a laptop with another busy program the
spinning takes the cores that the waited-for threads need: beside one other busy process on two cores, 16 training
steps took 128 s so and 13 s with waiting threads asleep.
"""

from __future__ import annotations

import os
import sys

_SAY_THE_SAME = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user decides it: OpenMP's own, GNU's and Intel's/LLVM's."""


def wait_passively() -> None:
    """Have OpenMP's threads sleep while they wait, unless the user has decided that.

    The runtime reads its variables once, as torch loads it: after that nothing is set, since it would change only the
    environment of the host program's children. Called by the command line and by each function of the API that
    computes, not on import: importing a library should not change the environment of the program that imports it.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _SAY_THE_SAME):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
