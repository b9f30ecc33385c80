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
# Messages at least, and at most by default.
_LEAST, _MOST = 16, 64
# What rank 0 says: "what time is it", or "that was all", with the offset and its uncertainty.
_PING, _END = 1.0, 0.0
# Seconds between two looks of a rank whose turn has not come: it leaves its core to those that are measured.
_PAUSE = 2e-4


def offset(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return the offset of a clock and its uncertainty, in seconds (Cristian, Distributed Computing 1989).

    A message arrives after it left, and its answer comes after that, so each bounds the offset on both sides. The true
    offset lies within the uncertainty, however the time on the way is divided.

    >>> from sfb.trace.clocks import offset
    >>> offset([(10.0, 15.5, 11.0), (20.0, 25.25, 20.5)])
    (5.0, 0.25)

    Args:
        samples: When a message left, by the clock here, when it arrived, by the other, and when the answer came, by the
            clock here.
    """
    low, high = max(there - back for _, there, back in samples), min(there - left for left, there, _ in samples)
    if low > high:  # the clocks drift, and the samples lie too far apart
        left, there, back = min(samples, key=lambda sample: sample[2] - sample[0])
        low, high = there - back, there - left
    return (low + high) / 2, (high - low) / 2


def measure(
    comm: Any,
    clock: Callable[[], float],
    seconds: float,
    *,
    ranks: Sequence[int] | None = None,
    sure: float = 1e-4,
    most: int = _MOST,
    patience: float = inf,
) -> tuple[tuple[float, float, float] | None, list[tuple[float, float]]]:
    """Measure the offsets of the clocks of ranks from that of rank 0, one rank after another; collective.

    No other messages may be under way on ``comm``.

    Args:
        comm: The ranks, an mpi4py communicator.
        clock: Returns the seconds of this rank's clock.
        seconds: The time after which rank 0 asks no further rank.
        ranks: Ranks other than 0 to measure, the same on all; None for all.
        sure: Seconds of uncertainty that need no more than the least number of messages.
        most: Messages to a rank at most, while the offset is less sure.
        patience: Seconds after which a rank that hears nothing gives up.

    Returns:
        The offset of this rank's clock, its uncertainty, and the time by this clock at which that was so, None if there
        was no time for it; and on rank 0 the offsets and uncertainties of itself and of ``ranks``, as far as time
        allowed, [] on others.
    """
    if ranks is None:
        ranks = range(1, comm.size)
    if comm.rank > 0:
        return (_answer(comm, clock, patience) if comm.rank in ranks else None), []
    found = [(0.0, 0.0)]
    began = perf_counter()
    late = False
    for place, rank in enumerate(ranks, 1):
        samples: list[tuple[float, float, float]] = []
        low, high = -inf, inf
        share = seconds * place / len(ranks)  # no rank takes the time of those behind it, unless for the least
        while not late and len(samples) < most and (spent := perf_counter() - began) < seconds:
            if len(samples) >= _LEAST and (spent > share or high - low <= 2 * sure):
                break
            left = clock()
            comm.Send(np.array([_PING, 0.0, 0.0]), rank, _TAG)
            there = _take(comm, rank, 1, perf_counter() + patience)
            if there is None:
                late = True
            else:
                samples.append((left, float(there[0]), clock()))
                low, high = max(low, samples[-1][1] - samples[-1][2]), min(high, samples[-1][1] - left)
        known = offset(samples) if samples else None
        comm.Send(np.array([_END, *(known or (np.nan, np.nan))]), rank, _TAG)
        if known is not None:
            found.append(known)
    return (0.0, 0.0, clock()), found


def _answer(comm: Any, clock: Callable[[], float], patience: float) -> tuple[float, float, float] | None:
    """Tell rank 0 the time as often as it asks, and return what it has found."""
    answers: list[float] = []
    while (message := _take(comm, 0, 3, perf_counter() + patience, gentle=not answers)) is not None:
        if message[0] == _END:
            ahead, unsure = float(message[1]), float(message[2])
            return None if np.isnan(ahead) else (ahead, unsure, (answers[0] + answers[-1]) / 2)
        answers.append(clock())
        comm.Send(np.array(answers[-1:]), 0, _TAG)
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
