"""Loading the tokenizer of a model, with its chat template, padding token and stop tokens.

Weights that were trained may have a tokenizer and a template beside them; these outrank those of the base, because they
are what the weights were trained with.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cot_unsloth.config import ASSETS, TINY_BASE, ModelConfig
from cot_unsloth.core import network, progress
from cot_unsloth.core.errors import ModelError, cannot_load
from cot_unsloth.prompts import dates, templates, tokenizer_files
from cot_unsloth.storage.run_folder import RunDir, is_full_model

_KNOWN_PADS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<|pad|>", "<|vision_pad|>")
"""Tokens of well-known vocabularies that are meant for padding and never end a turn."""


def model_path(name_or_path: str) -> str:
    """Where a model is loaded from: a folder or a hub id; the embedded base is known by its name."""
    return str(ASSETS / TINY_BASE) if name_or_path == TINY_BASE else name_or_path


@functools.cache
def note_once(text: str) -> None:
    """Print a note, once per process: a run opens its renderer several times."""
    progress.note(text)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with its template set, and the origin of both."""

    tokenizer: Any
    files: Path | None
    """The folder with its files; None if not known."""
    template: templates.Named
    own_template: str
    """The template that the base's tokenizer came with."""


def load_tokenizer(
    model: ModelConfig, trained: Path | None = None, run_template: Path | None = None
) -> LoadedTokenizer:
    """The model's tokenizer, with the template and the padding token that the settings ask for.

    Args:
        model: the model's settings.
        trained: a folder of trained weights, whose tokenizer and template outrank those of the base.
        run_template: the file in which a run keeps the template that it started with.

    Raises:
        ModelError: it cannot be loaded, has no chat template, or no padding token is known for it.
    """
    base = _from_pretrained(model_path(model.model_name_or_path), model)
    files = tokenizer_files.folder_of(model_path(model.model_name_or_path), model.model_revision)
    tokenizer = base
    if (
        trained
        and tokenizer_files.holds_tokenizer(trained)
        and not (files and tokenizer_files.are_alike(trained, files))
    ):
        tokenizer, files = _beside_weights(trained, base, model) or (base, files)
    template = _choose_template(tokenizer, base, model, trained, run_template)
    _check_template(template, tokenizer, model)
    own_template = templates.own_text(base)
    tokenizer.chat_template = template.text
    # Suppresses transformers' warning about rows above model_max_length: such rows are rejected by name, as too_long.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    _set_pad(tokenizer, model)
    return LoadedTokenizer(tokenizer, files, template, own_template)


def _from_pretrained(name: str, model: ModelConfig, **settings: object) -> Any:
    network.require("model", name)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=model.model_revision, trust_remote_code=False, **settings)
    except Exception as error:  # hub, file and format errors have no common base class
        own = name == model_path(model.model_name_or_path)
        raise cannot_load(
            f"its tokenizer cannot be loaded: {first_line(error)}",
            error,
            where=model.model_name_or_path if own else name,
            hint="give a folder that holds a model, or a hub id (gated ones need `hf auth login`)" if own else None,
            name="no_tokenizer",
        ) from error


def _beside_weights(trained: Path, base: Any, model: ModelConfig) -> tuple[Any, Path] | None:
    """The tokenizer beside trained weights, and its folder; None if it is the base's, saved again."""
    settings: dict[str, object] = {}
    if "tokenizer_class" not in tokenizer_files.read_settings(trained) and not is_full_model(trained):
        from transformers import AutoConfig

        # An adapter's folder has no config.json, so AutoTokenizer would not know the class; the base's config names it.
        settings["config"] = AutoConfig.from_pretrained(
            model_path(model.model_name_or_path), revision=model.model_revision, trust_remote_code=False
        )
    own = _from_pretrained(str(trained), model, **settings)
    different = list(tokenizer_files.differences(own, base))
    for line in different:
        note_once(f"using the tokenizer in {trained}, which was saved with the trained weights: {line}")
    return (own, trained) if different else None


def _choose_template(
    tokenizer: Any, base: Any, model: ModelConfig, trained: Path | None, run_template: Path | None
) -> templates.Named:
    template = _trained_template(model, trained, run_template)
    if template is None:
        template = templates.named(tokenizer, model.chat_template, model.model_name_or_path)
        beside = templates.from_weights(trained) if trained and model.chat_template else None
        if beside and beside.text != template.text:
            note_once(f"using {template.origin}, as asked; {beside.origin} differs")
    elif trained and template.text not in templates.known(base):
        note_once(f"using {template.origin}, which was saved with the trained weights; the base's differs")
    return template


def _trained_template(model: ModelConfig, trained: Path | None, run_template: Path | None) -> templates.Named | None:
    """The template that a run started with, or that weights were trained with; None if not known.

    The copy in the run folder counts, not the file named in its settings, which may have changed since.
    """
    if run_template is not None and run_template.is_file():
        return templates.kept(run_template, model.chat_template)
    if trained is None:
        return None
    run = RunDir.of_weights(trained)
    if model.chat_template and (run is None or run.read_config().model.chat_template != model.chat_template):
        return None  # the user asks for another one now
    beside = templates.from_weights(trained)
    return beside or (templates.kept(run.template, None) if run and run.template.is_file() else None)


def _check_template(template: templates.Named, tokenizer: Any, model: ModelConfig) -> None:
    if not template.text:
        fitting = templates.fitting(tokenizer, "")
        raise ModelError(
            "it has no chat template",
            where=model.model_name_or_path,
            hint="use the Instruct model, or set --chat-template "
            + (f"{fitting}, a training template that its tokenizer has the tokens for" if fitting else "FILE"),
            name="no_chat_template",
        )
    if "strftime_now" in template.text:
        dates.parse(model.date_string)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _set_pad(tokenizer: Any, model: ModelConfig) -> None:
    vocabulary = tokenizer.get_vocab()
    candidates = [model.pad_token] if model.pad_token else [tokenizer.pad_token, *_KNOWN_PADS]
    for token in candidates:
        # Collators give padding the label -100. If it is also the token that ends a turn, as with the common
        # `pad_token = eos_token`, no end of a turn is ever learnt and the model generates until its budget is used up.
        if token and token in vocabulary and (model.pad_token or token != tokenizer.eos_token):
            tokenizer.pad_token = token
            return
    what = f"pad_token {model.pad_token!r} is not in its vocabulary" if model.pad_token else "it has no padding token"
    hint = "set --pad-token to a token that never ends a turn"
    raise ModelError(what, where=model.model_name_or_path, hint=hint, name="no_padding_token")


def stop_ids(model: ModelConfig, tokenizer: Any, trained: Path | None = None) -> frozenset[int]:
    """The token ids that generation stops at: the tokenizer's eos and those of the generation config.

    There may be several: Llama 3 lists <|end_of_text|>, <|eom_id|> and <|eot_id|>, Qwen2.5 <|im_end|> and <|endoftext|>.
    Ids that are not tokens of the tokenizer are left out.

    Args:
        model: the model's settings.
        tokenizer: its tokenizer.
        trained: a folder of trained weights; its generation config, if any, counts in place of the base's.

    Raises:
        ModelError: there is a generation config, and it cannot be read.
    """
    from transformers import GenerationConfig

    own = trained if trained is not None and (trained / "generation_config.json").is_file() else None
    name = str(own or model_path(model.model_name_or_path))
    listed: Any = None
    try:
        listed = GenerationConfig.from_pretrained(
            name, revision=model.model_revision, trust_remote_code=False
        ).eos_token_id
    except Exception as error:  # a file that is not a JSON object fails in several ways
        if not isinstance(error, OSError) or Path(name, "generation_config.json").is_file():
            raise ModelError(
                f"its generation_config.json cannot be read: {first_line(error)}",
                where=name,
                hint="fetch it again, or remove it: a model need not have one",
                name="damaged_generation_config",
            ) from error
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    tokens = set(tokenizer.get_vocab().values())
    unknown = [id_ for id_ in listed if id_ not in tokens]
    if unknown:
        unknown_list = ", ".join(map(repr, unknown))
        note_once(
            f"{name}: eos_token_id {unknown_list} in generation_config.json is not a token of its tokenizer, and is ignored"
        )
    return frozenset({tokenizer.eos_token_id, *listed} - {None, *unknown})
