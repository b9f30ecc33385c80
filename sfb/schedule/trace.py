"""What ran where and when: spans of time of each rank, as numbers, as a picture, and as a file for trace viewers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from sfb.trace.merge import write_events
from sfb.trace.plot import gantt

__all__ = ["Span", "Trace"]


@dataclass(frozen=True)
class Span:
    """A stretch of time of one rank.

    Attributes:
        rank: The rank.
        kind: What the rank did: "work", "extra", "schedule", "exchange", "wait", "pull", or a name of the user's.
        name: The block or the round it did that for.
        start: Seconds from the beginning of the trace.
        end: Seconds from the beginning of the trace.

    >>> from sfb.schedule import Span
    >>> Span(rank=0, kind="work", name="block 3", start=0.0, end=0.5)
    Span(rank=0, kind='work', name='block 3', start=0.0, end=0.5)
    """

    rank: int
    kind: str
    name: str
    start: float
    end: float


class Trace:
    """A record of spans.

    >>> from sfb.schedule import Trace
    >>> trace = Trace()
    >>> with trace.span("work", "block 3"):
    ...     total = sum(range(1000))
    >>> [(span.kind, span.name) for span in trace.spans]
    [('work', 'block 3')]
    >>> trace.shares()
    {'work': 1.0}

    Args:
        comm: The ranks, which meet so that their clocks start together; collective. None for this process alone.

    Attributes:
        spans: The spans of this rank; on rank 0 those of all ranks after `gather`.
    """

    def __init__(self, comm: Any = None) -> None:
        self.rank: int = 0 if comm is None else comm.rank
        self.spans: list[Span] = []
        if comm is not None:
            comm.Barrier()
        self._origin = perf_counter()

    @contextmanager
    def span(self, kind: str, name: object = "") -> Iterator[None]:
        """Record the time of the block of a ``with`` statement."""
        start = perf_counter()
        try:
            yield
        finally:
            self.add(kind, name, start, perf_counter())

    def add(self, kind: str, name: object, start: float, end: float) -> None:
        """Record a span between two readings of `time.perf_counter`."""
        self.spans.append(Span(self.rank, kind, str(name), start - self._origin, end - self._origin))

    def gather(self, comm: Any) -> None:
        """Let rank 0 have the spans of all ranks, in the order of their start; collective."""
        parts = comm.gather(self.spans)
        if parts is not None:
            self.spans = sorted((span for part in parts for span in part), key=lambda span: (span.start, span.rank))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each kind, summed over the spans that this object holds."""
        totals: dict[str, float] = {}
        for span in self.spans:
            totals[span.kind] = totals.get(span.kind, 0.0) + span.end - span.start
        return totals

    def shares(self) -> dict[str, float]:
        """Return the part of each kind in the recorded time; the parts add up to 1."""
        totals = self.seconds()
        whole = sum(totals.values()) or 1.0
        return {kind: seconds / whole for kind, seconds in totals.items()}

    def chrome(self, path: Path | str) -> None:
        """Write the spans as a file that chrome://tracing and Perfetto read, a row for each rank."""
        events = (
            {
                "name": f"{span.kind} {span.name}".strip(),
                "cat": span.kind,
                "ph": "X",
                "pid": 0,
                "tid": span.rank,
                "ts": span.start * 1e6,
                "dur": (span.end - span.start) * 1e6,
            }
            for span in self.spans
        )
        write_events(Path(path), events)

    def plot(self, path: Path | str, *, title: str = "", until: float | None = None) -> None:
        """Draw a Gantt chart from the first span on, a row for each rank and a colour for each kind.

        Args:
            path: The file; its suffix gives the format.
            title: Text above the chart.
            until: The last second of the trace to draw.
        """
        from matplotlib.figure import Figure

        ranks = {span.rank for span in self.spans if until is None or span.start < until}
        first = min((span.start for span in self.spans), default=0.0)
        bars = [(span.rank, span.kind, span.start - first, span.end - first) for span in self.spans]
        figure = Figure(figsize=(11, 1.5 + 0.5 * len(ranks)), layout="constrained")
        axes = figure.subplots()
        gantt(axes, bars, until=None if until is None else until - first)
        axes.set_xlabel("seconds since the first span")
        axes.set_title(title)
        figure.savefig(path, dpi=120)
