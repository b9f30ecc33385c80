"""Programs by schedule, push and pull: the protocol, the grid of ranks, and the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from sfb.schedule.agree import agree, caught, is_alone
from sfb.schedule.balance import cut
from sfb.schedule.sampling import Schedule
from sfb.schedule.trace import Trace
from sfb.trace.spans import record

__all__ = ["Layout", "Program", "Round", "Rounds", "run"]


class Layout:
    """Ranks as a grid: shards of the data × blocks of the variables; a context manager. Making it is collective.

    With as many shards as ranks every rank holds all variables of its samples; with one shard every rank holds all
    samples of its variables. In between, ranks with the same variables share out the samples.

    >>> from sfb.schedule import Layout
    >>> layout = Layout(None, samples=10, variables=4)
    >>> layout.samples, layout.variables
    (slice(0, 10, None), slice(0, 4, None))

    Args:
        comm: The ranks; None for this process alone.
        samples: The number of samples of all ranks.
        variables: The number of variables of all ranks.
        shards: The number of shards of the data, which divides the number of ranks.
        costs: What each variable costs, for blocks of about the same cost; None for blocks of the same size.

    Attributes:
        shard: The number of this rank's shard.
        block: The number of this rank's block.
        sharded: Whether there are several shards.
        samples: The samples of this rank's shard.
        variables: The variables of this rank's block.
        owners: The block of each variable.

    Raises:
        ValueError: The shards do not divide the ranks; on every rank.
        MismatchError: Arguments differ between ranks; on every rank.
    """

    def __init__(
        self,
        comm: Any,
        *,
        samples: int,
        variables: int,
        shards: int = 1,
        costs: np.ndarray | None = None,
    ) -> None:
        rank, size = (0, 1) if is_alone(comm) else (comm.rank, comm.size)
        error: Exception | None = None
        if shards < 1 or size % shards:
            error = ValueError(f"shards must divide the number of ranks, got {shards} shards of {size} ranks")
        agree(comm, "Layout", f"Layout of {shards} shards", error)
        self._grid = shards, size // shards
        self.sharded = shards > 1
        self.shard: int = rank // self._grid[1]
        self.block: int = rank % self._grid[1]
        self.comm = comm
        self._owned: list[tuple[Any, Any]] = []
        self._shards = self._blocks = None
        self.divide(samples=samples, variables=variables, costs=costs)
        if not is_alone(comm):
            self._shards = self._among(self.block, self.shard, shards)
            self._blocks = self._among(self.shard, self.block, size // shards)

    def divide(self, *, samples: int, variables: int, costs: np.ndarray | None = None) -> None:
        """Divide other samples and variables among the same ranks; collective. The arguments are those of the class."""
        shards, blocks = self._grid
        bounds, error = caught(cut, np.ones(variables) if costs is None else costs, blocks)
        agree(self.comm, "Layout", f"Layout of {samples} samples, {variables} variables, cut at {bounds}", error)
        edges = np.linspace(0, samples, shards + 1).astype(int)
        self.samples = slice(int(edges[self.shard]), int(edges[self.shard + 1]))
        self.variables = slice(int(bounds[self.block]), int(bounds[self.block + 1]))
        self.owners = np.repeat(np.arange(blocks), np.diff(bounds))

    def _among(self, colour: int, key: int, size: int) -> Any:
        """Return a communicator of the ranks of one colour; None for a rank alone."""
        from mpi4py import MPI

        import sfb

        if size == 1:
            return None
        if size == self.comm.size and isinstance(self.comm, sfb.Comm):
            return self.comm
        split = MPI.Intracomm(MPI.Intracomm(self.comm).Split(colour, key))
        self._owned.append((sfb.Comm(split), split))
        return self._owned[-1][0]

    def over_shards(self, array: np.ndarray) -> None:
        """Replace an array by its sum over the ranks with the same variables; collective."""
        _sum(self._shards, array)

    def over_blocks(self, array: np.ndarray) -> None:
        """Replace an array by its sum over the ranks with the same samples; collective."""
        _sum(self._blocks, array)

    def over_all(self, array: np.ndarray) -> None:
        """Replace an array by its sum over all ranks; collective."""
        _sum(None if is_alone(self.comm) else self.comm, array)

    def free(self) -> None:
        """Free the communicators; collective, and harmless when repeated."""
        self._shards = self._blocks = None
        while self._owned:
            made, split = self._owned.pop()
            made.free()
            split.Free()

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        # With an error on the way the other ranks may never reach a collective.
        if kind is None:
            self.free()


class Program(ABC):
    """A model whose variables are updated as a schedule says. No method communicates.

    Attributes:
        width: Numbers that `push` returns for each variable.
        effects: Numbers of the second array that `pull` returns.

    >>> import numpy as np
    >>> from sfb.schedule import Layout, Program, RoundRobin, run
    >>> class Halve(Program):
    ...     x = np.ones(4)
    ...
    ...     def push(self, own):
    ...         return self.x[own]
    ...
    ...     def pull(self, own, total):
    ...         self.x[own] = total / 2
    ...         return self.x[own] - total, None
    >>> with Layout(None, samples=1, variables=4) as layout:
    ...     done = run(Halve(), RoundRobin(4, 2), 3, layout)
    >>> Halve.x
    array([0.25, 0.25, 0.5 , 0.5 ])
    """

    width: int = 1
    effects: int = 0

    @abstractmethod
    def push(self, own: np.ndarray) -> np.ndarray:
        """Return this rank's part of what the updates need; the ranks with the same variables sum it.

        Args:
            own: The selected variables of this rank's block.

        Returns:
            An array of `width` numbers for each of them.
        """

    @abstractmethod
    def pull(self, own: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Update variables.

        Args:
            own: The selected variables of this rank's block.
            total: The sum of what `push` returned.

        Returns:
            By how much each of these variables has changed; and `effects` numbers which the ranks with the same
            samples sum for `commit`, or None for zeros.
        """

    def commit(self, effect: np.ndarray) -> None:  # noqa: B027 programs without effects need none
        """Take the summed effects of all changes, the same bits on all ranks with the same samples."""


@dataclass(frozen=True)
class Round:
    """What a round has done, the same on all ranks.

    Attributes:
        number: The number of the round, from 0.
        selected: The variables.
        changes: By how much each of them has changed.

    >>> import numpy as np
    >>> from sfb.schedule import Round
    >>> done = Round(number=0, selected=np.array([3]), changes=np.array([-0.5]))  # as ``until`` of `run` gets it
    >>> bool(np.abs(done.changes).max() < 0.1)
    False
    """

    number: int
    selected: np.ndarray
    changes: np.ndarray


@dataclass(frozen=True)
class Rounds:
    """What `run` has done.

    Attributes:
        rounds: The number of rounds.
        updates: The number of updates of variables, of all ranks.
        scheduling: Seconds in which this rank chose variables.
        working: Seconds of push, pull and commit.
        exchanging: Seconds in which the rank exchanged sums, waiting included.

    >>> from sfb.schedule import Rounds
    >>> done = Rounds(rounds=3, updates=6, scheduling=0.0, working=0.3, exchanging=0.1)  # as `run` returns it
    >>> done.updates / done.rounds
    2.0
    """

    rounds: int
    updates: int
    scheduling: float
    working: float
    exchanging: float


def run(
    program: Program,
    schedule: Schedule,
    rounds: int,
    layout: Layout,
    *,
    until: Callable[[Round], bool] | None = None,
    trace: Trace | None = None,
) -> Rounds:
    """Let the ranks update the variables that a schedule selects, round after round; collective.

    A round is: select, push, sum over shards, pull, sum over blocks, commit. A layout of one shard skips the first sum,
    one of one block the second.

    Args:
        program: This rank's part of the model.
        schedule: The schedule; all ranks make the same.
        rounds: Most rounds.
        layout: Who holds what.
        until: Function that returns whether to stop, the same on all ranks; called after each round.
        trace: A record of what this rank does.

    Raises:
        ValueError: The program returns arrays of other sizes than it says, or layout and schedule have different
            numbers of variables; on every rank.
        Exception: A method of the program raised on a rank; on every rank, at the end of the next round at the latest.

    Returns:
        What the rounds have done.

    >>> import numpy as np
    >>> from sfb.schedule import Layout, Program, Random, run
    >>> class Zero(Program):
    ...     x = np.ones(4)
    ...
    ...     def push(self, own):
    ...         return self.x[own]
    ...
    ...     def pull(self, own, total):
    ...         self.x[own] = 0
    ...         return -total, None
    >>> with Layout(None, samples=1, variables=4) as layout:
    ...     done = run(Zero(), Random(4, 2), 100, layout, until=lambda round: not Zero.x.any())
    >>> done.rounds < 100
    True
    """
    agree(layout.comm, "run", f"run of {rounds} rounds", _misfit(program, schedule, layout))
    loop = _Loop(program, layout, trace)
    updates = number = 0
    while number < rounds:
        selected = loop.timed("schedule", number, schedule.select)
        changes = loop.round(number, selected)
        loop.timed("schedule", number, schedule.feedback, selected, changes)
        updates += len(selected)
        number += 1
        if until is not None and until(Round(number - 1, selected, changes)):
            break
    agree(layout.comm, "run", error=loop.error)
    return Rounds(number, updates, *(loop.seconds[kind] for kind in ("schedule", "work", "exchange")))


class _Loop:
    """A run in progress on this rank."""

    def __init__(self, program: Program, layout: Layout, trace: Trace | None) -> None:
        self.error: Exception | None = None
        self.seconds = {"schedule": 0.0, "work": 0.0, "exchange": 0.0}
        self._program, self._layout, self._trace = program, layout, trace

    def timed(self, kind: str, number: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, and count its time."""
        began = perf_counter()
        result = function(*arguments)
        now = perf_counter()
        self.seconds[kind] += now - began
        if self._trace is not None:
            self._trace.add(kind, f"round {number}", began, now)
        record(kind, kind, began, now)
        return result

    def round(self, number: int, selected: np.ndarray) -> np.ndarray:
        """Update the selected variables, and return by how much each has changed; collective.

        Sums begin with the number of ranks that have failed.
        """
        layout, program = self._layout, self._program
        mine = layout.owners[selected] == layout.block
        own = selected[mine]
        parts = np.zeros(1 + program.width * len(own))
        self._attempt(number, self._push, own, parts)
        self.timed("exchange", number, layout.over_shards, parts)
        results = np.zeros(1 + program.effects + len(selected))
        results[0] = parts[0]
        if not parts[0]:
            self._attempt(number, self._pull, own, mine, parts, results)
        self.timed("exchange", number, layout.over_blocks, results)
        if layout.sharded:  # no sum so far has reached all ranks
            failed = results[:1].copy()
            self.timed("exchange", number, layout.over_all, failed)
            results[0] = failed[0]
        if results[0]:
            agree(layout.comm, "run", error=self.error)
        if program.effects:
            self._attempt(number, self._commit, results)
        return results[1 + program.effects :]

    def _attempt(self, number: int, function: Callable[..., None], *arguments: Any) -> None:
        """Call a method that fills the last array, unless one has failed; count failures in its first element."""
        if self.error is None:
            _, self.error = self.timed("work", number, caught, function, *arguments)
        if self.error is not None:
            arguments[-1][1:] = 0
            arguments[-1][0] += 1

    def _push(self, own: np.ndarray, parts: np.ndarray) -> None:
        parts[1:] = _sized("push", self._program.push(own), parts.size - 1)

    def _pull(self, own: np.ndarray, mine: np.ndarray, parts: np.ndarray, results: np.ndarray) -> None:
        program = self._program
        total = parts[1:].reshape(len(own), program.width) if program.width > 1 else parts[1:]
        changes, effect = program.pull(own, total)
        if effect is not None:
            results[1 : 1 + program.effects] = _sized("pull", effect, program.effects)
        results[1 + program.effects :][mine] = _sized("pull", changes, len(own))

    def _commit(self, results: np.ndarray) -> None:
        self._program.commit(results[1 : 1 + self._program.effects])


def _sized(method: str, array: Any, size: int) -> np.ndarray:
    """Return an array as one row, after checking the number of its elements."""
    row = np.asarray(array, float).ravel()
    if row.size != size:
        raise ValueError(f"{method} must return {size} numbers, got {row.size}")
    return row


def _misfit(program: Program, schedule: Schedule, layout: Layout) -> Exception | None:
    """Return what is wrong if program, schedule and layout do not fit together; collective."""
    own = (layout.block, program.width), (layout.shard, program.effects)
    widths, effects = zip(*([own] if is_alone(layout.comm) else layout.comm.allgather(own)), strict=True)
    if len(set(widths)) > len(dict(widths)):
        return ValueError("programs of ranks with the same variables differ in their width")
    if len(set(effects)) > len(dict(effects)):
        return ValueError("programs of ranks with the same samples differ in the number of their effects")
    if schedule.variables != len(layout.owners):
        return ValueError(f"the schedule has {schedule.variables} variables, the layout {len(layout.owners)}")
    return None


def _sum(comm: Any, array: np.ndarray) -> None:
    if comm is not None:
        from mpi4py import MPI

        comm.Allreduce(MPI.IN_PLACE, array)
