"""The events of all ranks on one clock: how they are nested, and who waited for whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sfb.trace.clocks import correction
from sfb.trace.files import RankTrace, Run
from sfb.trace.recorder import ASYNC, BLOCKING, DTYPE, INSTANT, THREAD

__all__ = ["Timeline", "align"]

_IDS = ("kind", "name", "detail", "algorithm", "label")
# Of measurements within so many nanoseconds the surest counts.
_NEAR = 1_000_000_000
# Ranks that wait less, in nanoseconds, do not wait.
_SHORT = 1_000

# Takes readings of a rank's clock, and returns by how much it is ahead, in nanoseconds.
Correction = Callable[[np.ndarray], np.ndarray]


@dataclass
class Timeline:
    """The events of all ranks, by rank and then by start.

    Attributes:
        run: The traces that they come from.
        events: The events, of `sfb.trace.recorder.DTYPE`; ``start`` and ``end`` are nanoseconds since the earliest of
            all, on one clock, and names are numbers in ``names``.
        names: All names.
        rank: The rank of each event.
        parent: For each event the one that it lies in, -1 for none. Events of other threads, or beside others, lie in
            none.
        self_time: Nanoseconds of each event that no event in it has.
        wait: Nanoseconds for which each event waited for other ranks.
        waited_for: The rank that came last, for events that waited; else -1.
        groups: The events of each collective, by their numbers; those of a rank alone are left out.
        unsure: The uncertainty of the clocks, in nanoseconds, of the rank whose is least known.
        notes: What is missing, damaged or unknown.
    """

    run: Run
    events: np.ndarray
    names: list[str]
    rank: np.ndarray
    parent: np.ndarray
    self_time: np.ndarray
    wait: np.ndarray
    waited_for: np.ndarray
    groups: list[np.ndarray]
    unsure: int
    notes: list[str]

    def texts(self, key: str) -> list[str]:
        """Return the text of a field of names for each event."""
        return [self.names[number] for number in self.events[key].tolist()]

    def is_kind(self, *kinds: str) -> np.ndarray:
        """Return whether each event is of one of these kinds."""
        return np.isin(self.events["kind"], [i for i, name in enumerate(self.names) if name in kinds])

    @property
    def nested(self) -> np.ndarray:
        """Whether each event is one of the main thread that others may lie in."""
        return (self.events["flags"] & (ASYNC | THREAD | INSTANT)) == 0


def align(run: Run) -> Timeline:
    """Return the events of all ranks on the clock of one of them."""
    notes = list(run.notes)
    corrections, unsure = _corrections(run, notes)
    table: dict[str, int] = {}
    parts, ranks = [], []
    for number, trace in run.ranks.items():
        events = trace.events.copy()
        numbers = np.array([table.setdefault(name, len(table)) for name in trace.header["names"]] or [0])
        for key in _IDS:
            events[key] = numbers[events[key]]
        ahead = corrections[number]
        length = events["end"] - events["start"]
        events["start"] -= np.round(ahead(events["start"])).astype(np.int64)
        events["end"] = events["start"] + length
        parts.append(events[np.lexsort((-length, events["start"]))])
        ranks.append(np.full(len(events), number))
    events = np.concatenate(parts) if parts else np.empty(0, DTYPE)
    rank = np.concatenate(ranks) if ranks else np.empty(0, int)
    if len(events):
        earliest = int(events["start"].min())
        events["start"] -= earliest
        events["end"] -= earliest
    parent, self_time = _nest(events, rank)
    wait, waited_for, groups = _waits(events, rank, self_time, list(table))
    return Timeline(run, events, list(table), rank, parent, self_time, wait, waited_for, groups, unsure, notes)


def _corrections(run: Run, notes: list[str]) -> tuple[dict[int, Correction], int]:
    """Return the correction of each rank's clock, and the uncertainty of the worst; ranks of a node share a clock."""
    clock_of = {rank: trace.header["clock"] for rank, trace in run.ranks.items()}
    references = Counter(reference for trace in run.ranks.values() for reference, *_ in trace.header["clocks"])
    known = [rank for rank in references if rank in run.ranks] or list(run.ranks)
    root = max(sorted(known), key=lambda rank: references[rank])
    found: dict[str, Correction] = {clock_of[root]: lambda times: np.zeros(len(times))}
    unsure = 0
    left = {
        clock: [trace for trace in run.ranks.values() if clock_of[trace.rank] == clock] for clock in clock_of.values()
    }
    del left[clock_of[root]]
    single = 0
    while left:  # clocks that were measured against that of the root, then those measured against these, and so on
        ready = {clock: entries for clock, traces in left.items() if (entries := _against(traces, found, clock_of))}
        if not ready:
            break
        for clock, entries in ready.items():
            times, offsets, unknown = zip(*_sure(entries), strict=True)
            found[clock] = _Measured(times, offsets)
            unsure = max(unsure, int(min(unknown)))
            single += len(times) == 1
            del left[clock]
    if single:
        notes.append(
            f"{single} clocks were measured once only: their drift is not known, and the ends of long runs may be apart"
        )
    for clock, traces in left.items():
        found[clock] = found[clock_of[root]]
        ranks = ", ".join(str(trace.rank) for trace in traces)
        notes.append(f"the clock of rank {ranks} was not measured: its events may be far from those of other ranks")
    return {rank: found[clock] for rank, clock in clock_of.items()}, unsure


def _against(
    traces: Sequence[RankTrace], found: dict[str, Correction], clock_of: dict[int, str]
) -> list[tuple[int, float, int]]:
    """Return the measurements of a clock against clocks whose correction is known: time, total offset, uncertainty."""
    entries = []
    for trace in traces:
        for reference, time, ahead, unknown in trace.header["clocks"]:
            other = found.get(clock_of.get(reference, ""))
            if other is not None:
                entries.append((time, ahead + float(other(np.array([time - ahead]))[0]), unknown))
    return sorted(entries)


def _sure(entries: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """Return the measurements, of several at about the same time the surest."""
    kept: list[tuple[int, float, int]] = []
    for entry in entries:
        if kept and entry[0] - kept[-1][0] < _NEAR:
            if entry[2] < kept[-1][2]:
                kept[-1] = entry
        else:
            kept.append(entry)
    return kept


class _Measured:
    """The correction of a clock by measurements."""

    def __init__(self, times: Sequence[int], offsets: Sequence[float]) -> None:
        # Relative to the first, so that doubles have room for nanoseconds.
        self._first, self._base = times[0], offsets[0]
        self._times = [float(time - self._first) for time in times]
        self._offsets = [offset - self._base for offset in offsets]

    def __call__(self, times: np.ndarray) -> np.ndarray:
        return correction((times - self._first).astype(float), self._times, self._offsets) + self._base


def _nest(events: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parent and the own time of each event, and let none end after its parent."""
    parent = np.full(len(events), -1)
    length = events["end"] - events["start"]
    own = length.copy()
    aside = (events["flags"] & (ASYNC | THREAD | INSTANT)) != 0
    starts, ends = events["start"].tolist(), events["end"].tolist()
    stack: list[int] = []
    before = -1
    for i in np.flatnonzero(~aside).tolist():
        if rank[i] != before:
            stack.clear()
            before = rank[i]
        while stack and ends[stack[-1]] <= starts[i]:
            stack.pop()
        if stack:
            top = stack[-1]
            ends[i] = min(ends[i], ends[top])
            parent[i] = top
            own[top] -= ends[i] - starts[i]
        own[i] = ends[i] - starts[i]
        stack.append(i)
    events["end"] = ends
    return parent, np.maximum(own, 0)


def _waits(
    events: np.ndarray, rank: np.ndarray, self_time: np.ndarray, names: list[str]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return how long each event waited, for whom, and the events of each collective."""
    wait = np.zeros(len(events), np.int64)
    waited_for = np.full(len(events), -1)
    recorded = events["waited"] >= 0
    wait[recorded] = events["waited"][recorded]
    told = np.isin(events["kind"], [i for i, name in enumerate(names) if name == "wait"])
    wait[told] = self_time[told]
    waited_for[told] = events["peer"][told]
    groups = []
    blocking = np.flatnonzero((events["flags"] & BLOCKING) != 0)
    keys = np.stack([events[key][blocking].astype(np.int64) for key in ("label", "name", "number")], axis=1)
    order = np.lexsort(keys.T) if len(blocking) else np.empty(0, int)
    sorted_keys = keys[order]
    bounds = np.flatnonzero((sorted_keys[1:] != sorted_keys[:-1]).any(axis=1)) + 1
    for members in np.split(blocking[order], bounds) if len(blocking) else []:
        if len(members) < 2 or len(set(rank[members].tolist())) < len(members):
            continue
        groups.append(members)
        starts = events["start"][members]
        last = members[int(np.argmax(starts))]
        for i, late in zip(members.tolist(), (events["start"][last] - starts).tolist(), strict=True):
            if not recorded[i]:
                wait[i] = max(0, late)
            if late > _SHORT and i != last:
                waited_for[i] = rank[last]
    return np.minimum(wait, self_time), waited_for, groups
