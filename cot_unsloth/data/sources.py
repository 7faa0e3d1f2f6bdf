"""Which files a data set's name stands for: a file, several, a glob, a folder, or a hub id."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cot_unsloth.config import HUB_ID, DataConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.data import arrow_files, csv_files, json_files
from cot_unsloth.data.split_names import is_split, split_called
from cot_unsloth.data.text_files import PACKED, suffix_of

SUFFIXES = (*json_files.LINE_SUFFIXES, ".json", *csv_files.SUFFIXES, *arrow_files.SUFFIXES)
_NO_DATA = re.compile(
    r"(readme|licen[cs]e|changelog|citation|requirements|package|package-lock|config|dataset_infos?|dataset_dict|state)\b",
    re.IGNORECASE,
)
_GLOB = re.compile(r"[*?\[]")
_WORDS = re.compile(r"[^a-z0-9]+")


def find(data: DataConfig) -> Iterator[Path | str]:
    """The files, the folders that `save_to_disk` wrote (both as paths) and the hub ids (as text), in order.

    Raises:
        DataError: there is no such file, or a glob or folder has no data file.
    """
    sources = [source for name in data.sources for source in _of_name(name, data)]
    distinct = list(dict.fromkeys(sources))
    if len(distinct) < len(sources):
        repeated = next(source for source in distinct if sources.count(source) > 1)
        note(f"{repeated} is named more than once; read once")
    if len(distinct) > 1:
        note(f"reading {len(distinct)} files: {_listed(map(str, distinct))}")
    yield from distinct


def _of_name(name: str, data: DataConfig) -> list[Path] | list[str]:
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return _of_folder(path, data)
    except (OSError, ValueError) as error:  # a name too long for a file, or with a NUL
        raise DataError(f"cannot be looked up: {error}", where=name[:200], name="file_missing") from error
    if _GLOB.search(name):
        return _of_glob(path)
    if path.exists():
        hint = "it is read more than once, so write it to a file first"
        raise DataError("is neither a file nor a folder", where=name, hint=hint, name="file_missing")
    if suffix_of(path) in SUFFIXES or name.startswith(".") or not HUB_ID.fullmatch(name):
        raise DataError("there is no such file", where=name, hint=_way_out(path), name="file_missing")
    return [name]


def _way_out(path: Path) -> str | None:
    if re.match(r"\w+:/", str(path)):
        return "a data set is a file here or a hub id; download the file first"
    return near(path) or (None if path.parent.is_dir() else f"there is no folder {path.parent}")


def near(path: Path) -> str | None:
    """What a file that is not there may have been meant to be."""
    try:
        names = sorted(child.name for child in path.parent.iterdir() if not child.name.startswith("."))
    except OSError:
        return None
    stem = _stem(path.name)
    stems = {name: _stem(name) for name in names if not _are_numbered(stem, _stem(name))}
    alike = difflib.get_close_matches(stem, stems.values(), 1, _TYPO)
    meant = [name for name in stems if alike and stems[name] == alike[0]]
    near_name = difflib.get_close_matches(path.name, meant, 1, 0)
    return f"did you mean {path.parent / near_name[0]}?" if near_name else None


_TYPO = 0.8
"""How alike two names must be for one to be a typo of the other; suffixes, which all share, do not count."""
_DIGITS = re.compile(r"\d+")


def _are_numbered(one: str, other: str) -> bool:
    """Whether two names differ in their numbers, as those of parts do."""
    numbers, others = _DIGITS.findall(one), _DIGITS.findall(other)
    return bool(numbers and others) and numbers != others


def _stem(name: str) -> str:
    """A file's name without the suffixes that say what it holds.

    >>> _stem("Rows.v2.jsonl.gz")
    'rows.v2'
    """
    path = Path(name)
    path = Path(path.stem) if path.suffix.lower() in PACKED else path
    return (path.stem if path.suffix.lower() in SUFFIXES else path.name).casefold()


def _of_glob(pattern: Path) -> list[Path]:
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (Path.glob takes no absolute pattern)
    files = [match for match in matches if match.is_file()]
    data = [file for file in files if _is_data(file)]
    if not data:
        fixed = Path(*[part for part in pattern.parts if not _GLOB.search(part)][: _first_glob(pattern)])
        there = f"; it matches {_listed(map(str, matches))}, of which none is a data file" if matches else ""
        raise DataError(
            f"no data file matches{there}",
            where=str(pattern),
            hint=f"looked in {fixed.absolute()} for {', '.join(SUFFIXES)}; quote the pattern in a shell, and use ** for "
            "folders inside folders",
            name="no_matching_file",
        )
    _announce_left_out([match for match in files if match not in data], f"{pattern}: not data files")
    return data


def _first_glob(pattern: Path) -> int:
    return next(index for index, part in enumerate(pattern.parts) if _GLOB.search(part))


def _is_data(file: Path) -> bool:
    return suffix_of(file) in SUFFIXES and not _NO_DATA.match(file.name) and not file.name.startswith(".")


def _of_folder(folder: Path, data: DataConfig) -> list[Path]:
    """The data files of a folder that belong to the split asked for."""
    if arrow_files.is_saved(folder):
        return [folder]
    inner = folder / data.dataset_config_name if data.dataset_config_name else None
    root = inner if inner is not None and inner.is_dir() else folder
    try:
        everything = sorted(file for file in root.rglob("*") if file.is_file() and not _hidden(file.relative_to(root)))
    except OSError as error:
        raise DataError(f"cannot be read: {error}", where=str(root)) from error
    files = [file for file in everything if _is_data(file)]
    if not files:
        there = f"; it holds {_listed(file.name for file in everything)}" if everything else ""
        raise DataError(
            f"is a folder without a data file{there}",
            where=str(root),
            hint=f"looked for {', '.join(SUFFIXES)}",
            name="folder_without_data",
        )
    taken = _of_split(files, root, data.dataset_split)
    left_out = [file for file in everything if file not in taken and (file in files or not _NO_DATA.match(file.name))]
    read = "read" if len(taken) == len(files) else f"split {data.dataset_split!r} is"
    _announce_left_out(left_out, f"{root}: {read} {_listed(file.name for file in taken)}; not read")
    return taken


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _of_split(files: list[Path], root: Path, split: str) -> list[Path]:
    """The files of a split, by the names of files and subfolders; files that name none are training data."""
    splits = {file: _split_named(file.relative_to(root), split) for file in files}
    if not any(splits.values()):
        return files
    named = [file for file in files if (found := splits[file]) is not None and is_split(found, split)]
    taken = named or [file for file in files if splits[file] is None and is_split("train", split)]
    if not taken:
        names = list(dict.fromkeys(splits[file] or "train" for file in files))
        raise DataError(
            f"has no files of split {split!r}: {_listed(str(file.relative_to(root)) for file in files)}",
            where=str(root),
            hint=f"choose one: --dataset-split {names[0]}; or name the files themselves",
            name="no_such_split",
        )
    return taken


def _split_named(path: Path, split: str) -> str | None:
    """The split that a file's name or subfolder says, as `train/a.jsonl`, `gsm8k_test.json` and `train-00000.parquet` do."""
    stem = path.name.removesuffix("".join(path.suffixes))
    for part in (*path.parts[:-1], stem):
        if part == split:
            return split
        for word in _WORDS.split(part.lower()):
            found = split_called(word) or split_called(word.rstrip("0123456789"))
            if found is not None:
                return found
    return None


def _listed(names: Iterable[str], most: int = 8) -> str:
    every = list(names)
    return ", ".join(every[:most]) + f" and {len(every) - most} more" * (len(every) > most)


def _announce_left_out(files: list[Path], what: str) -> None:
    if files:
        note(f"{what}: {_listed(file.name for file in files)}")
