"""Exchanges whose data went with the agreement's headers, repeated: what is left to do, in few calls of kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.problem import Problem
from sfb.receiver import Receiver

if TYPE_CHECKING:
    from sfb.arguments import Parcel
    from sfb.factors import Factors
    from sfb.team import Team

__all__ = ["Carried"]


class Carried:
    """An exchange of ranks that are nodes, each of which sends its parcel with its header.

    It does what the algorithm's ``parcel`` and ``run`` do, to the bit and on the wire, so that other ranks may take
    those meanwhile.

    Args:
        problem: The exchange; it is `Problem.carried`.
        team: The ranks.
        parcel: What this rank sent.
        products: Whether that was its product rather than its factors.

    Attributes:
        kind: The algorithm's number in `sfb.collectives.PARCELS`.
        nbytes: Of a rank's parcel.
        values: What is summed in its place, if anything is.
    """

    def __init__(self, problem: Problem, team: Team, parcel: Parcel, *, products: bool) -> None:
        from sfb.kernels import exchange

        self._exchange = exchange
        self._team = team
        self._samples = problem.deepest
        self.kind, self.nbytes, self.values = parcel.kind, parcel.nbytes, parcel.values
        agree = team.agree
        self._words, self._head = agree.words, agree.head
        self._length = self._head + (self.nbytes + 7) // 8 if self.values is None else self._head
        messages = self._words, self._head, self.nbytes, team.size, team.rank
        rows, columns = problem.shape
        self._product: np.ndarray | None = None
        self._take: Callable[[Receiver], None]
        if self.values is not None:
            summed = self._product = self.values

            def take_sum(receiver: Receiver) -> None:
                receiver.update_dense(summed, 0, rows, threads=team.threads)

            self._take = take_sum
        elif products:
            self._product, total = (
                memory[: self.nbytes].view(problem.dtype).reshape(problem.shape) for memory in (agree.room, agree.spare)
            )

            def take_products(receiver: Receiver) -> None:
                exchange.take_products(*messages, total)
                receiver.update_dense(total, 0, rows, threads=team.threads)

            self._take = take_products
        else:
            elements = agree.spare[: team.size * self.nbytes].view(problem.dtype)
            middle = problem.depth * rows
            u = elements[:middle].reshape(problem.depth, rows)
            v = elements[middle:].reshape(problem.depth, columns)

            def take_factors(receiver: Receiver) -> None:
                exchange.take_factors(*messages, u, v)
                receiver.update(u, v, 0, rows, threads=team.threads)

            self._take = take_factors

    def give(self, digest: int, factors: Factors, receiver: Receiver) -> int:
        """Write this rank's message, and return its words; 0 if that is not what the arguments ask for."""
        array, state = receiver.array, receiver.state
        s = state[0] if state else array
        t = state[1] if len(state) > 1 else array
        u, v, product = factors.u, factors.v, self._product
        if not (type(u) is type(v) is np.ndarray):  # nor a masked array
            return 0
        words, head, give = self._words, self._head, self._exchange.give
        try:
            if not give(words, head, digest, self._samples, self.kind, self.nbytes, product is None, u, v, array, s, t):
                return 0
        except (TypeError, AttributeError):
            return 0
        if product is not None:
            kernels.rebuild(u, v, product, threads=self._team.threads)
        return self._length

    def take(self, receiver: Receiver) -> None:
        """Update the receiver from the messages of all ranks."""
        self._take(receiver)
