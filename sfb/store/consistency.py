"""How far ranks may run apart: bulk synchronous, bounded staleness, or not bounded at all."""

from __future__ import annotations

from operator import index

__all__ = ["ASP", "BSP", "SSP", "Consistency"]


class Consistency:
    """What a reader has to see.

    Attributes:
        ordered: Whether updates are summed clock by clock, so that all ranks hold the same bits.
    """

    ordered = False

    def bound(self, clock: int) -> int:
        """Return the last clock of which a reader at ``clock`` must see all updates; below 0 for none."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class SSP(Consistency):
    """Stale synchronous parallel: a reader at clock c sees every update stamped ≤ c − s − 1, and its own.

    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", NIPS 2013, section 2.

    Args:
        staleness: s ≥ 0; with 0 it is `BSP`.

    Raises:
        TypeError: Not an integer.
        ValueError: Negative.
    """

    def __init__(self, staleness: int) -> None:
        try:
            self.staleness = index(staleness)
        except TypeError:
            raise TypeError(f"staleness must be an integer, got {staleness!r}") from None
        if self.staleness < 0:
            raise ValueError(f"staleness must be ≥ 0, got {staleness}")
        self.ordered = self.staleness == 0

    def __repr__(self) -> str:
        return f"SSP({self.staleness})" if self.staleness else "BSP()"

    def bound(self, clock: int) -> int:
        """Return clock − s − 1."""
        return clock - self.staleness - 1


class BSP(SSP):
    """Bulk synchronous parallel: a reader at clock c sees every update stamped ≤ c − 1, and no other."""

    def __init__(self) -> None:
        super().__init__(0)


class ASP(Consistency):
    """Asynchronous parallel: a reader never waits."""

    def __repr__(self) -> str:
        return "ASP()"

    def bound(self, clock: int) -> int:
        """Return −1: nothing has to be seen."""
        return -1
