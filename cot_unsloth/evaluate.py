"""`python -m cot_unsloth.evaluate`."""

import sys

from cot_unsloth.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
