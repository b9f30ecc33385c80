"""The base of stores: ranks agree on tables, read them, and leave together or alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from sfb import topology as topologies
from sfb.checks import FLOATS
from sfb.factors import Factors
from sfb.optim import Optimizer
from sfb.runtime import seals
from sfb.runtime.agreement import compare, on_all_ranks
from sfb.runtime.compile import warmup
from sfb.runtime.finite import check_finite
from sfb.runtime.team import check_comm, near
from sfb.runtime.threads import cores, same_host, threads_of
from sfb.runtime.tracing import join
from sfb.runtime.ulfm import blames_death, private
from sfb.store.replica import Table
from sfb.trace.spans import span

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StoreBase", "StoreError", "farewell", "reason"]


class StoreError(RuntimeError):
    """This or another rank has left the store by an exception.

    >>> import numpy as np, sfb
    >>> from mpi4py import MPI
    >>> try:
    ...     with sfb.Store(MPI.COMM_SELF, {"w": np.zeros(3)}, sfb.optim.SGD(lr=0.1)) as store:
    ...         store.clock()
    ... except sfb.StoreError as error:  # names the rank that has left, and its error
    ...     print(error)
    """


class StoreBase:
    """Tables of which every rank holds a replica; making one is collective.

    Args:
        comm: The ranks.
        tables: Initial values by name.
        rule: The update rule of all tables, or one for each name.
        topology: The graph of the ranks, by name or itself.
        prepare: Checks the other arguments of a subclass, and returns a text of those that must be the same on all
            ranks.

    Attributes:
        topology: The graph of the ranks.

    Raises:
        TypeError, ValueError: An argument is wrong on this or another rank; on every rank.
        MismatchError: Ranks disagree; on every rank.
    """

    topology: topologies.Topology
    _check_finite = False

    def __init__(
        self,
        comm: MPI.Intracomm,
        tables: Mapping[str, np.ndarray],
        rule: Optimizer | Mapping[str, Optimizer],
        topology: Any,
        prepare: Callable[[], str],
    ) -> None:
        check_comm("comm", comm)
        self._world = world = private(MPI.Intracomm(MPI.Intracomm(comm).Split(0, comm.rank)))
        self._rank = world.rank
        node = private(MPI.Intracomm(world.Split_type(MPI.COMM_TYPE_SHARED, world.rank)))
        host = same_host(world)
        self._threads = threads_of(host, cores(host))
        host.Free()
        name = type(self).__name__
        error: Exception | None = None
        text = ""
        self._near = near(world)
        self._checked = True
        try:
            self._checked = seals.are_on()
            self._tables = _tables(tables, rule)
            self.topology = topologies.create(topology, world.size)
            text = f"{name} of {_describe(self._tables, self.topology)}, {prepare()}"
            text += f", SFB_CHECKSUMS={self._checked:d}"
        except Exception as caught:  # of any kind: the other ranks wait for this one
            error = caught
        try:
            compare(world, name, text, error)
            with on_all_ranks(world, name):
                warmup(node)
        except Exception as caught:
            if not blames_death(caught):  # others may wait in them for this rank, until they are revoked
                node.Free()
                world.Free()
            raise
        node.Free()
        self._numbers = {table.name: number for number, table in enumerate(self._tables)}
        self._clock = 0
        self._open = True
        self._failure: str | None = None
        self._label = join(world)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return this rank's replica of a table, read-only, as soon as it is fresh enough.

        The array changes with later calls of the store; after `close` it holds the final value.

        Raises:
            KeyError: There is no such table.
            StoreError: This or another rank has left the store by an exception.
        """
        table = self._tables[self._number(name)]
        if self._open or self._failure is not None:
            self._check_open()
            self._refresh(name)
        view = table.array.view()
        view.flags.writeable = False
        return view

    def optimizer(self, name: str) -> Optimizer:
        """Return the rule bound to this rank's replica of a table; change its settings on all ranks in the same clock.

        The ranks of a `Store` compare settings at the end of each clock; if they differ, calls raise `StoreError`.

        Raises:
            KeyError: There is no such table.
        """
        return self._tables[self._number(name)].optimizer

    def push(self, name: str, update: Factors | np.ndarray) -> None:
        """Give the store an update, a gradient, of a table.

        Args:
            name: The name of the table.
            update: `Factors` of the table's shape and dtype, S may be 0, v may be CSR; or an array of that shape. It is
                copied.

        Raises:
            KeyError, TypeError, ValueError: There is no such table, or the update does not fit, or it holds NaN or
                infinity and the store is to refuse these; nothing was sent.
            RuntimeError: The store is closed.
            StoreError: This or another rank has left the store by an exception.
        """
        number = self._number(name)
        self._check_open()
        self._check_update(self._tables[number], update)
        if self._check_finite:
            _check_numbers(self._rank, name, update)
        with span("push", "store", detail=name, label=self._label, number=self._clock):
            self._push(number, update)

    def clock(self) -> None:
        """End this rank's clock; updates that it pushes from now on belong to the next.

        Raises:
            RuntimeError: The store is closed.
            StoreError: This or another rank has left the store by an exception.
        """
        self._check_open()
        with span("clock", "store", label=self._label, number=self._clock):
            self._end_clock()

    def close(self) -> None:
        """End the use of the store; collective. A second call does nothing.

        A `Store` holds every update of every rank afterwards, an `AveragingStore` the mean of all replicas, with the
        same bits on all ranks.

        Raises:
            StoreError: This or another rank has left the store by an exception.
        """
        if self._open:
            self._check_open()
            try:
                with span("close", "store", label=self._label, number=self._clock):
                    self._close()
            except MPI.Exception as error:
                self._abandon(error)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._open:
            self._abandon(error)

    def _checks(self, rank: int) -> bool:
        """Return whether messages from and to a rank have checksums: those between nodes, unless they are off."""
        return self._checked and rank not in self._near

    def _refresh(self, name: str) -> None:
        """Make the replica of a table fresh enough for a read."""
        raise NotImplementedError

    def _push(self, number: int, update: Factors | np.ndarray) -> None:
        """Take an update that fits the table ``number``."""
        raise NotImplementedError

    def _end_clock(self) -> None:
        """End a clock of the open store."""
        raise NotImplementedError

    def _close(self) -> None:
        """Close the open store; collective."""
        raise NotImplementedError

    def _abandon(self, error: BaseException) -> None:
        """Leave without the other ranks, and tell them why."""
        raise NotImplementedError

    def _number(self, name: str) -> int:
        try:
            return self._numbers[name]
        except (KeyError, TypeError):
            raise KeyError(f"no table {name!r}; there are {', '.join(map(repr, self._numbers))}") from None

    def _check_open(self) -> None:
        if self._failure is not None:
            raise StoreError(self._failure)
        if not self._open:
            raise RuntimeError("the store is closed")

    @staticmethod
    def _check_update(table: Table, update: Any) -> None:
        if not isinstance(update, (Factors, np.ndarray)):
            raise TypeError(f"an update must be Factors or an array, got {type(update).__name__}")
        if isinstance(update, Factors):
            update.check()
        shape, dtype = table.array.shape, table.array.dtype
        if update.shape != shape or update.dtype != dtype:
            raise ValueError(f"an update of {table.name!r} must be {shape} {dtype}, got {update.shape} {update.dtype}")


def _tables(tables: Mapping[str, np.ndarray], rule: Optimizer | Mapping[str, Optimizer]) -> list[Table]:
    """Check initial values and rules, and return the tables in the order of their names."""
    if not isinstance(tables, Mapping) or not tables or not all(isinstance(name, str) for name in tables):
        raise TypeError("tables must be a mapping of one or more names to arrays")
    made = []
    for name, value in sorted(tables.items()):
        if not isinstance(value, np.ndarray) or value.dtype not in FLOATS:
            got = f"{value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"table {name!r} must be a NumPy array of float32 or float64, got {got}")
        chosen = rule.get(name) if isinstance(rule, Mapping) else rule
        if not isinstance(chosen, Optimizer):
            raise TypeError(f"the rule of {name!r} must be an optimizer such as sfb.optim.SGD(lr=0.1), got {chosen!r}")
        made.append(Table(name, value, chosen))
    if isinstance(rule, Mapping) and set(rule) - set(tables):
        raise ValueError(f"rules for tables that do not exist: {', '.join(sorted(set(rule) - set(tables)))}")
    return made


def _check_numbers(rank: int, name: str, update: Factors | np.ndarray) -> None:
    """Raise ValueError if an update holds NaN or infinity."""
    parts = {"u": update.u, "v": update.v} if isinstance(update, Factors) else {"the update": update}
    for part, array in parts.items():
        check_finite(f"rank {rank} pushes to table {name!r}: {part}", array)


def _describe(tables: list[Table], graph: topologies.Topology) -> str:
    """Return a text of the tables, rules and edges, which must be the same on all ranks."""
    parts = []
    for table in tables:
        digest = blake2b(table.array.tobytes(), digest_size=4).hexdigest()
        parts.append(
            f"{table.name!r} {table.array.shape} {table.array.dtype} with values {digest} and {table.optimizer!r}"
        )
    edges = blake2b(repr([graph.out_neighbours(rank) for rank in range(graph.size)]).encode(), digest_size=4)
    return f"{'; '.join(parts)}; topology {graph.name} {edges.hexdigest()}"


def reason(error: BaseException) -> np.ndarray:
    """Return the bytes of a message that says why a rank has left."""
    return np.frombuffer(f"{type(error).__name__}: {error}"[:1000].encode(), np.uint8)


def farewell(rank: int, message: np.ndarray) -> str:
    """Return the text of the `StoreError` that the `reason` of ``rank`` raises on all ranks."""
    return f"rank {rank} has left the store: {message.tobytes().decode(errors='replace')}"
