"""Offsets between the clocks of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from time import time

from mpi4py import MPI

from sfb.doctor.finding import Finding, ok, several, warning
from sfb.trace import clocks

__all__ = ["judge", "measure"]

_TOPIC = "clocks"
# Seconds from which times in logs and of files mislead.
_MUCH = 0.1


def measure(leaders: MPI.Intracomm, seconds: float) -> list[tuple[float, float]]:
    """Measure the offsets of the clocks of the nodes from that of the first, one node after another; collective.

    Args:
        leaders: A rank of each node.
        seconds: The time after which no further node is asked.

    Returns:
        The offset and the uncertainty of each node on rank 0, as far as time allows; [] on other ranks.
    """
    return clocks.measure(leaders, time, seconds)[1]


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
