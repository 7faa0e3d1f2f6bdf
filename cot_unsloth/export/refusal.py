"""What is said of a model that GGUF or llama.cpp has no place for.

Owns the one sentence and the one name that every such refusal has: it names the class, field or tensor that
stands in the way, and the way out, which is the merged folder.
"""

from __future__ import annotations

from cot_unsloth.errors import ModelError

AS_IT_IS = "--merged writes it as it is, for transformers"


def not_for_gguf(what: str, where: str, hint: str = AS_IT_IS) -> ModelError:
    """The error for `what`, which names a field, a class or a tensor.

    >>> print(not_for_gguf("rope scaling dynamic", "base").message)
    rope scaling dynamic cannot be written to GGUF
    """
    return ModelError(f"{what} cannot be written to GGUF", where=where, hint=hint, name="not_for_gguf")
