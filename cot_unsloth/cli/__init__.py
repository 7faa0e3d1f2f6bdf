"""The command line."""

from cot_unsloth.cli.app import main

__all__ = ["main"]
