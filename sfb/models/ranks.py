"""The ranks that fit an estimator together."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from sfb.launch import launched, warn_if_alone

__all__ = ["Ranks"]

# The part of the elements that CSR v stores at most: beyond it indices and random access cost more than zeros.
_FILLED = 0.1


class Ranks:
    """The ranks that fit an estimator, each with its shard of the samples; a context manager.

    Args:
        comm: Communicator of the ranks. None means MPI.COMM_WORLD where MPI has been started or a launcher has started
            several ranks, else this process alone, without MPI.

    Attributes:
        rank: This rank's number.
        size: The number of ranks.
    """

    def __init__(self, comm: Any = None) -> None:
        self._comm = _find(comm)
        self._own: Any = None
        self.rank: int = 0 if self._comm is None else self._comm.rank
        self.size: int = 1 if self._comm is None else self._comm.size
        if self._comm is not None:
            warn_if_alone(self._comm)

    @property
    def comm(self) -> Any:
        """The `sfb.Comm` of the ranks, inside the ``with`` statement; None for a rank alone."""
        return self._comm if self.size > 1 else None

    def __enter__(self) -> Ranks:
        if self.size > 1:
            import sfb

            if not isinstance(self._comm, sfb.Comm):
                self._comm = self._own = sfb.Comm(self._comm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Errors are raised on all ranks together (`together`).
        if self._own is not None and (kind is None or issubclass(kind, Exception)):
            self._own.free()

    @contextmanager
    def together(self, call: str) -> Iterator[None]:
        """Raise on every rank what the block of a ``with`` statement raises on one; collective.

        Args:
            call: The user's call, for messages.
        """
        if self.size == 1:
            yield
            return
        from sfb.runtime.agreement import on_all_ranks

        with on_all_ranks(self._comm, call):
            yield

    def compare(self, call: str, text: str) -> None:
        """Raise `sfb.MismatchError` on every rank if their texts differ; collective."""
        if self.size > 1:
            from sfb.runtime.agreement import compare

            compare(self._comm, call, text)

    def first(self, item: Any) -> Any:
        """Return the item of rank 0; collective."""
        return item if self.size == 1 else self._comm.bcast(item)

    def gather(self, item: Any) -> list[Any]:
        """Return the items of all ranks; collective."""
        return [item] if self.size == 1 else self._comm.allgather(item)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Replace a C-contiguous array by its sum over ranks, the same bits on all ranks, and return it; collective."""
        if self.size > 1:
            from mpi4py import MPI

            self._comm.Allreduce(MPI.IN_PLACE, array)
        return array

    def sparse(self, x: Any) -> bool:
        """Return whether samples travel as factors with CSR v, the same on all ranks; collective.

        They do where the samples of all ranks are sparse, and few of their elements are stored.

        Args:
            x: This rank's samples, N×D, an array or a CSR matrix.
        """
        dense = isinstance(x, np.ndarray)
        stored, elements, others = self.sum(np.array([0 if dense else x.nnz, x.shape[0] * x.shape[1], dense], float))
        return bool(not others and stored < _FILLED * elements)


def _find(comm: Any) -> Any:
    """Return the communicator that ``comm`` stands for, or None for this process alone."""
    if comm is not None:
        from sfb.runtime.team import check_comm

        check_comm("comm", comm)
        return comm
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None and launched()[1] > 1:
        from mpi4py import MPI as mpi
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return None
    return mpi.COMM_WORLD
