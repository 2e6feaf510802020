"""Reads rows of text by split, from jsonl and parquet files or data sets of the hub.

Parquet and the hub need `pip install sea_jax[data]`.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

from sea_jax import hub
from sea_jax.errors import InputError
from sea_jax.json_files import read_rows

SUFFIXES = (".jsonl", ".parquet")
LOCAL = "config.task.path=<folder of jsonl or parquet>"


class Row(dict[str, Any]):
    """The requested columns of a row.

    Attributes:
        place: where it was read, in words.
    """

    __slots__ = ("_at", "_of")

    def __init__(self, columns: dict[str, Any], of: str, at: int):
        super().__init__(columns)
        self._of, self._at = of, at

    @property
    def place(self) -> str:
        return f"{self._of} {self._at}"


@dataclasses.dataclass
class Table:
    """A split: the names of all its columns, and its rows with the requested columns."""

    columns: set[str] = dataclasses.field(default_factory=set)
    rows: list[Row] = dataclasses.field(default_factory=list)

    def __iadd__(self, other: Table) -> Table:
        self.columns |= other.columns
        self.rows += other.rows
        return self


def read_path(path: str, keep: Container[str]) -> dict[str, Table]:
    """Reads the rows of a file, or of all files in and below a folder, by split.

    A file's split is the start of its name, as in `train.jsonl` and `test_prefs-00000-of-00001.parquet`;
    files are read in the order of their names. Holds only the columns in `keep`, since responses and scores
    may be most of a data set.

    Raises:
      InputError: no readable file, an unknown kind of file, or a broken one (naming the line).
    """
    splits: dict[str, Table] = {}
    for file in data_files(path):
        read = _read_jsonl if file.suffix == ".jsonl" else _read_parquet
        name = re.split(r"[-.]", file.name)[0]
        splits[name] = splits.get(name, Table())
        splits[name] += read(file, keep)
    return splits


def data_files(path: str) -> list[Path]:
    """Returns the file of a path, or all files in and below a folder, by name.

    Raises:
      InputError: no readable file, or an unknown kind of file.
    """
    at = Path(path)
    if at.is_dir():
        files = sorted(file for file in at.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    else:
        files = [at] if at.is_file() else []
        if files and at.suffix not in SUFFIXES:
            raise InputError(f"config.task.path={path!r}: {at.suffix!r} cannot be read; valid: {SUFFIXES}")
    if not files:
        raise InputError(f"config.task.path={path!r}: no file {' or '.join(SUFFIXES)} there")
    return files


def read_file(file: Path, keep: Container[str]) -> Table:
    """Reads a file .jsonl, .csv or .parquet; of csv every value is a text.

    Raises:
      InputError: it is absent, of another kind, or broken.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    if not file.is_file() or file.suffix not in readers:
        raise InputError(f"{file}: no such file, or of a kind that cannot be read; valid: {[*readers]}")
    return readers[file.suffix](file, keep)


def _read_csv(file: Path, keep: Container[str]) -> Table:
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines, strict=True)
            rows = [{name: row[name] for name in row if name in keep} for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no csv ({error})") from None
    return _table(reader.fieldnames or (), rows, f"{file}, row")


def _read_jsonl(file: Path, keep: Container[str]) -> Table:
    table, of = Table(), f"{file}, line"
    for number, row in read_rows(file, "an object of columns"):
        table.columns |= row.keys()
        table.rows.append(Row({name: value for name, value in row.items() if name in keep}, of, number))
    return table


def _read_parquet(file: Path, keep: Container[str]) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f"{file}: pyarrow is not installed; valid: pip install sea_jax[data]") from None
    try:
        # Not read_table, which makes columns of the folders' names.
        opened = parquet.ParquetFile(file, page_checksum_verification=True)
        names = opened.schema_arrow.names
        found = opened.read([name for name in names if name in keep]).to_pylist()
        return _table(names, found, f"{file}, row")
    except (ArrowException, OSError, ValueError, OverflowError) as error:  # the last two by to_pylist
        raise InputError(f"{file}: not a whole parquet file ({hub.first_line(error)})") from None


def _table(names: Iterable[str], rows: Iterable[dict[str, Any]], of: str) -> Table:
    return Table(set(names), [Row(row, of, number) for number, row in enumerate(rows, 1)])


def read_hub(name: str, subset: str, keep: Container[str], cache_dir: Path | None) -> dict[str, Table]:
    """Reads the rows of a data set of the hub, by split.

    Args:
      name: 'name' or 'name@revision'.
      subset: of the data set, where it has several; else empty.
      keep: the columns to hold.
      cache_dir: of the files that are fetched; None: the hub's own.

    Raises:
      InputError: the data set cannot be fetched, e.g. without a network, or datasets is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"config.task.dataset={name!r}: datasets is not installed; valid: pip install sea_jax[data], "
            f"or {LOCAL}"
        ) from None
    try:
        repository, revision = hub.split_revision(name)
        cache = str(cache_dir) if cache_dir else None
        found: Any = datasets.load_dataset(repository, subset or None, cache_dir=cache, revision=revision)
    except Exception as error:
        raise InputError(
            f"config.task.dataset={name!r}: not to be had from the hub ({hub.first_line(error)}); "
            f"valid: a data set's name, or {LOCAL}"
        ) from None
    tables = {}
    for split, rows in found.items():
        kept = rows.select_columns([name for name in rows.column_names if name in keep])
        tables[split] = _table(rows.column_names, kept.to_list(), f"{name}, {split} row")
    return tables
