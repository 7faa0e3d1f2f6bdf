"""From files, hubs and tasks to Examples, with a Reject for every row that is not one.

Rows in = examples + rejects, always. `files` finds rows and where each stands; `layouts` knows
their shapes; `readers` makes Examples of them; `splits` holds questions out for scoring; `benchmarks` are test sets by name; `decontaminate` finds
training rows that give a test set away.
"""

from cot_unsloth.data.readers import (
    Loaded,
    count_reasons,
    describe_prose_answers,
    load_examples,
    load_problems,
    with_comparable_answers,
)
from cot_unsloth.data.splits import distinct_questions

__all__ = [
    "Loaded",
    "count_reasons",
    "describe_prose_answers",
    "distinct_questions",
    "load_examples",
    "load_problems",
    "with_comparable_answers",
]
