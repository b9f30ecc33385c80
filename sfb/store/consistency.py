"""How far ranks may run apart: bulk synchronous, bounded staleness, or asynchronous."""

from __future__ import annotations

from operator import index

__all__ = ["ASP", "BSP", "SSP", "Consistency"]


class Consistency:
    """A rule for what a reader must see.

    Attributes:
        ordered: Whether the store sums updates clock by clock, so that all ranks hold the same bits.
    """

    ordered = False

    def bound(self, clock: int) -> int:
        """Return the last clock of which a reader at ``clock`` must see all updates; negative for none."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class SSP(Consistency):
    """Stale synchronous parallel: a reader at clock c sees every update stamped ≤ c − s − 1, and its own.

    Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server", NIPS 2013, section 2.

    Args:
        staleness: The integer s ≥ 0; `SSP(0)` is `BSP()`.

    Raises:
        TypeError: ``staleness`` is not an integer.
        ValueError: ``staleness`` is negative.

    >>> import sfb
    >>> sfb.SSP(3).bound(10)  # a reader at clock 10 sees all updates stamped up to 6
    6
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
        """Return ``clock`` − s − 1."""
        return clock - self.staleness - 1


class BSP(SSP):
    """Bulk synchronous parallel: a reader at clock c sees every update stamped ≤ c − 1, and no other.

    >>> import sfb
    >>> sfb.BSP().bound(10)
    9
    """

    def __init__(self) -> None:
        super().__init__(0)


class ASP(Consistency):
    """Asynchronous parallel: a reader never waits.

    >>> import sfb
    >>> sfb.ASP().bound(10)
    -1
    """

    def __repr__(self) -> str:
        return "ASP()"

    def bound(self, clock: int) -> int:
        """Return −1, since a reader may see nothing."""
        return -1
