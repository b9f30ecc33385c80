"""Exchanges that begin during the backward pass, in one order on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import nn

import sfb

__all__ = ["EarlyExchanges", "Exchanged"]


class Exchanged(Protocol):
    """Gradients that travel together."""

    @property
    def ready(self) -> bool:
        """Whether the backward pass has left all of them."""

    def start(self, comm: sfb.Comm, scale: float) -> None:
        """Begin the exchange, with this rank's gradients scaled."""


class EarlyExchanges:
    """Exchanges that begin as soon as the backward pass has left their gradients.

    Wait-free backpropagation (Zhang et al., "Poseidon", ATC 2017, section 3). An exchange waits for those before it in
    the order, since all ranks begin exchanges in the same order.

    Args:
        comm: The ranks.
        members: For each exchange its parameters.
        order: Parameters in the order in which the backward pass leaves their gradients, equal on all ranks.
    """

    def __init__(
        self, comm: sfb.Comm, members: Mapping[Exchanged, Sequence[nn.Parameter]], order: Sequence[nn.Parameter]
    ) -> None:
        place = {param: i for i, param in enumerate(order)}
        self._comm = comm
        self._exchanges = sorted(members, key=lambda each: max(place[param] for param in members[each]))
        self._next = 0

    def advance(self, scale: float) -> None:
        """Begin the exchanges whose turn it is and whose gradients are there."""
        while self._next < len(self._exchanges) and self._exchanges[self._next].ready:
            self._exchanges[self._next].start(self._comm, scale)
            self._next += 1

    def finish(self, scale: float, wanted: Callable[[Exchanged], bool]) -> None:
        """Begin the other exchanges, of which ``wanted`` tells whether any rank has gradients."""
        for exchange in self._exchanges[self._next :]:
            if wanted(exchange):
                exchange.start(self._comm, scale)
        self._next = 0
