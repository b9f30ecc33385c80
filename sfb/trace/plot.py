"""Pictures of timelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfb.trace.report import WORK
from sfb.trace.timeline import Timeline

__all__ = ["COLOURS", "draw", "gantt"]

COLOURS = {
    "work": "C0", "extra": "C2", "schedule": "C4", "exchange": "C1", "wait": "0.8", "pull": "C5", "compute": "C0",
    "rebuild": "C2", "compile": "C3", "phase": "C0", "store": "C6", "span": "C9",
}  # fmt: skip
# Bars of a kind and a rank that a chart shows, and steps.
_BARS, _STEPS = 2000, 5


def gantt(
    axes: Any, bars: Sequence[tuple[int, str, float, float]], *, since: float = 0.0, until: float | None = None
) -> None:
    """Draw bars, a row for each rank and a colour for each kind.

    Args:
        axes: Where to draw, of matplotlib.
        bars: Rank, kind, start and end of each, in seconds.
        since: The first second to show.
        until: The last second to show.
    """
    shown = [bar for bar in bars if (until is None or bar[2] < until) and bar[3] >= since]
    ranks = sorted({bar[0] for bar in shown})
    for number, kind in enumerate(_kinds([bar[1] for bar in shown])):
        colour = COLOURS.get(kind, f"C{6 + number % 4}")
        for row, rank in enumerate(ranks):
            of_rank = [(start, end - start) for owner, own, start, end in shown if own == kind and owner == rank]
            axes.broken_barh(of_rank[:_BARS], (row - 0.4, 0.8), color=colour, label=kind if row == 0 else None)
    axes.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.set_xlim(since if since else min((bar[2] for bar in shown), default=0), until)
    if shown:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _kinds(kinds: Sequence[str]) -> list[str]:
    """Return the kinds in the order of their colours, others last."""
    present = dict.fromkeys(kinds)
    return [kind for kind in COLOURS if kind in present] + [kind for kind in present if kind not in COLOURS]


def draw(timeline: Timeline, found: dict[str, Any], path: Path) -> None:
    """Draw what the time of each rank goes into, and the last steps of all ranks.

    Args:
        timeline: The timeline.
        found: What `sfb.trace.report.analyse` found in it.
        path: The file; its suffix gives the format.
    """
    from matplotlib.figure import Figure

    ranks = found["ranks"]
    figure = Figure(figsize=(11, 3 + 0.6 * len(ranks)), layout="constrained")
    above, below = figure.subplots(2)
    names = [f"rank {rank['rank']}" for rank in ranks]
    left = np.zeros(len(ranks))
    for name in WORK:
        seconds = np.array([rank[name] for rank in ranks])
        if seconds.any():
            above.barh(names, seconds, left=left, color=COLOURS[name], label=name)
            left += seconds
    above.invert_yaxis()
    above.set_xlabel("seconds" + (" of all steps" if any(rank["steps"] for rank in ranks) else ""))
    if left.any():
        above.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    gantt(below, *_last(timeline))
    figure.savefig(path, dpi=120)


def _last(timeline: Timeline) -> tuple[list[tuple[int, str, float, float]]]:
    """Return the bars of the last steps, or of the end of a run without steps: the wait of a call, then the call."""
    events = timeline.events
    starts = np.sort(events["start"][timeline.is_kind("step")])
    count = _STEPS * len(timeline.run.ranks)
    whole = int(events["end"].max()) if len(events) else 0
    since = int(starts[-count]) if len(starts) >= count else (int(starts[0]) if len(starts) else whole * 9 // 10)
    until = int(events["end"][timeline.is_kind("step")].max()) if len(starts) else whole
    shown = timeline.nested & ~timeline.is_kind("step", "message") & (events["end"] > since) & (events["start"] < until)
    kinds = timeline.texts("kind")
    bars = []
    for i in np.flatnonzero(shown).tolist():
        rank, start, end, wait = int(timeline.rank[i]), int(events["start"][i]), int(events["end"][i]), timeline.wait[i]
        if kinds[i] != "wait" and wait:
            bars.append((rank, "wait", start * 1e-9, (start + int(wait)) * 1e-9))
            start += int(wait)
        bars.append((rank, kinds[i], start * 1e-9, end * 1e-9))
    return (bars,)
