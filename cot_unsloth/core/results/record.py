"""Writes results as JSON and reads them back.

A file that is read and written again is equal byte for byte, whichever version wrote it: keys that this version does not
know are kept, keys that were not in the file are not added, and the order of keys is that of the fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from cot_unsloth.core.atomic_files import write_json
from cot_unsloth.core.errors import RunDirError
from cot_unsloth.core.json_text import parse_json

VERSION = 1
"""Format version of the files that this version writes. It is raised when a key changes its meaning, not for a new key."""


class Value(BaseModel):
    """A part of a result: frozen, with its fields as keys of a JSON object.

    A field with a default is missing from files of older versions; its docstring says what the default means. Fields
    must be given by name when a value is made, and those that are not given are not written.
    """

    # Unknown keys are those of another version: kept, so that nothing is lost when a file is written again.
    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True, protected_namespaces=())

    def as_json(self) -> dict[str, JsonValue]:
        """The keys and values of its JSON object."""
        return self.model_dump(mode="python", by_alias=True, exclude_unset=True)

    def without(self, *names: str) -> Self:
        """The same without some of its fields, which must have defaults: they are not written any more."""
        kept = self.model_fields_set - set(names)
        return self.model_validate({name: getattr(self, name) for name in kept})


class Record(Value):
    """A result that is a file of its own."""

    described_as: ClassVar[str] = ""
    """A name for this kind of file, for error messages; the class's name if empty."""
    hint: ClassVar[str | None] = None
    """What to do about a damaged file."""

    version: int = VERSION
    """Version of the file format; files without a version have version 1."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that `write` has written, in this version or another.

        Raises:
            FileNotFoundError: there is no such file.
            RunDirError: it is not readable or not JSON, or a required key is missing or of another type.
        """
        try:
            tree = parse_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:  # bytes that are not UTF-8 are a ValueError, as are JSON's errors
            raise RunDirError(f"cannot be read: {error}", where=str(path), hint=cls.hint) from error
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            reason = f"{key}: {first['msg']}" if key else first["msg"]
            expected = cls.described_as or cls.__name__
            raise RunDirError(f"is not a {expected}: {reason}", where=str(path), hint=cls.hint) from error

    @classmethod
    def read_if_there(cls, path: Path) -> Self | None:
        """Like `read`, but None if there is no such file."""
        return cls.read(path) if path.is_file() else None

    def write(self, path: Path) -> None:
        """Write the file completely or not at all.

        Raises:
            OSError: it cannot be written.
        """
        write_json(path, self.as_json())
