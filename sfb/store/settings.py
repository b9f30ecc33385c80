"""The settings of the rules of all ranks, clock by clock: they have to change on all alike."""

from __future__ import annotations

from collections.abc import Sequence

from sfb.store.replica import Table

__all__ = ["Settings"]


class Settings:
    """What the ranks of a store compare of their rules.

    The ranks agree on the settings when they make the store. Once a rank has changed them, it sends a text of all
    settings with the end of each clock.

    Args:
        tables: The tables, whose rules the user may change.
        rank: This rank.
        size: The number of ranks.
    """

    def __init__(self, tables: Sequence[Table], rank: int, size: int) -> None:
        self._tables = tables
        self._rank = rank
        self._size = size
        self._first = self._text = self._describe()
        self._seen = self._values()
        # For each clock that some ranks have ended, the texts of these ranks.
        self._clocks: dict[int, list[tuple[str, int]]] = {}

    def text(self) -> str:
        """Return the text of this rank's settings; "" if it has never changed them."""
        values = self._values()
        if values != self._seen:
            self._seen, self._text = values, self._describe()
        return "" if self._text == self._first else self._text

    def note(self, clock: int, rank: int, text: str) -> str | None:
        """Note the text of a rank at the end of a clock; return how ranks disagree, if they do."""
        texts = self._clocks.setdefault(clock, [])
        texts.append((text, rank))
        first, other = texts[0]
        if text != first:
            pairs = sorted([(other, first or self._first), (rank, text or self._first)])
            return "ranks disagree: " + "; ".join(f"rank {who}: clock {clock} with {said}" for who, said in pairs)
        if len(texts) == self._size:
            del self._clocks[clock]
        return None

    def _values(self) -> tuple[object, ...]:
        return tuple((table.optimizer.settings, table.steps_ahead) for table in self._tables)

    def _describe(self) -> str:
        return "; ".join(
            f"{table.name!r} {table.optimizer!r}" + f", {table.steps_ahead} steps ahead" * bool(table.steps_ahead)
            for table in self._tables
        )
