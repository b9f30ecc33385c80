"""The ranks of a communicator as the algorithms see them: nodes, private communicators, buffers."""

from __future__ import annotations

from math import prod
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import from_numpy_dtype

import sfb.kernels as kernels
from sfb.runtime.agreement import Agreement, compare, on_all_ranks
from sfb.runtime.board import Board
from sfb.runtime.compile import load, warmup
from sfb.runtime.limits import STALL
from sfb.runtime.threads import cores, threads_of
from sfb.runtime.windows import Block, fence, reap

__all__ = ["Team"]


class Team:
    """The library's own communicators over a user's ranks, and the buffers it keeps there; collective.

    Nothing of the user's communicator is touched: `Split` copies the ranks, not the attributes.

    Args:
        comm: The user's communicator.
        node: The user's communicator of the ranks that share memory; found by MPI if None.
        stall: Seconds after which a waiting rank says whom it waits for.

    Attributes:
        world: All ranks, in the user's order.
        rank: This one.
        size: Number of ranks.
        node: The ranks that share memory with this one.
        node_of: For each rank of the world, the number of its node.
        slot_of: For each rank of the world, its rank on its node.
        nodes: Number of nodes.
        sharing: Ranks per core where ranks outnumber the cores of a node, 1.0 elsewhere.
        threads: Of the kernels, this rank's share of the cores.
        board: What the ranks of the node show each other.
        agree: The agreement check over all ranks.
        in_place: MPI.IN_PLACE.
    """

    in_place = MPI.IN_PLACE

    def __init__(self, comm: MPI.Intracomm, node: MPI.Intracomm | None = None, *, stall: float = STALL) -> None:
        self.world = MPI.Intracomm(MPI.Intracomm(comm).Split(0, comm.rank))
        self.rank = self.world.rank
        self.size = self.world.size
        host = MPI.Intracomm(self.world.Split_type(MPI.COMM_TYPE_SHARED, self.rank))
        self.node = self._split(host, node)
        self._free: list[np.ndarray] = []
        self._staging: Block | None = None
        self._staged_by = 0
        self._loaded = False
        self._blocks: list[Block] = []
        self._owned: WeakKeyDictionary[Block, bool] = WeakKeyDictionary()
        self._across: list[tuple[int, MPI.Intracomm]] | None = None
        homes = self.world.allgather((self.node.allreduce(self.rank, MPI.MIN), self.node.rank))
        numbers = {home: number for number, home in enumerate(sorted({home for home, _ in homes}))}
        self.node_of = [numbers[home] for home, _ in homes]
        self.slot_of = [slot for _, slot in homes]
        self.nodes = len(numbers)
        available = cores(self.node)
        self.sharing = self.world.allreduce(max(1.0, self.node.size / available), MPI.MAX)
        self.threads = threads_of(self.node, available)
        try:
            with on_all_ranks(self.world, "Comm"):
                load(self.node, kernels.ARRAY_STAGES)
        except Exception:
            self.node.Free()
            self.world.Free()
            raise
        members = [rank for rank, its in enumerate(self.node_of) if its == self.node_of[self.rank]]
        self.board = Board(self.world, self.node, members, crowded=self.sharing > 1, stall=stall)
        self.agree = Agreement(self.world, self.board, self.node_of)

    def _split(self, host: MPI.Intracomm, node: MPI.Intracomm | None) -> MPI.Intracomm:
        """Return the ranks of ``host``, or of the user's ``node`` after checking that they can share memory."""
        error: Exception | None = None
        if node is not None and not isinstance(node, MPI.Intracomm):
            error = TypeError(f"node must be an MPI.Intracomm, got {type(node).__name__}")
        compare(self.world, "Comm", "Comm with " + ("node=None" if node is None else "node given"), error)
        if node is None:
            return host
        mine, theirs = host.Get_group(), node.Get_group()
        inside = MPI.Group.Translate_ranks(theirs, None, mine)
        for group in (mine, theirs):
            group.Free()
        host.Free()
        if MPI.UNDEFINED in inside:
            error = ValueError("node must hold ranks of the communicator that share a host, and no others")
        compare(self.world, "Comm", error=error)
        return MPI.Intracomm(self.world.Split(node.allreduce(self.rank, MPI.MIN), self.rank))

    def across(self) -> list[tuple[int, MPI.Intracomm]]:
        """Return (slot, communicator) pairs that join one rank of each node; the first use is collective.

        The communicator of slot r brings the data of every rank with slot r to every node. A node
        with fewer ranks serves the slots that it lacks by its ranks in turn, so each slot has one
        rank of each node.
        """
        node = self.node
        if self._across is None:
            self._across = []
            for slot in range(max(self.slot_of) + 1):
                mine = slot % node.size == node.rank
                comm = MPI.Intracomm(self.world.Split(0 if mine else MPI.UNDEFINED, self.node_of[self.rank]))
                if mine:
                    self._across.append((slot, comm))
        return self._across

    def load_kernels(self) -> None:
        """Compile the kernels, each on one rank of a node, and load them on the others; collective over the node.

        Raises:
            Exception: Whatever kept this rank from it; only after the collective part.
        """
        if not self._loaded:
            warmup(self.node)
            self._loaded = True

    @staticmethod
    def datatype(dtype: np.dtype[Any]) -> MPI.Datatype:
        """Return MPI's type of an element."""
        return from_numpy_dtype(dtype)

    def lease(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return an array, and the memory it lies in, to be given back; of what is free, the smallest that will do."""
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

    def give_back(self, memory: np.ndarray) -> None:
        """Let others lease ``memory``."""
        self._free.append(memory)

    def reserve(self, *sizes: int) -> None:
        """Have room for leases of these numbers of bytes at once."""
        for memory in [self.lease((nbytes,), np.dtype(np.uint8))[1] for nbytes in sizes]:
            self.give_back(memory)

    def staging(self, nbytes: int, user: int | None = None) -> tuple[Block, int]:
        """Return memory that the node shares for one exchange, and the call that used it last; takes it for ``user``.

        Collective over the node where it grows.
        """
        self.grow_staging(nbytes)
        assert self._staging is not None
        last = self._staged_by
        if user is not None:
            self._staged_by = user
        return self._staging, last

    def staged(self, block: Block) -> int | None:
        """Return the call that used the staging memory last, 0 if none did; None if that is no longer ``block``."""
        return self._staged_by if self._staging is block else None

    def grow_staging(self, nbytes: int) -> None:
        """Have at least ``nbytes`` of staging memory; nobody may be using it; collective over the node."""
        if self._staging is None or self._staging.bytes.nbytes < nbytes:
            self._drop_staging()
            self._staging = Block(self.node, nbytes)
            self._staged_by = 0

    def _drop_staging(self) -> None:
        staging, self._staging = self._staging, None
        if staging is not None:
            staging.release()
            staging.free()

    def fence(self, *blocks: Block | None) -> None:
        """Let the ranks of the node see what was written into ``blocks``; collective over the node."""
        fence(self.node, [block for block in blocks if block is not None])

    def share(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return a zeroed array with one copy per node; collective.

        Windows are a scarce resource of MPI (about 2000 in MPICH): those that nobody uses are given back first.
        """
        reap(self.node, self._blocks)
        block = Block(self.node, prod(shape) * dtype.itemsize, self.world.bcast(uuid4().hex))
        self._blocks.append(block)
        if self.node.rank == 0:
            block.bytes[:] = 0
        array = block.array(shape, dtype)
        self.fence(block)
        block.release()
        return array

    def owns(self, block: Block) -> bool:
        """Return whether the ranks that share ``block`` are those of this rank's node."""
        verdict = self._owned.get(block)
        if verdict is None:
            group = self.node.Get_group()
            verdict = MPI.Group.Compare(block.group, group) in (MPI.IDENT, MPI.SIMILAR)
            group.Free()
            self._owned[block] = verdict
        return verdict

    def free(self) -> None:
        """Give back communicators and buffers; collective.

        Shared arrays that any rank of the node still holds stay valid.
        """
        self._drop_staging()
        self._free.clear()
        self.board.free()
        reap(self.node, self._blocks, abandon=True)
        for _, comm in self._across or ():
            comm.Free()
        self.node.Free()
        self.world.Free()
