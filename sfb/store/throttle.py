"""A limit of the bytes that a rank sends in a second."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from numbers import Real

__all__ = ["Bucket", "parse"]

_RATE = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([kMGT]?)(i?)(bit|bps|B)(?:/s)?\s*", re.IGNORECASE)
_SLICE = 0.04  # seconds of the rate that a rank may send at once after silence, or in one message


def parse(bandwidth: float | str) -> float:
    """Return the bytes per second that a number or a text such as "1Gbit/s", "10 MB/s" or "64KiB/s" says.

    Raises:
        ValueError: ``bandwidth`` is not a rate, or not above 0 and finite.
        TypeError: ``bandwidth`` is neither a number nor a text.

    >>> from sfb.store.throttle import parse
    >>> parse("1Gbit/s")
    125000000.0
    """
    if isinstance(bandwidth, str):
        match = _RATE.fullmatch(bandwidth)
        if match is None:
            raise ValueError(f'bandwidth must be bytes per second or like "1Gbit/s" or "10MB/s", got {bandwidth!r}')
        number, prefix, binary, unit = match.groups()
        try:
            rate = float(number)
        except ValueError:
            raise ValueError(f"bandwidth must begin with a number, got {bandwidth!r}") from None
        rate *= (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " ")
        if unit != "B":
            rate /= 8
    elif isinstance(bandwidth, Real) and not isinstance(bandwidth, bool):
        rate = float(bandwidth)
    else:
        raise TypeError(f"bandwidth must be a number or a text, got {type(bandwidth).__name__}")
    if not (rate > 0 and math.isfinite(rate)):
        raise ValueError(f"bandwidth must be above 0 and finite, got {bandwidth!r}")
    return rate


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
