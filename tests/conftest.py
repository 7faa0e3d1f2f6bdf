"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data and tokenizers of other people, which are not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"real data is not here ({SHARED})")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side; torch's own threads would only get in their way."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
