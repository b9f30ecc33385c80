"""The order in which pending updates leave a rank whose bandwidth is short."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sfb.store.entry import Entry

__all__ = ["Priority", "create"]


class Priority:
    """First in, first out; the base of the other orders.

    Attributes:
        measure: The magnitude that the order needs of each update: "absolute" or "relative"; None for none.
    """

    measure: str | None = None

    def order(self, entries: list[Entry]) -> list[Entry]:
        """Return the pending entries of one neighbour, the next to send first."""
        return entries

    def sent(self, entry: Entry) -> None:
        """Note that ``entry`` was sent."""


class _Random(Priority):
    """A random order; all orders are equally likely."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def order(self, entries: list[Entry]) -> list[Entry]:
        return [entries[i] for i in self._rng.permutation(len(entries))]


class _RoundRobin(Priority):
    """One entry of each table after another, from the table after the last sent."""

    def __init__(self) -> None:
        self._last = -1

    def order(self, entries: list[Entry]) -> list[Entry]:
        tables = max(entry.table for entry in entries) + 1
        before: Counter[int] = Counter()  # entries of each table so far
        keys = []
        for position, entry in enumerate(entries):
            keys.append((before[entry.table], (entry.table - self._last - 1) % tables, position))
            before[entry.table] += 1
        return [entries[position] for _, _, position in sorted(keys)]

    def sent(self, entry: Entry) -> None:
        self._last = entry.table


class _Magnitude(Priority):
    """The largest change first (Wei et al., "Managed Communication and Consistency", SoCC 2015, section 3.3)."""

    def __init__(self, measure: str) -> None:
        self.measure = measure

    def order(self, entries: list[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda entry: -entry.magnitude)


_NAMES = ("fifo", "random", "round-robin", "absolute", "relative")


def create(name: str, seed: int) -> Priority:
    """Return the priority called ``name``; ``seed`` is that of "random".

    Raises:
        ValueError: The name is unknown.
    """
    if name not in _NAMES:
        raise ValueError(f"priority must be one of {', '.join(_NAMES)}, got {name!r}")
    if name == "random":
        return _Random(seed)
    if name == "round-robin":
        return _RoundRobin()
    return Priority() if name == "fifo" else _Magnitude(name)
