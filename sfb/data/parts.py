"""Parts of data sets, read into memory or into memory maps."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfb.data.columns import Column, InFile, InMemory, mapped
from sfb.data.errors import DataError
from sfb.data.files import describe
from sfb.data.labels import Codes, unite
from sfb.data.source import Block, Source
from sfb.files import parse_json

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["Part", "read", "read_part"]

_log = logging.getLogger("sfb")

_FORMAT = 1  # of the files in a cache
_MOST = (1 << 31) - 1  # values of a CSR matrix with indices of 32 bits
# The arrays of a part, and their types.
_SPARSE = {"values": np.float32, "columns": np.int32, "starts": np.int32}
_DENSE = {"values": np.float32}


@dataclass
class Part:
    """Some consecutive samples of a data set.

    Attributes:
        rows: The number of samples.
        width: The number of features that they need.
        arrays: Their features: "values", and in CSR form "columns" and "starts".
        distinct: The distinct labels, in any order; empty where labels are numbers, or there are none.
        labels: The position in ``distinct`` of each sample's label, int32; numbers in float64, N or N×T; None without
            labels.
        notes: What the user should know.
        folder: Folder for memory maps; None where there is no cache.

    >>> import sfb.data
    >>> part = sfb.data.read_part(sfb.data.describe("digits"), 1, 4)
    >>> part.rows, part.width, sorted(part.distinct.tolist())
    (449, 64, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    rows: int
    width: int
    arrays: dict[str, np.ndarray]
    distinct: np.ndarray
    labels: np.ndarray | None
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def sparse(self) -> bool:
        """Whether the features are in CSR form."""
        return "starts" in self.arrays

    def x(self, width: int | None = None) -> np.ndarray | csr_matrix:
        """Return the features, N×D.

        Args:
            width: The number of features of all parts, if the features are in CSR form.
        """
        if not self.sparse:
            return self.arrays["values"].reshape(self.rows, self.width)
        from scipy.sparse import csr_matrix

        arrays = (self.arrays["values"], self.arrays["columns"], self.arrays["starts"])
        return csr_matrix(arrays, shape=(self.rows, self.width if width is None else width), copy=False)


def read(
    source: str,
    *,
    zero_based: bool = False,
    features: str | Sequence[str] | None = None,
    labels: str | None = None,
    targets: str = "classes",
    labelled: bool = True,
) -> tuple[np.ndarray | csr_matrix, np.ndarray | None]:
    """Return the features, N×D float32, dense or sparse, and the N labels of a data set.

    Text in LIBSVM's format gives a CSR matrix, all others arrays.

    Args:
        source: What `describe` takes, like all that follows.
        zero_based: Whether indices of a LIBSVM file count from 0.
        features: Names of features, or their number.
        labels: Name of the labels.
        targets: "classes", or "numbers" for a regression.
        labelled: Whether labels are needed.

    Returns:
        The features; the labels as integers, bools or strings, or with ``targets="numbers"`` in float64, N or N×T; None
        with ``labelled=False``.

    Raises:
        DataError: There is no such data, or it cannot be read or trained on.

    >>> import sfb.data
    >>> x, y = sfb.data.read("digits")
    >>> x.shape, x.dtype, y[:3]
    ((1797, 64), dtype('float32'), array([0, 1, 2]))
    """
    described = describe(
        source, zero_based=zero_based, features=features, labels=labels, targets=targets, labelled=labelled
    )
    part = read_part(described)
    for note in part.notes:
        _log.warning("%s: %s", source, note)
    least = 2 if labelled else 1
    if part.width < 1 or part.rows < least:
        shape = (part.rows, part.width)
        raise DataError(f"expected at least {least} samples with a feature each, got x of shape {shape}")
    y = part.labels
    if y is not None and targets == "classes":
        distinct = part.distinct
        if described.untyped and distinct.size > 1:
            classes, (table,) = unite([distinct], untyped=True)
            distinct = classes[table]
        y = distinct[y]
    return part.x(described.width), y


def read_part(source: Source, part: int = 0, parts: int = 1, *, cache: Path | None = None) -> Part:
    """Read a part of a data set.

    Args:
        source: What `describe` returns.
        part: The part, from 0.
        parts: The number of parts. Text is divided by bytes, all else by samples.
        cache: Folder in which the features become memory maps, so that memory holds a block of samples at a time. A
            later call with the same arguments finds them there, unless the file has changed.

    Returns:
        The samples of the part, and their labels.

    Raises:
        DataError: The part cannot be read or trained on, or takes more than 2³¹ − 1 values in CSR form.
        OSError: The cache cannot be written.

    >>> import sfb.data
    >>> source = sfb.data.describe("digits")
    >>> part = sfb.data.read_part(source, 1, 3)
    >>> part.x().shape, part.distinct[part.labels[:4]]
    ((599, 64), array([3, 2, 1, 7]))
    """
    direct = source.mapped(part, parts)
    if direct is not None:
        found = _collect(source, part, parts, None, direct)
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            found.folder = cache
        return found
    if cache is None:
        return _collect(source, part, parts, None)
    folder = _folder(cache, source, part, parts)
    if not (folder / "part.json").is_file():
        _convert(source, part, parts, folder)
    return _open(source, folder)


def _collect(source: Source, part: int, parts: int, folder: Path | None, direct: np.ndarray | None = None) -> Part:
    """Read a part into memory, or into files of a folder; ``direct`` are its features if they need not be stored."""
    types: dict[str, Any] = dict(_SPARSE if source.sparse else _DENSE if direct is None else {})
    types["labels"] = np.int32 if source.targets == "classes" else np.float64
    make: Callable[[str], Column] = (
        (lambda name: InMemory(types[name])) if folder is None else (lambda name: InFile(folder / name, types[name]))
    )
    columns = {name: make(name) for name in types}
    try:
        return _fill(columns, source, part, parts, folder, direct)
    finally:
        for column in columns.values():
            column.close()


def _fill(
    columns: dict[str, Column], source: Source, part: int, parts: int, folder: Path | None, direct: np.ndarray | None
) -> Part:
    """Read a part into columns."""
    codes = Codes()
    rows, width, count, several, notes = 0, source.width or 0, 0, 0, dict.fromkeys(source.notes)
    if source.sparse:
        columns["starts"].append(np.zeros(1, np.int32))
    for block in source.blocks(part, parts):
        if source.sparse:
            width = max(width, block.x.shape[1])
        count += _append(columns, block, count)
        if block.y is not None:
            columns["labels"].append(codes(block.y) if source.targets == "classes" else block.y)
            several = block.y.shape[1] if block.y.ndim == 2 else 0
        rows += block.x.shape[0]
        notes.update(dict.fromkeys(block.notes))
    arrays = {name: column.finish() for name, column in columns.items()}
    labels = arrays.pop("labels")
    if direct is not None:
        arrays["values"] = direct
    if several:
        labels = labels.reshape(rows, several)
    return Part(rows, width, arrays, codes.distinct, labels if source.labelled else None, tuple(notes), folder)


def _append(columns: dict[str, Column], block: Block, count: int) -> int:
    """Add the features of a block to those before, ``count`` values, and return how many values it has."""
    x = block.x
    if isinstance(x, np.ndarray):
        if "values" in columns:
            columns["values"].append(x)
        return x.size
    if count + x.nnz > _MOST:
        raise DataError("a part has more than 2³¹ - 1 values; use more ranks")
    columns["values"].append(x.data)
    columns["columns"].append(x.indices)
    columns["starts"].append(x.indptr[1:] + np.int32(count))
    return x.nnz


def _folder(cache: Path, source: Source, part: int, parts: int) -> Path:
    """Return the folder of a part: its name tells the file, its state, and how it is read."""
    path = Path(source.path)
    state = (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else ()
    key = hashlib.blake2b(repr((_FORMAT, source, state)).encode(), digest_size=8).hexdigest()
    return cache / f"{re.sub('[^A-Za-z0-9._-]', '_', path.name)}-{key}" / f"{part}-of-{parts}"


def _convert(source: Source, part: int, parts: int, folder: Path) -> None:
    """Write the arrays of a part into a folder, which appears when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        found = _collect(source, part, parts, temporary)
        np.save(temporary / "distinct.npy", found.distinct, allow_pickle=False)
        shape = [] if found.labels is None else found.labels.shape[1:]
        sizes = {name: array.size for name, array in found.arrays.items()}
        facts = {"rows": found.rows, "width": found.width, "notes": found.notes, "shape": [*shape], "sizes": sizes}
        (temporary / "part.json").write_text(json.dumps(facts))
        del found
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "part.json").is_file():  # else another run was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(source: Source, folder: Path) -> Part:
    """Return the part whose arrays lie in a folder."""
    try:
        return _from_cache(source, folder)
    except (ValueError, LookupError, TypeError, EOFError) as error:
        raise DataError(f"the cache is damaged; remove {folder}") from error


def _from_cache(source: Source, folder: Path) -> Part:
    facts = parse_json((folder / "part.json").read_bytes())
    arrays = {name: mapped(folder / name, kind) for name, kind in (_SPARSE if source.sparse else _DENSE).items()}
    if any(arrays[name].size != size for name, size in facts["sizes"].items()):
        raise ValueError("arrays of other sizes")
    labels = None
    if source.labelled:
        kind = np.int32 if source.targets == "classes" else np.float64
        labels = np.fromfile(folder / "labels", kind).reshape(facts["rows"], *facts["shape"])
    distinct = np.load(folder / "distinct.npy", allow_pickle=False)
    return Part(int(facts["rows"]), int(facts["width"]), arrays, distinct, labels, tuple(facts["notes"]), folder)
