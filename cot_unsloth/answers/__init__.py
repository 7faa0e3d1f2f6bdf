"""What a text gives as its final answer, and whether two answers mean the same.

Owns the reading of free text (`reading`) and the comparison of two answers (`equality`), one set of rules for
gold answers and for models' answers, in every arm.
"""

from cot_unsloth.answers.reading import explicit_answer, is_prose, last_boxed, readings

__all__ = ["explicit_answer", "is_prose", "last_boxed", "readings"]
