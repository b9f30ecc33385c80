"""Memory that exchanges use again: a rank's own buffers, and staging memory that the ranks of a node share."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.runtime.windows import Block

__all__ = ["Pool", "Staging"]


class Pool:
    """Buffers of a rank, for an exchange at a time."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def acquire(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return an array, and the memory that it lies in, to be released: the smallest free one that is large enough.

        The array is not initialised.
        """
        nbytes = prod(shape) * dtype.itemsize
        free = self._free
        best = min(
            (i for i, memory in enumerate(free) if memory.nbytes >= nbytes), key=lambda i: len(free[i]), default=-1
        )
        if best < 0:
            if free:  # grow one rather than keep both
                del free[max(range(len(free)), key=lambda i: len(free[i]))]
            memory = np.empty(max(nbytes, 1), np.uint8)
        else:
            memory = free.pop(best)
        return memory[:nbytes].view(dtype).reshape(shape), memory

    def release(self, memory: np.ndarray) -> None:
        """Let others acquire ``memory``."""
        self._free.append(memory)

    def reserve(self, *sizes: int) -> None:
        """Allocate room for buffers of these numbers of bytes at once."""
        for memory in [self.acquire((nbytes,), np.dtype(np.uint8))[1] for nbytes in sizes]:
            self.release(memory)

    def clear(self) -> None:
        """Drop all buffers."""
        self._free.clear()


class Staging:
    """Memory that the ranks of a node share for one exchange after another.

    The call that uses it claims it, and learns which call claimed it before: it may write once all ranks have
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
        """Return the memory, of at least ``nbytes``; collective over the node, and no call may be using it."""
        if self.block is None or self.block.bytes.nbytes < nbytes:
            self.drop()
            self.block = Block(self._node, nbytes)
        return self.block

    def claim(self, call: int) -> int:
        """Claim the memory for a call, and return the number of the call that claimed it before, 0 if none did."""
        self._before, self._user = self._user, call
        return self._before

    def disclaim(self, call: int) -> None:
        """Take back the claim of the call that claimed last, which has not used the memory."""
        if self._user == call:
            self._user = self._before

    def drop(self) -> None:
        """Free the memory; collective over the node."""
        block, self.block = self.block, None
        self._user = self._before = 0
        if block is not None:
            block.release()
            block.free()
