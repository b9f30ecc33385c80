"""Receivers: what takes the sum of the ranks' factors, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import sfb.kernels as kernels
from sfb.checks import check_receiver

__all__ = ["Assign", "Receiver"]


class Receiver:
    """Takes a K×D sum, as factors or dense, for a range of rows of its array.

    A subclass says what it does with the sum, by a `rule` of the kernels; which rows a rank works, and when, is the
    exchange's business. A rule with state asks for it in `prepare`.

    Args:
        array: K×D float32 or float64, C-contiguous and writeable.

    Attributes:
        array: The array, in place of which no other is put.
        passes: Reads and writes of a K×D array that taking a sum costs, for the cost model.
        whole: Whether it must see the factors of all ranks at once, and not just rows of their sum.
        plain: Whether `rule` is all there is to taking a sum; false for a subclass that does more.
    """

    passes = 1
    plain = True
    whole = False

    def __init__(self, array: np.ndarray) -> None:
        check_receiver("the receiver", array)
        self.array = array

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D)."""
        rows, columns = self.array.shape
        return rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array."""
        return self.array.dtype

    @property
    def settings(self) -> tuple[object, ...]:
        """What has to be equal on all ranks for the replicas to stay equal."""
        return ()

    @property
    def state(self) -> tuple[np.ndarray | None, ...]:
        """Arrays like the receiver's that belong to it; None for one that `prepare` has yet to create."""
        return ()

    def check(self) -> None:
        """Raise TypeError or ValueError if the receiver can no longer take a sum."""
        check_receiver("the receiver", self.array)
        for array in self.state:
            if array is not None:
                check_receiver("the receiver's state", array)
                if (array.shape, array.dtype) != (self.shape, self.dtype):
                    raise ValueError(
                        f"the receiver's state must be {self.shape} {self.dtype} like its array, "
                        f"got {array.shape} {array.dtype}"
                    )

    def prepare(self, allocate: Callable[[tuple[int, int], np.dtype[Any]], np.ndarray]) -> None:
        """Create missing state with ``allocate``, whose arrays are zeroed and lie as the receiver's does."""

    def end(self) -> None:
        """Take note that a sum has been taken, in one or more calls of `update` or `update_dense`."""

    def rule(self) -> kernels.Rule:
        """Return what the kernels do with the array and the state."""
        raise NotImplementedError

    def update(self, u: np.ndarray, v: np.ndarray, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Take uᵀv, of which row 0 is row ``first`` of the array, in rows ``start`` to ``stop``."""
        kernels.update(self.rule(), u, v, self.array, self.state, start, stop, first, threads=threads)

    def update_dense(self, g: np.ndarray, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Take g, of which row 0 is row ``first`` of the array, in rows ``start`` to ``stop``."""
        kernels.update_dense(self.rule(), g, self.array, self.state, start, stop, first, threads=threads)


class Assign(Receiver):
    """An array that is set to the sum."""

    def rule(self) -> kernels.Rule:
        """Return what sets the array."""
        return _ASSIGN


_ASSIGN = kernels.assign()
