"""Arrays with one copy per node, in MPI-3 shared windows or, with ULFM, in files without a name."""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.runtime import mappings, shm
from sfb.runtime.ulfm import enabled

__all__ = ["Block", "abandon", "fence", "find", "find_named", "reap"]

_blocks: list[Block] = []  # all live blocks of this process: arrays are recognised by their address
_orphans: list[Block] = []  # blocks whose communicator has been freed while arrays still lie in them
_abandoned: list[Block] = []  # blocks one of whose ranks has died, while arrays still lie in them
_folder: str | None = "/dev/shm"  # where MPI keeps shared memory; None where that is no folder


class Block:
    """Memory that the ranks of one node share; collective over the node.

    MPI unmaps its windows in Finalize at the latest. Arrays therefore lie in a second mapping of the memory, which
    lives as long as they do.

    Args:
        node: Communicator of ranks that can share memory.
        nbytes: Size in bytes, equal on all ranks of the node.
        name: The name of the block, the same on all nodes that hold a copy; "" for memory of one node.
        lazy: Whether pages get their memory when they are first touched, which ends the process if there is none left
            by then; for much memory of which little may be used.

    Raises:
        MemoryError: The node lacks room for shared memory; raised on all its ranks.

    Attributes:
        bytes: All of the memory.
        group: The ranks of the node.
        nbytes: Size in bytes.
        name: The name of the block.
        lazy: Whether its pages get their memory when they are first touched.
        named: The number of live blocks of this process that have a name.
    """

    named = 0

    def __init__(self, node: MPI.Intracomm, nbytes: int, name: str = "", *, lazy: bool = False) -> None:
        self.name = name
        self.lazy = lazy and node.size > 1
        self._window: MPI.Win | None = None
        memory: Any
        if node.size == 1:
            memory = mmap.mmap(-1, max(nbytes, 64), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self._window, memory = _allocate(node, max(nbytes, 64), fill=not lazy)
        self.group = node.Get_group()
        Block.named += bool(name)
        self.bytes = np.frombuffer(memory, np.uint8)[:nbytes]
        self._root = weakref.ref(self.bytes.base)  # all views of the memory keep this object alive
        self._begin = self.bytes.ctypes.data
        self._end = self._begin + nbytes
        self.nbytes = nbytes
        _blocks.append(self)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0) -> np.ndarray:
        """Return an array that begins ``offset`` bytes into the block."""
        nbytes = prod(shape) * dtype.itemsize
        return self.bytes[offset : offset + nbytes].view(dtype).reshape(shape)

    def offset(self, array: np.ndarray) -> int:
        """Return how many bytes into the block ``array`` begins; the array lies in the block."""
        return array.__array_interface__["data"][0] - self._begin

    def holds(self, address: int) -> bool:
        """Return whether an array that begins at ``address`` lies in the block.

        Once no array does, other memory may have the address.
        """
        return self._begin <= address < self._end and self.in_use

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
        self.forget()
        if self._window is not None:
            self._window.Unlock_all()
            self._window.Free()

    def forget(self) -> None:
        """Forget the block, in which no array lies any more; local."""
        _blocks.remove(self)
        Block.named -= bool(self.name)
        self.group.Free()

    def sync(self) -> None:
        """Let this rank see what others have written, and others what it has, on both sides of a barrier."""
        if self._window is not None:
            self._window.Sync()


def _allocate(node: MPI.Intracomm, nbytes: int, *, fill: bool) -> tuple[MPI.Win | None, Any]:
    """Return a window of the ranks of a node, and its memory, in which the first has touched each page to ``fill``.

    With ULFM there is no window, since MPI makes one, and frees it, in a communicator that nobody else can revoke: a
    rank could wait there for ever for one that has left.
    """
    global _folder
    if enabled():
        own = _share(node, nbytes, fill=fill)
        if own is not None:
            return None, own
    _raise_together(node, _lack(nbytes) if node.rank == 0 else None)
    window = MPI.Win.Allocate_shared(nbytes if node.rank == 0 else 0, 1, comm=node)
    window.Lock_all(MPI.MODE_NOCHECK)
    given = memoryview(window.Shared_query(0)[0])
    address = np.frombuffer(given, np.uint8).ctypes.data
    _folder = mappings.folder_of(address)
    # Other processes may have taken the room meanwhile; who touches a page that is not there dies by SIGBUS.
    enough = not fill or node.rank > 0 or mappings.populate(address, nbytes)
    try:
        _raise_together(node, None if enough else _lack(nbytes) or f"{_needs(nbytes)} no longer has that")
    except MemoryError:
        window.Unlock_all()
        window.Free()
        raise
    return window, mappings.again(address, nbytes) or given


def _share(node: MPI.Intracomm, nbytes: int, *, fill: bool) -> mmap.mmap | None:
    """Return memory of the ranks of a node in a file without a name; None where a rank cannot open that of the first.

    Raises:
        MemoryError: The node lacks room; raised on all its ranks.
    """
    file, place, memory = -1, None, None
    try:
        if node.rank == 0:
            with suppress(OSError):
                file = os.memfd_create("sfb")
                os.truncate(file, nbytes)
                place = f"/proc/{os.getpid()}/fd/{file}", _identity(file)
        place = node.bcast(place)
        if place is not None:
            with suppress(OSError):
                own = os.open(place[0], os.O_RDWR | os.O_CLOEXEC)
                try:
                    if _identity(own) == place[1]:  # in another container the number may be that of another process
                        memory = mmap.mmap(own, nbytes)
                finally:
                    os.close(own)
        if not all(node.allgather(memory is not None)):
            return None
    finally:
        if file >= 0:
            os.close(file)
    assert memory is not None
    address = np.frombuffer(memory, np.uint8).ctypes.data
    enough = not fill or node.rank > 0 or mappings.populate(address, nbytes)
    _raise_together(
        node, None if enough else f"{_mib(nbytes)} for the ranks of a node on {os.uname().nodename}: no room"
    )
    return memory


def _identity(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino


def _raise_together(node: MPI.Intracomm, lack: str | None) -> None:
    if lack is not None:
        lack += "; a container gets more by --shm-size (docker, podman) or a larger /dev/shm"
        files = shm.leftovers(_folder or "/dev/shm")
        if files:
            lack += f"; {shm.describe(files)}"
    lack = node.bcast(lack)
    if lack is not None:
        raise MemoryError(lack)


def _lack(nbytes: int) -> str | None:
    """Return what is wrong if a folder lacks room for ``nbytes`` more, else None."""
    if _folder is None:
        return None
    try:
        there = os.statvfs(_folder)
    except OSError:
        return None
    # Others may have touched none of their pages yet.
    left = max(0, there.f_bavail * there.f_frsize - sum(block.nbytes for block in _blocks if block.lazy))
    if there.f_blocks == 0 or nbytes <= left:  # 0 blocks: no limit
        return None
    return f"{_needs(nbytes)} has {_mib(left)} left of {_mib(there.f_blocks * there.f_frsize)}"


def _needs(nbytes: int) -> str:
    return f"memory shared by the ranks of a node needs {_mib(nbytes)}, and {_folder} on {os.uname().nodename}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


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
    same = (MPI.IDENT, MPI.SIMILAR)  # in any order
    orphans = [block for block in _orphans if MPI.Group.Compare(block.group, group) in same]
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


def abandon(blocks: list[Block]) -> None:
    """Give up blocks without the ranks that share them, one of which has died; local.

    Arrays that lie in them stay valid, and are recognised as long as they live.
    """
    _abandoned.extend(blocks)
    for block in [block for block in _abandoned if not block.in_use]:
        _abandoned.remove(block)
        block.forget()


def fence(node: MPI.Intracomm, blocks: list[Block]) -> None:
    """Let the ranks of ``node`` see what the others have written into ``blocks``; collective."""
    for block in blocks:
        block.sync()
    node.Barrier()
    for block in blocks:
        block.sync()
