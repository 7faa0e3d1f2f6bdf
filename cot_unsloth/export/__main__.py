"""`python -m cot_unsloth.export`."""

import sys

from cot_unsloth.cli import main

main(["export", *sys.argv[1:]])
