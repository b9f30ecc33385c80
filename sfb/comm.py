"""A communicator that reduces sufficient factors as well as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import index
from types import TracebackType
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.collectives import ALGORITHMS, Problem
from sfb.factors import Factors
from sfb.plan import AUTO, Plan, check_algorithm, choose
from sfb.receiver import Assign, Receiver
from sfb.shared import Block, find
from sfb.team import Team

__all__ = ["Comm", "Exchange"]

_PLANS = 256  # plans kept; S may change from call to call


@dataclass(frozen=True)
class Exchange:
    """How the last `Comm.Allreduce` of factors went on this rank.

    Attributes:
        algorithm: The algorithm taken.
        wire_bytes: Bytes that this rank received from others, through memory or network.
        exchange_seconds: Time of communication, waiting for other ranks included.
        rebuild_seconds: Time of forming and applying the sum.
    """

    algorithm: str
    wire_bytes: int
    exchange_seconds: float
    rebuild_seconds: float


class Comm(MPI.Intracomm):
    """An `MPI.Intracomm` whose `Allreduce` also takes `Factors`; everything else is mpi4py's own.

    It is the communicator it is made from, not a duplicate. The library talks on a communicator of
    its own, made by the first call that needs it; `free`, or the end of a ``with`` block, gives that
    back, and a later call makes it anew.

    Args:
        comm: The intracommunicator to use, `MPI.COMM_WORLD` for instance.
        check: Let `Allreduce` of plain arrays, too, find out first that all ranks pass plain arrays.
            It costs one 32-byte Allreduce a call; without it a rank that passes an array where
            another passes `Factors` hangs. Calls with `Factors` are always checked.
        node: Communicator of the ranks that share memory with this one, if it is not to be all
            ranks of the host: those of a NUMA domain, say. Giving it makes the call collective.

    Raises:
        TypeError: ``comm`` is not an intracommunicator.
        ValueError: The ranks of ``node`` lie on different hosts; raised on every rank.
    """

    def __new__(
        cls, comm: MPI.Intracomm | None = None, *, check: bool = True, node: MPI.Intracomm | None = None
    ) -> Comm:
        """Wrap ``comm``; mpi4py calls it without arguments to duplicate."""
        if comm is not None and not isinstance(comm, MPI.Intracomm):
            what = "COMM_NULL" if comm == MPI.COMM_NULL else type(comm).__name__
            raise TypeError(f"comm must be an MPI.Intracomm, got {what}")
        self = super().__new__(cls, comm)
        self._check = check
        self._owner = comm is None
        self._team_or_none = None
        self._plans = {}
        self._last = None
        self._placed = node is not None
        if node is not None:
            self._team_or_none = Team(self, node)
        return self

    _check: bool
    _owner: bool
    _placed: bool
    _team_or_none: Team | None
    _plans: dict[object, Plan]
    _last: Exchange | None

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM, *, algorithm: str = AUTO) -> None:
        """Reduce to all ranks: arrays as `MPI.Intracomm.Allreduce` does, factors exactly and cheaper.

        With factors the receiver gets G = Σ over ranks of uᵀv, summed in the order of ranks, with the
        same bits on every rank.

        Args:
            sendbuf: `Factors` of a K×D matrix; S may differ between ranks and calls and be 0. Or any
                buffer that mpi4py takes.
            recvbuf: With factors, a K×D array of the same dtype, which is set to G, or an optimizer
                of `sfb.optim`, which applies G without forming it. An array, or an optimizer's
                parameter, from `Comm.shared` is worked by the ranks of a node together.
            op: `MPI.SUM` with factors.
            algorithm: "auto" takes the cheapest by the cost model; "node", "broadcast" or "dense"
                forces one (docs/algorithms.md). For factors only.

        Raises:
            MismatchError: Ranks disagree on shape, dtype, receiver or algorithm, or on whether they
                pass factors; raised on every rank.
            TypeError, ValueError: An argument is wrong on this or another rank; raised on every rank.
        """
        if isinstance(sendbuf, Factors) or isinstance(recvbuf, Receiver):
            self._reduce_factors(sendbuf, recvbuf, op, algorithm)
            return
        if self._check:
            error: Exception | None = None
            if algorithm != AUTO:
                error = ValueError(f"algorithm={algorithm!r} is for Factors; plain arrays take {AUTO!r}")
            elif isinstance(recvbuf, Factors):
                error = TypeError("Factors cannot receive; pass an array or an optimizer as recvbuf")
            self._team.agree.check("Allreduce", "plain", lambda: "a plain buffer, not Factors", error=error)
        super().Allreduce(sendbuf, recvbuf, op)

    def shared(self, shape: int | Sequence[int], dtype: Any = np.float32) -> np.ndarray:
        """Return a zeroed array with one copy per node, in an MPI-3 shared window; collective.

        Every rank of a node sees and may change the same memory; order writes and reads by
        collective calls. It stays valid after `free`.

        Args:
            shape: Of the array, equal on all ranks.
            dtype: Any NumPy dtype without object fields, equal on all ranks.

        Raises:
            MismatchError: Ranks ask for different arrays.
            TypeError, ValueError: Not a shape, or not a dtype that can be shared.
        """
        error: Exception | None = None
        sizes: tuple[int, ...] = ()
        kind: np.dtype[Any] = np.dtype(np.float32)
        try:
            sizes, kind = _sizes(shape), np.dtype(dtype)
            if any(n < 0 for n in sizes):
                raise ValueError(f"shape must have no negative sizes, got {sizes}")
            if kind.hasobject or kind.itemsize == 0 or kind.subdtype is not None:
                raise TypeError(f"an array of {kind!r} cannot be shared: its elements have no fixed size in memory")
            if prod(sizes) * kind.itemsize > np.iinfo(np.intp).max:
                raise ValueError(f"an array of shape {sizes} and {kind} does not fit into memory")
        except Exception as caught:  # whatever it is, the other ranks wait to hear of it
            error = caught
        wanted = f"{sizes} of {kind.str}"
        self._team.agree.check("shared", wanted, lambda: wanted, error=error)
        return self._team.share(sizes, kind)

    @property
    def node(self) -> MPI.Intracomm:
        """Communicator of the ranks that share memory with this one; the first use is collective."""
        return self._team.node

    @property
    def last_exchange(self) -> Exchange | None:
        """How the last `Allreduce` of factors went on this rank; None before the first."""
        return self._last

    def plan(self, sendbuf: Factors, recvbuf: Any, *, algorithm: str = AUTO) -> Plan:
        """Return what `Allreduce` with these arguments would do; collective.

        Kernels are compiled, buffers allocated and the optimizer's missing state created, so that the first
        `Allreduce` need not; nothing is exchanged.

        Raises:
            MismatchError, TypeError, ValueError: As `Allreduce` does.
        """
        return self._plan("plan", sendbuf, recvbuf, MPI.SUM, algorithm)[0]

    def free(self) -> None:
        """Give back what this object owns; collective, and harmless when repeated.

        That is what the library holds on the communicator, and the communicator if this object made
        it (`Dup`, `Clone`). The one that was passed to `Comm` stays valid, and so do arrays from
        `shared` that are still in use.
        """
        self._release()
        if self._owner:
            super().free()

    def Dup(self, info: MPI.Info | None = None) -> Comm:
        """Duplicate the communicator, as `MPI.Comm.Dup` does; with the same ``check`` and ``node``."""
        return self._like(super().Dup(info))

    def Clone(self) -> Comm:
        """Clone the communicator, as `MPI.Comm.Clone` does; with the same ``check`` and ``node``."""
        return self._like(super().Clone())

    def _like(self, copy: Comm) -> Comm:
        copy._check = self._check
        copy._placed = self._placed
        if self._placed and self._team_or_none is not None:
            copy._team_or_none = Team(copy, self.node)
        return copy

    def Free(self) -> None:
        """Free the communicator, as `MPI.Comm.Free` does, and what the library holds on it; collective."""
        self._release()
        super().Free()

    def _release(self) -> None:
        team, self._team_or_none = self._team_or_none, None
        self._plans.clear()
        if team is not None:
            team.free()

    def __enter__(self) -> Comm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With an error on the way the other ranks may never reach a collective.
        if kind is None:
            self.free()

    @property
    def _team(self) -> Team:
        if self._team_or_none is None:
            self._team_or_none = Team(self)
        return self._team_or_none

    def _reduce_factors(self, factors: Any, receiver: Any, op: MPI.Op, algorithm: str) -> None:
        plan, receiver = self._plan("Allreduce", factors, receiver, op, algorithm)
        team = self._team
        module = ALGORITHMS[plan.algorithm]
        timing = module.run(plan.problem, team, factors, receiver)
        self._last = Exchange(plan.algorithm, module.wire_bytes(plan.problem, team), *timing)

    def _plan(self, call: str, factors: Any, receiver: Any, op: MPI.Op, algorithm: str) -> tuple[Plan, Receiver]:
        """Check the arguments on all ranks, and return the plan with everything it needs in place."""
        team = self._team
        passed = receiver
        error: Exception | None = None
        block: Block | None = None
        key: tuple[object, ...] = ()
        signature: tuple[object, ...] = ()
        size = 0
        try:
            receiver = receiver if isinstance(receiver, Receiver) else Assign(receiver)
            self._check_arguments(factors, receiver, op, algorithm)
            block = find(receiver.array)
            key = (factors.shape, factors.dtype.str, receiver.passes, None if block is None else block.name, algorithm)
            places = tuple(_place(array) for array in (receiver.array, *receiver.state))
            signature = (key, type(receiver).__name__, receiver.settings, places)
            size = len(factors)
        except Exception as caught:  # whatever it is, the other ranks wait to hear of it
            error = caught
        most, least = team.agree.check(
            call, signature, lambda: _describe(factors, passed, algorithm), size=size, error=error
        )
        counts = np.full(team.size, size, np.int64)
        if most != least:
            team.world.Allgather(np.array([size], np.int64), counts)
        key = (*key, size if most == least else counts.tobytes())
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(call, factors, receiver, block, algorithm, counts)
            if len(self._plans) >= _PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
        if any(array is None for array in receiver.state):
            error = None
            try:
                receiver.prepare(np.zeros if block is None else self.shared)
            except Exception as caught:
                error = caught
            team.agree.check_result(call, error)
        return plan, receiver

    def _check_arguments(self, factors: Any, receiver: Receiver, op: MPI.Op, algorithm: str) -> None:
        if not isinstance(factors, Factors):
            raise TypeError(f"sendbuf must be Factors when recvbuf is an optimizer, got {type(factors).__name__}")
        if op != MPI.SUM:
            raise ValueError("op must be MPI.SUM with Factors: other reductions of uᵀv need the dense matrix")
        check_algorithm(algorithm)
        factors.check()
        receiver.check()
        if receiver.shape != factors.shape:
            raise ValueError(f"the receiver must have the shape {factors.shape} of the factors, got {receiver.shape}")
        if receiver.dtype != factors.dtype:
            raise ValueError(f"the receiver must have the dtype {factors.dtype} of the factors, got {receiver.dtype}")
        state = [array for array in receiver.state if array is not None]
        if any(np.may_share_memory(array, receiver.array) for array in state):
            raise ValueError("the receiver's state shares memory with its array")
        for array in (receiver.array, *state):
            for name, factor in (("u", factors.u), ("v", factors.v)):
                if np.may_share_memory(factor, array):
                    raise ValueError(f"{name} shares memory with the receiver; copy it first")
            block = find(array)
            if block is not None and not self._team.owns(block):
                raise ValueError("the receiver is shared by other ranks than this communicator's; use its `shared`")
            if (block is None) != (find(receiver.array) is None):
                raise ValueError("the receiver's state must lie where its array does, both in shared memory or neither")

    def _make_plan(
        self,
        call: str,
        factors: Factors,
        receiver: Receiver,
        block: Block | None,
        algorithm: str,
        counts: np.ndarray,
    ) -> Plan:
        """Choose the algorithm and allocate; every rank comes here with the same arguments but for S."""
        team = self._team
        problem = Problem(
            shape=factors.shape,
            dtype=factors.dtype,
            counts=counts,
            ranks=team.size,
            ranks_per_node=team.ranks_per_node,
            nodes=team.nodes,
            passes=receiver.passes,
            sharing=team.sharing,
            shared=block is not None,
            block=block,
        )
        plan = choose(problem, algorithm)
        # Each step is collective and can fail on one rank: agree on it before the next.
        for step in (team.load_kernels, lambda: ALGORITHMS[plan.algorithm].prepare(problem, team)):
            error: Exception | None = None
            try:
                step()
            except Exception as caught:
                error = caught
            team.agree.check_result(call, error)
        return plan


def _sizes(shape: Any) -> tuple[int, ...]:
    """Return ``shape`` as NumPy reads it: an integer or a sequence of them."""
    try:
        return (index(shape),)
    except TypeError:
        return tuple(index(n) for n in shape)


def _place(array: np.ndarray | None) -> object:
    """Return where an array lies, as far as it has to be the same on all ranks; "" if it is yet to be created."""
    if array is None:
        return ""
    block = find(array)
    return None if block is None else (block.name, block.offset(array))


def _describe(factors: Any, receiver: Any, algorithm: str) -> str:
    """Say what a rank passed; never raises."""
    if not isinstance(factors, Factors):
        return f"{type(factors).__name__} and {type(receiver).__name__}"
    if not isinstance(receiver, Receiver):
        target, arrays = f"array {receiver.shape} {receiver.dtype}", [receiver]
    else:
        target, arrays = repr(receiver), [receiver.array, *receiver.state]
    for array in arrays:
        place = _place(array)
        if place == "":
            target += ", state not yet created"
        elif isinstance(place, tuple):
            target += f", in shared memory {place[0][:8]}+{place[1]}"
    return f"{factors.shape} {factors.dtype} Factors into {target}, algorithm {algorithm!r}"
