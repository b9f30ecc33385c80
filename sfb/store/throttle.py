"""A ceiling for the bytes that a rank sends in a second."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["Bucket"]

_SLICE = 0.04  # of a second: what may be sent at once after silence, and in one message


class Bucket:
    """A token bucket: what is sent is at most rate·t + 2·`size` bytes in any t seconds.

    A message may be sent while there are tokens, and takes as many as it has bytes: the debt of a
    message larger than that is paid before the next.

    Args:
        rate: Bytes per second.
        now: Clock in seconds.

    Attributes:
        size: Tokens that it holds, and the largest message to send, in bytes.
    """

    def __init__(self, rate: float, now: Callable[[], float] = monotonic) -> None:
        self._rate = rate
        self._now = now
        self.size = max(1, int(_SLICE * rate))
        self._tokens = float(self.size)
        self._filled = now()

    def ready(self) -> bool:
        """Return whether a message may be sent."""
        now = self._now()
        self._tokens = min(self.size, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return self._tokens > 0

    def take(self, nbytes: int) -> None:
        """Note that a message was sent."""
        self._tokens -= nbytes
