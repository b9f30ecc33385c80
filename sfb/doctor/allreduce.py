"""Allreduce as measured, beside what memory and links allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.arrays import memory_rate
from sfb.bench.engine import Timing
from sfb.bench.engine import measure as time_candidates
from sfb.doctor.finding import Finding, ok, warning
from sfb.units import format_rate, format_size, milliseconds

__all__ = ["judge", "limit", "measure"]

_TOPIC = "Allreduce"

# Bytes of the arrays: of each row the first that fits the time.
_SMALL, _LARGE = (1 << 20, 1 << 18, 1 << 16), (1 << 25, 1 << 23)
_ITERATIONS = 5
# Calls of a size at least, by all candidates, and how much longer than the limit they may take.
_CALLS, _TIMES = 8, 3
# Part of the limit that an Allreduce should reach, and part of MPI's rate that sfb should.
_POOR, _LOSES = 0.1, 0.7


def limit(nbytes: int, per_node: int, nodes: int, memory: float, link: float) -> float:
    """Return the seconds that an Allreduce takes at least.

    On one node all arrays are read and all results written once; between nodes 2(N−1)/N of the bytes pass a node's link
    each way.

    >>> from sfb.doctor.allreduce import limit
    >>> limit(10**6, 4, 1, 8e9, 0.0), limit(10**6, 1, 2, 8e9, 1e8)
    (0.001, 0.01)

    Args:
        nbytes: The bytes of each rank's array.
        per_node: The number of ranks on a node.
        nodes: The number of nodes.
        memory: Bytes per second that the ranks of a node read and write together.
        link: Bytes per second of the slowest node's link; 0.0 on one node.
    """
    if nodes == 1:
        return 2 * per_node * nbytes / memory
    return 2 * (nodes - 1) / nodes * nbytes / link


def measure(
    world: MPI.Intracomm, node: MPI.Intracomm, nodes: int, link: float, seconds: float, *, own: bool
) -> dict[str, Any]:
    """Time Allreduce by MPI, and by `sfb.Comm`, for about ``seconds`` once the kernels are loaded; collective.

    Args:
        world: The ranks.
        node: The ranks that share memory with this one.
        nodes: The number of nodes.
        link: Bytes per second of the slowest node's link, on rank 0.
        seconds: The time to take.
        own: Whether to time `sfb.Comm`, too, which has to have compiled kernels.

    Returns:
        ``memory``, ``link``, and ``rows``, each with ``bytes``, ``limit``, ``mpi`` and ``sfb`` in seconds.
    """
    comm = sfb.Comm(world) if own else None
    if comm is not None:  # loads the kernels
        comm.Allreduce(np.ones(_SMALL[0] // 4, np.float32), np.empty(_SMALL[0] // 4, np.float32))
    began = perf_counter()
    memory = world.allreduce(memory_rate(node), MPI.MIN)
    per_node = world.allreduce(node.size, MPI.MAX)
    link = world.bcast(link)
    rows: list[dict[str, Any]] = []
    for sizes in (_SMALL, _LARGE):
        left = world.bcast(seconds - (perf_counter() - began))
        # Twice as many bytes take twice as long as those timed before.
        slow = rows[0]["mpi"] / rows[0]["limit"] if rows else _TIMES
        expected = {nbytes: slow * limit(nbytes, per_node, nodes, memory, link) for nbytes in sizes}
        nbytes = world.bcast(next((nbytes for nbytes in sizes if _CALLS * expected[nbytes] < left), None))
        if nbytes is None:
            break
        array, result = np.ones(nbytes // 4, np.float32), np.empty(nbytes // 4, np.float32)
        calls: dict[str, Callable[[], None]] = {"mpi": lambda a=array, r=result: world.Allreduce(a, r)}  # type: ignore[misc]
        if comm is not None:
            calls["sfb"] = lambda a=array, r=result: comm.Allreduce(a, r)  # type: ignore[misc]
        times = time_candidates(world, calls, Timing(iterations=_ITERATIONS, warmups=1, seconds=left / 4))
        least = limit(nbytes, per_node, nodes, memory, link)
        rows.append({"bytes": nbytes, "limit": least, **{name: its.median for name, its in times.items()}})
    if comm is not None:
        comm.free()
    return {"memory": memory, "link": link, "nodes": nodes, "rows": rows}


def judge(measured: dict[str, Any], size: int, why_not: str = "") -> list[Finding]:
    """Return how near to the limit Allreduce is.

    Args:
        measured: What `measure` returned.
        size: The number of ranks.
        why_not: Why `sfb.Comm` was not timed; "" if it was.
    """
    rows: Sequence[dict[str, Any]] = measured["rows"]
    if size == 1:
        return [ok(_TOPIC, "one rank, nothing to reduce")]
    if not rows:
        text = f"not timed: one of {format_size(_SMALL[-1])} bytes would take too long, -t gives more time"
        return [warning(_TOPIC, text, "see the links above")]
    by = f"a link of {format_rate(measured['link'])}" if measured["nodes"] > 1 else "memory"
    if measured["nodes"] == 1:
        by += f" of {format_rate(measured['memory'])}"
    findings = []
    for row in rows:
        took = {name: row[name] for name in ("mpi", "sfb") if name in row}
        said = ", ".join(
            f"{'MPI' if name == 'mpi' else name} {milliseconds(t, 2)} ms ({100 * row['limit'] / t:.0f} %)"
            for name, t in took.items()
        )
        text = f"{format_size(row['bytes'])}: {said}; the limit, {by}, is {milliseconds(row['limit'], 2)} ms"
        best = min(took.values())
        if row["limit"] < _POOR * best:
            findings.append(
                warning(
                    _TOPIC,
                    text,
                    "mend first what lines above say of cores, load, binding, links and network; "
                    "sfb bench allreduce -b 1M -e 64M shows other sizes",
                )
            )
        elif "sfb" in took and took["mpi"] < _LOSES * took["sfb"]:
            findings.append(
                warning(
                    _TOPIC, f"{text}; MPI is faster", "sfb tune measures MPI's ways and sfb's, and takes the faster"
                )
            )
        else:
            findings.append(ok(_TOPIC, text))
    if why_not:
        findings.append(ok(_TOPIC, f"sfb's own is not timed: {why_not}"))
    return findings
