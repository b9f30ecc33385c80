"""Timelines as files of the trace-event format, which Perfetto and chrome://tracing read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfb.files import replacing
from sfb.trace.recorder import ASYNC, INSTANT, THREAD
from sfb.trace.timeline import Timeline

__all__ = ["chrome", "write_events"]

# Threads of a process in the viewer.
_CALLS, _BESIDE = 0, 1


def chrome(timeline: Timeline, path: Path) -> int:
    """Write a timeline, a process for each rank, and return the number of its events.

    Raises:
        OSError: The file cannot be written; it then holds what it held before.
    """
    return write_events(path, _events(timeline), {"clocks are known within us": timeline.unsure / 1e3})


def write_events(path: Path, events: Iterator[dict[str, Any]], other: dict[str, Any] | None = None) -> int:
    """Write events of the trace-event format, and return how many.

    Args:
        path: The file.
        events: The events.
        other: What else the file says.

    Raises:
        OSError: The file cannot be written; it then holds what it held before.
    """
    count = 0
    with replacing(path) as file:
        file.write(
            b'{"displayTimeUnit": "ms", "otherData": ' + json.dumps(other or {}).encode() + b', "traceEvents": ['
        )
        for event in events:
            file.write((b",\n" if count else b"\n") + json.dumps(event).encode())
            count += 1
        file.write(b"\n]}\n")
    return count


def _events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for rank, trace in timeline.run.ranks.items():
        name = f"rank {rank} on {trace.header['host']}"
        yield {"name": "process_name", "ph": "M", "pid": rank, "tid": 0, "args": {"name": name}}
        yield {"name": "process_sort_index", "ph": "M", "pid": rank, "tid": 0, "args": {"sort_index": rank}}
        for tid, name in ((_CALLS, "calls"), (_BESIDE, "beside them")):
            yield {"name": "thread_name", "ph": "M", "pid": rank, "tid": tid, "args": {"name": name}}
    kinds, names, details, algorithms, labels = (
        timeline.texts(key) for key in ("kind", "name", "detail", "algorithm", "label")
    )
    ranks, waits, waited_for = timeline.rank.tolist(), timeline.wait.tolist(), timeline.waited_for.tolist()
    for i, event in enumerate(timeline.events.tolist()):
        start, end, number, _, rebuild, nbytes, predicted, *_, peer, samples, flags = event
        args: dict[str, Any] = {}
        for key, value, there in (
            ("number", number, number >= 0),
            ("shape", details[i], details[i]),
            ("samples", samples, samples >= 0),
            ("algorithm", algorithms[i], algorithms[i]),
            ("communicator", labels[i], labels[i]),
            ("bytes", nbytes, nbytes),
            ("wait us", waits[i] / 1e3, waits[i]),
            ("rebuild us", rebuild / 1e3, rebuild >= 0),
            ("predicted us", predicted / 1e3, predicted >= 0),
            ("waited for rank", waited_for[i], waited_for[i] >= 0),
            ("peer", peer, peer >= 0 and flags & INSTANT),
        ):
            if there:
                args[key] = value
        common = {"name": names[i], "cat": kinds[i], "pid": ranks[i], "ts": start / 1e3, "args": args}
        if flags & INSTANT:
            yield {**common, "ph": "i", "s": "t", "tid": _BESIDE}
        elif flags & (ASYNC | THREAD):  # these may overlap each other
            yield {**common, "ph": "b", "id": i, "tid": _BESIDE}
            yield {**common, "ph": "e", "id": i, "tid": _BESIDE, "ts": end / 1e3, "args": {}}
        else:
            yield {**common, "ph": "X", "dur": (end - start) / 1e3, "tid": _CALLS}
