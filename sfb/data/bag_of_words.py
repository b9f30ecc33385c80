"""Bags of words in the format of UCI: docword.NAME.txt, and vocab.NAME.txt."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfb.data.errors import DataError, brief
from sfb.data.text import open_text

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["read_bag_of_words", "read_vocabulary"]

_HEAD = 3  # lines: documents, words, entries
_EMPTY = 10_000_000  # documents without words, at most


def read_bag_of_words(path: Path | str, *, rank: int = 0, size: int = 1) -> csr_matrix:
    """Return the counts of words in documents, N×V, int64.

    The file has three lines with the numbers of documents, words and entries, and a line DOCUMENT WORD COUNT for each
    entry, which count from 1. Documents without an entry are kept.

    Args:
        path: The file, plain or compressed: .gz, .bz2 or .xz.
        rank: The part of the documents to keep.
        size: The number of parts, of consecutive documents.

    Raises:
        DataError: There is no such file, or it is of another format.
        ValueError: ``rank`` is not below ``size``, or negative.

    >>> import tempfile
    >>> from sfb.data import read_bag_of_words
    >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
    ...     for line in ("2", "3", "3", "1 1 2", "1 3 1", "2 2 5"):
    ...         print(line, file=file, flush=True)
    ...     counts = read_bag_of_words(file.name)
    >>> counts.toarray()
    array([[2, 0, 1],
           [0, 5, 0]])
    """
    from scipy.sparse import csr_matrix

    if not 0 <= rank < size:
        raise ValueError(f"expected 0 ≤ rank < size, got {rank} and {size}")
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of no lines
            warnings.simplefilter("error", DeprecationWarning)  # of "0.5", of which NumPy 2.2 makes 0
            with open_text(path) as file:
                head = np.loadtxt(file, dtype=np.int64, max_rows=_HEAD, ndmin=1)
            with open_text(path) as file:
                entries = np.loadtxt(file, dtype=np.int64, skiprows=_HEAD, ndmin=2)
    except (ValueError, OverflowError, DeprecationWarning) as error:
        raise DataError(f"{path}: expected whole numbers, DOCUMENT WORD COUNT: {brief(error)}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if head.shape != (_HEAD,) or (head < 0).any():
        raise DataError(f"{path}: expected three lines with the numbers of documents, words and entries")
    documents, words, count = head.tolist()
    if documents > count + _EMPTY:
        raise DataError(f"{path}: {documents} documents cannot have {count} entries")
    if entries.size == 0:
        entries = entries.reshape(0, 3)
    if entries.shape != (count, 3):
        raise DataError(f"{path}: expected {count} lines DOCUMENT WORD COUNT, got an array of shape {entries.shape}")
    least, most = np.array([1, 1, 0]), np.array([documents, words, np.iinfo(np.int64).max])
    wrong = ((entries < least) | (entries > most)).any(axis=1)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{path}: line {first + _HEAD + 1}: expected a document from 1 to {documents}, a word from 1 to {words} "
            f"and a count, got {' '.join(map(str, entries[first]))}"
        )
    begin, end = documents * rank // size, documents * (rank + 1) // size
    own = entries[(entries[:, 0] > begin) & (entries[:, 0] <= end)]
    try:
        return csr_matrix((own[:, 2], (own[:, 0] - 1 - begin, own[:, 1] - 1)), shape=(end - begin, words))
    except (MemoryError, ValueError) as error:
        raise DataError(f"{path}: {documents} documents and {words} words are too many: {brief(error)}") from error


def read_vocabulary(path: Path | str) -> list[str]:
    """Return the words of a vocab file, a word a line.

    Raises:
        DataError: There is no such file.

    Args:
        path: The file.

    >>> import tempfile
    >>> from sfb.data import read_vocabulary
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     for word in ("sail", "wave"):
    ...         print(word, file=file, flush=True)
    ...     words = read_vocabulary(file.name)
    >>> words
    ['sail', 'wave']
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
