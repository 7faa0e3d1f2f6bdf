"""Fixtures shared by several test files, and the rule about skipped tests. tests/README.md lists files and fixtures."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["COT_UNSLOTH_CACHE"] = "off"  # tests of the cache name a folder of their own

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
NO_SHARED_DATA = f"published data is missing ({SHARED})"
LISTED_SKIPS = {
    re.escape(
        NO_SHARED_DATA
    ): "their licences do not allow us to distribute them; the same tests run on rows and tokenizers of our own",
    r"this build of xllamacpp does not export ggml's quantizer": "its errors are also compared with committed figures",
    r"this machine has no IPv6": "a container may have none",
    r"TRANSFORMERS_4 names no python": "an environment with transformers 4 is made by hand",
    r"no browser is installed|no Chromium is installed": "needs root to install; .ci/run does where it can",
}
"""Accepted reasons for a skip in CI, as regular expressions, and why each is accepted. Any other skip is a failure."""
STRICT = "COT_UNSLOTH_NO_UNLISTED_SKIPS"
"""Environment variable with which .ci/run turns an unlisted skip into a failure."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get(STRICT) and not hasattr(report, "wasxfail"):
        _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
        if not is_listed(reason):
            report.outcome = "failed"
            report.longrepr = (
                f"{item.nodeid} was skipped ({reason}), which LISTED_SKIPS in tests/conftest.py does not list"
            )
    return report


def is_listed(reason: str) -> bool:
    """Whether a test may be skipped in CI for this reason."""
    return any(re.search(pattern, reason) for pattern in LISTED_SKIPS)


@pytest.fixture(scope="session")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in the format of GSM8K and small tokenizers, all our own, in the same files as `shared_data`."""
    import stand_ins

    return stand_ins.build(tmp_path_factory.mktemp("stand_ins"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The published GSM8K and tokenizers of Llama 3.2 and Qwen2.5, which are not part of the project; skips without them."""
    if not SHARED.is_dir():
        pytest.skip(NO_SHARED_DATA)
    return SHARED


@pytest.fixture(scope="session", params=["own", "published"])
def published_data(request: pytest.FixtureRequest) -> Path:
    """Runs a test twice: with `own_data` and with `shared_data`."""
    folder: Path = request.getfixturevalue("own_data" if request.param == "own" else "shared_data")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run in parallel processes, so each uses a single thread in torch."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, driven by playwright."""
    from helpers import BROWSER  # imports much, which tests without a browser need not wait for

    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()
