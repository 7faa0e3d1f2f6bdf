"""Uploads to the Hugging Face Hub, and which repository each kind of target goes to.

USER/NAME holds the merged folder, USER/NAME-GGUF the files of llama.cpp and Ollama, USER/NAME-LoRA the adapter. Each
kind has its own, because a loader would have to guess which of two is meant: transformers, for one, loads an adapter that
it finds beside a model. A repository is created private unless the settings say otherwise, and gets one commit: the
files, the card, `verified.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from cot_unsloth.config import RunConfig
from cot_unsloth.core import network
from cot_unsloth.core.errors import CotError, InputError
from cot_unsloth.core.progress import bar, note

Result = TypeVar("Result")
Content = Path | bytes
"""A file that is uploaded as it is, or what to upload in its place."""
Library = Literal["transformers", "gguf", "peft"]
"""`library_name` of a model card: what loads a merged folder, GGUF files, or an adapter."""


@dataclass(frozen=True)
class RepositoryKind:
    """A repository that targets are uploaded to."""

    suffix: str
    """Appended to the name that the user gave."""
    library: Library
    has_verification: bool = True
    """Whether `verified.json` goes along."""


MERGED_MODEL = RepositoryKind("", "transformers")
GGUF_FILES = RepositoryKind("-GGUF", "gguf")
ADAPTER = RepositoryKind("-LoRA", "peft", has_verification=False)


@dataclass(frozen=True)
class Repository:
    """What one repository will hold."""

    suffix: str
    """As in `RepositoryKind`."""
    files: Mapping[str, Content]
    """By their names in the repository."""
    card: str
    """The text of its README.md."""


def check_access(config: RunConfig) -> None:
    """Make sure that the user is logged in to the hub, before hours of work.

    Raises:
        InputError: the hub is switched off, cannot be reached, or does not know the token.
    """
    name = config.export.push_to_hub
    if name is None:
        return
    from huggingface_hub import constants, get_token

    if network.check_hub():
        raise InputError("the hub cannot be reached", where="export.push_to_hub", hint="check the network")
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            "the hub is switched off by HF_HUB_OFFLINE",
            where="export.push_to_hub",
            hint="unset it, or leave --push-to-hub out",
        )
    # From HF_TOKEN, or from the file that `hf auth login` writes.
    if get_token() is None:
        raise InputError("you are not logged in to the hub", where="export.push_to_hub", hint="hf auth login")
    _request(_api().whoami, "the hub rejects your login", InputError, hint="hf auth login")


def push(config: RunConfig, repositories: Sequence[Repository]) -> None:
    """Push, one commit a repository.

    Raises:
        CotError: the hub refused or the connection was lost; local files are unchanged.
    """
    from huggingface_hub import CommitOperationAdd

    private, api = config.export.hub_private_repo, _api()
    hint = "the files are still here; repeat with only --push-to-hub to push them again"
    commits = []
    for repository in repositories:  # reads every file, so that a missing one stops the push before it has begun
        operations = [CommitOperationAdd(path, file) for path, file in sorted(repository.files.items())]
        operations.append(CommitOperationAdd("README.md", repository.card.encode()))
        commits.append((f"{config.export.push_to_hub}{repository.suffix}", operations))
    for repo_id, operations in commits:
        # With exist_ok, a repository that exists keeps its visibility, whatever `private` is.
        create = partial(api.create_repo, repo_id, private=private, exist_ok=True)
        # One commit, so that nobody downloads weights without the card and the record that belong to them.
        commit = partial(api.create_commit, repo_id, operations, commit_message="Add a verified export")
        with bar(f"push {repo_id}"):
            url = _request(create, f"{repo_id} cannot be created", CotError, hint=hint)
            _request(commit, f"{repo_id} cannot be written", CotError, hint=hint)
        note(f"pushed to {url}")


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="cot_unsloth")


def _request(send: Callable[[], Result], message: str, kind: type[CotError], *, hint: str) -> Result:
    """The hub's answer; its many exceptions become one error of ours."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return send()
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        # ValueError is also a malformed repository name; RuntimeError is what a failed upload raises.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise kind(f"{message}: {first}", where="export.push_to_hub", hint=hint) from error
