"""Files of traces: a line of JSON, then the events of a rank as they lie in its memory."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfb.files import replacing
from sfb.trace.recorder import DTYPE, Recorder

__all__ = ["RankTrace", "Run", "TraceError", "load", "read", "save"]

_FORMAT = "sfb trace 1"
_SUFFIX = ".sfbtrace"
# Bytes of the first line at most.
_HEADER = 1 << 28
# What the first line holds, and of which type.
_KEYS: dict[str, type | tuple[type, ...]] = {
    "run": str, "rank": int, "size": int, "host": str, "pid": int, "began": (int, float), "command": list, "count": int,
    "dropped": int, "names": list, "clocks": list, "clock": str, "communicators": dict, "cost": (int, float),
}  # fmt: skip
_IDS = ("kind", "name", "detail", "algorithm", "label")


class TraceError(Exception):
    """A folder or a file holds no trace that can be read.

    >>> import sfb.trace
    >>> issubclass(sfb.trace.TraceError, Exception)
    True
    """


@dataclass
class RankTrace:
    """The trace of one rank.

    Attributes:
        path: The file.
        header: Its first line: who wrote it, names, and measurements of the clock (`sfb.trace.recorder.Recorder`).
        events: The events, of `sfb.trace.recorder.DTYPE`, in the order in which they were recorded.
        notes: What is wrong with the file.
    """

    path: Path
    header: dict[str, Any]
    events: np.ndarray
    notes: list[str] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """The rank in COMM_WORLD."""
        return self.header["rank"]

    def texts(self, key: str) -> list[str]:
        """Return the text of a field of names for each event."""
        names = self.header["names"]
        return [names[number] for number in self.events[key].tolist()]


@dataclass
class Run:
    """The traces of the ranks of one run.

    Attributes:
        ranks: The traces, by rank.
        size: The number of ranks that the run had.
        notes: What is missing or damaged, in words.
    """

    ranks: dict[int, RankTrace]
    size: int
    notes: list[str]


def save(recorder: Recorder, rank: int, size: int, host: str, why: str) -> Path:
    """Write the events of this rank, in place of what an earlier call wrote, and return the file.

    Args:
        recorder: The events.
        rank: This rank in COMM_WORLD.
        size: The number of ranks.
        host: The name of this node.
        why: What made the rank write.

    Raises:
        OSError: The file cannot be written; it then holds what it held before.
    """
    path = recorder.folder / f"rank-{rank:05d}{_SUFFIX}"
    known, events = recorder.snapshot()
    header = {
        "format": _FORMAT,
        "run": recorder.run[1],
        "rank": rank,
        "size": size,
        "host": host,
        "pid": os.getpid(),
        "began": recorder.began,
        "written": time.time(),
        "why": why,
        "command": sys.argv,
        "cost": round(recorder.cost(), 1),
        **known,
    }
    recorder.folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.write(events.tobytes())
    recorder.saved = known["count"] + known["dropped"], len(known["clocks"])
    return path


def read(path: Path) -> RankTrace:
    """Read the trace of a rank; the events that a truncated file still has.

    Raises:
        TraceError: The file cannot be read, or is no trace.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_HEADER)
            data = file.read()
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        header = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        header = None
    if header is None and line.startswith(b'{"format": "sfb trace'):
        raise TraceError(f"{path} is truncated: it ends within its first line")
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise TraceError(f"{path} is no trace of this version of sfb")
    for key, kind in _KEYS.items():
        if not isinstance(header.get(key), kind):
            raise TraceError(f"{path} is damaged: {key!r} is {header.get(key)!r}")
    if not all(isinstance(name, str) for name in header["names"]) or not all(map(_is_clock, header["clocks"])):
        raise TraceError(f"{path} is damaged: names or clocks are none")
    whole = len(data) // DTYPE.itemsize
    events = np.frombuffer(data, DTYPE, min(whole, max(0, header["count"])))
    notes = []
    if whole < header["count"]:
        notes.append(f"{path.name} is truncated: it has {whole} of {header['count']} events")
    wrong = (events["start"] < 0) | (events["end"] < events["start"])
    for key in _IDS:
        wrong |= (events[key] < 0) | (events[key] >= len(header["names"]))
    if wrong.any():
        notes.append(
            f"{path.name} is damaged: {int(wrong.sum())} of {len(events)} events make no sense, and are left out"
        )
        events = events[~wrong]
    if header["dropped"]:
        notes.append(
            f"rank {header['rank']} has recorded more events than it keeps: the first {header['dropped']} are gone"
        )
    return RankTrace(path, header, events, notes)


def _is_clock(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 4 and all(isinstance(number, int) for number in entry)


def load(folder: Path) -> Run:
    """Read the traces of the ranks of a run; of several runs the newest.

    Raises:
        TraceError: There are none.
    """
    if not folder.is_dir():
        raise TraceError(f"{folder} is no folder; a run with SFB_TRACE={folder} makes it")
    paths = sorted(folder.glob(f"*{_SUFFIX}"))
    traces, notes = [], []
    for path in paths:
        try:
            traces.append(read(path))
        except TraceError as error:
            notes.append(f"{error}; it is left out")
    if not traces:
        told = f": {'; '.join(notes)}" if notes else f"; a run with SFB_TRACE={folder} writes one at its end"
        raise TraceError(f"{folder} holds no trace{told}")
    newest = max(traces, key=lambda trace: trace.header["began"]).header["run"]
    ranks = {trace.rank: trace for trace in traces if trace.header["run"] == newest}
    others = Counter(trace.header["run"] for trace in traces if trace.header["run"] != newest)
    if others:
        notes.append(
            f"{folder} holds {sum(others.values())} files of {len(others)} other run{'s' * (len(others) > 1)}, which "
            "are left out: give each run a folder of its own"
        )
    size = max(trace.header["size"] for trace in ranks.values())
    missing = sorted(set(range(size)) - set(ranks))
    if missing:
        notes.append(f"of {size} ranks {_listed(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    for trace in ranks.values():
        notes += trace.notes
    return Run(dict(sorted(ranks.items())), size, notes)


def _listed(ranks: Iterable[int], most: int = 12) -> str:
    ranks = list(ranks)
    return ", ".join(map(str, ranks[:most])) + (f" and {len(ranks) - most} more" if len(ranks) > most else "")
