"""The error for a model that GGUF or llama.cpp cannot represent.

Owns the message and the name of every such error. The message gives the class, field or tensor that causes it; the
hint gives the alternative, which is the merged folder.
"""

from __future__ import annotations

from cot_unsloth.core.errors import ModelError

AS_IT_IS = "--merged writes it unchanged, for transformers"


def not_for_gguf(what: str, where: str, hint: str = AS_IT_IS) -> ModelError:
    """The error for `what`, which names a field, a class or a tensor.

    >>> print(not_for_gguf("rope scaling dynamic", "base").message)
    rope scaling dynamic cannot be written to GGUF
    """
    return ModelError(f"{what} cannot be written to GGUF", where=where, hint=hint, name="not_for_gguf")
