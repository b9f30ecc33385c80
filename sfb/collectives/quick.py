"""Exchanges inside a node that are single calls of a kernel, so that Python costs them little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.collectives.call import Call
from sfb.collectives.problem import Problem
from sfb.receiver import Receiver

if TYPE_CHECKING:
    from sfb.factors import Factors

__all__ = ["run", "serves"]

# Multiplications from which the threads of a rank share them, which a kernel of one call does not.
_SHARED = 1 << 21


def serves(problem: Problem, call: Call, receiver: Receiver) -> bool:
    """Return whether the exchange lies within a node and is nothing but a rule of the kernels."""
    team = call.team
    if team.nodes > 1 or not receiver.plain:
        return False
    return team.threads == 1 or problem.depth * problem.shape[0] * problem.shape[1] * problem.share < _SHARED


def run(
    kind: str, problem: Problem, call: Call, user: int, factors: Factors, receiver: Receiver, between: tuple[Any, ...]
) -> Iterator[Any]:
    """Run the kernel ``kind`` of `sfb.kernels.exchange`, "node" or "dense"; ``between`` is what it alone takes."""
    step = _Step(kind, problem, call, user, factors, receiver, between)
    if not step.go(wait=call.blocking):
        yield step
    call.done(step.nanoseconds * 1e-9)


class _Step:
    """The rest of such an exchange, to be waited for."""

    __slots__ = ("_arguments", "_call", "_function", "_kind", "_pieces", "_progress", "_user")

    def __init__(
        self,
        kind: str,
        problem: Problem,
        call: Call,
        user: int,
        factors: Factors,
        receiver: Receiver,
        between: tuple[Any, ...],
    ) -> None:
        from sfb.kernels import exchange

        rule, array = receiver.rule(), receiver.array
        states = kernels.states_of(rule, array, receiver.state)
        self._kind = kind
        self._function = getattr(exchange, kind)
        self._call = call
        self._user = user
        self._pieces = between[-1]
        self._progress = np.zeros(2, np.int64)
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
        board = self._call.team.board
        place = board.place if wait else board.glance
        return self._function(board.words, place, self._call.number, self._user, self._progress, *self._arguments)

    def Test(self) -> bool:
        """Go on without waiting, and return whether that was all."""
        return self.go(wait=False)

    def Wait(self) -> None:
        """Go on to the end."""
        self._call.team.board.wait(lambda: self.go(wait=True), self._missing, self._call.name)

    def _missing(self) -> list[int]:
        from sfb.kernels import exchange

        call = self._user if self._progress[0] == 0 else self._call.number
        return self._call.team.board.missing(call, exchange.phase(self._kind, self._progress, self._pieces))
