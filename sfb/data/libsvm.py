"""Text in the format of LIBSVM, a sample a line: LABEL INDEX:VALUE INDEX:VALUE and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from sfb.data.errors import DataError, brief

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["read_libsvm"]

_UTF8 = b"\xef\xbb\xbf"  # the byte-order marks
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_libsvm(path: Path, zero_based: bool) -> tuple[csr_matrix, np.ndarray]:
    """Return the features, N×D, and the labels of a file, plain or compressed by gzip, bzip2 or xz.

    Raises:
        DataError: The file is of another format, or a line is malformed; the message names the line.
    """
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError as error:
        raise DataError(f"needs the package {error.name}: pip install 'sfb-mpi[models]'") from error
    try:
        with _opened(path) as file:
            x, labels = load_svmlight_file(file, zero_based=True)
    except (DataError, EOFError, OSError, MemoryError):
        raise
    except Exception as error:
        raise DataError(_fault(path, zero_based) or brief(error)) from error
    if zero_based:
        return x, labels
    if x.nnz and x.indices.min() == 0:
        raise DataError(_fault(path, zero_based))
    return x[:, 1:], labels


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed and without a byte-order mark."""
    with path.open("rb") as raw:
        head = raw.read(6)
    opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), Path.open)
    with opener(path, "rb") as file:
        start = file.read(1 << 12)
        if start.startswith(_UTF16):
            raise DataError("is text in UTF-16; save it as UTF-8 or ASCII")
        if b"\0" in start:
            raise DataError("is binary, but no .npz file; expected text in LIBSVM's format")
        file.seek(len(_UTF8) if start.startswith(_UTF8) else 0)
        yield file


def _gzip(path: Path, mode: str) -> Any:
    import gzip

    return gzip.open(path, mode)


def _bzip2(path: Path, mode: str) -> Any:
    import bz2

    return bz2.open(path, mode)


def _xz(path: Path, mode: str) -> Any:
    import lzma

    return lzma.open(path, mode)


# By their first bytes.
_COMPRESSED: dict[bytes, Callable[[Path, str], AbstractContextManager[Any]]] = {
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
    b"\xfd7zXZ\0": _xz,
}


def _fault(path: Path, zero_based: bool) -> str:
    """Return the first line of a file that is malformed, and what is wrong with it; nothing if none is."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            problem = _fault_of(line.split(b"#")[0].split(), 0 if zero_based else 1)
            if problem:
                return f"line {number}: {problem}"
    return ""


def _fault_of(fields: list[bytes], least: int) -> str:
    """Return what is wrong with the fields of a line, if anything."""
    if fields and not _parses(float, fields[0]):
        return f"expected LABEL INDEX:VALUE INDEX:VALUE …, got the label {brief(fields[0])}"
    before = None
    for field in fields[1:]:
        index, _, value = field.partition(b":")
        if index == b"qid":
            continue
        if not (_parses(int, index) and _parses(float, value)):
            return f"expected INDEX:VALUE, got {brief(field)}"
        if int(index) < least:
            hint = "; if those of this file count from 0, say zero_based=True (--zero-based)" if int(index) == 0 else ""
            return f"indices of LIBSVM count from 1, got {int(index)}{hint}"
        if before is not None and int(index) <= before:
            return f"indices must ascend, got {int(index)} after {before}"
        before = int(index)
    return ""


def _parses(kind: Callable[[bytes], object], field: bytes) -> bool:
    try:
        kind(field)
    except ValueError:
        return False
    return True
