"""Text in the format of LIBSVM, a sample a line: LABEL INDEX:VALUE INDEX:VALUE and so on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfb.data.errors import DataError, brief
from sfb.data.labels import check
from sfb.data.source import Block, Source, not_finite
from sfb.data.text import Text
from sfb.kernels.stages import compiled

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["Libsvm"]

_ODD = 1 << 16  # values of a block that Python parses; a block with more is parsed line by line
_MOST = (1 << 31) - 1  # features
_PROBE = 1 << 20  # bytes that show how much memory a byte of text takes


@dataclass(frozen=True)
class Libsvm(Source):
    """A file in LIBSVM's format.

    Attributes:
        text: Its lines.
        base: The least index, 0 or 1.
    """

    text: Text = field(kw_only=True)
    base: int = 1

    sparse: ClassVar[bool] = True

    def blocks(self, part: int = 0, parts: int = 1) -> Iterator[Block]:
        """Yield the samples of a part."""
        for position, lines in self.text.chunks(part, parts):
            yield self._block(position, lines)

    def memory(self) -> float:
        """Return the bytes that all samples take, if they are like the first ones."""
        for _, lines in self.text.chunks(block=_PROBE):
            x, labels, _ = self._parse(0, lines)
            return (8 * x.nnz + 12 * len(labels)) / len(lines) * self.text.size
        return 0.0

    def _block(self, position: int, lines: bytes) -> Block:
        x, labels, queries = self._parse(position, lines)
        bad = np.flatnonzero(~np.isfinite(x.data))
        if bad.size:
            row = int(np.searchsorted(x.indptr, bad[0], side="right")) - 1
            number, fields = self._sample(position, lines, row)
            item = [item for item in fields[1:] if not item.startswith(b"qid:")][bad[0] - x.indptr[row]]
            index, _, value = item.partition(b":")
            raise DataError(f"line {number}, feature {int(index)}: {not_finite(_float(value))}")
        if self.width is not None and x.shape[1] > self.width:
            at = int(np.flatnonzero(x.indices >= self.width)[0])
            number, _ = self._sample(position, lines, int(np.searchsorted(x.indptr, at, side="right")) - 1)
            raise DataError(
                f"line {number}: expected {self.width} features, as given, got the index {x.indices[at] + self.base}"
            )
        y = None
        if self.labelled:
            y = check(labels, self.targets, lambda row: f"line {self._sample(position, lines, row)[0]}")
        return Block(x, y, ("the fields qid of the file are ignored",) if queries else ())

    def _parse(self, position: int, lines: bytes) -> tuple[csr_matrix, np.ndarray, int]:
        """Return the samples of some lines, their labels in float64, and the number of their fields "qid:…"."""
        from scipy.sparse import csr_matrix

        kernel = compiled("libsvm")
        most_rows, most_values = lines.count(b"\n") + 1, lines.count(b":")
        labels = np.empty(most_rows)
        starts = np.empty(most_rows + 1, np.int32)
        columns, values = np.empty(most_values, np.int32), np.empty(most_values, np.float32)
        odd = np.empty((_ODD, 3), np.int64)
        text = np.frombuffer(lines, np.uint8)
        status, rows, count, odds, largest, queries = kernel.parse(
            text, self.base, labels, starts, columns, values, odd
        )
        if status == kernel.FULL:
            return self._slow(position, lines)
        try:
            with np.errstate(over="ignore"):
                for at, begin, end in odd[:odds].tolist() if status == kernel.PARSED else ():
                    if at < 0:
                        labels[-1 - at] = _float(lines[begin:end])
                    else:
                        values[at] = _float(lines[begin:end])
        except ValueError:
            status = kernel.FAULT
        if status == kernel.FAULT:
            raise DataError(self._fault(position, lines))
        arrays = (values[:count], columns[:count], starts[: rows + 1])
        return csr_matrix(arrays, shape=(rows, largest + 1)), labels[:rows], queries

    def _slow(self, position: int, lines: bytes) -> tuple[csr_matrix, np.ndarray, int]:
        """Do what `_parse` does, in Python."""
        from scipy.sparse import csr_matrix

        fault = self._fault(position, lines, "")
        if fault:
            raise DataError(fault)
        labels, columns, values, starts, queries = [], [], [], [0], 0
        for fields in filter(None, map(_fields, lines.split(b"\n"))):
            labels.append(_float(fields[0]))
            for item in fields[1:]:
                index, _, value = item.partition(b":")
                if index == b"qid":
                    queries += 1
                    continue
                columns.append(int(index) - self.base)
                values.append(_float(value))
            starts.append(len(values))
        with np.errstate(over="ignore"):
            data = np.array(values).astype(np.float32)
        arrays = (data, np.array(columns, np.int32), np.array(starts, np.int32))
        x = csr_matrix(arrays, shape=(len(labels), max(columns, default=-1) + 1))
        return x, np.array(labels), queries

    def _sample(self, position: int, lines: bytes, row: int) -> tuple[int, list[bytes]]:
        """Return the number of the line that holds the sample ``row`` of some lines, and its fields."""
        for number, line in enumerate(lines.split(b"\n")):
            fields = _fields(line)
            if fields:
                if row == 0:
                    return self.text.line_number(position) + number, fields
                row -= 1
        raise AssertionError("no such sample")

    def _fault(self, position: int, lines: bytes, otherwise: str = "is not in LIBSVM's format") -> str:
        """Return the first of some lines that is malformed, and what is wrong with it."""
        for number, line in enumerate(lines.split(b"\n")):
            problem = _fault_of(_fields(line), self.base)
            if problem:
                return f"line {self.text.line_number(position) + number}: {problem}"
        return otherwise


def _fields(line: bytes) -> list[bytes]:
    return line.split(b"#")[0].split()


def _float(text: bytes) -> float:
    """Return the number that a text stands for; Python's ``float``, but without underscores."""
    if b"_" in text:
        raise ValueError
    return float(text)


def _fault_of(fields: list[bytes], least: int) -> str:
    """Return what is wrong with the fields of a line, if anything."""
    if fields and not _is_number(fields[0]):
        return f"expected LABEL INDEX:VALUE INDEX:VALUE …, got the label {brief(fields[0])}"
    before = None
    for item in fields[1:]:
        if item.startswith(b"qid:"):
            continue
        name, _, value = item.partition(b":")
        if not (re.fullmatch(rb"-?[0-9]+", name) and _is_number(value)):
            return f"expected INDEX:VALUE, got {brief(item)}"
        index = int(name) if len(name) < 20 else _MOST + 1
        if index < least:
            hint = "; if those of this file count from 0, say zero_based=True (--zero-based)" if index == 0 else ""
            return f"indices of LIBSVM count from {least}, got {index}{hint}"
        if index - least >= _MOST:
            return f"there may be 2³¹ - 1 features, got the index {brief(name)}; hash the features"
        if before is not None and index <= before:
            return f"indices must ascend, got {index} after {before}"
        before = index
    return ""


def _is_number(text: bytes) -> bool:
    try:
        _float(text)
    except ValueError:
        return False
    return True
