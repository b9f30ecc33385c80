"""What an exchange in steps yields, and the loop that runs one to its end.

An exchange is a generator. It yields what it waits for, an object with ``Test() -> bool`` and ``Wait()`` like an MPI
request; `ALONE`, to go on only as the oldest exchange under way; `POSTED`, once it will post no more collectives, so
that later exchanges may post theirs; or None, to let the caller continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["ALONE", "POSTED", "run"]

ALONE, POSTED = object(), object()


def run(steps: Iterator[Any]) -> Any:
    """Run an exchange to its end and return its result; no other exchange may be under way."""
    try:
        while True:
            step = next(steps)
            if step is not None and step is not POSTED and step is not ALONE:
                step.Wait()
    except StopIteration as end:
        return end.value
