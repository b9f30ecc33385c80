"""The samples of a file that a rank holds: all of them, or its part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.data import DataError, Part, Source, describe, read_part
from sfb.training.memory import Room, room

__all__ = ["File", "Held", "files", "hold", "together"]

_LONG = 500  # characters of a message of another library
_GIB = 1 << 30
_GROWTH = 1.3  # of arrays that grow while a file is read


@dataclass(frozen=True)
class File:
    """A file as rank 0 sees it.

    Attributes:
        name: What the user calls it.
        source: What it is.
        nbytes: Memory that all samples take, roughly.
        mapped: Whether the file itself can be mapped into memory.
        size: Its bytes; None for a built-in data set.
    """

    name: str
    source: Source
    nbytes: float
    mapped: bool
    size: int | None


@dataclass
class Held:
    """Samples of a file that this rank holds.

    Attributes:
        x: Features, float32, an array or a CSR matrix as wide as all ranks need.
        labels: Positions in ``distinct[rank]``, or numbers.
        distinct: The distinct labels of each rank.
        low: The number of the first sample among those of all ranks.
        total: The number of samples of all ranks.
        notes: What the user should know, of all ranks.
        folder: Folder for memory maps; None where there is no cache.
    """

    x: Any
    labels: np.ndarray
    distinct: list[np.ndarray]
    low: int
    total: int
    notes: tuple[str, ...]
    folder: Path | None


@contextmanager
def together(comm: MPI.Intracomm, name: str) -> Iterator[None]:
    """Raise DataError on every rank if one raises an error in the block of a ``with`` statement; collective.

    Args:
        comm: The ranks.
        name: The file, for the message.
    """
    problem, cause = "", None
    try:
        yield
    except Exception as error:  # the other ranks wait for a result, whatever happened
        problem, cause = f"{name}: {str(error)[:_LONG] or type(error).__name__}", error
    problem = next(filter(None, comm.allgather(problem)), "")
    if problem:
        raise DataError(problem) from cause


def files(comm: MPI.Intracomm, names: list[str], options: dict[str, Any]) -> list[File]:
    """Describe the data to train on, and maybe other data to test on; collective.

    Args:
        comm: The ranks; the first describes the files to the others.
        names: One or two files.
        options: Those of `sfb.data.describe`.
    """
    found: list[File] = []
    for name in names:
        with together(comm, name):
            if comm.rank == 0:
                source = describe(name, like=found[0].source if found else None, **options)
                path = Path(source.path)
                size = path.stat().st_size if path.is_file() else None
                found.append(File(name, source, source.memory(), source.mapped(0, 1) is not None, size))
    return comm.bcast(found)


def hold(comm: MPI.Intracomm, file: File, *, shard: bool, dense: bool, cache: Path | None, scaled: bool) -> Held:
    """Read a file; collective.

    Args:
        comm: The ranks.
        file: The file.
        shard: Whether each rank reads its part; else rank 0 reads all and sends it to the others.
        dense: Whether sparse features become an array.
        cache: Folder for memory maps.
        scaled: Whether the features are to be scaled, which needs memory where the file is mapped.

    Raises:
        DataError: The file cannot be read or trained on, or takes too much memory; on every rank.
    """
    memory = room(comm)
    _check_size(comm, file, memory, shard, cache, scaled)
    part = None
    with together(comm, file.name):
        if shard:
            _check_here(file)
            part = read_part(file.source, comm.rank, comm.size, cache=cache)
        elif comm.rank == 0:
            part = read_part(file.source)
    if shard:
        return _sharded(comm, file, part, memory, dense)
    return _replicated(comm, file, part, memory, dense)


def _check_size(comm: MPI.Intracomm, file: File, memory: Room, shard: bool, cache: Path | None, scaled: bool) -> None:
    """Raise DataError on every rank if the samples will hardly fit in memory."""
    if shard and (cache is not None or (file.mapped and not scaled)):
        return
    nbytes = _GROWTH * file.nbytes / (comm.size if shard else 1)
    problem = memory.lacks(nbytes)
    if problem:
        advice = "use more ranks, or --cache DIR" if shard else "--shard lets each rank read its part, with --cache DIR"
        raise DataError(
            f"{file.name}: the samples take about {nbytes / _GIB:.1f} GiB a rank; {problem}: {advice} (shard=, cache=) "
            "where features lie in files that are mapped into memory"
        )


def _check_here(file: File) -> None:
    """Raise DataError unless this rank sees the file that rank 0 has described."""
    if file.size is None:
        return
    path = Path(file.source.path)
    host = MPI.Get_processor_name()
    if not path.is_file():
        raise DataError(f"{host} has no file {path}; all hosts must see it, since each rank reads its part")
    if path.stat().st_size != file.size:
        raise DataError(f"{host} has another file {path}: {path.stat().st_size} bytes, but {file.size} on rank 0")


def _sharded(comm: MPI.Intracomm, file: File, part: Part | None, memory: Room, dense: bool) -> Held:
    assert part is not None
    assert part.labels is not None
    counts = comm.allgather(part.rows)
    notes = tuple(dict.fromkeys(note for notes in comm.allgather(part.notes) for note in notes))
    width = file.source.width
    if width is None:
        width = comm.allreduce(part.width, MPI.MAX)
    x: Any = part.x(width)
    if dense and part.sparse:
        filled = comm.allreduce(len(part.arrays["values"]))
        _check_dense(file, memory, max(counts), width, filled / max(1, width * sum(counts)))
        x = x.toarray()
    low = sum(counts[: comm.rank])
    return Held(x, part.labels, comm.allgather(part.distinct), low, sum(counts), notes, part.folder)


def _replicated(comm: MPI.Intracomm, file: File, part: Part | None, memory: Room, dense: bool) -> Held:
    """Send the samples of rank 0 to all ranks."""
    facts: Any = None
    x: Any = None
    labels: Any = None
    if part is not None:
        x, labels = part.x(file.source.width), part.labels
        nonzeros = x.nnz if part.sparse else 0
        facts = x.shape, part.sparse, nonzeros, part.distinct, part.notes, labels.dtype, labels.shape
    shape, sparse, nonzeros, distinct, notes, kind, labels_shape = comm.bcast(facts)
    if sparse and dense:
        _check_dense(file, memory, shape[0], shape[1], nonzeros / max(1, shape[0] * shape[1]))
        x = None if part is None else x.toarray()
    nbytes = 8 * nonzeros + 4 * shape[0] if sparse and not dense else 4 * shape[0] * shape[1]
    problem = memory.lacks(nbytes)
    if problem:
        raise DataError(
            f"{file.name}: {shape[0]} samples of {shape[1]} features take {nbytes / _GIB:.1f} GiB a rank as float32; "
            f"{problem}. Use fewer ranks a host, or --shard, which lets each rank read its part"
        )
    if part is None:
        labels = np.empty(labels_shape, kind)
    comm.Bcast(labels)
    if sparse and not dense:
        x = _spread(comm, x, shape, nonzeros)
    else:
        x = np.empty(shape, np.float32) if part is None else np.require(x, requirements=["C", "W"])
        comm.Bcast(x)
    return Held(x, labels, [distinct] * comm.size, 0, shape[0], notes, None)


def _spread(comm: MPI.Intracomm, x: Any, shape: tuple[int, int], nonzeros: int) -> Any:
    """Send a CSR matrix of rank 0 to all ranks."""
    from scipy.sparse import csr_matrix

    if comm.rank == 0:
        arrays = (x.data, x.indices, x.indptr)
    else:
        arrays = (np.empty(nonzeros, np.float32), np.empty(nonzeros, np.int32), np.empty(shape[0] + 1, np.int32))
    for array in arrays:
        comm.Bcast(array)
    return x if comm.rank == 0 else csr_matrix(arrays, shape=shape, copy=False)


def _check_dense(file: File, memory: Room, rows: int, width: int, filled: float) -> None:
    """Raise DataError on every rank if an array of sparse features does not fit."""
    nbytes = 4.0 * rows * width
    problem = memory.lacks(nbytes)
    if problem:
        raise DataError(
            f"{file.name}: {rows} samples of {width} features, {100 * filled:.2g} % of them not 0, take "
            f"{nbytes / _GIB:.1f} GiB a rank as float32; {problem}. Use fewer ranks a host, or fewer features: choose "
            "or hash them"
        )
