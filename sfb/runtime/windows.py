"""Arrays with one copy per node, in MPI-3 shared windows."""

from __future__ import annotations

import weakref
from math import prod
from typing import Any

import numpy as np
from mpi4py import MPI

__all__ = ["Block", "fence", "find", "find_named", "reap"]

_blocks: list[Block] = []  # all live blocks of this process: arrays are recognised by their address
_orphans: list[Block] = []  # blocks whose communicator has been freed while arrays still lie in them


class Block:
    """Memory that the ranks of one node share; collective over the node.

    Args:
        node: Communicator of ranks that can share memory.
        nbytes: Size in bytes, equal on all ranks of the node.
        name: The name of the block, the same on all nodes that hold a copy; "" for memory of one node.

    Attributes:
        bytes: All of the memory.
        group: The ranks of the node.
        name: The name of the block.
        named: The number of live blocks of this process that have a name.
    """

    named = 0

    def __init__(self, node: MPI.Intracomm, nbytes: int, name: str = "") -> None:
        self.name = name
        Block.named += bool(name)
        self.group = node.Get_group()
        self._window = MPI.Win.Allocate_shared(max(nbytes, 64) if node.rank == 0 else 0, 1, comm=node)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        memory, _ = self._window.Shared_query(0)
        self.bytes = np.frombuffer(memoryview(memory), np.uint8)[:nbytes]
        self._root = weakref.ref(self.bytes.base)  # all views of the memory keep this object alive
        self._begin = self.bytes.ctypes.data
        self._end = self._begin + nbytes
        _blocks.append(self)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0) -> np.ndarray:
        """Return an array that begins ``offset`` bytes into the block."""
        nbytes = prod(shape) * dtype.itemsize
        return self.bytes[offset : offset + nbytes].view(dtype).reshape(shape)

    def offset(self, array: np.ndarray) -> int:
        """Return how many bytes into the block ``array`` begins; the array lies in the block."""
        return array.__array_interface__["data"][0] - self._begin

    def holds(self, address: int) -> bool:
        """Return whether ``address`` lies in the block."""
        return self._begin <= address < self._end

    @property
    def whole(self) -> np.ndarray:
        """All of the memory, in bytes; an array of this process has to lie in it."""
        return np.frombuffer(self._root(), np.uint8)[: self._end - self._begin]  # type: ignore[arg-type]

    def release(self) -> None:
        """Drop the block's own array: from now on only arrays of the user keep the memory in use."""
        del self.bytes

    @property
    def in_use(self) -> bool:
        """Whether an array of this process still lies in the block."""
        return self._root() is not None

    def free(self) -> None:
        """Free the memory; collective, and no array may lie in it any more."""
        _blocks.remove(self)
        Block.named -= bool(self.name)
        self._window.Unlock_all()
        self._window.Free()
        self.group.Free()


def find(array: np.ndarray) -> Block | None:
    """Return the block that ``array`` begins in; None for an array of this rank's own, or an empty one."""
    if array.size == 0:
        return None
    address = array.__array_interface__["data"][0]
    return next((block for block in _blocks if block.holds(address)), None)


def find_named(array: np.ndarray) -> Block | None:
    """Return the block of `Comm.shared` that ``array`` begins in; None, at little cost, if there are no such blocks."""
    if not Block.named:
        return None
    block = find(array)
    return block if block is not None and block.name else None


def reap(node: MPI.Intracomm, blocks: list[Block], *, abandon: bool = False) -> None:
    """Free the blocks that no rank uses any more, among ``blocks`` and earlier orphans of this node; collective.

    Args:
        node: The ranks that share the blocks.
        blocks: The blocks, in the same order on all ranks of the node. The freed ones are removed.
        abandon: Make orphans of the others, and remove them, too.
    """
    group = node.Get_group()
    orphans = [block for block in _orphans if MPI.Group.Compare(block.group, group) == MPI.IDENT]
    group.Free()
    candidates = blocks + orphans
    used = np.array([block.in_use for block in candidates], np.int8)
    node.Allreduce(MPI.IN_PLACE, used, MPI.MAX)
    for block, in_use in zip(candidates, used, strict=True):
        if not in_use:
            (_orphans if block in orphans else blocks).remove(block)
            block.free()
    if abandon:
        _orphans.extend(blocks)
        blocks.clear()


def fence(node: MPI.Intracomm, blocks: list[Block]) -> None:
    """Let the ranks of ``node`` see what the others have written into ``blocks``; collective."""
    for block in blocks:
        block._window.Sync()
    node.Barrier()
    for block in blocks:
        block._window.Sync()
