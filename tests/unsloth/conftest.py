"""Unsloth comes first, and writes what it compiles into a folder for temporary files."""

from cot_unsloth.models import unsloth_engine

assert unsloth_engine
