"""`python -m cot_unsloth VERB`."""

from cot_unsloth.cli import main

main()
