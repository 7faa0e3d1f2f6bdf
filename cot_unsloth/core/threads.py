"""Limits how long OpenMP's threads spin while they wait, so that a run can share the machine with other programs.

Threads that wait for each other spin first and then sleep. By default GNU's runtime (torch's and llama.cpp's on Linux)
spins 300,000 times, several milliseconds: longer than the parts that torch's operations on a small model are split
into, so the threads never sleep, and beside other programs they use up the processors that the slower threads need.
Sleeping at once is slow too where nothing else runs, because waking a thread takes longer than such a part. So they spin
for a short time; bench/threads.py measures both cases.
"""

from __future__ import annotations

import os
import sys

SPINS = "3000"
"""About 0.2 ms on an AMD EPYC, 0.5 ms on Intel, whose pause takes longer.

Measured on two processors of an EPYC (bench/results/threads.json, n = 5), as speed against the default: where nothing else
runs, training 0.96, answering 0.98, llama.cpp 0.97; without spinning 0.59, 0.52 and 0.56. Beside one busy process 1.02, 0.83
and 0.49, with 0.75, 0.91 and 1.55 of the default's CPU time; without spinning 1.88, 2.08 and 1.29. At 10,000 spins 0.98, 1.00
and 0.85 alone, 0.76, 0.64 and 0.46 beside the process.
"""
_USER_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables that set it: OpenMP's, GNU's, and Intel's and LLVM's."""


def limit_spinning() -> None:
    """Make OpenMP's threads sleep soon when they wait, unless the user has set how they wait.

    GNU's runtime takes the number of spins; others sleep at once. A runtime reads its variables once, when torch loads it.
    If torch is loaded already, nothing is set: it would only reach child processes. The command line and the functions of
    the API that compute call this; importing the package does not, because an import should not change the environment of
    the program.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _USER_SETTINGS):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ["GOMP_SPINCOUNT"] = SPINS
