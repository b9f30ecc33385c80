"""Labelled data for the models: rank 0 reads and checks it, every rank gets all of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.data import DataError, encode, read

__all__ = ["DataError", "Dataset", "load"]

_log = logging.getLogger("sfb")

_GIB = 1 << 30
_NAMED = 5  # classes that a message names
_LONG = 500  # characters of a message of another library


@dataclass(frozen=True)
class Dataset:
    """Samples and their classes, split into those to learn from and those held out.

    Attributes:
        name: What the user calls the data.
        x: N×D float32 features.
        y: N indices of ``classes``, int64.
        classes: The distinct labels, in ascending order.
        train: Indices of the samples to learn from.
        test: Indices of the samples held out.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: np.ndarray
    train: np.ndarray
    test: np.ndarray
    sharded: bool = False
    scaler: Any = None

    @property
    def test_x(self) -> np.ndarray:
        """Features of the samples of which ``test`` holds indices."""
        return self.x

    @property
    def test_y(self) -> np.ndarray:
        """Their labels."""
        return self.y


def load(
    comm: MPI.Intracomm, source: str, *, test_fraction: float = 0.2, seed: int = 0, zero_based: bool = False
) -> Dataset:
    """Load a data set on rank 0 and send it to every rank; collective.

    Rank 0 warns of classes that only samples held out have, and of labels that look like regression targets.

    Args:
        comm: The ranks that will train.
        source: What `sfb.data.read` takes.
        test_fraction: Part of the samples to hold out, between 0 and 1.
        seed: Seed of the split.
        zero_based: As in `sfb.data.read`.

    Raises:
        DataError: The data does not exist, is too large, or a model cannot be trained on it; on every rank.
    """
    problem, x, shape = "", None, (0, 0)
    y, classes = np.empty(0, np.int64), np.empty(0, np.int64)
    if comm.rank == 0:
        try:
            x, labels = read(source, zero_based=zero_based)
            shape = x.shape
            classes, y = encode(labels)
        except Exception as error:  # the other ranks wait for a result, whatever happened
            problem = f"{source}: {str(error)[:_LONG] or type(error).__name__}"
    problem, shape, classes = comm.bcast((problem, shape, classes))
    problem = problem or _too_large(comm, source, shape, x)
    if problem:
        raise DataError(problem)
    dense = _dense(x) if x is not None else np.empty(shape, np.float32)
    y = y if comm.rank == 0 else np.empty(shape[0], np.int64)
    for array in (dense, y):
        comm.Bcast(array)
    order = np.random.default_rng(seed).permutation(len(y))
    held_out = max(1, round(test_fraction * len(y)))
    train, test = order[held_out:], order[:held_out]
    if len(train) < comm.size:
        raise DataError(
            f"{source}: {len(train)} samples to train on cannot be divided among {comm.size} ranks; "
            "use fewer ranks or more data"
        )
    dataset = Dataset(source, dense, y, classes, train, test)
    if comm.rank == 0:
        _warn(dataset)
    return dataset


def _dense(x: Any) -> np.ndarray:
    """Return dense or sparse features as a C-contiguous float32 array."""
    if not isinstance(x, np.ndarray):
        x = x.astype(np.float32).toarray()
    return np.ascontiguousarray(x, dtype=np.float32)


def _too_large(comm: MPI.Intracomm, source: str, shape: tuple[int, int], x: Any) -> str:
    """Return what is wrong if a host lacks memory for a dense array on each of its ranks; the same on all ranks."""
    filled = None if comm.rank or isinstance(x, np.ndarray) else x.nnz / (shape[0] * shape[1])
    hosts: dict[str, list[float]] = {}
    for host, available in comm.allgather((MPI.Get_processor_name(), _available())):
        hosts.setdefault(host, []).append(available)
    filled = comm.bcast(filled)
    nbytes = 4 * shape[0] * shape[1]
    for host, available in hosts.items():
        if len(available) * nbytes > min(available):
            sparse = "" if filled is None else f", {100 * filled:.2g} % of them not 0"
            return (
                f"{source}: {shape[0]} samples of {shape[1]} features{sparse}, take {nbytes / _GIB:.1f} GiB a rank as "
                f"float32; {host} has {min(available) / _GIB:.1f} GiB for {len(available)} of them. Use fewer ranks "
                "a host, or fewer features: choose or hash them"
            )
    return ""


def _available() -> float:
    """Return the bytes of memory that this process may still take, infinite if that is not known."""
    free = [_number(Path("/proc/meminfo"), "MemAvailable:") * 1024]
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        free.append(_number(Path(folder, limit)) - _number(Path(folder, used), otherwise=0.0))
    return min(free)


def _number(path: Path, name: str = "", otherwise: float = np.inf) -> float:
    """Return the number in a file, or in its line that begins with ``name``."""
    try:
        lines = [line.removeprefix(name) for line in path.read_text().splitlines() if line.startswith(name)]
        return float(lines[0].split()[0])
    except (OSError, ValueError, IndexError):
        return otherwise


def _warn(data: Dataset) -> None:
    """Warn of what is suspicious in data that can be trained on."""
    unseen = data.classes[np.setdiff1d(data.y[data.test], data.y[data.train])]
    if unseen.size:
        names = ", ".join(map(str, unseen[:_NAMED])) + (", …" if unseen.size > _NAMED else "")
        _log.warning(
            "%s: no sample to train on has the label %s; only samples held out have. Take more data, another seed or a "
            "smaller test fraction",
            data.name,
            names,
        )
    if 2 * len(data.classes) > len(data.y):
        _log.warning(
            "%s: %d samples have %d classes; are the labels regression targets?",
            data.name,
            len(data.y),
            len(data.classes),
        )
