"""Columns of CSV and Parquet files, read by pyarrow."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfb.data.errors import DataError, brief
from sfb.data.labels import check
from sfb.data.source import Block, Locate, Source, as_float32, bounds, sample
from sfb.data.text import BLOCK, Text

__all__ = ["Csv", "Parquet", "damage", "delimiter_of", "open_csv", "open_parquet"]

_LABELS = ("y", "label", "labels", "target", "class")  # columns that are labels unless the user names another
_DELIMITERS = ",;\t"
_PROBE = 1 << 20  # bytes that show the types of columns
_NUMERIC = ("int64", "double", "bool", "null")  # types that pyarrow finds in CSV
_INDEX = ("", "__index_level_0__")  # names that pandas gives to row numbers
_SHOWN = 10  # names in a message


@dataclass(frozen=True)
class Csv(Source):
    """A file of lines whose fields a delimiter separates.

    Attributes:
        text: Its lines, without the header.
        delimiter: The character between fields.
        columns: The names of all columns; their numbers where the file has no header.
        bools: Columns of true and false.
    """

    text: Text = field(kw_only=True)
    delimiter: str = ","
    columns: tuple[str, ...] = ()
    bools: tuple[str, ...] = ()

    @property
    def untyped(self) -> bool:  # type: ignore[override]
        """Whether labels are text that may stand for numbers."""
        return self.targets == "classes"

    def blocks(self, part: int = 0, parts: int = 1) -> Iterator[Block]:
        """Yield the samples of a part."""
        for position, lines in self.text.chunks(part, parts):
            if lines.strip():
                yield self._block(position, lines)

    def memory(self) -> float:
        """Return the bytes that all samples take, if they are like the first ones."""
        for _, lines in self.text.chunks(block=_PROBE):
            rows = sum(1 for line in lines.split(b"\n") if line.strip())
            return rows * (4.0 * (self.width or 0) + 12) / len(lines) * self.text.size
        return 0.0

    def _block(self, position: int, lines: bytes) -> Block:
        import pyarrow

        names = self.names or ()
        types = {name: pyarrow.bool_() if name in self.bools else pyarrow.float64() for name in names}
        if self.label is not None:
            types[self.label] = pyarrow.string() if self.untyped else pyarrow.float64()
        try:
            table = _parse(lines, self.delimiter, self.columns, types)
        except pyarrow.ArrowException as error:
            raise DataError(self._fault(position, lines) or f"cannot be read as CSV: {brief(error)}") from error

        def locate(row: int) -> str:
            return f"line {self._number(position, lines, row)}"

        return _samples(self, table, locate)

    def _number(self, position: int, lines: bytes, row: int) -> int:
        """Return the number of the line that holds the sample ``row`` of some lines."""
        number = self.text.line_number(position)
        for line in lines.splitlines(keepends=True):  # pyarrow takes a lone \r for the end of a line
            if line.strip(b"\r\n"):
                if row == 0:
                    break
                row -= 1
            number += line.endswith(b"\n")
        return number

    def _fault(self, position: int, lines: bytes) -> str:
        """Return the first of some lines that is malformed, and what is wrong with it; nothing if none is."""
        wanted = {name: self.columns.index(name) for name in self.names or ()}
        if self.label is not None and not self.untyped:
            wanted[self.label] = self.columns.index(self.label)
        for number, line in enumerate(lines.decode("utf-8", "backslashreplace").split("\n")):
            if not line.strip("\r"):
                continue
            try:
                fields = _fields(line.rstrip("\r"), self.delimiter)
            except csv.Error as error:
                return f"line {self.text.line_number(position) + number}: {error}"
            problem = ""
            if len(fields) != len(self.columns):
                problem = f"expected {len(self.columns)} fields, got {len(fields)}"
            for name, at in () if problem else wanted.items():
                if not _number_or_missing(fields[at], name in self.bools):
                    problem = f"expected a number in the column {name}, got {brief(fields[at])}"
                    break
            if problem:
                return f"line {self.text.line_number(position) + number}: {problem}"
        return ""


@dataclass(frozen=True)
class Parquet(Source):
    """A Parquet file. A part is a range of rows; only the row groups are read that it overlaps."""

    def blocks(self, part: int = 0, parts: int = 1) -> Iterator[Block]:
        """Yield the samples of a part."""
        import pyarrow.parquet

        assert self.rows is not None
        low, high = bounds(self.rows, part, parts)
        with damage(), pyarrow.parquet.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            groups = [group for group in range(len(sizes)) if starts[group] < high and starts[group + 1] > low]
            if low == high:
                return
            at = int(starts[groups[0]])
            columns = [*(self.names or ()), *([self.label] if self.label is not None else [])]
            count = max(1, BLOCK // (8 * len(columns)))
            for batch in file.iter_batches(count, row_groups=groups, columns=columns, use_threads=False):
                begin, end = max(low - at, 0), min(high - at, batch.num_rows)
                if begin < end:
                    yield _samples(self, batch.slice(begin, end - begin), sample(at + begin))
                at += batch.num_rows

    def memory(self) -> float:
        """Return the bytes that all samples take."""
        return (self.rows or 0) * (4.0 * (self.width or 0) + 8)


def delimiter_of(line: str) -> str | None:
    """Return the delimiter of a line of CSV; None if there is none."""
    counts = {delimiter: line.count(delimiter) for delimiter in _DELIMITERS}
    best = max(counts, key=lambda delimiter: counts[delimiter])
    return best if counts[best] else None


def open_csv(
    path: Path, text: Text, targets: str, features: Sequence[str] | None, labels: str | None, labelled: bool
) -> Csv:
    """Return the data set of a CSV file.

    A first line without a number is the header. Columns of the first MiB that hold numbers are features.
    """
    import pyarrow

    _, lines = next(text.chunks(block=_PROBE))
    blank = len(lines) - len(lines.lstrip(b"\r\n"))
    first = lines[blank:].split(b"\n", 1)[0]
    line = first.decode("utf-8", "backslashreplace").rstrip("\r").lstrip("#")  # with which numpy.savetxt begins
    delimiter = delimiter_of(line) or ","
    try:
        columns = tuple(name.strip() for name in _fields(line, delimiter))
    except csv.Error as error:
        raise DataError(f"its first line is no CSV: {error}") from error
    header = not any(_is_number(name) for name in columns)
    if header:
        text = dataclasses.replace(text, start=text.start + blank + len(first) + (len(lines) > blank + len(first)))
        lines = lines[blank + len(first) + 1 :]
        twice = [name for name in columns if columns.count(name) > 1]
        if twice:
            raise DataError(f"has several columns {twice[0]!r}")
    else:
        columns = tuple(map(str, range(len(columns))))
        if labels is not None and re.fullmatch("-[0-9]{1,9}", labels) and int(labels) >= -len(columns):
            labels = str(int(labels) % len(columns))
    types = {}
    if lines.strip():
        try:
            found = _parse(lines, delimiter, columns)
            types = {name: str(found.column(name).type) for name in columns}
        except pyarrow.ArrowException:  # a ragged line; `blocks` names it
            types = {}
    numeric = {name: types.get(name, "double") in _NUMERIC for name in columns}
    names, label, notes = _choose(numeric, features, labels, labelled)
    return Csv(
        str(path),
        targets,
        labelled,
        width=len(names),
        names=names,
        label=label,
        notes=notes,
        text=text,
        delimiter=delimiter,
        columns=columns,
        bools=tuple(name for name in names if types.get(name) == "bool"),
    )


def open_parquet(
    path: Path, targets: str, features: Sequence[str] | None, labels: str | None, labelled: bool
) -> Parquet:
    """Return the data set of a Parquet file, whose columns of numbers are features."""
    import pyarrow
    import pyarrow.parquet

    with damage(), pyarrow.parquet.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        columns = [(column.name, column.type) for column in schema]  # names may be no text
    given = [name for name, _ in columns]
    twice = [name for name in given if given.count(name) > 1]
    if twice:
        raise DataError(f"has several columns {twice[0]!r}")
    kinds = pyarrow.types
    numeric = {
        name: kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind) for name, kind in columns
    }
    names, label, notes = _choose(numeric, features, labels, labelled)
    return Parquet(str(path), targets, labelled, width=len(names), rows=rows, names=names, label=label, notes=notes)


def _choose(
    numeric: Mapping[str, bool], features: Sequence[str] | None, labels: str | None, labelled: bool
) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
    """Return the columns of features, the column of labels, and what the user should know of the choice.

    Args:
        numeric: For each column, whether it holds numbers.
        features: What the user takes as features; None for all columns of numbers.
        labels: What the user calls the labels; None for the one column with a usual name.
        labelled: Whether labels are needed.
    """
    found = _shown(numeric)
    for name in (*(features or ()), *([labels] if labels is not None and labelled else [])):
        if name not in numeric:
            raise DataError(f"has no column {name!r}; it has {found}")
    if labels is None:
        usual = [name for name in numeric if name.lower() in _LABELS]
        if len(usual) == 1:
            labels = usual[0]
        elif labelled:
            raise DataError(f"name the column of the labels by labels=NAME (--labels NAME), one of {found}")
    if features is not None:
        text = [name for name in features if not numeric[name]]
        if text:
            raise DataError(f"the column {text[0]!r} holds no numbers")
        if labelled and labels in features:
            raise DataError(f"the column {labels!r} cannot be both a feature and the labels")
        return tuple(features), labels if labelled else None, ()
    others = [name for name in numeric if name != labels]
    names = tuple(name for name in others if numeric[name] and name not in _INDEX)
    dropped = [name or "the unnamed one" for name in others if name not in names]
    if not names:
        raise DataError(f"has no column of numbers beside the labels; it has {found}")
    notes = (f"not used as features (no numbers, or row numbers): {_shown(dropped)}",) if dropped else ()
    return names, labels if labelled else None, notes


def _samples(source: Source, table: Any, locate: Locate) -> Block:
    """Return the samples of a table or a batch of pyarrow."""
    names = source.names or ()
    x = np.empty((table.num_rows, len(names)))
    for i, name in enumerate(names):
        x[:, i] = _numbers(table.column(name))
    y = None
    if source.label is not None:
        y = check(_labels(table.column(source.label), locate), source.targets, locate)
    return Block(as_float32(x, locate, lambda column: f"column {names[column]}"), y)


def _numbers(column: Any) -> np.ndarray:
    """Return a column of numbers or bools as float64, NaN where it has no value."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_boolean(kind):
        column = column.cast(pyarrow.uint8())
    return column.to_numpy(zero_copy_only=False)


def _labels(column: Any, locate: Locate) -> np.ndarray:
    """Return a column of labels."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    values = np.array(column.to_pylist(), str) if text and not missing.any() else None
    if values is not None:
        missing = values == ""
    if missing.any():
        raise DataError(f"{locate(int(np.argmax(missing)))} has no label")
    if values is not None:
        return values
    return column.to_numpy(zero_copy_only=False)


def _parse(lines: bytes, delimiter: str, columns: Sequence[str], types: Mapping[str, Any] | None = None) -> Any:
    """Return the table of some lines; of the columns in ``types``, or of all with types that suit their values."""
    from pyarrow import BufferReader
    from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

    return read_csv(
        BufferReader(lines),
        read_options=ReadOptions(use_threads=False, block_size=len(lines) + 1, column_names=list(columns)),
        parse_options=ParseOptions(delimiter=delimiter),
        convert_options=ConvertOptions(column_types=types, include_columns=list(types) if types else None),
    )


def _fields(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line of CSV; raise csv.Error if it is none."""
    return next(csv.reader([line], delimiter=delimiter), [""])


@contextmanager
def damage() -> Iterator[None]:
    """Raise DataError for what pyarrow raises when it reads a damaged Parquet file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, LookupError, OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # an error of the system, not of the content
            raise
        raise DataError(f"is a damaged Parquet file: {brief(error)}") from error


def _number_or_missing(text: str, bools: bool = False) -> bool:
    if text.strip() in ("", "NA", "N/A", "nan", "NaN", "NULL", "null"):
        return True
    if bools:
        return text.strip().lower() in ("true", "false", "0", "1")
    return _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(names: Any) -> str:
    listed = [*names]
    return ", ".join(listed[:_SHOWN]) + (", …" if len(listed) > _SHOWN else "")
