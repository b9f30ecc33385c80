"""Exchanges whose data went with the agreement's headers, repeated: what is left to do, in few calls of kernels."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.problem import Problem
from sfb.collectives.quick import SHARED
from sfb.receiver import Receiver

if TYPE_CHECKING:
    from sfb.agreement import Agreement, Meeting
    from sfb.arguments import Parcel
    from sfb.factors import Factors
    from sfb.team import Team

__all__ = ["Carried", "may_repeat"]


def may_repeat(problem: Problem, threads: int) -> bool:
    """Return whether one thread forms a rank's product as fast as all of them would."""
    return threads == 1 or problem.deepest * problem.shape[0] * problem.shape[1] < SHARED


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
        from sfb.kernels import exchange, rounds

        self.parcel = parcel
        self._rounds = team.agree.rounds
        self._threads = team.threads
        self._dtype = problem.dtype
        self._alike = rounds.ALIKE
        self._state = np.zeros(rounds.STATE, np.int64)
        # Where headers begin that nothing follows.
        self._starts = np.arange(team.size + 1, dtype=np.int64) * team.agree.head
        self._samples = problem.deepest
        self._rows, columns = problem.shape
        self._product: np.ndarray | None = None
        agree = team.agree
        self._words = agree.words
        self._kernel: Callable[..., int]
        self._rest: tuple[Any, ...]
        if parcel.values is not None:
            self._product = self._sum = parcel.values
            self._kernel, self._rest = exchange.trade_sum, (parcel.kind, agree.received, parcel.values)
            return
        elements = agree.spare[: team.size * parcel.nbytes].view(problem.dtype)
        if products:
            self._product, self._sum = (
                memory[: parcel.nbytes].view(problem.dtype).reshape(problem.shape)
                for memory in (agree.room, agree.spare)
            )
            first = second = self._sum
        else:
            middle = problem.depth * self._rows
            self._u = first = elements[:middle].reshape(problem.depth, self._rows)
            self._v = second = elements[middle:].reshape(problem.depth, columns)
        self._kernel, self._rest = exchange.trade, (parcel.kind, parcel.nbytes, products, self._starts, first, second)

    def trade(self, call: str, number: int, digest: int, factors: Factors, receiver: Receiver) -> bool | None:
        """Exchange messages with the other ranks, and return whether all have done the same.

        None, with nothing done, if that is not what is asked for.
        """
        array, state = receiver.array, receiver.state
        s = state[0] if state else array
        t = state[1] if len(state) > 1 else array
        u, v = factors.u, factors.v
        if not (type(u) is type(v) is np.ndarray):  # nor a masked array
            return None
        arguments = self._words, digest, self._samples, *self._rest, u, v, array, s, t, kernels.scratch(self._dtype)
        if not self._rounds.repeat(call, number, self._kernel, self._state, arguments):
            return None
        return bool(self._state[self._alike])

    def show(self, agree: Agreement, meeting: Meeting) -> None:
        """Let a meeting go on from the messages that have been exchanged, where the ranks disagree."""
        agree.carried(meeting, self._starts.tolist())

    def take(self, receiver: Receiver) -> float:
        """Update the receiver, and return the seconds that took."""
        began = perf_counter()
        if self._product is not None:
            receiver.update_dense(self._sum, 0, self._rows, threads=self._threads)
        else:
            receiver.update(self._u, self._v, 0, self._rows, threads=self._threads)
        return perf_counter() - began
