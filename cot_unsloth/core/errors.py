"""The tree of errors, and the exit code of each.

Every error that a user can see says what is wrong, where, and how to fix it. The command line prints it without a
traceback (`--debug` adds it) and exits with `exit_code`: 1 failed, 2 usage or input, 3 completed, but verification or
the quality gate failed.
"""

from __future__ import annotations


class CotError(Exception):
    """Root of the tree: catches everything that the library raises on purpose.

    >>> print(CotError("no such thing", where="a.yaml:3", hint="add one"))
    a.yaml:3: no such thing
      hint: add one
    """

    exit_code = 1
    name = "failed"
    """What kind of error it is, in snake case, as `check` lists it."""

    def __init__(
        self, message: str, *, where: str | None = None, hint: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        """`file:line`, a field, or a row."""
        self.hint = hint
        """How to fix it."""
        if name is not None:
            self.name = name

    def __str__(self) -> str:
        head = f"{self.where}: {self.message}" if self.where else self.message
        return f"{head}\n  hint: {self.hint}" if self.hint else head


class InputError(CotError):
    """An input of the user cannot be used; nothing was started."""

    exit_code = 2
    name = "invalid_input"


class ConfigError(InputError):
    """A setting is unknown, invalid, or conflicts with another."""

    name = "invalid_setting"
    parts: tuple[ConfigError, ...] = ()
    """The single errors, where the message has several."""


class DataError(InputError):
    """A data set cannot be read, or none of its rows can be used."""

    name = "unusable_data"


class RenderError(InputError):
    """A chat template breaks a rule of rendering; training on it would teach the wrong thing."""

    name = "template_breaks_a_rule"


class RunDirError(InputError):
    """A run folder is missing, in use, or holds another run."""

    name = "run_folder"


class ModelError(InputError):
    """A model, tokenizer or adapter cannot be loaded."""

    name = "unusable_model"


def cannot_load(
    message: str, error: BaseException, *, where: str, hint: str | None = None, name: str | None = None
) -> ModelError:
    """The ModelError for a model, tokenizer or adapter whose loading failed with `error`.

    Every load passes `trust_remote_code=False`; transformers then raises a ValueError that recommends
    `trust_remote_code=True`, which no setting of ours allows, so that advice is replaced.

    >>> cannot_load("cannot be loaded", ValueError("pass `trust_remote_code=True`"), where="m").message
    'needs code from its own repository (auto_map), which is never run'
    """
    if "trust_remote_code" in str(error):
        return ModelError(
            "needs code from its own repository (auto_map), which is never run",
            where=where,
            hint="use a model whose architecture and tokenizer are part of transformers",
            name="remote_code",
        )
    return ModelError(message, where=where, hint=hint, name=name)


class EngineError(CotError):
    """An engine failed while it was running."""


class LogprobsError(EngineError):
    """The engine does not know the log-probability of a token that it wrote."""


class DivergedError(EngineError):
    """The loss or its gradient is not finite; training stopped before the weights were updated with it."""

    def __init__(self, message: str, *, step: int, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.step = step
        """The optimizer step that was not made."""


class GuardError(EngineError):
    """Reinforcement learning stopped, because more steps would not improve the model; its checkpoints are kept."""


class InvariantError(CotError):
    """Two counts that must be equal are not; the run stops."""


class GateError(CotError):
    """Scores are complete, and below what the gate requires."""

    exit_code = 3


class VerificationError(CotError):
    """An exported file was read back, and differs from the model that was trained."""

    exit_code = 3
