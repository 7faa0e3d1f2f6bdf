"""`python -m cot_unsloth.chat`."""

import sys

from cot_unsloth.cli import main

if __name__ == "__main__":
    main(["chat", *sys.argv[1:]])
