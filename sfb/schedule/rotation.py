"""Block rotation: blocks of a model move around a ring of ranks, whose data stay.

Every rank works on every block once a sweep, and each block is on one rank at a time, so ranks never change the same
parameters at the same time (Lee et al., "On Model Parallelization and Scheduling Strategies for Distributed Machine
Learning", NIPS 2014; Gemulla et al., KDD 2011, for matrix factorization).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter, sleep
from types import TracebackType
from typing import Any

import numpy as np

from sfb.runtime.seals import are_on
from sfb.schedule.agree import agree, caught, is_alone
from sfb.schedule.blocks import PackedBlock, aligned, check_blocks, nbytes
from sfb.schedule.trace import Trace
from sfb.trace.now import NOW
from sfb.trace.spans import record

__all__ = ["Block", "BlockProgram", "Rotation", "Sweep", "seats"]

_TAG, _ARRIVED = 1, 2
# Seconds for which a waiting rank polls, and seconds that it then sleeps between two looks: ranks may share cores.
_SOON, _PAUSE = 2e-4, 5e-5
_SUMMED = ("float64", "float32", "int64")
_GONE = 0xFF  # fills memory that a block has left, in debug mode


def seats(ranks: int, lines: Sequence[Sequence[int]]) -> list[list[int | None]]:
    """Return the block that each rank works on in each step of a sweep.

    >>> from sfb.schedule import seats
    >>> seats(2, [[0, 1], [2]])
    [[0, 2], [1, None], [2, 0], [None, 1]]

    Args:
        ranks: The number of ranks.
        lines: The blocks that each rank holds at first, in the order in which it works on them.

    Returns:
        For each step, the block of each rank; None for a rank that has none in that step.
    """
    longest = max(map(len, lines), default=0)
    padded = [[*line, *[None] * (longest - len(line))] for line in lines]
    return [
        [padded[(rank - hop) % ranks][slot] for rank in range(ranks)] for hop in range(ranks) for slot in range(longest)
    ]


class Block:
    """A block while it is on this rank.

    Attributes:
        number: The number of the block.
        arrays: The arrays of the block, a list, to be changed in place. They are this rank's until `BlockProgram.push`
            or `BlockProgram.improve` returns.
        step: The step of the sweep.

    Args:
        number: The number of the block.
        arrays: The arrays of the block.
        step: The step of the sweep.
        progress: Function that takes messages of other blocks forward.

    >>> import numpy as np
    >>> from sfb.schedule import Block
    >>> block = Block(0, (np.zeros(2),), 0, lambda: None)  # as a rotation passes it to a program
    >>> block.arrays[0] += 1
    >>> block.check()
    """

    def __init__(self, number: int, arrays: tuple[np.ndarray, ...], step: int, progress: Callable[[], None]) -> None:
        self.number = number
        self.arrays = list(arrays)
        self.step = step
        self._own = arrays
        self._progress = progress

    def check(self) -> None:
        """Raise TypeError if arrays have been put into the list, which would stay here."""
        if len(self.arrays) != len(self._own) or any(
            array is not own for array, own in zip(self.arrays, self._own, strict=False)
        ):
            raise TypeError(f"the arrays of block {self.number} must be changed in place, not replaced")

    def progress(self) -> None:
        """Take the messages of other blocks forward: MPI moves large ones only inside calls. For long work."""
        self._progress()


class BlockProgram(ABC):
    """A model whose blocks rotate: what a rank does with a block, and what the ranks sum.

    Attributes:
        summand: An array of float64, float32 or int64 that this rank changes in `push`, and that the ranks sum at each
            sync point: its sum over ranks goes to `pull`, and the array is set to 0. None for nothing. Of the same
            shape and dtype on all ranks; the program keeps the same array for good.

    >>> import numpy as np
    >>> from sfb.schedule import BlockProgram, Rotation
    >>> class Fill(BlockProgram):
    ...     def push(self, block):
    ...         block.arrays[0][:] = block.number
    >>> with Rotation(None, {0: [np.ones(2)], 1: [np.ones(1)]}) as rotation:
    ...     sweep = rotation.sweep(Fill())
    ...     print(rotation.blocks)
    {0: (array([0., 0.]),), 1: (array([1.]),)}
    """

    summand: np.ndarray | None = None

    @abstractmethod
    def push(self, block: Block) -> None:
        """Work on a block with the data of this rank; communicates nothing."""

    def improve(self, block: Block, done: Callable[[], bool]) -> None:
        """Work on a block once more, while other ranks are not done with theirs.

        Args:
            block: The block of the last `push`.
            done: Function that returns whether all ranks are done. A program may call it now and then and return early.
        """
        self.push(block)

    def pull(self, total: np.ndarray) -> None:  # noqa: B027 programs without a summand need none
        """Take the sum of `summand` over all ranks; the same bits on all of them."""


@dataclass(frozen=True)
class Sweep:
    """What this rank did in a sweep.

    Attributes:
        steps: Blocks that the rank has worked on.
        extra: Extra passes over blocks, made while other ranks were not done.
        work: Seconds in which the rank worked.
        improve: Seconds of extra passes.
        wait: Seconds in which it waited for blocks or for other ranks.
        seconds: Seconds of the sweep.

    >>> from sfb.schedule import Sweep
    >>> sweep = Sweep(steps=2, extra=0, work=0.3, improve=0.0, wait=0.1, seconds=0.4)  # as `Rotation.sweep` returns it
    >>> sweep.wait / sweep.seconds
    0.25
    """

    steps: int
    extra: int
    work: float
    improve: float
    wait: float
    seconds: float


class Rotation:
    """Blocks that move around the ring of ranks; a context manager. Making and freeing it is collective.

    In a sweep every block visits every rank and returns home. A rank works on the blocks that it holds in their order
    and sends each on as soon as it is done with it, so with two or more blocks a rank, blocks travel while ranks work.

    >>> import numpy as np
    >>> from sfb.schedule import BlockProgram, Rotation
    >>> class Count(BlockProgram):
    ...     def push(self, block):
    ...         block.arrays[0] += 1
    >>> with Rotation(None, {0: [np.zeros(2)], 1: [np.zeros(3)]}) as rotation:
    ...     sweep = rotation.sweep(Count())
    ...     print(sweep.steps, [block[0] for block in rotation.blocks.values()])
    2 [array([1., 1.]), array([1., 1., 1.])]

    Args:
        comm: The ranks; None for this process alone.
        blocks: The arrays of the blocks that this rank holds, by the block's number, in the order in which to work on
            them; they are copied. Over all ranks the numbers are 0, 1, …, each once. A rank may hold none: with fewer
            blocks than ranks, some ranks wait in each step.
        passes: Most extra passes over a block that a rank makes while others are not done (Kumar, Beutel, Ho and Xing,
            "Fugue: Slow-Worker-Agnostic Distributed Learning for Big Models on Big Data", AISTATS 2014). With 0 blocks
            move on as soon as possible. Otherwise every step is a sync point: all blocks move at the same time, and
            the result depends on the speed of the ranks.
        sync: When the ranks sum `BlockProgram.summand`: after each "step", or after each "sweep".
        check: Check in every step that no two ranks hold the same block, which takes a message, and fill memory that a
            block has left, so that a program that keeps it is found out.
        trace: A record of what this rank does.

    Attributes:
        extra: Extra passes of this rank in all sweeps.

    Raises:
        TypeError, ValueError: An argument is wrong on a rank; on every rank.
        MismatchError: Options differ between ranks; on every rank.
    """

    def __init__(
        self,
        comm: Any,
        blocks: Mapping[int, Sequence[np.ndarray]],
        *,
        passes: int = 0,
        sync: str = "sweep",
        check: bool = False,
        trace: Trace | None = None,
    ) -> None:
        alone = is_alone(comm)
        error: Exception | None = None
        if isinstance(passes, bool) or not isinstance(passes, (int, np.integer)) or passes < 0:
            error = ValueError(f"passes must be an integer ≥ 0, got {passes!r}")
        elif sync not in ("step", "sweep"):
            error = ValueError(f"sync must be 'step' or 'sweep', got {sync!r}")
        self._checked, wrong = caught(are_on)
        options = f"passes={passes}, sync={sync!r}, check={check}, SFB_CHECKSUMS={bool(self._checked):d}"
        agree(comm, "Rotation", f"Rotation of {options}", error or wrong)
        self._forms, _ = check_blocks(comm, blocks, "Rotation")
        self.rank: int = 0 if alone else comm.rank
        self.size: int = 1 if alone else comm.size
        own = [int(number) for number in blocks]
        lines = [own] if alone else comm.allgather(own)
        self._seats = seats(self.size, lines)
        self._line = max(map(len, lines))
        self._passes, self._sync, self._check, self._trace = int(passes), sync, check, trace
        self._largest = max(map(nbytes, self._forms), default=0)
        self._pool: list[np.ndarray] = []
        self._held = {
            number: self._make(number).fill(arrays) for number, arrays in zip(own, blocks.values(), strict=True)
        }
        self._coming: dict[int, tuple[list[Any], PackedBlock]] = {}  # by slot of the line
        self._going: list[tuple[list[Any], PackedBlock]] = []
        self.extra = 0
        self._sweeps = 0
        self._near: frozenset[int] = frozenset()
        self._comm: Any = None
        if not alone:
            from mpi4py import MPI

            import sfb
            from sfb.runtime.team import near

            # Messages of the user's own never meet those of the blocks.
            self._private = MPI.Intracomm(MPI.Intracomm(comm).Split(0, comm.rank))
            self._near = near(self._private)
            self._comm = sfb.Comm(self._private)

    @property
    def blocks(self) -> dict[int, tuple[np.ndarray, ...]]:
        """The arrays of the blocks that this rank holds between sweeps; they are no copies, valid until the next."""
        return {number: packed.arrays for number, packed in self._held.items()}

    @property
    def steps(self) -> int:
        """The number of steps of a sweep."""
        return len(self._seats)

    def sweep(self, program: BlockProgram) -> Sweep:
        """Let every rank work on every block; collective.

        Raises:
            MismatchError: `BlockProgram.summand` differs between ranks; on every rank.
            DamagedMessageError: A block has arrived damaged; on every rank, at the end of the sweep.
            Exception: The program of a rank raised one. That rank sends blocks on without working on them, and every
                rank raises at the end of the sweep, naming the rank; the blocks are home again.
        """
        run = _Run(program, self._trace)
        self._sweeps += 1
        total = self._agree(program.summand)
        began = perf_counter()
        for step, numbers in enumerate(self._seats):
            self._step(run, step, numbers)
            if self._sync == "step":
                self._sum(run, total)
        for slot in list(self._coming):
            self._arrive(run, slot)
        if self._sync == "sweep":
            self._sum(run, total)
        self._reap(run, wait=True)
        for packed in self._held.values():
            packed.restart()
        self.extra += run.extra
        agree(self._comm, "sweep", error=run.error)
        work, improve, wait = (run.seconds[kind] for kind in ("work", "extra", "wait"))
        return Sweep(run.steps, run.extra, work, improve, wait, perf_counter() - began)

    def free(self) -> None:
        """Free the communicator; collective, and harmless when repeated. The blocks stay valid."""
        comm, self._comm = self._comm, None
        if comm is not None:
            comm.free()
            self._private.Free()

    def __enter__(self) -> Rotation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With an error on the way the other ranks may never reach a collective.
        if kind is None:
            self.free()

    def _step(self, run: _Run, step: int, numbers: list[int | None]) -> None:
        """Work on one block and send it on, while the next block of its slot arrives."""
        number, slot = numbers[self.rank], step % self._line
        self._arrive(run, slot)
        if self._comm is not None:
            if self._check:
                self._check_owners(number)
            following = numbers[(self.rank - 1) % self.size]
            if following is not None:
                packed = self._make(following)
                packed.expected = step // self._line + 1
                self._coming[slot] = packed.receive(self._comm, (self.rank - 1) % self.size, _TAG), packed
        block = None
        if number is not None:
            block = Block(number, self._held[number].arrays, step, self._progress)
            run.call("work", block, run.program.push, block)
            run.steps += 1
        if self._passes and self._comm is not None:
            self._improve(run, block, step)
        if number is not None and self._comm is not None:
            packed = self._held.pop(number)
            packed.visit()
            right = (self.rank + 1) % self.size
            requests = packed.send(self._comm, right, _TAG, self._sweeps, checked=self._checks(right))
            self._going.append((requests, packed))
        self._reap(run)

    def _improve(self, run: _Run, block: Block | None, step: int) -> None:
        """Work on a block again until all ranks are done with theirs, or the bound is reached."""
        arrived = _Arrivals(self._comm)
        made = 0
        while block is not None and made < self._passes and run.error is None and not arrived.all():
            run.call("extra", block, run.program.improve, block, arrived.all)
            made += 1
        run.extra += made
        run.wait(arrived.requests, f"step {step}")

    def _arrive(self, run: _Run, slot: int) -> None:
        """Wait for the block that comes into a slot, if any."""
        if slot in self._coming:
            requests, packed = self._coming.pop(slot)
            run.wait(requests, f"block {packed.number}")
            left = (self.rank - 1) % self.size
            _, error = caught(partial(packed.open, left, self._sweeps, checked=self._checks(left)))
            run.error = run.error or error  # the other ranks wait for the block
            self._held[packed.number] = packed

    def _checks(self, rank: int) -> bool:
        """Return whether messages from and to a rank have checksums."""
        return self._checked and rank not in self._near

    def _sum(self, run: _Run, total: np.ndarray | None) -> None:
        """Let the program take the sum of what the ranks have collected; collective."""
        summand = run.program.summand
        if summand is None or total is None:
            return
        began = perf_counter()
        if self._comm is None:
            total[...] = summand
        else:
            self._comm.Allreduce(summand, total)
        run.record("exchange", "sum", began)
        summand[...] = 0
        run.call("pull", None, run.program.pull, total)

    def _agree(self, summand: np.ndarray | None) -> np.ndarray | None:
        """Check what the programs of the ranks sum, and return an array for the sum; collective."""
        error: Exception | None = None
        if summand is not None and not (
            isinstance(summand, np.ndarray) and summand.dtype in _SUMMED and summand.flags.c_contiguous
        ):
            error = TypeError(f"summand must be a C-contiguous array of float64, float32 or int64, got {summand!r}")
        form = None if error is not None or summand is None else (summand.shape, summand.dtype.name)
        agree(self._comm, "sweep", f"summand of {form}", error)
        return None if summand is None else np.empty_like(summand)

    def _check_owners(self, number: int | None) -> None:
        """Raise RuntimeError on every rank if two ranks are about to work on the same block; collective."""
        numbers = [each for each in self._comm.allgather(number) if each is not None]
        if len(set(numbers)) < len(numbers):
            raise RuntimeError(f"a block is on several ranks: ranks hold blocks {numbers}")

    def _make(self, number: int) -> PackedBlock:
        """Return room for a block."""
        return PackedBlock(number, self._forms[number], self._pool.pop() if self._pool else aligned(self._largest))

    def _progress(self) -> None:
        """Take the messages under way forward."""
        requests = [request for each, _ in (*self._coming.values(), *self._going) for request in each]
        if requests:
            type(requests[0]).Testsome(requests)

    def _reap(self, run: _Run, *, wait: bool = False) -> None:
        """Take back the memory of blocks that have left."""
        left = []
        for requests, packed in self._going:
            if wait:
                run.wait(requests, f"block {packed.number}")
            if wait or _completed(requests):
                if self._check:
                    packed.buffer[:] = _GONE
                else:
                    self._pool.append(packed.buffer)
            else:
                left.append((requests, packed))
        self._going = left


class _Arrivals:
    """A sync point at which the last rank knows at once that it is the last.

    Every rank sends a word to each other one. A nonblocking barrier takes several rounds of messages, which ranks in
    the midst of a pass do not forward, so a slow rank would begin a pass in vain.
    """

    def __init__(self, comm: Any) -> None:
        others = [rank for rank in range(comm.size) if rank != comm.rank]
        self._words = np.zeros(len(others) + 1, np.int64)
        self._receives = [comm.Irecv(self._words[i : i + 1], rank, _ARRIVED) for i, rank in enumerate(others)]
        self.requests = self._receives + [comm.Isend(self._words[-1:], rank, _ARRIVED) for rank in others]
        # MPI takes in a message or so each time it is asked.
        end = perf_counter() + _SOON
        while not self.all() and perf_counter() < end:
            pass

    def all(self) -> bool:
        """Return whether all ranks have arrived."""
        return _completed(self._receives)


class _Run:
    """A sweep in progress on this rank."""

    def __init__(self, program: BlockProgram, trace: Trace | None) -> None:
        self.program = program
        self.error: Exception | None = None
        self.steps = self.extra = 0
        self.seconds: dict[str, float] = dict.fromkeys(("work", "extra", "wait", "exchange", "pull"), 0.0)
        self._trace = trace

    def call(self, kind: str, block: Block | None, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function of the program, unless one has raised; keep what it raises."""
        if self.error is not None:
            return
        began = perf_counter()
        try:
            function(*arguments)
            if block is not None:
                block.check()
        except Exception as caught:  # the other ranks wait for the blocks
            self.error = caught
        self.record(kind, "" if block is None else f"block {block.number}", began)

    def wait(self, requests: list[Any], name: str) -> None:
        """Wait for requests."""
        began = perf_counter()
        NOW.call = [f"a sweep, for {name}", self, None, None]
        try:
            while not _completed(requests):
                sleep(0 if perf_counter() - began < _SOON else _PAUSE)
        finally:
            NOW.call = None
        self.record("wait", name, began)

    @property
    def position(self) -> tuple[str, int]:
        """The label of the communicator and the number of the call, which messages of blocks have not."""
        return "", -1

    def record(self, kind: str, name: str, began: float) -> None:
        """Count the time since ``began``."""
        now = perf_counter()
        self.seconds[kind] += now - began
        if self._trace is not None:
            self._trace.add(kind, name, began, now)
        record(name or kind, kind, began, now)


def _completed(requests: list[Any]) -> bool:
    """Test all requests, also those behind one that is under way, and return whether all are complete."""
    return sum(not request.Test() for request in requests) == 0
