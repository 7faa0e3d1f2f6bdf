"""Checks whether the Hugging Face hub can be reached, and what was downloaded from it before.

Without a network its libraries would try for a minute before they say so, after seconds of importing torch.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Literal

from cot_unsloth.core.errors import DataError, ModelError
from cot_unsloth.core.progress import note

_SECONDS = 1.5
"""How long a connection may take: long enough for one lost packet, which Linux sends again after a second. Looking up a name
has no time limit of its own, hence the thread."""
_SWITCH = "HF_HUB_OFFLINE"


@functools.cache
def check_hub() -> bool:
    """Check once whether the hub answers; if not, switch its libraries to offline mode: they use only what they downloaded before.

    Behind a proxy there is no check.

    Returns:
        Whether the hub was switched off here.
    """
    if _is_switched_off():
        return False
    address = _address()
    if urllib.request.getproxies() or _answers(address.hostname or "", address.port or 443):
        return False
    note(f"{address.hostname} cannot be reached: only what was downloaded before can be used")
    os.environ[_SWITCH] = "1"  # for libraries that are imported later, and for other processes
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            setattr(sys.modules[module], _SWITCH, True)
    return True


def require(kind: Literal["model", "dataset"], name: str) -> None:
    """Reject a name that is not a local path, was not downloaded before, and cannot be downloaded now.

    Call it before torch, transformers or datasets is imported, which takes seconds.

    Args:
        kind: what the name refers to.
        name: a path, or OWNER/NAME on the hub.

    Raises:
        ModelError: the model is not available.
        DataError: the data set is not available.
    """
    if Path(name).exists() or _was_downloaded(kind, name):
        return
    if check_hub():
        reason = f"{_address().hostname} cannot be reached"
    elif _is_switched_off():
        reason = f"{_SWITCH} is set"
    else:
        return
    problem = "is not a local folder" if kind == "model" else "is not a local file"
    message, hint = f"{problem}, was not downloaded before, and {reason}", "download it where there is a network"
    if kind == "dataset":
        raise DataError(message, where=name, hint=f"name a file, or {hint}", name="not_on_the_hub")
    raise ModelError(message, where=name, hint=f"name a folder that holds a model, or {hint}", name="no_tokenizer")


def _address() -> urllib.parse.SplitResult:
    return urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


def _is_switched_off() -> bool:
    return os.environ.get(_SWITCH, "").upper() in ("1", "ON", "YES", "TRUE")


def _was_downloaded(kind: str, name: str) -> bool:
    """Whether the hub's cache has any part of it, or the cache of `datasets`, which keeps rows that it has prepared."""
    from huggingface_hub import constants

    folders = [Path(constants.HF_HUB_CACHE, "--".join((f"{kind}s", *name.split("/"))), "snapshots")]
    if kind == "dataset":
        prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
        folders.append(Path(prepared, name.replace("/", "___")))
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


def _answers(host: str, port: int) -> bool:
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_SECONDS).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return answered.is_set()
