"""`python -m cot_unsloth.serve`."""

import sys

from cot_unsloth.cli import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
