"""What all sections of the settings have in common, and the validators that several of them use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A section of the settings: unknown names are rejected, values are finite, and sections are frozen."""

    # extra: a misspelt setting would otherwise be ignored in silence. protected_namespaces: pydantic reserves names
    # that begin with model_, and Hugging Face's is model_name_or_path. allow_inf_nan: YAML has .inf and .nan.
    # Validators are built when first used, which --help never does.
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object, info: ValidationInfo) -> object:
        """Reject yes and no, which YAML reads as truth values, for a number: pydantic would make 1 and 0 of them."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = (annotation, *get_args(annotation))
        if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
            raise PydanticCustomError("float_type", "Input should be a number, not yes or no")
        return value


def one_of(*names: str) -> Callable[[object], object]:
    """A validator with the error of a `Literal`, for names that are registered in a table."""

    def check(value: object) -> object:
        if value not in names:
            *others, last = map(repr, names)
            known = f"{', '.join(others)} or {last}" if others else last
            raise PydanticCustomError("literal_error", "Input should be {known}", {"known": known})
        return value

    return check


LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""A file or folder, whose `~` is the home folder: a shell expands it only at the beginning of a word, not in `--run-dir=~/runs/1`."""
