"""A limit of the bytes that a rank sends in a second."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Bucket"]

_SLICE = 0.04  # seconds of the rate that a rank may send at once after silence, or in one message


class Bucket:
    """A token bucket: it lets at most rate·t + 2·`size` bytes pass in any t seconds.

    A message may leave while there are tokens, and takes as many as it has bytes. A message larger than that leaves a
    debt, which the next message waits for.

    Args:
        rate: Bytes per second.
        now: Returns the time in seconds.

    Attributes:
        size: The number of tokens that the bucket holds, and the bytes of the largest message to send.
    """

    def __init__(self, rate: float, now: Callable[[], float]) -> None:
        self._rate = rate
        self._now = now
        self.size = max(1, int(_SLICE * rate))
        self._tokens = float(self.size)
        self._filled = now()

    def ready(self) -> bool:
        """Return whether a message may leave now."""
        now = self._now()
        self._tokens = min(self.size, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return self._tokens > 0

    def take(self, nbytes: int) -> None:
        """Note that a message of ``nbytes`` bytes has left."""
        self._tokens -= nbytes
