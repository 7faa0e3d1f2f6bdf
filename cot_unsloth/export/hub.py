"""What goes to the Hugging Face Hub, and where.

Owns the repositories of an export: USER/NAME for the merged folder, USER/NAME-GGUF for the files of
llama.cpp and Ollama, USER/NAME-LoRA for the adapter. Each kind has its own, for of a repository that
holds two, every loader guesses which is meant. A repository is made private unless the settings say
otherwise, and gets one commit: the files, the card, `verified.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cot_unsloth.config import RunConfig
from cot_unsloth.core.errors import CotError, InputError
from cot_unsloth.core.progress import bar, note

Found = TypeVar("Found")


@dataclass(frozen=True)
class Repository:
    """What one repository holds."""

    suffix: str
    """What its name ends in, after the one that was asked for."""
    files: Mapping[str, Path]
    """By their names there."""
    card: str


def check_access(config: RunConfig) -> None:
    """Make sure that there is somebody to push as, before hours of work.

    Raises:
        InputError: the hub is switched off, cannot be reached, or knows no such token.
    """
    name = config.export.push_to_hub
    if name is None:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise InputError(
            "the hub is switched off by HF_HUB_OFFLINE", where="export.push_to_hub", hint="unset it, or leave this out"
        )
    if get_token() is None:
        raise InputError("nobody is logged in to the hub", where="export.push_to_hub", hint="hf auth login")
    _asked(_api().whoami, "the hub does not know you", InputError, hint="hf auth login")


def push(config: RunConfig, repositories: Sequence[Repository]) -> None:
    """Push, one commit a repository.

    Raises:
        CotError: the hub refused or was lost on the way; files here are as they were.
    """
    from huggingface_hub import CommitOperationAdd

    private, api = config.export.hub_private_repo, _api()
    hint = "the files are safe here; --push-to-hub alone pushes them again"
    todo = []
    for each in repositories:  # all of them before the first is made
        operations = [CommitOperationAdd(path, str(file)) for path, file in sorted(each.files.items())]
        operations.append(CommitOperationAdd("README.md", each.card.encode()))
        todo.append((f"{config.export.push_to_hub}{each.suffix}", operations))
    for id_, operations in todo:
        make = partial(api.create_repo, id_, private=private, exist_ok=True)
        commit = partial(api.create_commit, id_, operations, commit_message="Add a verified export")
        with bar(f"push {id_}"):
            made = _asked(make, f"{id_} cannot be made", CotError, hint=hint)
            _asked(commit, f"{id_} cannot be written", CotError, hint=hint)
        note(f"pushed to {made}")


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="cot_unsloth")


def _asked(ask: Callable[[], Found], failed: str, kind: type[CotError], *, hint: str) -> Found:
    """The hub's answer, or one error of ours in place of its many."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return ask()
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:  # uploads raise the last
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise kind(f"{failed}: {first}", where="export.push_to_hub", hint=hint) from error
