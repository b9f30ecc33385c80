"""What a timeline shows: where the time of each rank goes, who holds up the others, and what calls cost."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sfb.trace.recorder import BLOCKING
from sfb.trace.timeline import Timeline
from sfb.units import format_bytes

__all__ = ["WORK", "analyse", "lines"]

# What a rank's time goes into.
WORK = ("compute", "rebuild", "exchange", "wait", "compile")
# The kinds of events whose own time is not computation; that of all others is.
_EXCHANGES, _WAIT, _COMPILE, _STEP = ("exchange", "store"), "wait", "compile", "step"
_CALLS = (*_EXCHANGES, _WAIT)
# Rows of a table. Nanoseconds up to which ranks come together.
_MOST, _SHORT = 10, 1_000


def analyse(timeline: Timeline) -> dict[str, Any]:
    """Return what a timeline shows, as a JSON object; times are seconds.

    Where a run has steps (`sfb train`, or spans of the kind "step"), the times of ranks are those within its steps;
    else all from the first event of any rank to the last.

    Returns:
        {"format": 1, "ranks": [{"rank", "host", "events", "seconds", "steps", "compute", "rebuild", "exchange", "wait",
        "compile", "unnamed", "outside", "cost"}], "stragglers": [{"rank", "last", "of", "caused"}], "critical_path":
        [{"rank", "compute", "exchange"}], "predictions": [{"call", "shape", "algorithm", "count", "predicted",
        "measured"}], "costliest": [{"call", "shape", "algorithm", "count", "seconds", "wait", "mean", "max",
        "bytes"}], "spans": [{"name", "kind", "count", "seconds", "least", "most"}], "unsure", "notes"}. "unnamed" is
        the part of the steps that no event in them has; "cost" is the time of recording.
    """
    whole = int(timeline.events["end"].max()) if len(timeline.events) else 0
    return {
        "format": 1,
        "ranks": [_rank(timeline, rank, whole) for rank in timeline.run.ranks],
        "stragglers": _stragglers(timeline),
        "critical_path": _critical_path(timeline),
        "predictions": _predictions(timeline),
        "costliest": _costliest(timeline),
        "spans": _spans(timeline),
        "unsure": timeline.unsure * 1e-9,
        "notes": timeline.notes,
    }


def _rank(timeline: Timeline, rank: int, whole: int) -> dict[str, Any]:
    """Return what the time of a rank goes into."""
    header = timeline.run.ranks[rank].header
    mine = timeline.rank == rank
    nested = mine & timeline.nested
    events = timeline.events
    step = timeline.is_kind(_STEP) & nested
    steps = int(step.sum())
    inside = nested.copy()
    if steps:
        within = step.copy()
        for i in np.flatnonzero(nested).tolist():  # parents come before what lies in them
            above = timeline.parent[i]
            within[i] = step[i] or (above >= 0 and within[above])
        inside &= within
        seconds = int((events["end"] - events["start"])[step].sum())
    else:
        seconds = whole
    own = np.where(inside, timeline.self_time, 0)
    exchanges = timeline.is_kind(*_EXCHANGES)
    wait = np.where(inside, timeline.wait, 0)
    rebuild = np.where(inside & exchanges, np.clip(events["rebuild"], 0, None), 0)
    rebuild = np.minimum(rebuild, own - wait)
    totals = {
        "rebuild": int(rebuild.sum()),
        "wait": int(wait.sum()),
        "exchange": int((own - wait - rebuild)[exchanges].sum()),
        "compile": int(own[timeline.is_kind(_COMPILE)].sum()),
    }
    totals["compute"] = seconds - sum(totals.values())
    unnamed = int(own[step].sum()) if steps else 0
    return {
        "rank": rank,
        "host": header["host"],
        "events": int(mine.sum()),
        "seconds": seconds * 1e-9,
        "steps": steps,
        **{name: totals[name] * 1e-9 for name in WORK},
        "unnamed": unnamed * 1e-9,
        "outside": (whole - seconds) * 1e-9,
        "cost": int(mine.sum()) * header["cost"] * 1e-9,
    }


def _stragglers(timeline: Timeline) -> list[dict[str, Any]]:
    """Return which ranks came last in collectives, and for how long others waited for them; the worst first."""
    last: dict[int, int] = defaultdict(int)
    caused: dict[int, int] = defaultdict(int)
    starts = timeline.events["start"]
    for members in timeline.groups:
        late = members[int(np.argmax(starts[members]))]
        last[int(timeline.rank[late])] += 1
    waited = (timeline.waited_for >= 0) & (timeline.wait > 0)
    for rank, wait in zip(timeline.waited_for[waited].tolist(), timeline.wait[waited].tolist(), strict=True):
        caused[rank] += wait
    ranks = sorted({*last, *caused}, key=lambda rank: -caused[rank])
    return [
        {"rank": rank, "last": last[rank], "of": len(timeline.groups), "caused": caused[rank] * 1e-9} for rank in ranks
    ]


def _critical_path(timeline: Timeline) -> list[dict[str, Any]]:
    """Return for each rank the time on the critical path, that of computation and of exchanges.

    The path goes back from the end of the run: on a rank to the last collective in which it waited, and from there to
    the rank for which it waited.
    """
    events, ranks = timeline.events, timeline.rank
    if not len(events):
        return []
    # For each rank the collectives of its main thread: start, end, the last rank, and when that came.
    calls: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
    nested = timeline.nested
    for members in timeline.groups:
        starts = events["start"][members]
        late = members[int(np.argmax(starts))]
        came = int(events["start"][late])
        for i in members.tolist():
            if nested[i]:
                calls[int(ranks[i])].append((int(events["start"][i]), int(events["end"][i]), int(ranks[late]), came))
    for entries in calls.values():
        entries.sort()
    found: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    at = int(np.lexsort((events["start"], events["end"]))[-1])  # of those that end last the one that began last
    rank, time = int(ranks[at]), int(events["end"][at])
    begin = int(events["start"].min())
    while time > begin:
        entries = calls[rank]
        exchange = 0
        ahead = begin
        following = rank
        for start, end, last, came in reversed(entries[: bisect_left(entries, (time,))]):
            if last != rank and start < came < time and came - start > _SHORT:
                exchange += max(0, min(end, time) - came)
                ahead, following = came, last
                break
            exchange += max(0, min(end, time) - start)
        exchange = min(exchange, time - ahead)
        found[rank][0] += time - ahead - exchange
        found[rank][1] += exchange
        if following == rank:
            break
        rank, time = following, ahead
    path = [
        {"rank": rank, "compute": compute * 1e-9, "exchange": exchange * 1e-9}
        for rank, (compute, exchange) in found.items()
    ]
    return sorted(path, key=lambda entry: -entry["compute"] - entry["exchange"])


def _grouped(timeline: Timeline, chosen: np.ndarray) -> dict[tuple[str, str, str], list[int]]:
    """Return the chosen events by name, shapes and algorithm."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    names, events = timeline.names, timeline.events
    for i in np.flatnonzero(chosen).tolist():
        event = events[i]
        groups[names[event["name"]], names[event["detail"]], names[event["algorithm"]]].append(i)
    return groups


def _predictions(timeline: Timeline) -> list[dict[str, Any]]:
    """Return the estimates of plans beside the median of what the exchanges took without waiting."""
    events = timeline.events
    chosen = (events["predicted"] >= 0) & ((events["flags"] & BLOCKING) != 0)
    length = events["end"] - events["start"] - timeline.wait
    rows: list[dict[str, Any]] = []
    for (name, shape, algorithm), members in _grouped(timeline, chosen).items():
        calls: dict[tuple[int, int], int] = defaultdict(int)  # the busiest rank of each
        for i in members:
            key = int(events["label"][i]), int(events["number"][i])
            calls[key] = max(calls[key], int(length[i]))
        rows.append(
            {
                "call": name,
                "shape": shape,
                "algorithm": algorithm,
                "count": len(calls),
                "predicted": float(np.mean(events["predicted"][members])) * 1e-9,
                "measured": float(np.median(list(calls.values()))) * 1e-9,
            }
        )
    return sorted(rows, key=lambda row: -row["measured"] * row["count"])


def _costliest(timeline: Timeline) -> list[dict[str, Any]]:
    """Return the calls that took most of the ranks' time, of one name, shape and algorithm together."""
    events = timeline.events
    length = events["end"] - events["start"]
    rows: list[dict[str, Any]] = []
    for (name, shape, algorithm), members in _grouped(timeline, timeline.is_kind(*_CALLS) & timeline.nested).items():
        rows.append(
            {
                "call": name,
                "shape": shape,
                "algorithm": algorithm,
                "count": len(members),
                "seconds": float(length[members].sum()) * 1e-9,
                "wait": float(timeline.wait[members].sum()) * 1e-9,
                "mean": float(length[members].mean()) * 1e-9,
                "max": float(length[members].max()) * 1e-9,
                "bytes": int(events["nbytes"][members].sum()),
            }
        )
    return sorted(rows, key=lambda row: -row["seconds"])[:_MOST]


def _spans(timeline: Timeline) -> list[dict[str, Any]]:
    """Return what the program, or a phase of a training, took: on the rank that took least, and on that with most."""
    length = timeline.events["end"] - timeline.events["start"]
    calls = timeline.is_kind(*_CALLS, "message")
    rows: list[dict[str, Any]] = []
    by_name: dict[tuple[str, str], list[int]] = defaultdict(list)
    names = timeline.names
    for i in np.flatnonzero(timeline.nested & ~calls).tolist():
        event = timeline.events[i]
        by_name[names[event["name"]], names[event["kind"]]].append(i)
    for (name, kind), members in by_name.items():
        seconds = np.zeros(max(timeline.run.ranks) + 1)
        np.add.at(seconds, timeline.rank[members], length[members] * 1e-9)
        of_ranks = seconds[list(timeline.run.ranks)]
        rows.append(
            {
                "name": name,
                "kind": kind,
                "count": len(members),
                "seconds": float(of_ranks.sum()),
                "least": float(of_ranks.min()),
                "most": float(of_ranks.max()),
            }
        )
    return sorted(rows, key=lambda row: -row["seconds"])[: 2 * _MOST]


def lines(found: dict[str, Any]) -> list[str]:
    """Return what `analyse` has found as lines of text."""
    said = [f"note: {note}" for note in found["notes"]]
    ranks = found["ranks"]
    events = sum(rank["events"] for rank in ranks)
    if not events:
        return [*said, "no events were recorded"]
    steps = max(rank["steps"] for rank in ranks)
    within = f"in {steps} steps" if steps else "from the first event to the last"
    cost = max(rank["cost"] / rank["seconds"] for rank in ranks if rank["seconds"])
    said += [
        f"{len(ranks)} ranks, {events} events; times in seconds, {within}",
        f"clocks are aligned within {found['unsure'] * 1e6:.0f} us; recording took {100 * cost:.2f} % of the time",
        "",
    ]
    said += _table(
        ("rank", "host", "seconds", *WORK, *["unnamed"] * bool(steps)),
        [
            (
                rank["rank"],
                rank["host"],
                f"{rank['seconds']:.3f}",
                *(_share(rank[name], rank["seconds"]) for name in WORK),
                *([_share(rank["unnamed"], rank["seconds"])] if steps else []),
            )
            for rank in ranks
        ],
    )
    said += ["", *_stragglers_told(found["stragglers"]), *_path_told(found["critical_path"])]
    if found["predictions"]:
        said += ["", "exchanges, as planned and as measured (median, without waiting):"]
        said += _table(
            ("call", "shape", "algorithm", "calls", "planned ms", "measured ms", "ratio"),
            [
                (
                    row["call"],
                    row["shape"],
                    row["algorithm"],
                    row["count"],
                    f"{row['predicted'] * 1e3:.3f}",
                    f"{row['measured'] * 1e3:.3f}",
                    f"{row['measured'] / row['predicted']:.2f}" if row["predicted"] else "-",
                )
                for row in found["predictions"][:_MOST]
            ],
        )
    if found["costliest"]:
        said += ["", "the costliest calls, of all ranks together:"]
        said += _table(
            ("call", "shape", "algorithm", "calls", "seconds", "wait", "mean ms", "max ms", "bytes"),
            [
                (
                    row["call"],
                    row["shape"],
                    row["algorithm"],
                    row["count"],
                    f"{row['seconds']:.3f}",
                    _share(row["wait"], row["seconds"]),
                    f"{row['mean'] * 1e3:.3f}",
                    f"{row['max'] * 1e3:.3f}",
                    format_bytes(row["bytes"]),
                )
                for row in found["costliest"]
            ],
        )
    if found["spans"]:
        said += ["", "spans, of a rank:"]
        said += _table(
            ("name", "kind", "count", "least s", "most s"),
            [
                (row["name"], row["kind"], row["count"], f"{row['least']:.3f}", f"{row['most']:.3f}")
                for row in found["spans"]
            ],
        )
    return said


def _stragglers_told(stragglers: Sequence[dict[str, Any]]) -> list[str]:
    caused = sum(entry["caused"] for entry in stragglers)
    if not caused:
        return ["no rank waited for another"]
    said = [f"ranks waited {caused:.3f} s for others, all together:"]
    for entry in stragglers[:_MOST]:
        if entry["caused"]:
            came = f"; it came last in {entry['last']} of {entry['of']} collectives" if entry["of"] else ""
            said.append(f"  for rank {entry['rank']} {_share(entry['caused'], caused)}{came}")
    return said


def _path_told(path: Sequence[dict[str, Any]]) -> list[str]:
    total = sum(entry["compute"] + entry["exchange"] for entry in path)
    if not total:
        return []
    parts = [
        f"rank {entry['rank']} {_share(entry['compute'] + entry['exchange'], total)} "
        f"({_share(entry['exchange'], total)} of that exchanging)"
        for entry in path[:_MOST]
    ]
    return [f"critical path, {total:.3f} s: {', '.join(parts)}"]


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table; texts are aligned to the left, numbers to the right."""
    texts = [tuple(map(str, row)) for row in rows]
    widths = [max(len(row[i]) for row in (headings, *texts)) for i in range(len(headings))]
    left = [i for i, name in enumerate(headings) if name in ("host", "call", "shape", "algorithm", "name", "kind")]
    return [
        "  ".join(text.ljust(width) if i in left else text.rjust(width)
                  for i, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in (headings, *texts)
    ]  # fmt: skip
