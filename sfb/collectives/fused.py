"""Exchanges inside a node that are single calls of a kernel, so that Python costs them little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.kernels import status
from sfb.receiver import Receiver

if TYPE_CHECKING:
    from sfb.factors import Factors
    from sfb.runtime.agreement import Agreement, Meeting
    from sfb.runtime.board import Board
    from sfb.runtime.team import Team
    from sfb.runtime.windows import Block

__all__ = ["Repeated", "brief", "run", "serves"]

# Multiplications from which the threads of a rank share them, which a kernel of one call does not.
_SHARED = 1 << 21


def serves(problem: Problem, call: Call, receiver: Receiver) -> bool:
    """Return whether the exchange lies within a node, and is `brief`."""
    return call.team.nodes == 1 and brief(problem, call.team.threads, receiver)


def brief(problem: Problem, threads: int, receiver: Receiver) -> bool:
    """Return whether there is nothing to do but a rule of the kernels, and too little of it for threads to share."""
    work = problem.depth * problem.shape[0] * problem.shape[1] * problem.share
    return receiver.plain and (threads == 1 or work < _SHARED)


def run(
    kind: str, problem: Problem, call: Call, user: int, factors: Factors, receiver: Receiver, between: tuple[Any, ...]
) -> Iterator[Any]:
    """Run the kernel ``kind`` of `sfb.kernels.fused`, "node" or "dense"; ``between`` is what it alone takes."""
    team = call.team
    progress = _progress()
    step = _Step(kind, problem, team.board, call.number, call.name, user, progress, factors, receiver, between)
    if not step.go(wait=call.blocking):
        yield step
    call.done(step.nanoseconds * 1e-9)
    call.repetition = partial(Repeated, kind, problem, team, team.staging(0)[0], between)


def _progress() -> np.ndarray:
    from sfb.kernels import fused as exchange

    return np.zeros(exchange.PROGRESS, np.int64)


class Repeated:
    """Such an exchange, done again: this rank's data lie in the node's memory before the others see its header.

    Other ranks may take `run` meanwhile.

    Args:
        kind: As of `run`.
        problem: The exchange.
        team: The ranks.
        block: The memory that the node shares for it.
        between: As of `run`.

    Attributes:
        parcel: Nothing goes with the header.
    """

    parcel = None

    def __init__(self, kind: str, problem: Problem, team: Team, block: Block, between: tuple[Any, ...]) -> None:
        from sfb.kernels import fused as exchange
        from sfb.kernels import sync

        self._kind = kind
        self._problem = problem
        self._team = team
        self._block = block
        self._between = between
        self._samples = problem.deepest
        self._exchange = exchange
        self._sync = sync
        self._open: Callable[..., int] = getattr(exchange, f"open_{kind}")
        self._progress = _progress()
        self._begun: tuple[int, str, Factors] | None = None
        self._verdict = status.PENDING

    def trade(self, call: str, number: int, digest: int, factors: Factors, receiver: Receiver) -> bool | None:
        """Write this rank's data, and return whether all ranks agree; None, with nothing shown, if that cannot be."""
        team, array, state = self._team, receiver.array, receiver.state
        board, user = team.board, team.staged(self._block)
        if user is None:  # there is other memory now
            return None
        self._progress.fill(0)
        about = number, user, self._progress, digest, self._samples
        s = state[0] if state else array
        t = state[1] if len(state) > 1 else array
        words, place = board.words, board.place
        try:
            scratch = kernels.scratch_for(self._problem.depth, array)
            arguments = *about, factors.u, factors.v, *self._between, array, s, t, scratch
            verdict = self._open(words, place, *arguments)
        except (TypeError, AttributeError, MemoryError):  # it is not compiled for such arguments, or has no room
            return None
        if verdict == status.UNFIT:
            return None
        if verdict == status.PENDING:
            pieces = self._between[-1]
            missing = partial(_missing, board, self._kind, number, user, self._progress, pieces)
            board.wait(lambda: self._look(arguments), missing, call)
            verdict = self._verdict
        self._verdict = verdict
        if verdict != status.AGREED:
            return False
        team.staging(0, number)
        self._begun = number, call, factors
        return True

    def show(self, agree: Agreement, meeting: Meeting) -> None:
        """Let a meeting go on from what the ranks have shown, where they disagree."""
        meeting.verdict = self._verdict

    def take(self, receiver: Receiver) -> float:
        """Update the receiver, and return the seconds that this rank worked."""
        assert self._begun is not None
        number, call, factors = self._begun
        self._begun = None
        kind, problem, board = self._kind, self._problem, self._team.board
        step = _Step(kind, problem, board, number, call, 0, self._progress, factors, receiver, self._between)
        if not step.go(wait=True):
            step.Wait()
        return step.nanoseconds * 1e-9

    def _look(self, arguments: tuple[Any, ...]) -> bool:
        board = self._team.board
        self._verdict = self._open(board.words, board.place, *arguments)
        return self._verdict != status.PENDING


class _Step:
    """The rest of such an exchange, to be waited for."""

    __slots__ = ("_arguments", "_board", "_function", "_kind", "_name", "_number", "_pieces", "_progress", "_user")

    def __init__(
        self,
        kind: str,
        problem: Problem,
        board: Board,
        number: int,
        name: str,
        user: int,
        progress: np.ndarray,
        factors: Factors,
        receiver: Receiver,
        between: tuple[Any, ...],
    ) -> None:
        from sfb.kernels import fused as exchange

        rule, array = receiver.rule(), receiver.array
        states = kernels.states_of(rule, array, receiver.state)
        self._kind = kind
        self._function = getattr(exchange, kind)
        self._board = board
        self._number = number
        self._name = name
        self._user = user
        self._pieces = between[-1]
        self._progress = progress
        self._arguments = (
            factors.u,
            factors.v,
            *between,
            rule.kind,
            *rule.linear,
            rule.numbers(array.dtype),
            array,
            *states,
            1 + rule.states,
            problem.shared,
            kernels.scratch_for(problem.depth, array),
        )

    @property
    def nanoseconds(self) -> int:
        """Time spent in forming and applying the sum."""
        return int(self._progress[1])

    def go(self, *, wait: bool) -> bool:
        """Go on, looking for the others for a while if ``wait``; return whether that was all."""
        board = self._board
        place = board.place if wait else board.glance
        return self._function(board.words, place, self._number, self._user, self._progress, *self._arguments)

    def Test(self) -> bool:
        """Go on without waiting, and return whether that was all."""
        return self.go(wait=False)

    def Wait(self) -> None:
        """Go on to the end."""
        missing = partial(_missing, self._board, self._kind, self._number, self._user, self._progress, self._pieces)
        self._board.wait(lambda: self.go(wait=True), missing, self._name)


def _missing(board: Board, kind: str, number: int, user: int, progress: np.ndarray, pieces: Any) -> list[int]:
    """Return the ranks that an exchange waits for: those of its call, or of the one that used the memory before."""
    from sfb.kernels import fused as exchange

    return board.missing(user if progress[0] == 0 else number, exchange.phase(kind, progress, pieces))
