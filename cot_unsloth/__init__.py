"""Teach a small open model to reason, and prove that it does.

`python -m cot_unsloth.train` runs the whole journey; `cot-unsloth --help` lists every verb.
Importing this package imports neither torch nor transformers.
"""

__version__ = "0.1.0"
