"""Arrays that NumPy has saved: .npy files, and members of .npz files."""

from __future__ import annotations

import errno
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from sfb.data.errors import DataError, brief
from sfb.data.labels import check
from sfb.data.source import Block, Source, as_float32, bounds, sample
from sfb.data.text import BLOCK

__all__ = ["Arrays", "Saved", "npy", "npz", "read_npz"]

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a .zip file: lengths of its name and of what follows that
_LARGEST_RATIO = 1100  # of bytes to compressed ones; deflate reaches 1032

# What zipfile raises when it reads a damaged file, or one that it cannot decompress or decrypt.
_DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,
    OverflowError,
    RuntimeError,
    struct.error,
)


@dataclass(frozen=True)
class Saved:
    """An array in a file.

    Attributes:
        path: The file.
        member: Name in a .npz file; None for a .npy file.
        dtype: Its type.
        shape: Its shape.
        fortran: Whether columns are contiguous, not rows.
        offset: Where its elements begin in the file; None if they are compressed.
    """

    path: str
    member: str | None
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    offset: int | None

    @property
    def row(self) -> int:
        """The number of elements of a row."""
        return math.prod(self.shape[1:])

    def rows(self, low: int, high: int) -> np.ndarray:
        """Return some rows as a memory map."""
        assert self.offset is not None
        if 0 in self.shape:
            return np.empty((high - low, *self.shape[1:]), self.dtype)
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        whole = np.memmap(self.path, self.dtype, "r", offset=self.offset, shape=self.shape, order=order)
        return np.asarray(whole)[low:high]

    def slices(self, low: int, high: int, count: int) -> Iterator[np.ndarray]:
        """Yield some rows, ``count`` at a time."""
        if self.offset is not None:
            rows = self.rows(low, high)
            yield from (rows[i : i + count] for i in range(0, high - low, count))
        elif self.fortran:  # rows are scattered over all of the compressed array
            with np.load(self.path, allow_pickle=False) as archive:
                rows = archive[str(self.member).removesuffix(".npy")][low:high]
            yield from (rows[i : i + count] for i in range(0, high - low, count))
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(str(self.member)) as file:
                _header(file)
                _skip(file, low * self.row * self.dtype.itemsize)
                for i in range(low, high, count):
                    shape = (min(count, high - i), *self.shape[1:])
                    elements = _exactly(file, math.prod(shape) * self.dtype.itemsize)
                    yield np.frombuffer(elements, self.dtype).reshape(shape)


@dataclass(frozen=True)
class Arrays(Source):
    """Features and labels that are arrays.

    Attributes:
        x: The features, N×… .
        y: The labels; None without labels.
    """

    x: Saved | None = None
    y: Saved | None = None

    def blocks(self, part: int = 0, parts: int = 1) -> Iterator[Block]:
        """Yield the samples of a part."""
        assert self.x is not None
        assert self.width is not None
        low, high = bounds(self.x.shape[0], part, parts)
        count = max(1, BLOCK // (8 * max(1, self.width)))
        at = low
        with _damage():
            labels = self.y.slices(low, high, count) if self.y else None
            for rows in self.x.slices(low, high, count):
                where = sample(at)
                x = as_float32(rows.reshape(len(rows), -1), where, lambda column: f"feature {column}")
                y = check(next(labels), self.targets, where) if labels else None
                yield Block(x, y)
                at += len(rows)

    def memory(self) -> float:
        """Return the bytes that all samples take."""
        return (self.rows or 0) * (4.0 * (self.width or 0) + 8)

    def mapped(self, part: int, parts: int) -> np.ndarray | None:
        """Return a memory map where the file holds rows of aligned float32 numbers."""
        x = self.x
        assert x is not None
        if x.fortran or x.offset is None or x.offset % 4 or x.dtype != np.dtype(np.float32) or not x.dtype.isnative:
            return None
        low, high = bounds(x.shape[0], part, parts)
        return x.rows(low, high).reshape(high - low, x.row)


def npy(path: Path, targets: str, labels: str | None, labelled: bool) -> Arrays:
    """Return the data set of a .npy file with features, and of another one with labels.

    Args:
        path: The features.
        targets: "classes" or "numbers".
        labels: The file with labels, seen from the working folder, or else from the folder of ``path``.
        labelled: Whether labels are needed.
    """
    if not labelled:
        return _arrays(path, targets, _in_file(path), None)
    if labels is None:
        raise DataError('holds one array; name the .npy file of the labels by labels="y.npy" (--labels y.npy)')
    beside = next((file for file in (Path(labels), path.parent / labels) if file.is_file()), None)
    if beside is None:
        raise DataError(f"no such file of labels: {labels}")
    return _arrays(path, targets, _in_file(path), _in_file(beside))


def npz(path: Path, targets: str, features: Sequence[str] | None, labels: str | None, labelled: bool) -> Arrays:
    """Return the data set of arrays in a .npz file, ``x`` and ``y`` if they are not named."""
    if features is not None and len(features) != 1:
        raise DataError(f"expected the name of one array with the features, got {', '.join(features)}")
    wanted = [features[0] if features else "x", *([labels or "y"] if labelled else [])]
    with _damage(), zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not {*wanted} <= {*members}:
            raise DataError(
                f"expected arrays {' and '.join(wanted)}, found {', '.join(members) or 'none'}; features=NAME and "
                "labels=NAME (--features, --labels) name others"
            )
        saved = []
        for name in wanted:
            info = members[name]
            with archive.open(info) as file:
                dtype, shape, fortran, begin = _header(file)
            offset = None
            _check_size(info, begin, dtype, shape)
            if info.compress_type == zipfile.ZIP_STORED:
                with path.open("rb") as file:
                    file.seek(info.header_offset)
                    local = _LOCAL_HEADER.unpack(_exactly(file, _LOCAL_HEADER.size))
                offset = info.header_offset + _LOCAL_HEADER.size + sum(local) + begin
                if offset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
                    raise DataError("is cut off before its end")
            saved.append(Saved(str(path), info.filename, dtype, shape, fortran, offset))
    return _arrays(path, targets, saved[0], saved[1] if labelled else None)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file, none of them unpickled.

    Raises:
        DataError: The file is damaged, or holds something else than arrays of numbers, texts and the like.
        OSError: The file cannot be read.
    """
    with _damage(), zipfile.ZipFile(path) as archive:
        return {info.filename.removesuffix(".npy"): _member(archive, info) for info in archive.infolist()}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        dtype, shape, _, begin = _header(file)
    _check_size(info, begin, dtype, shape)  # before memory is allocated
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # zipfile compares the checksum at the end
    return array


def _check_size(info: zipfile.ZipInfo, begin: int, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Raise DataError if a member cannot hold the array that its header announces."""
    if begin + math.prod(shape) * dtype.itemsize > min(info.file_size, _LARGEST_RATIO * info.compress_size + begin):
        raise DataError("is cut off before its end")


def _arrays(path: Path, targets: str, x: Saved, y: Saved | None) -> Arrays:
    if len(x.shape) < 2 or (y is not None and (len(y.shape) not in (1, 2) or y.shape[0] != x.shape[0])):
        got = f"{x.shape} and {y.shape}" if y else f"{x.shape}"
        raise DataError(f"expected x of shape (N, D) and y of shape (N,), got {got}")
    if x.dtype.kind not in "fiub":
        raise DataError(f"expected numbers in x, got {x.dtype}")
    notes: tuple[str, ...] = ()
    if len(x.shape) > 2:
        notes = (f"samples of shape {' × '.join(map(str, x.shape[1:]))} are flattened to {x.row} features",)
    return Arrays(str(path), targets, y is not None, width=x.row, rows=x.shape[0], notes=notes, x=x, y=y)


def _in_file(path: Path) -> Saved:
    with _damage(), path.open("rb") as file:
        dtype, shape, fortran, offset = _header(file)
        if offset + math.prod(shape) * dtype.itemsize > path.stat().st_size:
            raise DataError("is cut off before its end")
    return Saved(str(path), None, dtype, shape, fortran, offset)


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Read what precedes the elements: their type, the shape, whether columns are contiguous, the bytes read."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError("holds records; save x and y as plain arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(file)
    except (
        SyntaxError,
        LookupError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        raise ValueError(f"its header is no description of an array ({type(error).__name__})") from error
    if dtype.hasobject or dtype.names:
        raise DataError("holds Python objects (by pickle) or records; save numbers or strings")
    if any(n < 0 for n in shape):
        raise DataError(f"holds an array of shape {shape}")
    return dtype, shape, fortran, file.tell()


@contextmanager
def _damage() -> Iterator[None]:
    """Raise DataError for what NumPy and zipfile raise when they read a damaged file."""
    try:
        yield
    except _DAMAGES as error:
        raise DataError(f"is a damaged .npz file: {brief(error) or type(error).__name__}") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # an error of the system, not a seek that the content asks for
            raise
        raise DataError(f"is a damaged .npz file: {brief(error)}") from error
    except ValueError as error:
        raise DataError(f"holds arrays that cannot be read; save numbers or strings: {brief(error)}") from error


def _skip(file: IO[bytes], count: int) -> None:
    while count > 0:
        count -= len(_exactly(file, min(count, BLOCK)))


def _exactly(file: IO[bytes], count: int) -> bytes:
    """Read ``count`` bytes."""
    pieces = bytearray()
    while len(pieces) < count:
        piece = file.read(count - len(pieces))
        if not piece:
            raise DataError("is cut off before its end")
        pieces += piece
    return bytes(pieces)
