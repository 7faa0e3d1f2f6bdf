"""`python -m cot_unsloth.train`."""

import sys

from cot_unsloth.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
