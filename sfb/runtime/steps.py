"""Exchanges in steps: what they yield, and the loop that runs one to its end.

An exchange in steps is a generator. It yields one of four things:

- an object with ``Test() -> bool`` and ``Wait()``, like an MPI request, for which it waits;
- `ALONE`, to go on only as the oldest exchange under way;
- `POSTED`, once it has posted its last collective: later exchanges may then post theirs;
- None, to let the caller go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["ALONE", "POSTED", "run"]

ALONE, POSTED = object(), object()


def run(steps: Iterator[Any]) -> Any:
    """Run an exchange to its end, and return its result; no other exchange may be under way."""
    try:
        while True:
            step = next(steps)
            if step is not None and step is not POSTED and step is not ALONE:
                step.Wait()
    except StopIteration as end:
        return end.value
