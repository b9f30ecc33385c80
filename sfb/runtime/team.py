"""The ranks of a communicator: private communicators, nodes and their leaders."""

from __future__ import annotations

from math import prod
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import from_numpy_dtype

import sfb.kernels as kernels
from sfb.runtime import seals
from sfb.runtime.agreement import Agreement, compare, on_all_ranks
from sfb.runtime.board import Board
from sfb.runtime.buffers import Pool, Staging
from sfb.runtime.compile import load
from sfb.runtime.inquiry import failures_among
from sfb.runtime.limits import STALL, timeout_or_default
from sfb.runtime.shm import warn_of_leftovers
from sfb.runtime.threads import cores, same_host, threads_of
from sfb.runtime.tracing import join, leave
from sfb.runtime.ulfm import blames_death, private
from sfb.runtime.windows import Block, abandon, fence, reap

__all__ = ["Team", "check_comm", "near"]


class Team:
    """The library's private communicators over the ranks of a user, and its buffers; collective.

    The communicators have the user's ranks, but not the attributes of the user's communicator.

    Args:
        comm: The user's communicator.
        node: The user's communicator of the ranks that share memory; None to let MPI find them.
        stall: Seconds after which a waiting rank warns, naming the ranks that it waits for.
        timeout: Seconds after which a waiting rank fails; None for SFB_TIMEOUT or the default.

    Attributes:
        world: A communicator of all ranks, in the user's order.
        rank: This rank's number in the world.
        size: The number of ranks.
        node: A communicator of the ranks that share memory with this one.
        node_of: The number of the node of each rank.
        slot_of: The number of each rank on its node.
        nodes: The number of nodes.
        sharing: Ranks per core on the host where ranks outnumber cores most; at least 1.0.
        threads: The number of threads of this rank's kernels, its share of the cores.
        failures: What this rank knows of failures of others.
        board: The board of the node.
        agree: The agreement of all ranks.
        label: The name of the communicator in traces and messages.
        pool: This rank's buffers.
        staging: Memory that the ranks of the node share, for one exchange after another.
        checked: Whether messages between nodes have checksums.
        in_place: MPI.IN_PLACE.
    """

    in_place = MPI.IN_PLACE

    def __init__(
        self,
        comm: MPI.Intracomm,
        node: MPI.Intracomm | None = None,
        *,
        stall: float = STALL,
        timeout: float | None = None,
    ) -> None:
        self.world = private(MPI.Intracomm(MPI.Intracomm(comm).Split(0, comm.rank)))
        self.rank = self.world.rank
        self.size = self.world.size
        host = private(MPI.Intracomm(self.world.Split_type(MPI.COMM_TYPE_SHARED, self.rank)))
        self.node = self._split(host, node)
        self.pool = Pool()
        self.staging = Staging(self.node)
        self._loaded: set[str] = set()
        self._blocks: list[Block] = []
        self._owned: WeakKeyDictionary[Block, bool] = WeakKeyDictionary()
        self._across: list[tuple[int, MPI.Intracomm]] | None = None
        homes = self.world.allgather((self.node.allreduce(self.rank, MPI.MIN), self.node.rank))
        numbers = {home: number for number, home in enumerate(sorted({home for home, _ in homes}))}
        self.node_of = [numbers[home] for home, _ in homes]
        self.slot_of = [slot for _, slot in homes]
        self.nodes = len(numbers)
        neighbours = same_host(self.world)
        available = cores(neighbours)
        self.sharing = self.world.allreduce(max(1.0, neighbours.size / available), MPI.MAX)
        self.threads = threads_of(neighbours, available)
        neighbours.Free()
        self.failures = failures_among(self.world, timeout_or_default(timeout))
        try:
            with on_all_ranks(self.world, "Comm"):
                load(self.node, kernels.ARRAY_STAGES)
            members = [rank for rank, its in enumerate(self.node_of) if its == self.node_of[self.rank]]
            with on_all_ranks(self.world, "Comm"):
                self.board = Board(
                    self.world, self.node, members, crowded=self.sharing > 1, stall=stall, failures=self.failures
                )
        except Exception as error:
            self.failures.close()
            if not blames_death(error):  # others may wait in them for this rank, until they are revoked
                self.node.Free()
                self.world.Free()
            raise
        if self.node.size > 1 and self.node.rank == 0:
            warn_of_leftovers()
        self.agree = Agreement(self.world, self.board, self.node_of, checked=self.checked)
        self.failures.number = lambda: self.agree.number
        self.label = join(self.world, self)

    def _split(self, host: MPI.Intracomm, node: MPI.Intracomm | None) -> MPI.Intracomm:
        """Return ``host``, or the ranks of the user's ``node`` after checking that they can share memory."""
        error: Exception | None = None
        self.checked = True
        try:
            self.checked = seals.are_on()
            if node is not None:
                check_comm("node", node)
        except (TypeError, ValueError) as caught:  # the other ranks wait to hear of it
            error = caught
        given = "node=None" if node is None else "node given"
        compare(self.world, "Comm", f"Comm with {given} and SFB_CHECKSUMS={self.checked:d}", error)
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
        return private(MPI.Intracomm(self.world.Split(min(node.allgather(self.rank)), self.rank)))

    def across(self) -> list[tuple[int, MPI.Intracomm]]:
        """Return pairs of a slot and a communicator that joins one rank of each node; the first use is collective.

        By the communicator of slot r, the data of rank r of every node reach every node. A node with fewer ranks
        assigns the slots that it lacks to its ranks in a cycle.
        """
        node = self.node
        if self._across is None:
            self._across = []
            for slot in range(max(self.slot_of) + 1):
                mine = slot % node.size == node.rank
                comm = MPI.Intracomm(self.world.Split(0 if mine else MPI.UNDEFINED, self.node_of[self.rank]))
                if mine:
                    self._across.append((slot, private(comm)))
        return self._across

    def load_kernels(self, *, half: bool = False, sparse: bool = False) -> None:
        """Compile the kernels, or load them if they are cached; collective over the node.

        Args:
            half: Whether to load those for 16 bits on the wire, too; equal on all ranks, like ``sparse``.
            sparse: Whether to load those for sparse factors, too.

        Raises:
            Exception: This rank could not compile or load one; raised after the collective part.
        """
        wanted = kernels.STAGES + half * kernels.HALF_STAGES + sparse * kernels.SPARSE_STAGES
        stages = [stage for stage in wanted if not self._loaded.issuperset(stage)]
        if stages:
            load(self.node, stages)
            self._loaded.update(module for stage in stages for module in stage)

    @staticmethod
    def datatype(dtype: np.dtype[Any]) -> MPI.Datatype:
        """Return MPI's datatype for elements of a dtype."""
        return from_numpy_dtype(dtype)

    def most(self, values: np.ndarray) -> np.ndarray:
        """Return the maximum over ranks of each element; collective."""
        result = np.empty_like(values)
        self.world.Allreduce(values, result, MPI.MAX)
        return result

    def fence(self, *blocks: Block | None) -> None:
        """Let the ranks of the node see what the others have written into ``blocks``; collective over the node."""
        fence(self.node, [block for block in blocks if block is not None])

    def share(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return a zeroed array with one copy per node; collective.

        Raises:
            MemoryError: A node lacks room for it; raised on every rank.
        """
        # MPI has few windows (about 2000 in MPICH).
        reap(self.node, self._blocks)
        name = self.world.bcast(uuid4().hex)
        block: Block | None = None
        try:
            with on_all_ranks(self.world, "shared"):
                block = Block(self.node, prod(shape) * dtype.itemsize, name)
        except Exception:
            if block is not None:  # another node has no room
                block.release()
                block.free()
            raise
        assert block is not None
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
        """Free communicators and buffers; collective.

        Shared arrays stay valid while a rank of the node holds them.
        """
        leave(self.world, self.label)
        self.failures.close()
        self.staging.drop()
        self.pool.clear()
        self.board.free()
        reap(self.node, self._blocks, abandon=True)
        for _, comm in self._across or ():
            comm.Free()
        self.node.Free()
        self.world.Free()

    def revoke(self) -> None:
        """Let no rank wait in these communicators for this one any more; local, with ULFM."""
        for comm in (self.world, self.node, *(comm for _, comm in self._across or ())):
            comm.Revoke()

    def abandon(self) -> None:
        """Give up the buffers without the other ranks, one of which has died; local."""
        self.failures.close()
        abandon([*self.board.abandon(), *self.staging.abandon(), *self._blocks])
        self._blocks.clear()
        self.pool.clear()


def near(comm: MPI.Intracomm) -> frozenset[int]:
    """Return the ranks of ``comm`` that share memory with this one, itself among them; collective."""
    node = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank))
    ranks = frozenset(node.allgather(comm.rank))
    node.Free()
    return ranks


def check_comm(name: str, comm: Any) -> None:
    """Raise TypeError unless ``comm`` is an intracommunicator of which this process is a member.

    `MPI.Intracomm.Split` returns one that is null where a rank passes `MPI.UNDEFINED`.
    """
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        what = "COMM_NULL" if isinstance(comm, MPI.Comm) and comm == MPI.COMM_NULL else type(comm).__name__
        raise TypeError(f"{name} must be an MPI.Intracomm, got {what}")
