"""Offsets between the clocks of nodes (Cristian, Distributed Computing 1989)."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter, time

from mpi4py import MPI

from sfb.doctor.finding import Finding, ok, several, warning

__all__ = ["judge", "measure", "offset"]

_TOPIC = "clocks"
# Messages at least and at most, and seconds of uncertainty that need no more than the least.
_PINGS, _SURE = (16, 64), 1e-4

# Seconds from which times in logs and of files mislead.
_MUCH = 0.1


def offset(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return the offset of a clock and its uncertainty, in seconds.

    The true offset lies within the uncertainty, however the time on the way is divided.

    >>> from sfb.doctor.clocks import offset
    >>> offset([(10.0, 15.5, 11.0), (20.0, 25.25, 20.5)])
    (5.0, 0.25)

    Args:
        samples: When a message left, by the clock here, when it arrived, by the other, and when the answer came, by the
            clock here.
    """
    left, there, back = min(samples, key=lambda sample: sample[2] - sample[0])
    return there - (left + back) / 2, (back - left) / 2


def measure(leaders: MPI.Intracomm, seconds: float) -> list[tuple[float, float]]:
    """Measure the offsets of the clocks of the nodes from that of the first, one node after another; collective.

    Args:
        leaders: A rank of each node.
        seconds: The time after which no further node is asked.

    Returns:
        The offset and the uncertainty of each node on rank 0, as far as time allows; [] on other ranks.
    """
    found = [(0.0, 0.0)]
    began = perf_counter()
    if leaders.rank > 0:
        while leaders.recv(source=0):
            leaders.send(time(), 0)
        return []
    for node in range(1, leaders.size):
        samples: list[tuple[float, float, float]] = []
        while perf_counter() - began < seconds and (len(samples) < _PINGS[0] or _unsure(samples)):
            left = time()
            leaders.send(True, node)
            there = leaders.recv(source=node)
            samples.append((left, there, time()))
        leaders.send(False, node)
        if samples:
            found.append(offset(samples))
    return found


def _unsure(samples: Sequence[tuple[float, float, float]]) -> bool:
    return len(samples) < _PINGS[1] and offset(samples)[1] > _SURE


def judge(names: Sequence[str], offsets: Sequence[tuple[float, float]], ranks: int) -> list[Finding]:
    """Return whether the clocks are alike.

    Args:
        names: The name of each node.
        offsets: What `measure` returned.
        ranks: The number of ranks.
    """
    if len(offsets) < 2:
        return [ok(_TOPIC, f"{'the ranks of a node share its clock' if ranks > 1 else 'one clock'}")]
    far = {name: by for name, (by, unsure) in zip(names, offsets, strict=False) if abs(by) - unsure > _MUCH}
    worst = max(range(len(offsets)), key=lambda node: abs(offsets[node][0]))
    by, unsure = (_time(seconds) for seconds in offsets[worst])
    text = f"{names[worst]} is {by} from {names[0]}, the most of {len(offsets)} nodes, within {unsure}"
    if not far:
        return [ok(_TOPIC, text)]
    said = several(f"{name} by {_time(by)}" for name, by in far.items())
    return [
        warning(
            _TOPIC,
            f"clocks differ from that of {names[0]}: {said}",
            "run chrony or ntpd on all nodes; until then times in logs and of files mislead, of which make and caches "
            "take notice",
        )
    ]


def _time(seconds: float) -> str:
    number, unit = (seconds, "s") if abs(seconds) >= 1 else (seconds * 1e3, "ms")
    if abs(seconds) < 1e-3:
        number, unit = seconds * 1e6, "µs"
    return f"{number:.3g} {unit}"
