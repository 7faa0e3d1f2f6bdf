"""The one tree of errors, and the exit code each ends in.

Every error a user can meet says what was wrong, where, and how to mend it.
The command line prints it without a traceback and exits with `exit_code`:
1 failed, 2 usage or input, 3 ran but verification or a quality gate failed.
"""

from __future__ import annotations


class CotError(Exception):
    """Root of the tree: catch this to catch everything the library raises on purpose.

    >>> print(CotError("no such thing", where="a.yaml:3", hint="add one"))
    a.yaml:3: no such thing
      hint: add one
    """

    exit_code = 1
    name = "failed"
    """What kind of fault it is, in snake case: `check` lists it by that."""

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        """`file:line`, a field, or a row."""
        self.hint = hint
        """What to do about it."""
        if name is not None:
            self.name = name

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  hint: {self.hint}" if self.hint else head


class InputError(CotError):
    """Something the user gave cannot be used; nothing was started."""

    exit_code = 2
    name = "invalid_input"


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, or at odds with another."""

    name = "invalid_setting"
    parts: tuple[ConfigError, ...] = ()
    """The faults, where there are several in one message."""


class DataError(InputError):
    """A data set cannot be read, or no row of it can be used."""

    name = "unusable_data"


class RenderError(InputError):
    """A template breaks a law of rendering; training on it would teach the wrong thing."""

    name = "template_breaks_a_rule"


class RunDirError(InputError):
    """A run folder is missing, is in use, or holds another run."""

    name = "run_folder"


class ModelError(InputError):
    """A model, tokenizer or adapter cannot be loaded as asked."""

    name = "unusable_model"


def cannot_load(
    message: str, error: BaseException, *, where: str, hint: str | None = None, name: str | None = None
) -> ModelError:
    """The ModelError for a model, tokenizer or adapter whose loading failed with `error`.

    Every load passes `trust_remote_code=False`; transformers then raises a ValueError that recommends
    `trust_remote_code=True`, which no setting of ours allows, so that advice is replaced.

    >>> cannot_load("cannot be loaded", ValueError("pass `trust_remote_code=True`"), where="m").message
    'needs code of its own repository (auto_map), which is never run'
    """
    if "trust_remote_code" in str(error):
        return ModelError(
            "needs code of its own repository (auto_map), which is never run",
            where=where,
            hint="take a model whose architecture and tokenizer are part of transformers",
            name="remote_code",
        )
    return ModelError(message, where=where, hint=hint, name=name)


class EngineError(CotError):
    """An engine failed while it worked."""


class DivergedError(EngineError):
    """The loss or its gradient is no finite number; training stopped before that reached the weights."""

    def __init__(self, message: str, *, step: int, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.step = step
        """The optimizer step that was not taken."""


class InvariantError(CotError):
    """Two counts that must agree do not; the run stops rather than train on a guess."""


class GateError(CotError):
    """A run was scored whole, and its scores are below what was asked of them."""

    exit_code = 3


class VerificationError(CotError):
    """An artefact was made and read back, and is not what was trained."""

    exit_code = 3
