"""Chat templates by name: those of a tokenizer, and the training templates that this package ships.

A model's own template is used for training if it keeps the rules of `rules`. Templates of reasoning models often break
them: they open a `<think>` block in the prompt, add an empty one before the answer, or delete the reasoning of earlier
turns. For the families named here this package ships a template that writes the same turns and does none of that. A family
is recognised by its control tokens, never by a model's name: fine-tuned models have any name.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth.config import ASSETS
from cot_unsloth.core.errors import ModelError
from cot_unsloth.core.json_text import parse_json

FOLDER = ASSETS / "templates"


@dataclass(frozen=True)
class Format:
    """How the turns of a family are written."""

    file: str
    tokens: tuple[str, ...]
    """Control tokens that the template writes; a family's own template is recognised by the first."""


_CHATML = Format("chatml.jinja", ("<|im_start|>", "<|im_end|>"))
SHIPPED: Mapping[str, Format] = {
    "qwen2.5": _CHATML,
    "qwen3": _CHATML,
    "r1-distill": Format("r1-distill.jinja", ("<｜Assistant｜>", "<｜User｜>", "<｜end▁of▁sentence｜>")),
    "llama3": Format("llama3.jinja", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "smollm2": _CHATML,
    "mistral": Format("mistral.jinja", ("[INST]", "[/INST]")),
    "gemma3": Format("gemma3.jinja", ("<start_of_turn>", "<end_of_turn>")),
    "chatml": _CHATML,
}
"""Families by their name in --chat-template. The ChatML families write turns in the same way, so they share one file."""


@dataclass(frozen=True)
class Named:
    """A template and where it came from."""

    text: str
    """Jinja; empty where the tokenizer has none."""
    origin: str
    """Its name in messages."""
    replaceable: bool = False
    """True for a tokenizer's own template that the user did not ask for by name."""
    note: str = ""
    """A note for the user about the choice; empty if there is none."""


def named(tokenizer: Any, asked: str | None, where: str) -> Named:
    """The template that a setting asks for, or the tokenizer's own.

    Args:
        tokenizer: the model's.
        asked: a file, the name of one of the tokenizer's templates, or one of SHIPPED; None for the tokenizer's own.
        where: the model, for messages.

    Raises:
        ModelError: there is no such template, it cannot be read, or it is another family's.
    """
    own = _own(tokenizer)
    if asked is None:
        return _default(own, where)
    if Path(asked).is_file():
        return Named(_read(asked), f"the chat template {asked}")
    if asked in own:
        return Named(own[asked], f"the tokenizer's chat template {asked!r}")
    if asked in SHIPPED:
        return _shipped(tokenizer, asked, where)
    raise _unknown(asked, own)


def from_weights(folder: Path) -> Named | None:
    """The template that lies beside trained weights: what they were trained with."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return Named(_read(str(file)), f"the chat template {file}")
    try:
        template = parse_json(settings.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):  # AttributeError: JSON, but not an object
        return None
    return Named(template, f"the chat template in {settings}") if isinstance(template, str) and template else None


def kept(file: Path, asked: str | None) -> Named:
    """The template that a run started with, from its own copy; a note says if the file it was read from has changed since."""
    content = _read(str(file))
    note = ""
    if asked and Path(asked).is_file() and _read(asked) != content:
        note = f"{asked} has changed since the run started, so the run's own copy is used: {file}"
    return Named(content, f"the chat template {file}", note=note)


def known(tokenizer: Any) -> set[str]:
    """The texts of a tokenizer's own templates and of the shipped ones."""
    return {*_own(tokenizer).values(), *(text(name, tokenizer) for name in SHIPPED)}


def _own(tokenizer: Any) -> dict[str, str]:
    """The templates of a tokenizer by name; one without a name is the default."""
    # One text, or several by name: tokenizer_config.json has a list of {"name", "template"}, of which transformers makes a dict.
    templates = tokenizer.chat_template
    if not templates:
        return {}
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, Mapping):
        return {str(name): str(text) for name, text in templates.items()}
    return {str(item["name"]): str(item["template"]) for item in templates}


def own_text(tokenizer: Any) -> str:
    """A tokenizer's own template, the default one if there are several; empty if it has none."""
    own = _own(tokenizer)
    return own.get("default") or next(iter(own.values()), "")


def _default(own: Mapping[str, str], where: str) -> Named:
    if not own:
        return Named("", "the chat template")
    others = [name for name in own if name != "default"]
    if "default" not in own and len(own) > 1:
        raise ModelError(
            f"it has several chat templates and none is the default: {', '.join(own)}",
            where=where,
            hint=f"name one: --chat-template {others[0]}",
            name="no_default_template",
        )
    name = "default" if "default" in own else others[0]
    note = ""
    if len(own) > 1:
        more = ", ".join(f"--chat-template {other}" for other in others)
        note = f"chat template: the tokenizer has {len(own)}, taking 'default' (the others: {more})"
    return Named(own[name], "the model's chat template", replaceable=True, note=note)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the chat template cannot be read: {error}", where=f"chat_template {path}", name="template_unreadable"
        ) from error


def _shipped(tokenizer: Any, name: str, where: str) -> Named:
    missing = [token for token in SHIPPED[name].tokens if token not in tokenizer.get_vocab()]
    if missing and not (name == "mistral" and "[INST]" in missing):
        other = fitting(tokenizer, "")
        raise ModelError(
            f"the tokenizer has no token {missing[0]}, which the {name} template writes",
            where=f"{where}, chat_template {name}",
            hint=f"--chat-template {other}" if other else "leave chat_template out to take the model's own",
            name="template_of_another_family",
        )
    return Named(text(name, tokenizer), f"the training template {name}")


def _unknown(asked: str, own: Mapping[str, str]) -> ModelError:
    known = [*own, *(name for name in SHIPPED if name not in own)]
    near = difflib.get_close_matches(asked.lower().removesuffix(".jinja"), known, 1)
    guess = f"; did you mean {near[0]}?" if near else ""
    of_tokenizer = f"; the tokenizer's own: {', '.join(own)}" if own else ""
    return ModelError(
        f"is neither a file nor the name of a chat template{guess}",
        where=f"chat_template {asked}",
        hint=f"give a file, or a training template: {', '.join(SHIPPED)}{of_tokenizer}",
        name="no_such_template",
    )


def fitting(tokenizer: Any, template: str) -> str | None:
    """The name of the shipped template that writes turns as a model's own does; None if there is none.

    Args:
        tokenizer: its control tokens say which families are possible.
        template: the model's own template, which writes the tokens of its family; "" if it has none.
    """
    vocabulary = tokenizer.get_vocab()
    for name in ("r1-distill", "llama3", "gemma3", "mistral", "chatml"):
        tokens = SHIPPED[name].tokens
        if all(token in vocabulary for token in tokens) and (not template or tokens[0] in template):
            return _chatml_name(tokenizer, template) if name == "chatml" else name
    # Mistral's tokenizers before v3 write [INST] as plain text. So does Llama 2, which marks the system text with <<SYS>>.
    plain = "[INST]" in template and "<<SYS>>" not in template
    return "mistral" if plain and tokenizer.eos_token == "</s>" else None


def _chatml_name(tokenizer: Any, template: str) -> str:
    """The name of the ChatML template that a user of this model would look for."""
    vocabulary = tokenizer.get_vocab()
    if "<think>" in vocabulary or "<think>" in template:
        return "qwen3"
    if tokenizer.bos_token == "<|im_start|>":
        return "smollm2"
    return "qwen2.5" if "<|endoftext|>" in vocabulary else "chatml"


def text(name: str, tokenizer: Any) -> str:
    """A shipped template for a tokenizer."""
    # Python's Jinja drops the line break at the end of a template by default (keep_trailing_newline); other engines may not.
    body = (FOLDER / SHIPPED[name].file).read_text(encoding="utf-8").rstrip("\n")
    return _mistral_spaces(tokenizer) + body if name == "mistral" else body


def _mistral_spaces(tokenizer: Any) -> str:
    """The spaces that differ between Mistral's tokenizers, set in the first line of their template.

    In v1 `[INST]` is plain text with a space on both sides. In v3 it is a token, and the only spaces are those that
    SentencePiece puts before a word. The byte-level tokenizers (v3-tekken) have none. From v7 on the system turn has
    tokens of its own.
    """
    vocabulary = tokenizer.get_vocab()
    marks_are_tokens = "[INST]" in vocabulary
    spaces = {
        "before_inst": "" if marks_are_tokens else " ",
        "after_inst": "" if _is_byte_level(tokenizer) else " ",
        "before_end": "" if marks_are_tokens else " ",
        "before_answer": "" if _is_byte_level(tokenizer) else " ",
    }
    system_marks = "true" if "[SYSTEM_PROMPT]" in vocabulary else "false"
    settings = [f"{name} = {json.dumps(space)}" for name, space in spaces.items()] + [f"system_marks = {system_marks}"]
    return "".join(f"{{%- set {setting} %}}" for setting in settings) + "\n"


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)  # a slow tokenizer has none, and is SentencePiece
    return backend is not None and "ByteLevel" in repr(backend.pre_tokenizer)
