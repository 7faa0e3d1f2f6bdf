"""Hashes that show whether a file has changed, and whether two folders hold the same weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLES, _SAMPLE_BYTES = 256, 1 << 16


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def weights_hash(folder: Path | None) -> str:
    """A hash of a folder's weights and settings; of large files, only samples spread over the file are hashed.

    Training changes nearly every weight, so 256 samples of 64 KiB (16 MiB a file) are enough. Hashing all of a 7B
    model's 15 GB would take longer than writing its GGUF.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")) if folder else []:
        # Settings too: the same factors with another lora_alpha are another model.
        if file.name in ("config.json", "adapter_config.json"):
            digest.update(file.read_bytes())
        elif file.suffix == ".safetensors":
            length = file.stat().st_size
            digest.update(f"{file.name} {length}".encode())
            # The file's length is hashed too, and the samples reach from its beginning to its end.
            step = max(_SAMPLE_BYTES, length // _SAMPLES)
            with file.open("rb") as handle:
                for offset in range(0, length, step):
                    handle.seek(offset)
                    digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()
