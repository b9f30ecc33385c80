"""Memory that exchanges reuse: a rank's own buffers, and staging memory that the ranks of a node share."""

from __future__ import annotations

from math import prod
from typing import Any
from weakref import WeakSet

import numpy as np
from mpi4py import MPI

from sfb.runtime.windows import Block

__all__ = ["Pool", "Staging", "drop_free_buffers"]

_pools: WeakSet[Pool] = WeakSet()


class Pool:
    """A pool of buffers of a rank; an exchange acquires them and releases them at its end."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        _pools.add(self)

    def acquire(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return an uninitialised array, and the buffer that it lies in, which the caller has to release.

        The pool takes its smallest free buffer that is large enough.
        """
        nbytes = prod(shape) * dtype.itemsize
        free = self._free
        best = min(
            (i for i, memory in enumerate(free) if memory.nbytes >= nbytes), key=lambda i: len(free[i]), default=-1
        )
        if best < 0:
            if free:  # replace the largest rather than keep both
                del free[max(range(len(free)), key=lambda i: len(free[i]))]
            memory = np.empty(max(nbytes, 1), np.uint8)
        else:
            memory = free.pop(best)
        return memory[:nbytes].view(dtype).reshape(shape), memory

    def release(self, memory: np.ndarray) -> None:
        """Take back a buffer."""
        self._free.append(memory)

    def reserve(self, *sizes: int) -> None:
        """Allocate buffers of these sizes in bytes, to be in use at the same time."""
        for memory in [self.acquire((nbytes,), np.dtype(np.uint8))[1] for nbytes in sizes]:
            self.release(memory)

    def clear(self) -> None:
        """Drop all free buffers."""
        self._free.clear()


def drop_free_buffers() -> None:
    """Drop what the pools of this process keep for later exchanges."""
    for pool in _pools:
        pool.clear()


class Staging:
    """Memory that the ranks of a node share, for one exchange after another.

    A call that uses the memory claims it, and learns which call claimed it before. It may write once all ranks have
    finished that one.

    Args:
        node: The ranks that share memory.

    Attributes:
        block: The memory; None until the first `grow`.
    """

    def __init__(self, node: MPI.Intracomm) -> None:
        self._node = node
        self.block: Block | None = None
        self._user = self._before = 0

    def grow(self, nbytes: int) -> Block:
        """Return the memory, of at least ``nbytes``; collective over the node, and no call may be using the memory."""
        if self.block is None or self.block.bytes.nbytes < nbytes:
            self.drop()
            self.block = Block(self._node, nbytes)
        return self.block

    def claim(self, call: int) -> int:
        """Claim the memory for a call, and return the number of the call that claimed it before, 0 if none did."""
        self._before, self._user = self._user, call
        return self._before

    def disclaim(self, call: int) -> None:
        """Withdraw the claim of a call if it claimed last; no rank may use the memory in that call any more."""
        if self._user == call:
            self._user = self._before

    def drop(self) -> None:
        """Free the memory; collective over the node."""
        for block in self.abandon():
            block.free()

    def abandon(self) -> list[Block]:
        """Give up the memory, and return it if there is any."""
        block, self.block = self.block, None
        self._user = self._before = 0
        if block is None:
            return []
        block.release()
        return [block]
