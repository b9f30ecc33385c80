"""Exchanges whose data went with the agreement's headers, repeated: single calls of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.problem import Problem
from sfb.receiver import Receiver

if TYPE_CHECKING:
    from sfb.agreement import Agreement, Meeting
    from sfb.arguments import Parcel
    from sfb.factors import Factors
    from sfb.team import Team

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
        from sfb.kernels import rounds, sync, trade

        self.parcel = parcel
        self._sync = sync
        self._rounds = team.agree.rounds
        self._alike, self._work = rounds.ALIKE, rounds.WORK
        self._state = np.zeros(rounds.STATE, np.int64)
        # Where headers begin that nothing follows.
        self._starts = np.arange(team.size + 1, dtype=np.int64) * team.agree.head
        self._samples = problem.deepest
        rows, columns = problem.shape
        self._dtype = problem.dtype
        self._room = kernels.room_for(problem.depth, columns, problem.itemsize)
        agree = team.agree
        self._words = agree.words
        self._kernel: Callable[..., int]
        self._rest: tuple[Any, ...]
        if parcel.values is not None:
            self._kernel, self._rest = trade.trade_sum, (parcel.kind, agree.received, parcel.values)
            return
        elements = agree.spare[: team.size * parcel.nbytes].view(problem.dtype)
        if products:
            first = second = elements[: rows * columns].reshape(problem.shape)
        else:
            middle = problem.depth * rows
            first = elements[:middle].reshape(problem.depth, rows)
            second = elements[middle:].reshape(problem.depth, columns)
        self._kernel, self._rest = trade.trade, (parcel.kind, parcel.nbytes, products, self._starts, first, second)

    def trade(
        self, call: str, number: int, digest: int, factors: Factors, receiver: Receiver, spent: tuple[int, int] = (0, 0)
    ) -> bool | None:
        """Do it, if that is what all ranks do, and return whether it is; None, with nothing done, if that cannot be.

        ``spent`` as of `Agreement.open`.
        """
        array, state, rule = receiver.array, receiver.state, receiver.rule()
        s = state[0] if state else array
        t = state[1] if len(state) > 1 else array
        u, v = factors.u, factors.v
        if not (type(u) is type(v) is np.ndarray):  # nor a masked array
            return None
        try:
            scratch = kernels.scratch(self._room, self._dtype)
        except MemoryError:
            return None
        numbers = rule.kind, *rule.linear, rule.numbers(self._dtype), 1 + rule.states
        times = self._sync.times(*spent)
        arguments = self._words, digest, self._samples, times, *self._rest, u, v, array, s, t, *numbers, scratch
        if not self._rounds.repeat(call, number, self._kernel, self._state, arguments):
            return None
        return bool(self._state[self._alike])

    def show(self, agree: Agreement, meeting: Meeting) -> None:
        """Let a meeting go on from the messages that have been exchanged, where the ranks disagree."""
        agree.carried(meeting, self._starts.tolist())

    def elapsed(self) -> int:
        """Return the nanoseconds that the call before has taken, by what the ranks gave as ``spent``."""
        return self._sync.average(self._words[self._starts[:-1] + 2])

    def take(self, receiver: Receiver) -> float:
        """Return the seconds that this rank worked; all has been done."""
        return int(self._state[self._work]) * 1e-9
