"""Whether the Hugging Face hub can be reached: without a network its libraries would try for a minute before they say so."""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request

from cot_unsloth.core.progress import note

_SECONDS = 2.0
"""How long a connection may take. Looking up a name has no time limit of its own, hence the thread."""
_SWITCH = "HF_HUB_OFFLINE"


@functools.cache
def check_hub() -> bool:
    """Look once whether the hub answers; if it does not, let its libraries use what they downloaded before, and nothing else.

    Behind a proxy nothing is looked at.

    Returns:
        Whether the hub was switched off here.
    """
    if os.environ.get(_SWITCH, "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if urllib.request.getproxies() or _answers(address.hostname or "", address.port or 443):
        return False
    note(f"{address.hostname} cannot be reached: only what was downloaded before can be used")
    os.environ[_SWITCH] = "1"  # for libraries that are imported later, and for other processes
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            setattr(sys.modules[module], _SWITCH, True)
    return True


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
