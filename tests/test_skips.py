"""In CI a skipped test fails unless its reason is listed."""

from __future__ import annotations

from pathlib import Path

import conftest
import pytest

ROOT = Path(__file__).parent.parent
pytest_plugins = ["pytester"]


def test_ci_sets_the_variable() -> None:
    assert f"export {conftest.STRICT}=1" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("is_strict", [True, False])
def test_an_unlisted_skip_fails_if_the_variable_is_set(
    is_strict: bool, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(conftest.STRICT, "1" if is_strict else "")
    pytester.makeconftest(Path(conftest.__file__).read_text(encoding="utf-8"))
    pytester.makepyfile(
        """
        import pytest

        def test_listed(): pytest.skip("this machine has no IPv6")
        def test_unlisted(): pytest.skip("I do not feel like it")
        @pytest.mark.skipif(True, reason="by a mark")
        def test_marked(): pass
        def test_missing(): pytest.importorskip("no_such_library")
        """
    )
    outcome = pytester.runpytest("-p", "no:xdist", "-p", "no:cacheprovider")
    outcome.assert_outcomes(skipped=1, failed=2, errors=1) if is_strict else outcome.assert_outcomes(skipped=4)


def test_our_own_data_have_the_same_files_as_the_published_ones(own_data: Path) -> None:
    """So every test that uses `published_data` also runs without the published files."""
    if conftest.SHARED.is_dir():
        kinds = {path.relative_to(conftest.SHARED) for path in conftest.SHARED.glob("*/*") if path.suffix != ""}
        assert {path for path in kinds if path.suffix == ".jsonl"} == {
            path.relative_to(own_data) for path in own_data.glob("*/*.jsonl")
        }
