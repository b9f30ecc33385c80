"""Exchanges whose data went with the agreement's headers, repeated: single calls of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb.collectives.problem import Problem
from sfb.kernels import header, status
from sfb.receiver import Receiver
from sfb.runtime.limits import SPINS, tag

if TYPE_CHECKING:
    from sfb.collectives.cache import Parcel
    from sfb.factors import Factors
    from sfb.runtime.agreement import Agreement, Meeting
    from sfb.runtime.team import Team

__all__ = ["Carried"]


class Carried:
    """An exchange of ranks that are nodes, each of which sends its parcel with its header.

    It does what the algorithm's ``parcel`` and ``run`` do, to the bit and on the wire, so that other ranks may take
    those meanwhile.

    Args:
        problem: The exchange; its data went with the headers last time.
        team: The ranks.
        parcel: What this rank sent.
        products: Whether that was its product rather than its factors.

    Attributes:
        parcel: As above.
    """

    def __init__(self, problem: Problem, team: Team, parcel: Parcel, *, products: bool) -> None:
        from sfb.kernels import eager as trade
        from sfb.kernels import rounds, sync

        self.parcel = parcel
        agree = team.agree
        self._kernel: Callable[..., int] = trade.trade
        self._codes = rounds
        self._sync = sync
        self._rounds = agree.rounds
        self._state = np.zeros(rounds.STATE, np.int64)
        # Where headers begin that nothing follows.
        self._starts = np.arange(team.size + 1, dtype=np.int64) * agree.head
        rows, columns = problem.shape
        self._dtype = problem.dtype
        self._room = kernels.room_for(problem.depth, columns, problem.itemsize)
        self._words = agree.words
        how, more = trade.PRODUCTS if products else trade.FACTORS, self._starts
        if parcel.values is not None:
            how, more = trade.SUM, agree.received
            first = second = parcel.values
        else:
            elements = agree.spare[: team.size * parcel.nbytes].view(problem.dtype)
            if products:
                first = second = elements[: rows * columns].reshape(problem.shape)
            else:
                middle = problem.depth * rows
                first = elements[:middle].reshape(problem.depth, rows)
                second = elements[middle:].reshape(problem.depth, columns)
        self._arrays = agree.words, more, first, second
        self._bound = agree.rounds.bind(how, problem.deepest, parcel.kind, parcel.nbytes, *self._arrays)

    def trade(
        self,
        call: str,
        number: int,
        digest: int,
        factors: Factors,
        receiver: Receiver,
        spent: tuple[int, int] | None = None,
    ) -> bool | None:
        """Do it, if that is what all ranks do, and return whether it is; None, with nothing done, if that cannot be.

        ``spent`` as of `Agreement.open`.
        """
        array, state, rule = receiver.array, receiver.state, receiver.rule()
        s = state[0] if state else array
        t = state[1] if len(state) > 1 else array
        u, v = factors.u, factors.v
        if type(u) is not np.ndarray or type(v) is not np.ndarray:  # a masked array, say
            return None
        alpha, beta = rule.linear
        times = 0 if spent is None else self._sync.times(*spent)
        try:
            scratch = kernels.scratch(self._room, self._dtype)
            numbers = rule.kind, alpha, beta, rule.numbers(self._dtype), 1 + rule.states, scratch
            arguments = tag(number), digest, times, u, v, array, s, t, *numbers
            code = self._kernel(self._bound, self._state, SPINS, *arguments)
        except (TypeError, AttributeError, MemoryError):  # it is not compiled for such arguments, or has no room
            return None
        if code == status.DONE:
            return True
        return self._finish(code, call, number, arguments)

    def _finish(self, code: int, call: str, number: int, arguments: tuple[Any, ...]) -> bool | None:
        """Wait for the end of an exchange that has come so far."""
        state = self._state
        if code == status.PENDING:

            def go(spins: int) -> int:
                return self._kernel(self._bound, state, spins, *arguments)

            try:
                code = self._rounds.wait(call, number, go, state, *self._arrays, self._bound)
            except BaseException:
                self._state = np.zeros_like(state)  # MPI may still write to the other
                raise
        if code > 0:
            raise MPI.Exception(code)
        return None if code == status.UNFIT else bool(code == status.DONE)

    def show(self, agree: Agreement, meeting: Meeting) -> None:
        """Let a meeting go on from the messages that have been exchanged, where the ranks disagree."""
        agree.carried(meeting, self._starts.tolist())

    def elapsed(self) -> int:
        """Return the nanoseconds that the call before has taken, by what the ranks gave as ``spent``."""
        return self._sync.slowest(self._words[self._starts[:-1] + header.NOTE])

    def take(self, receiver: Receiver) -> float:
        """Return the seconds that this rank worked; all has been done."""
        return int(self._state[self._codes.WORK]) * 1e-9
