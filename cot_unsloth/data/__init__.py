"""From files, hubs and worlds to Examples, with a Reject for every row that is not one.

Rows in = examples + rejects, always. `readers` finds rows and where each stands; `formats` knows
layouts; `splits` holds questions out for scoring; `benchmarks` are test sets by name; `decontaminate` finds
training rows that give a test set away.
"""

from cot_unsloth.data.readers import Loaded, load_examples, load_problems, tally
from cot_unsloth.data.splits import distinct

__all__ = ["Loaded", "distinct", "load_examples", "load_problems", "tally"]
