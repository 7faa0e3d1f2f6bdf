"""Data files of every kind: each row is read in full or rejected, and each error suggests a fix that works."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from cot_unsloth.config import DataConfig, load_tree
from cot_unsloth.core.errors import ConfigError, DataError
from cot_unsloth.core.types import Reject
from cot_unsloth.data import files
from cot_unsloth.storage import run_names

ROWS = [{"question": f"{n} + 4?", "answer": f"Ünïcode “{n}”\n#### {n + 4}"} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "question,answer\n" + "".join(f'{row["question"]},"{row["answer"]}"\n' for row in ROWS)


def numbered(dataset: Any, **settings: Any) -> list[tuple[str, Any]]:
    return list(files.read_rows(DataConfig(dataset=dataset if isinstance(dataset, list) else str(dataset), **settings)))


def read(dataset: Any, **settings: Any) -> list[Any]:
    return [row for _, row in numbered(dataset, **settings)]


def fault(dataset: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        numbered(dataset, **settings)
    return str(caught.value)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rejects(dataset: Path) -> list[tuple[int, str]]:
    """Line and reason of each rejected row."""
    return [
        (int(where.rpartition(":")[2]), row.reason) for where, row in numbered(dataset) if isinstance(row, Reject)
    ]  # fmt: skip


# --- file formats ---------------------------------------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}
TEXTS = {
    "rows.jsonl": LINES,
    "lines.json": LINES,
    "list.json": json.dumps(ROWS, ensure_ascii=False),
    "pretty.jsonl": json.dumps(ROWS, indent=1),
    "pretty-objects.json": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "pretty-objects.jsonl": "\n".join(json.dumps(row, indent="\t") for row in ROWS) + "\n",
    "commas.jsonl": LINES.replace("}\n", "},\n"),
    "two-lists.json": json.dumps(ROWS[:2], indent=1) + "\n" + json.dumps(ROWS[2:], indent=1),
    "rows.csv": CSV,
    "semicolons.csv": CSV.replace(",", ";"),
    "tabs.csv": CSV.replace(",", "\t"),
    "rows.tsv": CSV.replace(",", "\t"),
    "commas.tsv": CSV,
    "excel.csv": "sep=;\r\n" + CSV.replace(",", ";"),
    "spaces.csv": CSV.replace(",", ", "),
    "csv.jsonl": CSV,
    "json.csv": LINES,
    "list.csv": json.dumps(ROWS, indent=2),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("suffix", ["", *COMPRESSORS])
def test_the_format_is_recognised_from_the_content_and_not_from_the_name(
    name: str, suffix: str, tmp_path: Path
) -> None:
    content = TEXTS[name].encode()
    assert read(write(tmp_path / (name + suffix), COMPRESSORS.get(suffix, bytes)(content))) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv", "rows"])
def test_compression_is_recognised_without_a_suffix(name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, zstd(LINES.encode()))) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "rows.csv", "tabs.csv"])
def test_every_unicode_encoding_is_read(name: str, encoding: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    assert read(write(tmp_path / name, (mark + TEXTS[name]).encode(encoding))) == ROWS


def test_utf_16_without_a_byte_order_mark_is_read_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(write(tmp_path / "rows.csv", CSV.encode("utf-16-le"))) == ROWS
    assert "rows.csv: is UTF-16 text; read as such" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("name", ["rows.jsonl", "pretty.jsonl", "rows.csv"])
def test_windows_and_old_mac_line_ends_are_read(name: str, end: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, TEXTS[name].replace("\n", end))
    rows = [{key: cell.replace("\r\n", "\n") for key, cell in row.items()} for row in read(path)]
    assert rows == ROWS
    if name == "rows.jsonl":
        assert [where for where, _ in numbered(path)] == [f"{path}:{line}" for line in (1, 2, 3)]


def test_parquet_arrow_and_feather_are_read(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "rows.feather")
    with pyarrow.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    write(tmp_path / "rows.parquet.gz", gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    write(tmp_path / "parquet.json", (tmp_path / "rows.parquet").read_bytes())
    for path in sorted(tmp_path.iterdir()):
        assert numbered(path) == [(f"{path}#{index}", row) for index, row in enumerate(ROWS)], path


def test_cells_of_an_old_mac_csv_may_hold_line_feeds(tmp_path: Path) -> None:
    csv_file = write(tmp_path / "mac.csv", 'question,answer\r"3\n+ 4?","3 + 4 = 7\n#### 7"\r"8?",8\r')
    rows = [{"question": "3\n+ 4?", "answer": "3 + 4 = 7\n#### 7"}, {"question": "8?", "answer": "8"}]
    assert read(csv_file) == rows


def test_classes_are_read_by_name_and_no_class_as_null(tmp_path: Path) -> None:
    """`ClassLabel` of `datasets` keeps numbers: the answer 2 would be learned in place of `contradiction`."""
    import datasets

    names = ["entailment", "neutral", "contradiction"]
    features = datasets.Features({"label": datasets.ClassLabel(names=names), "n": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"label": [2, 0, -1], "n": [2, 0, -1]}, features=features)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    rows = [{"label": "contradiction", "n": 2}, {"label": "entailment", "n": 0}, {"label": None, "n": -1}]
    assert read(tmp_path / "rows.parquet") == read(tmp_path / "saved") == rows


@pytest.mark.parametrize(
    "metadata", [b"", b"[]", b'{"info": {"features": []}}', b'{"info": {"features": {"n": {"_type": "ClassLabel"}}}}']
)
def test_damaged_notes_on_classes_are_ignored(metadata: bytes, tmp_path: Path) -> None:
    table = pyarrow.table({"n": [1]}).replace_schema_metadata({b"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == [{"n": 1}]


def test_short_floats_are_read_as_they_were_written(tmp_path: Path) -> None:
    """As a Python float, 0.1 of 32 bits is 0.10000000149011612, which no answer would equal."""
    import datasets

    short, shorter = pyarrow.float32(), pyarrow.float16()
    columns = {
        "answer": pyarrow.array([0.1, None], short),
        "half": pyarrow.array([33.33, 2.5], shorter),
        "steps": pyarrow.array([[0.1, 19.99], []], pyarrow.list_(short)),
        "nested": pyarrow.array([{"value": 3.14}, None], pyarrow.struct([("value", short)])),
        "double": [0.1, 1e-7],
    }
    expected = [
        {"answer": 0.1, "half": 33.34, "steps": [0.1, 19.99], "nested": {"value": 3.14}, "double": 0.1},
        {"answer": None, "half": 2.5, "steps": [], "nested": None, "double": 1e-7},
    ]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    assert [row for _, row in numbered(tmp_path / "rows.parquet")] == expected
    datasets.Dataset(pyarrow.table(columns)).save_to_disk(str(tmp_path / "saved"))
    assert [row for _, row in numbered(tmp_path / "saved")] == expected


def test_a_header_that_comes_again_is_no_row(tmp_path: Path) -> None:
    """As after `cat a.csv b.csv`."""
    path = write(tmp_path / "rows.csv", "question,answer\nq,1\nquestion, answer\nr,2\n")
    (rejected,) = [row for _, row in numbered(path) if isinstance(row, Reject)]
    assert (rejected.where, rejected.reason) == (f"{path}:3", "repeated_header")


def test_rows_that_the_hub_has_cut_off_are_rejected(tmp_path: Path) -> None:
    rows = [
        {"row_idx": at, "row": {"question": "q", "answer": "1"}, "truncated_cells": cut}
        for at, cut in enumerate(([], ["answer"]))
    ]
    path = write(tmp_path / "rows.json", json.dumps({"features": [], "rows": rows}))
    (_, kept), (_, rejected) = numbered(path)
    assert kept == {"question": "q", "answer": "1"}
    assert isinstance(rejected, Reject)
    assert (rejected.reason, rejected.where) == ("truncated_cells", f"{path}#1")


REFUSED: list[tuple[str, bytes, tuple[str, ...]]] = [
    ("book.xlsx", b"PK\x03\x04 [Content_Types].xml", ("Excel workbook", "CSV UTF-8", "pandas.read_excel")),
    ("rows.zip", b"PK\x03\x04", ("a zip archive", "unpack it")),
    ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("Git LFS pointer", "git lfs pull")),
    ("rows.json", b"<!DOCTYPE html>\n<html>", ("a web page", "raw")),
    ("rows.pkl", b"\x80\x04\x95\x00", ("can run code", "JSONL or Parquet")),
    ("rows.txt", LINES.encode(), (".txt is not a data file", "looks like JSON; name it", "rows.jsonl")),
    ("rows.txt", CSV.encode(), (".txt is not a data file", "looks like CSV")),
    ("rows.md", b"# Rows\n", (".md is not a data file", "known: .jsonl", ".gz")),
    ("rows.json", b"just words\n", ("rows.json:1:1: is not JSON", "'just words'")),
    ("rows.parquet", b"PAR1 and no more", ("is not Parquet", "cut off or damaged")),
    ("rows.jsonl.gz", gzip.compress(LINES.encode() * 99)[:-9], ("gzip data that is cut off", "gzip -dc")),
    ("rows.jsonl.zst", zstd(LINES.encode() * 99)[:-9], ("zstd data that is cut off", "zstd -dc")),
    ("rows.csv.bz2", bz2.compress(CSV.encode() * 99)[:-9], ("bzip2 data that is cut off", "bzip2 -dc")),
    ("rows.csv.xz", lzma.compress(CSV.encode() * 99)[:-9], ("xz data that is cut off", "xz -dc")),
    ("rows.csv", CSV.encode("utf-16")[:-1], ("is incomplete UTF-16 text", "near byte")),
]


@pytest.mark.parametrize(("name", "content", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_is_not_a_data_file_is_refused_with_a_solution(
    name: str, content: bytes, expected: tuple[str, ...], tmp_path: Path
) -> None:
    message = fault(write(tmp_path / name, content))
    assert [text for text in expected if text not in message] == [], message


# --- text in other encodings -----------------------------------------------------------------------------------------


def converted(message: str) -> Path:
    """Run the command given in a message and return the file it writes."""
    command = next(line for line in message.splitlines() if "iconv" in line).partition("new file: ")[2]
    subprocess.run(command, shell=True, check=True)
    return Path(command.rpartition("> ")[2].strip("'"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "list.json", "my rows.csv"])
def test_the_command_in_the_error_about_cp1252_converts_the_file(name: str, suffix: str, tmp_path: Path) -> None:
    content = TEXTS[name.removeprefix("my ")].encode("cp1252")
    message = fault(write(tmp_path / (name + suffix), COMPRESSORS.get(suffix, bytes)(content)))
    assert f"{name}{suffix}:{2 if name.endswith('csv') else 1}: is not UTF-8 text: byte" in message
    assert "(0xdc)" in message
    assert "it looks like cp1252" in message
    assert read(converted(message)) == ROWS


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("сколько яблок у Маши", "cp1251"),
        ("一个苹果三元，五个多少钱", "gb18030"),
        ("りんごはいくつありますか", "shift_jis"),
        ("사과가 몇 개 있습니까", "euc_kr"),
        ("naïve café", "mac_roman"),
    ],
)
def test_other_encodings_are_named_and_convertible(text: str, encoding: str, tmp_path: Path) -> None:
    if encoding == "mac_roman":
        text += " é"  # 0x8f, which is è in mac_roman, is not assigned in cp1252
        text = text.replace("é", "è")
    rows = [{"question": text, "answer": str(n)} for n in range(4)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    message = fault(write(tmp_path / "rows.jsonl", lines.encode(encoding)))
    assert f"looks like {encoding}" in message
    assert read(converted(message)) == rows


def test_one_line_in_another_encoding_rejects_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LINES.encode() + '{"question": "café"}\n'.encode("cp1252") + LINES.encode())
    (reject,) = [row for row in read(path) if isinstance(row, Reject)]
    assert (reject.where, reject.reason) == (f"{path}:4", "not_utf8")
    assert "byte 18 of the line (0xe9) is not UTF-8; it looks like cp1252" in reject.detail
    assert "other lines are UTF-8" in reject.detail
    assert len(read(path)) == 7


def test_one_line_in_another_encoding_rejects_one_row_of_a_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", CSV.encode() + "café,1\nok,2\n".encode("cp1252"))
    assert rejects(path) == [(8, "broken_csv")]
    assert read(path)[-1] == {"question": "ok", "answer": "2"}


def test_a_file_that_ends_inside_a_character_rejects_its_last_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LINES.encode() + '{"question": "é'.encode()[:-1])
    assert rejects(path) == [(4, "broken_json")]
    assert "the file ends in the middle of a character" in read(path)[-1].detail


# --- CSV -------------------------------------------------------------------------------------------------------------

GOOD = 'a,"1\n#### 1"\n'
STRAY: dict[str, tuple[str, list[int]]] = {
    "inside a cell of several lines": ('b,"he said "hi"\n#### 2"\n', [4]),
    "inside a cell of one line": ('b,"he said "hi" to me"\n', [4]),
    "in the first cell": ('"b" or c,2\n', [4]),
    "never closed": ('b,"open\n', [4]),
    "never closed in the first cell": ('"b,2\n', [4]),
    "with a comma after it": ('b,"he said "hi", then\nx = 1, y = 2\n#### 2"\n', [4]),
    "a text line that looks like a row": ('b,"a "b" c\nx = 1, y\nu, v\n#### 2"\n', [4]),
    "two rows, one after the other": ('b,"he said "hi"\n#### 2"\nc,"she said "ho"\n#### 3"\n', [4, 6]),
    "two rows of one line": ('b,"said "hi" 2"\nc,"said "ho" 3"\n', [4, 5]),
    "two rows, a good one between": ('b,"said "hi" 2"\nc,3\nd,"said "ho" 3"\n', [4, 6]),
    "at the end of a line": ('b,"so"\nx = 1\n#### 2"\n', [4]),
    "at the start of a line": ('b,"so\nx, y\n"u = 1\n#### 2"\n', [4]),
    "backslashes": ('b,"he said \\"hi\\""\n', [4]),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("broken", "lines"), STRAY.values(), ids=STRAY)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stray_quote_rejects_only_its_own_row(
    broken: str, lines: list[int], after: int, end: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.csv", ("question,answer\n" + GOOD + broken + GOOD * after).replace("\n", end))
    assert rejects(path) == [(line, "broken_csv") for line in lines]
    kept = [row for row in read(path) if not isinstance(row, Reject)]
    good = {"question": "a", "answer": f"1{end}#### 1"}
    assert [row for row in kept if row["question"] == "a"] == [good] * (1 + after)
    assert [row for row in kept if row["question"] != "a"] == [{"question": "c", "answer": "3"}] * ("c,3" in broken)
    detail = next(row.detail for row in read(path) if isinstance(row, Reject))
    assert detail.startswith("line ")
    assert "column" in detail


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ['"a, b?","x ""q"" 3",3', 'q0?,"a",1', ""])
@pytest.mark.parametrize("broken", ['broken,"stray"quote",4', 'broken,"stray" quote,4'])
def test_rows_after_a_stray_quote_are_kept_for_any_first_row(broken: str, first: str, end: str, tmp_path: Path) -> None:
    lines = ["question,thinking,answer", first, broken, "short,row", *(f'q{n}?,"think {n}",{n}' for n in range(9))]
    path = write(tmp_path / "rows.csv", "".join(line + end for line in lines))
    assert rejects(path) == [(3, "broken_csv"), (4, "ragged_row")]
    assert len(read(path)) == 11 + bool(first)


@pytest.mark.parametrize("seed", range(400))
def test_a_stray_quote_anywhere_rejects_at_most_one_row(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    end, width = rng.choice(["\n", "\r\n"]), rng.choice([2, 3, 4])

    def cell() -> str:
        text = " ".join(rng.choices(["a", "so", "x = 1", "9", "#### 2"], k=rng.randint(1, 4)))
        kinds = [
            text,
            text,
            text.replace(" ", ", "),
            text.replace(" ", end),
            f'{text} "hi" {text}',
            f'{text}{end}"hi", a',
        ]
        return rng.choice(kinds)

    rows = [[f"r{n}{rng.choice(['', '?', ', x'])}", *(cell() for _ in range(width - 1))] for n in range(6)]
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    out = io.StringIO()
    writer = csv.writer(out, quoting=quoting, lineterminator=end)
    ends = [out.tell() for row in (["q", "t", "a", "z"][:width], *rows) if writer.writerow(row)]
    at = rng.randrange(ends[0], ends[-1])
    text = out.getvalue()
    path = write(tmp_path / "rows.csv", f'{text[:at]}"{text[at:]}'.replace('\r"\n', '"\r\n'))
    hit = next(n for n, stop in enumerate(ends[1:]) if at < stop)
    kept = [list(row.values()) for row in read(path) if not isinstance(row, Reject)]
    assert [row for n, row in enumerate(rows) if n != hit and row not in kept] == []
    assert sum(row not in rows for row in kept) <= 1


def test_each_of_many_rows_with_a_stray_quote_is_rejected_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "q,t,a\n" + "".join(f'r{n},"x "{n}" y",{n}\n' for n in range(2000)))
    assert rejects(path) == [(n + 2, "broken_csv") for n in range(2000)]


def test_the_rest_of_a_broken_cell_is_not_read_as_a_row_in_a_fully_quoted_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", '"q","a"\n"a","1"\n"b","so\nx = 1," y = 2"\n"c","3"\n')
    assert rejects(path) == [(3, "broken_csv")]
    assert read(path)[2] == {"q": "c", "a": "3"}


def test_an_unclosed_quote_does_not_swallow_the_rest_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'question,answer\na,1\nb,"open\n' + "".join(f"{n},{n}\n" for n in range(5000)))
    assert rejects(path) == [(3, "broken_csv")]
    assert len(read(path)) == 5002


def test_rows_with_too_many_or_too_few_cells_are_rejected_with_the_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'question,answer\na,"1\n2"\nb\nc,1,2\n\n \nd,4\n')
    assert rejects(path) == [(4, "ragged_row"), (5, "ragged_row")]
    assert [row.detail for row in read(path) if isinstance(row, Reject)] == [
        "it has 1 cell; the header has 2",
        "it has 3 cells; the header has 2; a cell that contains ',' must be quoted",
    ]
    assert [where for where, row in numbered(path) if not isinstance(row, Reject)] == [f"{path}:2", f"{path}:8"]


def test_quotes_inside_unquoted_cells_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", 'question,answer\na 5" pipe,5\nhe said "hi",6\n"with ""quotes"" in it","7,8"\n')
    assert [tuple(row.values()) for row in read(path)] == [
        ('a 5" pipe', "5"),
        ('he said "hi"', "6"),
        ('with "quotes" in it', "7,8"),
    ]


def test_the_delimiter_must_split_the_rows_as_well_as_the_header(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.csv", "question;answer, final\na, b;1, 2\n")) == [
        {"question": "a, b", "answer, final": "1, 2"}
    ]
    assert read(write(tmp_path / "b.csv", "question\nwhat; why?\n")) == [{"question": "what; why?"}]


def test_unnamed_repeated_unreadable_and_lone_headers(tmp_path: Path) -> None:
    assert read(write(tmp_path / "index.csv", ",question,answer\n0,a,1\n")) == [
        {"Unnamed: 0": "0", "question": "a", "answer": "1"}
    ]
    assert "twice.csv:1: has two columns named 'a'" in fault(write(tmp_path / "twice.csv", "a,b,a\n1,2,3\n"))
    assert "open.csv:1:3: has a header that cannot be read" in fault(write(tmp_path / "open.csv", 'a,"b\n1,2\n'))
    assert read(write(tmp_path / "bare.csv", "question,answer\n")) == []


def test_a_nul_byte_rejects_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "question,answer\na,1\nb\0,2\nc\0,2\nd,3\n")
    assert rejects(path) == [(3, "broken_csv"), (4, "broken_csv")]
    assert "NUL byte" in read(path)[1].detail


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_broken_lines_are_rejected_with_the_column_and_the_cause(tmp_path: Path) -> None:
    broken = [
        '{"question": "what is it" "answer": 1}',
        "{'question': 'a'}",
        '{"question": "a", "answer": Infinity}',
        '{"question": "a", "question": "b"}',
        '{"a": {"deep": [{"b": 1, "b": 2}]}}',
        '{"question": "\\frac{1}{2} \\sqrt"}',
        '{"question": "cut off',
    ]
    path = write(tmp_path / "rows.jsonl", LINES + "\n\n" + "\n".join(broken))
    assert rejects(path) == [
        (line, "repeated_key" if line in (9, 10) else "broken_json") for line in range(6, 13)
    ]  # fmt: skip
    details = [row.detail for row in read(path) if isinstance(row, Reject)]
    for detail, expected in zip(
        details,
        ["column 27: Expecting ',' delimiter, at '…", "written as Python", "Infinity is not a JSON number",
         "it names 'question' twice", "it names 'b' twice", "a backslash inside a string is written", "it was cut off"],
        strict=True,
    ):  # fmt: skip
        assert expected in detail


def test_a_broken_first_line_rejects_one_row(tmp_path: Path) -> None:
    for broken in ('{"question": "a", ', "{broken", "[broken", "broken", '{"question": ["a", "b"'):
        path = write(tmp_path / "rows.jsonl", broken + "\n" + LINES)
        assert rejects(path) == [(1, "broken_json")], broken
        assert len(read(path)) == 4


def test_the_command_in_the_message_about_python_literals_converts_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "{'question': 'it is \"2\"', 'answer': None}\n" * 2)
    command = read(path)[0].detail.partition("a row: ")[2]
    subprocess.run(command, shell=True, check=True)
    assert read(tmp_path / "rows-json.jsonl") == [{"question": 'it is "2"', "answer": None}] * 2


def test_nan_is_read_as_a_missing_value(tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.jsonl", '{"question": "a", "answer": NaN}\n')) == [
        {"question": "a", "answer": None}
    ]


def test_a_line_that_is_a_list_is_one_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert read(write(tmp_path / "rows.jsonl", (json.dumps(turns) + "\n") * 2)) == [turns, turns]


def test_a_broken_object_among_multi_line_objects_rejects_one_row(tmp_path: Path) -> None:
    objects = [json.dumps(row, indent=2) for row in ROWS]
    objects[1] = objects[1].replace('",', '"')
    path = write(tmp_path / "rows.json", "\n".join(objects))
    assert rejects(path) == [(5, "broken_json")]
    assert "line 7, column 3: Expecting ',' delimiter" in read(path)[1].detail
    assert [row for row in read(path) if not isinstance(row, Reject)] == [ROWS[0], ROWS[2]]


BROKEN_JSON: list[tuple[str, str, str]] = [
    ('[{"a": 1},\n {"a": 2},\n]', "3:1", "remove the comma before ]"),
    ('[\n{"a": 1}\n{"a": 2}\n]', "3:1", "Expecting ',' delimiter"),
    ('{\n "data": [\n  {"a": 1},\n', "4:1", "it was cut off"),
    ('[{"a": "x\ny"}]', "1:10", "written \\n"),
    ('[{"a": 1}] trailing', "1:12", "there is more after its end"),
    ("[\n// a note\n]", "2:1", "no comments"),
]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(("text", "position", "expected"), BROKEN_JSON)
def test_an_error_about_broken_json_gives_line_and_column(
    text: str, position: str, expected: str, name: str, tmp_path: Path
) -> None:  # fmt: skip
    message = fault(write(tmp_path / name, text))
    assert f"{name}:{position}: is not JSON" in message
    assert expected in message
    assert "hint: " in message


COLUMNS = {"question": [row["question"] for row in ROWS], "answer": [row["answer"] for row in ROWS]}
NESTED: dict[str, Any] = {
    "under data": {"data": ROWS},
    "under data beside others": {"version": "1.0", "count": 3, "data": ROWS},
    "under any key": {"version": "1.0", "exercises": ROWS},
    "under rows, as the hub's rows API answers": {
        "features": [], "rows": [{"row_idx": n, "row": row, "truncated_cells": []} for n, row in enumerate(ROWS)]
    },
    "in splits": {"test": ROWS[:1], "train": ROWS},
    "in splits under data": {"data": {"train": ROWS, "test": ROWS}},
    "in columns": COLUMNS,
    "in columns of splits": {"train": COLUMNS, "test": COLUMNS},
    "in pandas columns": {key: {str(n): cell for n, cell in enumerate(cells)} for key, cells in COLUMNS.items()},
    "in pandas columns of ids": {key: dict(zip("xyz", cells, strict=True)) for key, cells in COLUMNS.items()},
    "as pandas splits it": {
        "columns": ["question", "answer"], "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]
    },
    "by id": {f"gsm-{n}": row for n, row in enumerate(ROWS)},
    "by number": {str(n): row for n, row in enumerate(ROWS)},
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("tree", NESTED.values(), ids=NESTED)
def test_rows_inside_an_object_are_read(tree: Any, name: str, indent: int | None, tmp_path: Path) -> None:
    assert read(write(tmp_path / name, json.dumps(tree, indent=indent))) == ROWS


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    "row",
    [
        ROWS[0],
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "source": "x"},
        {"question": "a", "examples": [{"x": 1}], "answer": "b"},
        {"instruction": "a", "reasoning_chains": [{"step": 1, "thought": "b"}], "output": "c"},
    ],
)
def test_a_single_object_that_is_a_row_is_read_as_one_row(row: Any, name: str, tmp_path: Path) -> None:
    for indent in (None, 1):
        path = write(tmp_path / name, json.dumps(row, indent=indent))
        assert numbered(path) == [(f"{path}:1", row)]


def test_a_split_inside_an_object_can_be_chosen_and_all_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "rows.json", json.dumps({"train": ROWS, "dev": ROWS[:1], "test": []}))
    assert numbered(path, dataset_split="validation") == [(f"{path}[dev]#0", ROWS[0])]
    assert "reading 'dev'; not read: 'train', 'test'" in capsys.readouterr().err
    assert "has no split 'test'" in fault(path, dataset_split="test")
    assert "it has 'train', 'dev'; choose one: --dataset-split train" in fault(path, dataset_split="test")
    several = write(tmp_path / "several.json", json.dumps({"easy": ROWS[:1], "hard": ROWS}))
    assert "it has 'easy', 'hard'" in fault(several)
    assert read(several, dataset_split="hard") == ROWS


def test_a_repeated_key_in_column_data_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", '{"question": {"0": "a", "0": "b"}, "answer": {"0": "c"}}')
    assert "names '0' twice" in fault(path)
    path = write(tmp_path / "rows.json", '{"train": {"question": ["a"], "question": ["b"]}}')
    assert "names 'question' twice" in fault(path)


def test_columns_of_different_lengths_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", json.dumps({"question": ["a", "b"], "answer": ["1"]}))
    assert "its columns are not equally long: question 2, answer 1" in fault(path)


# --- several files ---------------------------------------------------------------------------------------------------


def test_several_files_are_one_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write(tmp_path / "a.jsonl", LINES), write(tmp_path / "b.csv", CSV)
    expected = [f"{first}:1", f"{first}:2", f"{first}:3", f"{second}:2", f"{second}:4", f"{second}:6"]
    again = tmp_path / "sub" / ".." / "a.jsonl"
    (tmp_path / "sub").mkdir()
    for dataset in (
        f"{first},{second}",
        f"{first} , {second}",
        [str(first), second],
        f"{first},{second},{first}",
        f"{first},{second},{again}",
    ):
        assert [where for where, _ in numbered(dataset)] == expected
    output = capsys.readouterr().err
    assert f"reading 2 files: {first}, {second}" in output
    assert f"{first} is named more than once; read once" in output
    assert f"{again} is named more than once; read once" in output
    assert f"{tmp_path}/c.jsonl: there is no such file" in fault(f"{first},{tmp_path}/c.jsonl")


def test_a_split_that_a_file_does_not_hold_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was ignored without a word."""
    rows = write(tmp_path / "rows.jsonl", LINES)
    split = write(tmp_path / "split.json", json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert (len(read(rows)), len(read(split, dataset_split="test"))) == (3, 1)
    write(tmp_path / "folder" / "test.jsonl", LINES)
    assert len(read(tmp_path / "folder", dataset_split="test")) == 3
    assert len(read(tmp_path / "folder" / "test.jsonl", dataset_split="test")) == 3
    assert len(read(tmp_path / "folder" / "test.jsonl")) == 3
    assert "has no splits" not in capsys.readouterr().err
    assert len(read(rows, dataset_split="train[:1]")) == 3
    assert f"{rows}: has no splits, so all of its rows are read, not only 'train[:1]'" in capsys.readouterr().err


def test_objects_joined_on_one_line_are_rows(tmp_path: Path) -> None:
    """As after `cat a.jsonl b.jsonl` where the last line of a.jsonl does not end."""
    one, two, three = LINES.splitlines()
    path = write(tmp_path / "rows.jsonl", f"{one}{two}\n{three}\n")
    assert numbered(path) == [(f"{path}:1", ROWS[0]), (f"{path}:1", ROWS[1]), (f"{path}:2", ROWS[2])]
    assert rejects(write(tmp_path / "broken.jsonl", f"{three}\n{one}{two[:-1]}\n")) == [(2, "broken_json")]


def test_a_list_of_turns_is_one_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "reasoning_content": "so"}]
    assert read(write(tmp_path / "rows.json", json.dumps(turns))) == [turns]
    rows = [
        {**turn, "conversation": 1} for turn in turns
    ]  # something else: its turns cannot be told to belong together
    assert read(write(tmp_path / "rows.json", json.dumps(rows))) == rows


def test_a_text_beside_the_rows_of_an_object_describes_them(tmp_path: Path) -> None:
    for name in ("text", "instruction"):
        assert read(write(tmp_path / f"{name}.json", json.dumps({name: "Add.", "data": ROWS}))) == ROWS
    row = {"question": "?", "examples": ROWS}
    assert read(write(tmp_path / "row.json", json.dumps(row))) == [row]


def test_an_existing_file_name_with_a_comma_is_not_split(tmp_path: Path) -> None:
    path = write(tmp_path / "a,b.jsonl", LINES)
    write(tmp_path / "c.jsonl", LINES)
    assert len(read(path)) == 3
    assert len(read(f"{path},{tmp_path}/c.jsonl")) == 6
    assert len(read([tmp_path / "c.jsonl", path])) == 6


def test_a_list_of_files_in_the_config_is_joined() -> None:
    config = load_tree({"data": {"dataset": ["a.jsonl", "b.jsonl"]}}, {})
    assert config.data.dataset == "a.jsonl,b.jsonl"
    assert config.data.sources == ("a.jsonl", "b.jsonl")
    for wrong in ([], ["a.jsonl", 3], [""]):
        with pytest.raises(ConfigError, match=r"data\.dataset"):
            load_tree({"data": {"dataset": wrong}}, {})


def test_globs_match_data_files_only(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl.gz"):
        content = LINES.encode()
        write(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    write(tmp_path / "README.md", "# rows")
    assert [Path(where).name for where, _ in numbered(tmp_path / "*")][::3] == ["a.jsonl:1", "b.jsonl:1"]
    assert len(read(tmp_path / "**" / "*.jsonl*")) == 9
    assert len(read(tmp_path / "[ab].jsonl")) == 6
    message = fault(tmp_path / "none-*.jsonl")
    assert f"{tmp_path}/none-*.jsonl: no data file matches" in message
    assert f"looked in {tmp_path} for .jsonl" in message
    assert "it matches" in fault(tmp_path / "*.md")


def test_a_folder_is_read_as_all_its_data_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.jsonl", "a.json", "sub/c.csv", ".hidden.jsonl", ".git/d.jsonl", "dataset_info.json", "README.md"):
        write(tmp_path / name, CSV if name.endswith("csv") else LINES)
    assert len(read(tmp_path)) == 9
    assert "a.json, " in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "is a folder without a data file" in fault(empty)
    assert "looked for .jsonl" in fault(empty)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/a.jsonl", "test/a.jsonl"),
        ("train.jsonl", "test.jsonl"),
        ("train-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        ("gsm8k_train.jsonl", "gsm8k_test.jsonl"),
        ("rows.jsonl", "eval/rows.jsonl"),
        ("data/train01.jsonl", "data/test01.jsonl"),
    ],
)
def test_one_split_of_a_folder_is_read_and_reported(
    train: str, test: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / train, LINES)
    write(tmp_path / test, LINES.splitlines(keepends=True)[0])
    assert len(read(tmp_path)) == 3
    output = capsys.readouterr().err
    assert f"split 'train' is {Path(train).name}; not read: {Path(test).name}" in output
    assert len(read(tmp_path, dataset_split="test")) == 1
    assert "has no files of split 'validation'" in fault(tmp_path, dataset_split="validation")


def test_a_folder_written_by_save_to_disk_is_read(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "splits"))
    assert numbered(tmp_path / "one")[0] == (f"{tmp_path}/one#0", ROWS[0])
    assert numbered(tmp_path / "splits", dataset_split="test") == [(f"{tmp_path}/splits[test]#0", ROWS[0])]
    assert "it has train, test" in fault(tmp_path / "splits", dataset_split="dev")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"broken")
    assert "cannot be loaded as a saved data set" in fault(tmp_path / "one")


def test_a_missing_file_gets_a_suggestion_or_a_reason(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", LINES)
    assert f"did you mean {tmp_path}/rows.jsonl?" in fault(tmp_path / "row.jsonl")
    assert f"there is no folder {tmp_path}/none" in fault(tmp_path / "none" / "row.jsonl")
    assert "download the file first" in fault("https://example.org/rows.jsonl")
    assert "./rows: there is no such file" in fault("./rows")


@pytest.mark.parametrize(
    ("given", "suggested"),
    [
        ("nosuch.jsonl", None),
        ("missing.jsonl", None),
        ("part-2.jsonl", None),
        ("chats.jsonl", "chat.jsonl"),
        ("question2.jsonl", "questions.csv"),
        ("Chat.json", "chat.jsonl"),
        ("mc.csv.gz", "mc.jsonl"),
        ("quesitons.jsonl.bz2", "questions.csv"),
    ],
)
def test_a_name_is_suggested_only_for_a_typo(given: str, suggested: str | None, tmp_path: Path) -> None:
    for name in ("chat.jsonl", "mc.jsonl", "part-1.jsonl", "questions.csv"):
        write(tmp_path / name, LINES)
    assert ("did you mean" in fault(tmp_path / given)) == (suggested is not None)
    assert suggested is None or f"did you mean {tmp_path}/{suggested}?" in fault(tmp_path / given)


def test_files_that_are_not_read_from_a_folder_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jsonl", "b.jsonl", "notes.md", "README.md", "LICENSE", ".hidden", "dataset_info.json"):
        write(tmp_path / name, LINES)
    assert len(read(tmp_path)) == 6
    assert f"{tmp_path}: read a.jsonl, b.jsonl; not read: notes.md\n" in capsys.readouterr().err
    for name in ("config-qa.jsonl", "state-exam.jsonl"):  # only named like files that hold no rows
        write(tmp_path / name, LINES)
        assert len(read(tmp_path)) == 9
        (tmp_path / name).unlink()
    capsys.readouterr()
    (tmp_path / "b.jsonl").rename(tmp_path / "test.jsonl")
    assert len(read(tmp_path)) == 3
    assert "split 'train' is a.jsonl; not read: notes.md, test.jsonl\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "run_name"),
    [
        ("data/rows.jsonl.gz", "rows"),
        ("a.jsonl,data/b.csv", "a-b"),
        ("a.jsonl,b.jsonl,c.jsonl,d.jsonl", "a-and-3-more"),
        ("data/*.jsonl", "data"),
        ("data/train-*.parquet", "train"),
        ("data/**/*.jsonl", "data"),
        ("../*.jsonl", "data"),
        ("data/folder.v2/", "folder.v2"),
    ],
)
def test_a_run_is_named_after_its_data_files(
    dataset: str, run_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "folder.v2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert run_names.default_run_dir(load_tree({}, {"dataset": dataset})).name.endswith(f"tiny-base-{run_name}")


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "rows.jsonl")
    assert "is neither a file nor a folder" in fault(tmp_path / "rows.jsonl")


# --- large cells -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.csv.zst"])
def test_a_cell_of_100_megabytes_is_read(name: str, tmp_path: Path) -> None:
    large = "3 + 4 = 7, so\n" * (100_000_000 // 14)
    if "csv" in name:
        content = f'question,answer\na,"{large}"\nb,c\n'
    else:
        content = json.dumps({"question": "a", "answer": large}) + '\n{"question": "b", "answer": "c"}\n'
    raw = content.encode()
    path = write(tmp_path / name, zstd(raw) if name.endswith(".zst") else raw)
    first, second = read(path)
    assert first["answer"] == large
    assert second["answer"] == "c"


def test_lines_are_read_as_a_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", LINES * 20_000)
    import tracemalloc

    tracemalloc.start()
    count = sum(1 for _ in files.read_rows(DataConfig(dataset=str(path))))
    peak: int = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60_000
    assert peak < 16 * 2**20


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(content: bytes, rounds: int) -> Iterator[bytes]:
    """Truncated copies and copies with changed bytes, the same in every run."""
    import random

    draw = random.Random(7)
    for _ in range(rounds):
        yield content[: draw.randrange(len(content))]
        flipped = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            flipped[draw.randrange(len(flipped))] = draw.choice([draw.randrange(256), 0, 34, 10, 123, 93])
        yield bytes(flipped)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_damaged_files_give_rows_rejects_or_one_error(name: str, suffix: str, tmp_path: Path) -> None:
    for content in damaged(COMPRESSORS.get(suffix, bytes)(TEXTS[name].encode()), 4):
        path = write(tmp_path / (name + suffix), content)
        try:
            for where, _ in numbered(path):
                assert where.startswith(str(path))
        except DataError as error:
            if str(path) not in str(error):
                pytest.fail(f"the error does not name the file: {error}")


@pytest.mark.parametrize(
    "row",
    [
        {"question_stem": "?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
        {"items": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]},
    ],
)
def test_lists_inside_a_single_row_are_not_read_as_rows(row: dict[str, Any], tmp_path: Path) -> None:
    assert read(write(tmp_path / "rows.jsonl", json.dumps(row))) == [row]
