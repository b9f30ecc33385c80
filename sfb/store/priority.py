"""The order in which pending updates leave a rank whose bandwidth is short."""

from __future__ import annotations

from collections import Counter

import numpy as np

from sfb.store.entry import Entry

__all__ = ["PRIORITIES", "Priority", "create"]


class Priority:
    """First in, first out; and what the other orders have in common.

    Attributes:
        measure: "absolute" or "relative" if it goes by the magnitude of updates.
    """

    measure: str | None = None

    def order(self, entries: list[Entry]) -> list[Entry]:
        """Return the entries of one neighbour, the next to be sent first."""
        return entries

    def sent(self, entry: Entry) -> None:
        """Take note of what was sent."""


class _Random(Priority):
    """Any, with equal chances."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def order(self, entries: list[Entry]) -> list[Entry]:
        return [entries[i] for i in self._rng.permutation(len(entries))]


class _RoundRobin(Priority):
    """The tables in turn."""

    def __init__(self) -> None:
        self._last = -1

    def order(self, entries: list[Entry]) -> list[Entry]:
        tables = max(entry.table for entry in entries) + 1
        seen: Counter[int] = Counter()
        keys = []
        for place, entry in enumerate(entries):
            keys.append((seen[entry.table], (entry.table - self._last - 1) % tables, place))
            seen[entry.table] += 1
        return [entries[place] for _, _, place in sorted(keys)]

    def sent(self, entry: Entry) -> None:
        self._last = entry.table


class _Magnitude(Priority):
    """The largest change first (Wei et al., "Managed Communication and Consistency", SoCC 2015, section 3.3)."""

    def __init__(self, measure: str) -> None:
        self.measure = measure

    def order(self, entries: list[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda entry: -entry.magnitude)


PRIORITIES = ("fifo", "random", "round-robin", "absolute", "relative")


def create(name: str, seed: int) -> Priority:
    """Return the priority of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in PRIORITIES:
        raise ValueError(f"priority must be one of {', '.join(PRIORITIES)}, got {name!r}")
    if name == "random":
        return _Random(seed)
    if name == "round-robin":
        return _RoundRobin()
    return Priority() if name == "fifo" else _Magnitude(name)
