"""Layouts: which columns of a row hold the question, the reasoning and the answer, and how they are read.

A layout (`base.Layout`) says whether a row has its shape, and reads it; a row it cannot read raises `RowError` and is
rejected with that reason. Adding one takes one new file in this folder and one line in `config.choices`; its name is
then a value of `--data-format`. Columns that a layout does not use are announced, never dropped silently.
"""

from cot_unsloth.data.layouts.base import Fields, Layout
from cot_unsloth.data.layouts.reading import (
    ReadRow,
    detect,
    example,
    explain_missing_reasoning,
    is_choice_numbering_open,
    question_and_answer_columns,
    question_id,
    read,
    unwrap_conversation,
    with_choice_numbering,
)
from cot_unsloth.data.layouts.registry import BY_NAME, LAYOUTS
from cot_unsloth.data.layouts.row import Columns, NamedColumns, Row, RowError, describe_value, has_column, is_empty
from cot_unsloth.data.layouts.turns import REMEDIES

__all__ = [
    "BY_NAME",
    "LAYOUTS",
    "REMEDIES",
    "Columns",
    "Fields",
    "Layout",
    "NamedColumns",
    "ReadRow",
    "Row",
    "RowError",
    "describe_value",
    "detect",
    "example",
    "explain_missing_reasoning",
    "has_column",
    "is_choice_numbering_open",
    "is_empty",
    "question_and_answer_columns",
    "question_id",
    "read",
    "unwrap_conversation",
    "with_choice_numbering",
]
