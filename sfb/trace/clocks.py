"""Offsets between the clocks of ranks, and how they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from os import sched_yield
from time import perf_counter, sleep
from typing import Any

import numpy as np

__all__ = ["correction", "measure", "offset"]

_TAG = 7
# Messages at least and at most.
_PINGS = 16, 64
# What rank 0 says: "what time is it", or "that was all", with the offset and its uncertainty.
_PING, _END = 1.0, 0.0
# Seconds between two looks of a rank whose turn has not come: it leaves its core to those that are measured.
_PAUSE = 2e-4


def offset(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return the offset of a clock and its uncertainty, in seconds (Cristian, Distributed Computing 1989).

    The true offset lies within the uncertainty, however the time on the way is divided.

    >>> from sfb.trace.clocks import offset
    >>> offset([(10.0, 15.5, 11.0), (20.0, 25.25, 20.5)])
    (5.0, 0.25)

    Args:
        samples: When a message left, by the clock here, when it arrived, by the other, and when the answer came, by the
            clock here.
    """
    left, there, back = min(samples, key=lambda sample: sample[2] - sample[0])
    return there - (left + back) / 2, (back - left) / 2


def measure(
    comm: Any,
    clock: Callable[[], float],
    seconds: float,
    *,
    ranks: Sequence[int] | None = None,
    sure: float = 1e-4,
    patience: float = inf,
) -> tuple[tuple[float, float] | None, list[tuple[float, float]]]:
    """Measure the offsets of the clocks of ranks from that of rank 0, one rank after another; collective.

    No other messages may be under way on ``comm``.

    Args:
        comm: The ranks, an mpi4py communicator.
        clock: Returns the seconds of this rank's clock.
        seconds: The time after which rank 0 asks no further rank.
        ranks: Ranks other than 0 to measure, the same on all; None for all.
        sure: Seconds of uncertainty that need no more than the least number of messages.
        patience: Seconds after which a rank that hears nothing gives up.

    Returns:
        The offset of this rank's clock and its uncertainty, None if there was no time for it; and on rank 0 those of
        itself and of ``ranks``, as far as time allowed, [] on others.
    """
    if ranks is None:
        ranks = range(1, comm.size)
    if comm.rank > 0:
        return (_answer(comm, clock, patience) if comm.rank in ranks else None), []
    own = 0.0, 0.0
    found = [own]
    began = perf_counter()
    late = False
    for rank in ranks:
        samples: list[tuple[float, float, float]] = []
        while not late and perf_counter() - began < seconds and _unsure(samples, sure):
            left = clock()
            comm.Send(np.array([_PING, 0.0, 0.0]), rank, _TAG)
            there = _take(comm, rank, 1, perf_counter() + patience)
            if there is None:
                late = True
            else:
                samples.append((left, float(there[0]), clock()))
        known = offset(samples) if samples else None
        comm.Send(np.array([_END, *(known or (np.nan, np.nan))]), rank, _TAG)
        if known is not None:
            found.append(known)
    return own, found


def _answer(comm: Any, clock: Callable[[], float], patience: float) -> tuple[float, float] | None:
    """Tell rank 0 the time as often as it asks, and return what it has found."""
    gentle = True
    while (message := _take(comm, 0, 3, perf_counter() + patience, gentle=gentle)) is not None:
        if message[0] == _END:
            return None if np.isnan(message[1]) else (float(message[1]), float(message[2]))
        comm.Send(np.array([clock()]), 0, _TAG)
        gentle = False
    return None


def _take(comm: Any, source: int, words: int, until: float, *, gentle: bool = False) -> np.ndarray | None:
    """Return the next message of a rank; None if it does not come until a time."""
    while not comm.Iprobe(source, _TAG):
        if perf_counter() > until:
            return None
        if gentle:
            sleep(_PAUSE)
        else:
            sched_yield()
    message = np.empty(words)
    comm.Recv(message, source, _TAG)
    return message


def _unsure(samples: Sequence[tuple[float, float, float]], sure: float) -> bool:
    least, most = _PINGS
    return len(samples) < least or (len(samples) < most and offset(samples)[1] > sure)


def correction(times: np.ndarray, at: Sequence[float], offsets: Sequence[float]) -> np.ndarray:
    """Return by how much a clock is ahead at some times, from offsets measured at others.

    Between two measurements the clock drifts evenly. Beyond them it goes on to drift, as far as the measurements are
    apart; farther away nothing is known of the drift, and it counts as constant.

    >>> import numpy as np
    >>> from sfb.trace.clocks import correction
    >>> correction(np.array([0.0, 10.0, 15.0, 20.0, 30.0, 99.0]), [10.0, 20.0], [5.0, 7.0]).tolist()
    [3.0, 5.0, 6.0, 7.0, 9.0, 9.0]

    Args:
        times: Readings of the clock.
        at: Readings of the clock at which it was measured, ascending; at least one.
        offsets: Its offset at each.
    """
    if len(at) == 1:
        return np.full(len(times), offsets[0], float)
    span = at[-1] - at[0]
    first = offsets[0] - (offsets[1] - offsets[0]) / max(at[1] - at[0], 1e-300) * span
    last = offsets[-1] + (offsets[-1] - offsets[-2]) / max(at[-1] - at[-2], 1e-300) * span
    return np.interp(times, [at[0] - span, *at, at[-1] + span], [first, *offsets, last])
