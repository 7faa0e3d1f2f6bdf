"""Turns files, hub data sets and tasks into Examples, with a Reject for every row that cannot be used.

Rows in = examples + rejects, always. A row passes through `sources` (which files), `formats` (which reader), `layouts` (which
columns), `readers` (Example or Reject) and `splits` (held out for scoring). `benchmarks` loads public test sets,
`decontaminate` finds training rows that overlap with a test set, and `checks` looks for faults in the rows.

To extend it: a layout is a file in `layouts/` and a line in `config.choices`; a file format is a module with a reader
and an entry in `formats.FORMATS`; a benchmark is an entry in `config.benchmarks`.
"""

from cot_unsloth.data.readers import (
    Loaded,
    count_reasons,
    describe_prose_answers,
    load_examples,
    load_first_rows,
    load_problems,
    with_comparable_answers,
)
from cot_unsloth.data.splits import distinct_questions, held_out_ids

__all__ = [
    "Loaded",
    "count_reasons",
    "describe_prose_answers",
    "distinct_questions",
    "held_out_ids",
    "load_examples",
    "load_first_rows",
    "load_problems",
    "with_comparable_answers",
]
