"""Finds the files of a data set, given as files, a glob, a folder, or a hub id."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cot_unsloth.config import HUB_ID, DataConfig
from cot_unsloth.core.errors import DataError
from cot_unsloth.core.progress import note
from cot_unsloth.data import arrow_files
from cot_unsloth.data.formats import SUFFIXES
from cot_unsloth.data.split_names import is_split, standard_split
from cot_unsloth.data.text_files import COMPRESSED_SUFFIXES, suffix_of

_NO_DATA = re.compile(
    r"(?:readme|licen[cs]e|changelog|citation|requirements|package|package-lock|config|dataset_infos?|dataset_dict|state)"
    r"(?:\.\w+)?",
    re.IGNORECASE,
)
"""Names of files in data set repositories that have a data suffix but hold no rows; `config-qa.jsonl` is none of them."""
_GLOB = re.compile(r"[*?\[]")
_WORDS = re.compile(r"[^a-z0-9]+")


def find_sources(data: DataConfig) -> Iterator[Path | str]:
    """The files and `save_to_disk` folders (as Path) and the hub ids (as str) of a data set, in the order given.

    Raises:
        DataError: a file does not exist, or a glob or folder has no data file.
    """
    distinct: dict[Path | str, Path | str] = {}
    repeated: list[Path | str] = []
    for source in (source for name in data.sources for source in _resolve(name, data)):
        # The same file may be given by other paths, such as a relative and an absolute one.
        same = source.resolve() if isinstance(source, Path) else source
        if same in distinct:
            repeated.append(source)
        distinct.setdefault(same, source)
    if repeated:
        note(f"{repeated[0]} is named more than once; read once")
    if len(distinct) > 1:
        note(f"reading {len(distinct)} files: {_list_names(map(str, distinct.values()))}")
    yield from distinct.values()


def _resolve(name: str, data: DataConfig) -> list[Path] | list[str]:
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            return _files_of_folder(path, data)
    except (OSError, ValueError) as error:  # longer than the file system allows, or with a NUL
        raise DataError(f"cannot be looked up: {error}", where=name[:200], name="file_missing") from error
    if _GLOB.search(name):
        return _files_of_glob(path)
    if path.exists():
        hint = "it is read more than once, so write it to a file first"
        raise DataError("is neither a file nor a folder", where=name, hint=hint, name="file_missing")
    if suffix_of(path) in SUFFIXES or name.startswith(".") or not HUB_ID.fullmatch(name):
        raise DataError("there is no such file", where=name, hint=_missing_hint(path), name="file_missing")
    return [name]


def _missing_hint(path: Path) -> str | None:
    if re.match(r"\w+:/", str(path)):
        return "a data set is a local file or a hub id; download the file first"
    return suggest_name(path) or (None if path.parent.is_dir() else f"there is no folder {path.parent}")


def suggest_name(path: Path) -> str | None:
    """The text "did you mean ...?" for a file that does not exist; None if no file has a similar name."""
    try:
        names = sorted(child.name for child in path.parent.iterdir() if not child.name.startswith("."))
    except OSError:
        return None
    stem = _stem(path.name)
    stems = {name: _stem(name) for name in names if not _differ_in_number(stem, _stem(name))}
    similar = difflib.get_close_matches(stem, stems.values(), 1, _MIN_SIMILARITY)
    candidates = [name for name in stems if similar and stems[name] == similar[0]]
    closest = difflib.get_close_matches(path.name, candidates, 1, 0)
    return f"did you mean {path.parent / closest[0]}?" if closest else None


_MIN_SIMILARITY = 0.8
"""difflib's ratio from which one stem may be a typo of another. Suffixes are left out: they would make all alike."""
_DIGITS = re.compile(r"\d+")


def _differ_in_number(one: str, other: str) -> bool:
    """Whether two names have different numbers, like `part-1` and `part-2`: neither is a typo of the other."""
    numbers, others = _DIGITS.findall(one), _DIGITS.findall(other)
    return bool(numbers and others) and numbers != others


def _stem(name: str) -> str:
    """A file's name without its data suffix and that of a compressor.

    >>> _stem("Rows.v2.jsonl.gz")
    'rows.v2'
    """
    path = Path(name)
    path = Path(path.stem) if path.suffix.lower() in COMPRESSED_SUFFIXES else path
    return (path.stem if path.suffix.lower() in SUFFIXES else path.name).casefold()


def _files_of_glob(pattern: Path) -> list[Path]:
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 (Path.glob refuses absolute patterns)
    files = [match for match in matches if match.is_file()]
    data = [file for file in files if _is_data(file)]
    if not data:
        fixed = Path(*[part for part in pattern.parts if not _GLOB.search(part)][: _first_glob(pattern)])
        matched = f"; it matches {_list_names(map(str, matches))}, of which none is a data file" if matches else ""
        raise DataError(
            f"no data file matches{matched}",
            where=str(pattern),
            hint=f"looked in {fixed.absolute()} for {', '.join(SUFFIXES)}; quote the pattern in a shell, and use ** for "
            "folders inside folders",
            name="no_matching_file",
        )
    _announce_skipped([match for match in files if match not in data], f"{pattern}: not data files")
    return data


def _first_glob(pattern: Path) -> int:
    return next(index for index, part in enumerate(pattern.parts) if _GLOB.search(part))


def _is_data(file: Path) -> bool:
    return suffix_of(file) in SUFFIXES and not _NO_DATA.fullmatch(file.name) and not file.name.startswith(".")


def _files_of_folder(folder: Path, data: DataConfig) -> list[Path]:
    """The data files of a folder that belong to the requested split."""
    if arrow_files.is_saved(folder):
        return [folder]
    if (folder / "attempts.jsonl").is_file() and (folder / "data.jsonl").is_file():
        return [folder / "data.jsonl"]  # `sample` wrote it, and its other files hold no rows to train on
    inner = folder / data.dataset_config_name if data.dataset_config_name else None
    root = inner if inner is not None and inner.is_dir() else folder
    try:
        all_files = sorted(
            file for file in root.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(root))
        )
    except OSError as error:
        raise DataError(f"cannot be read: {error}", where=str(root)) from error
    files = [file for file in all_files if _is_data(file)]
    if not files:
        content = f"; it holds {_list_names(file.name for file in all_files)}" if all_files else ""
        raise DataError(
            f"is a folder without a data file{content}",
            where=str(root),
            hint=f"looked for {', '.join(SUFFIXES)}",
            name="folder_without_data",
        )
    selected = _files_of_split(files, root, data.dataset_split)
    skipped = [
        file for file in all_files if file not in selected and (file in files or not _NO_DATA.fullmatch(file.name))
    ]
    read = "read" if len(selected) == len(files) else f"split {data.dataset_split!r} is"
    _announce_skipped(skipped, f"{root}: {read} {_list_names(file.name for file in selected)}; not read")
    return selected


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _files_of_split(files: list[Path], root: Path, split: str) -> list[Path]:
    """The files of a split, by file and folder names; files whose names contain no split are training data."""
    splits = {file: _split_in_path(file.relative_to(root), split) for file in files}
    if not any(splits.values()):
        return files
    named = [file for file in files if (name := splits[file]) is not None and is_split(name, split)]
    selected = named or [file for file in files if splits[file] is None and is_split("train", split)]
    if not selected:
        names = list(dict.fromkeys(splits[file] or "train" for file in files))
        raise DataError(
            f"has no files of split {split!r}: {_list_names(str(file.relative_to(root)) for file in files)}",
            where=str(root),
            hint=f"choose one: --dataset-split {names[0]}; or name the files themselves",
            name="no_such_split",
        )
    return selected


def _split_in_path(path: Path, split: str) -> str | None:
    """The split in a file's name or folder, as in `train/a.jsonl`, `gsm8k_test.json` and `train-00000.parquet`."""
    stem = path.name.removesuffix("".join(path.suffixes))
    for part in (*path.parts[:-1], stem):
        if part == split:
            return split
        for word in _WORDS.split(part.lower()):
            standard = standard_split(word) or standard_split(word.rstrip("0123456789"))
            if standard is not None:
                return standard
    return None


def split_in_name(path: Path) -> str | None:
    """The split that the name of a file stands for, as in `gsm8k_test.json`; None if it names none."""
    return _split_in_path(Path(path.name), "")


def _list_names(names: Iterable[str], most: int = 8) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + f" and {len(listed) - most} more" * (len(listed) > most)


def _announce_skipped(files: list[Path], what: str) -> None:
    if files:
        note(f"{what}: {_list_names(file.name for file in files)}")
