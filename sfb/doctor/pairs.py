"""Rates between each pair of nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.doctor.finding import Finding, error, ok, several, warning
from sfb.units import format_rate, microseconds

__all__ = ["Rates", "best_of_nodes", "judge", "measure", "rounds"]

_TOPIC = "links"

# Bytes by which a rate is estimated; twice, as a network at rest takes the first at once.
_ESTIMATE = 1 << 18
_LEAST, _MOST = 1 << 19, 1 << 26
# Seconds of one message, and messages whose time the shortest counts.
_LONGEST, _MESSAGES = 0.25, 2
_PINGS = 10

# Parts of the rate of other links below which a link costs speed, or stops programs from being worth their nodes.
_SLOW, _BAD = 0.6, 0.25

# Part of the rate that an interface states; one TCP connection rarely fills a fast link.
_OF_STATED = 0.2
_LESS = (
    "a limit of the cloud or of traffic control, a slower link on the way, or other traffic; tc qdisc, ethtool -S and "
    "iperf3 -P 4 tell which"
)

# rates[a][b]: bytes per second from node a to node b, None where none was measured.
Rates = Sequence[Sequence["float | None"]]


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Return rounds of disjoint pairs, in which each pair of nodes meets once.

    >>> from sfb.doctor.pairs import rounds
    >>> rounds(4)
    [[(0, 3), (1, 2)], [(0, 2), (1, 3)], [(0, 1), (2, 3)]]
    """
    ring = [*range(nodes), *([-1] if nodes % 2 else [])]  # -1 pauses
    found = []
    for _ in range(len(ring) - 1):
        pairs = [sorted((ring[i], ring[-1 - i])) for i in range(len(ring) // 2)]
        found.append(sorted((a, b) for a, b in pairs if a >= 0))
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


def measure(leaders: MPI.Intracomm, seconds: float) -> dict[str, Any]:
    """Measure the rates between nodes, round by round, for about ``seconds``; collective.

    Returns:
        ``rates``, ``latencies`` in seconds, both by sender and receiver; ``done`` of all ``rounds``; and ``moved``,
        the bytes that each node has sent and received. On rank 0; {} on other ranks.
    """
    plan = rounds(leaders.size)
    slot = min(_LONGEST, seconds / (len(plan) * (2 * _MESSAGES + 1)))
    buffer = np.zeros(_MOST, np.uint8)
    rates: list[float | None] = [None] * leaders.size
    latencies: list[float | None] = [None] * leaders.size
    moved, done, began = 0, 0, perf_counter()
    for pairs in plan:
        leaders.Barrier()
        at = perf_counter()
        peer = next((a + b - leaders.rank for a, b in pairs if leaders.rank in (a, b)), None)
        if peer is not None:
            latencies[peer], rates[peer], its = _pair(leaders, peer, slot, buffer)
            moved += its
        done += 1
        now = perf_counter()
        if leaders.bcast(now - began + (now - at) > seconds):
            break
    everything = leaders.gather((rates, latencies, moved))
    if everything is None:
        return {}
    return {
        "rates": [its[0] for its in everything],
        "latencies": [its[1] for its in everything],
        "moved": [its[2] for its in everything],
        "done": done,
        "rounds": len(plan),
    }


def _pair(leaders: MPI.Intracomm, peer: int, slot: float, buffer: np.ndarray) -> tuple[float, float, int]:
    """Return the latency, the rate to the peer and the bytes of all messages with it; the peer calls it, too."""

    def there(nbytes: int, back: int, *, send: bool) -> float:
        """Send so many bytes one way and ``back`` the other; return the seconds."""
        began = perf_counter()
        if send:
            leaders.Send(buffer[:nbytes], peer)
            leaders.Recv(buffer[:back], peer)
        else:
            leaders.Recv(buffer[:nbytes], peer)
            leaders.Send(buffer[:back], peer)
        return perf_counter() - began

    first = leaders.rank < peer
    for _ in range(2):  # the second counts
        both = there(_ESTIMATE, _ESTIMATE, send=first)
    latency = min(there(1, 1, send=first) for _ in range(_PINGS)) / 2
    nbytes = int(min(_MOST, max(_LEAST, slot * 2 * _ESTIMATE / both)))
    nbytes = min(nbytes, leaders.sendrecv(nbytes, peer, source=peer))
    rate = 0.0
    for send in (first, not first):
        seconds = min(there(nbytes, 1, send=send) for _ in range(_MESSAGES))
        if send:
            rate = nbytes / seconds
    return latency, rate, 4 * _ESTIMATE + 2 * _MESSAGES * nbytes


def best_of_nodes(rates: Rates) -> list[float]:
    """Return the best rate of each node: that of the pair, the slower way, with which it is fastest; 0.0 if none."""
    n = len(rates)
    found = [0.0] * n
    for a, b in combinations(range(n), 2):
        rate = _slower(rates, a, b)
        if rate is not None:
            found[a], found[b] = max(found[a], rate), max(found[b], rate)
    return found


def _slower(rates: Rates, a: int, b: int) -> float | None:
    ways = rates[a][b], rates[b][a]
    return None if ways[0] is None or ways[1] is None else min(ways[0], ways[1])


def judge(names: Sequence[str], measured: Mapping[str, Any], stated: Sequence[float]) -> list[Finding]:
    """Return the slowest pair against the median, and nodes and pairs whose links are slower than others.

    Args:
        names: The name of each node.
        measured: What `measure` returned.
        stated: The bytes per second that each node's interface states; 0.0 if it states none.
    """
    rates: Rates = measured["rates"]
    n = len(names)
    by_pair = {(a, b): r for a, b in combinations(range(n), 2) if (r := _slower(rates, a, b)) is not None}
    middle = median(by_pair.values())
    (a, b), slowest = min(by_pair.items(), key=lambda item: item[1])
    latency = median(t for row in measured["latencies"] for t in row if t is not None)
    text = f"{_name(names, a, b)} has {format_rate(slowest)}"
    if n > 2:
        text = f"slowest pair {text}, median of {len(by_pair)} pairs {format_rate(middle)}"
    text += f"; a message takes {microseconds(latency)} µs"
    if measured["done"] < measured["rounds"]:
        text += f"; time for {measured['done']} of {measured['rounds']} rounds of pairs, -t gives more"
    findings = [*_slow_nodes(names, rates), *_slow_pairs(names, rates, by_pair), *_one_way(names, rates, by_pair)]
    less = _less_than_stated(names, best_of_nodes(rates), stated)
    if n == 2 and less is not None:
        return [*findings, warning(_TOPIC, f"{text}; {less}", _LESS)]
    return [*findings, *([] if less is None else [warning(_TOPIC, less, _LESS)]), ok(_TOPIC, text)]


def _name(names: Sequence[str], a: int, b: int) -> str:
    return f"{names[a]} - {names[b]}"


def _grade(part: float) -> Any:
    return error if part < _BAD else warning


def _slow_nodes(names: Sequence[str], rates: Rates) -> list[Finding]:
    """Return nodes whose best link is much slower than that of others."""
    best = best_of_nodes(rates)
    if len(names) < 3:  # both ends of one link have its rate
        return []
    middle = median(best)
    return [
        _grade(rate / middle)(
            _TOPIC,
            f"{name}: {format_rate(rate)} at best, with whichever node; the median of nodes is {format_rate(middle)}",
            f"look at cable, port and interface of {name} (ethtool, ip -s link, ibstat), and leave it out meanwhile",
        )
        for name, rate in zip(names, best, strict=True)
        if 0 < rate < _SLOW * middle
    ]


def _less_than_stated(names: Sequence[str], best: Sequence[float], stated: Sequence[float]) -> str | None:
    """Return which nodes' links have much less than their interfaces state."""
    slow = [i for i, rate in enumerate(best) if stated[i] and 0 < rate < _OF_STATED * stated[i]]
    if not slow:
        return None
    if len(slow) == len(names):
        said = f"{format_rate(max(best))} at best, where interfaces state {format_rate(min(stated))}"
        return f"{'both' if len(names) == 2 else 'all'} nodes have {said}"
    return several(f"{names[i]} has {format_rate(best[i])} at best of {format_rate(stated[i])} stated" for i in slow)


def _slow_pairs(names: Sequence[str], rates: Rates, by_pair: Mapping[tuple[int, int], float]) -> list[Finding]:
    """Return pairs that are much slower than either of their nodes is with others."""
    best = best_of_nodes(rates)
    slow = {
        pair: rate / expected
        for pair, rate in by_pair.items()
        if rate < _SLOW * (expected := min(best[pair[0]], best[pair[1]]))
    }
    if not slow:
        return []
    order = sorted(slow, key=slow.__getitem__)
    said = several(f"{_name(names, a, b)} {format_rate(by_pair[a, b])}" for a, b in order)
    return [
        _grade(slow[order[0]])(
            _TOPIC,
            f"slow pairs, though their nodes are faster with others: {said}",
            "look at what lies between these nodes: routes, the links between switches, and other jobs on them",
        )
    ]


def _one_way(names: Sequence[str], rates: Rates, by_pair: Mapping[tuple[int, int], float]) -> list[Finding]:
    """Return pairs that are much slower one way than the other."""
    found = []
    for a, b in by_pair:
        there, back = rates[a][b], rates[b][a]
        assert there is not None
        assert back is not None
        (x, y) = (a, b) if there < back else (b, a)
        if min(there, back) < _SLOW * max(there, back):
            found.append(
                f"{names[x]} to {names[y]} {format_rate(min(there, back))}, back {format_rate(max(there, back))}"
            )
    if not found:
        return []
    return [
        warning(
            _TOPIC,
            f"slower one way: {several(found)}",
            "look at the interface of the slower sender (ethtool: duplex, errors, pauses), and for other traffic",
        )
    ]
