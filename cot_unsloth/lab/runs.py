"""`runs`: lists the run folders in a folder, with their settings, their scores, and whether they are complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cot_unsloth.core import verdict
from cot_unsloth.core.errors import CotError, DataError
from cot_unsloth.core.progress import size
from cot_unsloth.core.results import Manifest, Scorecard
from cot_unsloth.core.results.comparison import ListedRun, RunState
from cot_unsloth.core.results.verification import read_verification
from cot_unsloth.reporting.page import Grid, Page, percent
from cot_unsloth.storage.lock import is_locked
from cot_unsloth.storage.run_folder import RunDir

_DEEPEST = 4
"""Folders below the one that is listed; a trial of a sweep is SWEEP/trials/N."""


def list_runs(folder: Path) -> list[ListedRun]:
    """Every run in a folder, at most four levels below it, newest first; those without a date last.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder", where=str(folder), name="file_missing")
    runs = [_listed(path) for path in sorted(_run_folders(folder, _DEEPEST))]
    return sorted(runs, key=lambda run: run.started or "", reverse=True)


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Run folders, without looking for further ones inside them."""
    if (folder / "config.yaml").is_file() or (folder / "manifest.json").is_file():
        yield folder
    elif depth and folder.is_dir():
        try:
            children = sorted(folder.iterdir())
        except OSError:
            return
        for child in children:
            # The folder that is listed may be a link to another disk; links in it are not followed, as they may form a circle.
            yield from _run_folders(child, 0 if child.is_symlink() else depth - 1)


def _listed(path: Path) -> ListedRun:
    try:
        return _read(RunDir(path))
    # A listing of many folders must not end at a damaged one, whatever is wrong with its files.
    except (CotError, OSError, ValueError, KeyError, TypeError) as error:
        reason = error.message if isinstance(error, CotError) else str(error)
        return ListedRun(path=str(path), state="damaged", size=_size(path), problem=" ".join(reason.split())[:200])


def _read(run: RunDir) -> ListedRun:
    config = run.read_config()
    manifest = run.read_manifest() or Manifest()
    card = Scorecard.read_if_there(run.scorecard)
    state, problem = _state(run, manifest, card)
    before, after = _scores(card)
    return ListedRun(
        path=str(run.path),
        state=state,
        started=manifest.started,
        model=config.model.model_name_or_path,
        dataset=config.data.dataset,
        method="full" if config.train.full_finetuning else config.train.method,
        n=card.n if card else None,
        before=before,
        after=after,
        size=_size(run.path),
        problem=problem,
    )


def _state(run: RunDir, manifest: Manifest, card: Scorecard | None) -> tuple[RunState, str]:
    if is_locked(run.path):
        return "running", ""
    if manifest.finished is None or run.trained_weights is None:
        return "interrupted", ""
    checks = read_verification(run.export).checks
    failed = next((check for check in checks if not check.passed), None)
    if failed is not None:
        return "export failed", failed.file
    if card is not None and card.gate is not None and card.gate.failed:
        return "gate failed", card.gate.failed[0]
    return "complete", ""


def _scores(card: Scorecard | None) -> tuple[float | None, float | None]:
    if card is None:
        return None, None
    first = next((arm for arm in (*verdict.BASES, "start") if arm in card.arms), None)
    before = card.arms[first].accuracy if first else None
    return before, card.arms["tuned"].accuracy if "tuned" in card.arms else None


def _size(folder: Path) -> int:
    """Bytes of a folder's files; one that disappears meanwhile counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def page(folder: Path, runs: Sequence[ListedRun]) -> Page:
    """A listing to print."""
    rows = [_row(folder, run) for run in runs]
    columns: tuple[str, ...] = ("run", "date", "model", "data", "how", "score", "size", "state")
    if all(Path(row[0]).name.startswith(row[1].replace("-", "")) for row in rows):  # names that train has given
        columns, rows = (columns[0], *columns[2:]), [(row[0], *row[2:]) for row in rows]
    grids = [Grid("", columns, rows)] if rows else []
    notes = [f"{_name(folder, run)} is {run.state}: {run.problem}" for run in runs if run.problem]
    counts = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(run.state for run in runs)}
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    sentence = f"{len(runs)} run{'s' * (len(runs) != 1)} in {folder}: {states}" if runs else f"no runs in {folder}"
    return Page(f"runs in {folder}", sentence, notes=notes, grids=grids)


def _name(folder: Path, run: ListedRun) -> str:
    name = Path(run.path).relative_to(folder)
    return str(name) if name.parts else str(folder)


def _row(folder: Path, run: ListedRun) -> tuple[str, ...]:
    scored = run.after is not None or run.before is not None
    score = f"{percent(run.before)} → {percent(run.after)}" if scored else ""
    return (
        _name(folder, run),
        (run.started or "")[:10],  # the time is in --json
        Path(run.model).name,
        Path(run.dataset).name if run.dataset.startswith(("/", ".")) else run.dataset,
        run.method,
        score,
        size(run.size),
        run.state,
    )
