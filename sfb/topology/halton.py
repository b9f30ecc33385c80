"""Halton graphs: offsets from the van der Corput sequence, as published, as MALT-2 repaired them, and as used here."""

from __future__ import annotations

import functools
from math import gcd

import numpy as np

from sfb.topology.families import exponential
from sfb.topology.graph import Circulant, check_size

__all__ = ["halton", "halton_malt2", "halton_published"]

_DRAWS = 4096  # choices of offsets to compare, at most
_POINTS = 1 << 22  # eigenvalues to compute in all, at most
_BATCH = 1 << 18  # eigenvalues to compute at once, at most
_DIGITS = 9  # decimals of an eigenvalue that count, so that every machine makes the same choice


def halton_published(size: int) -> Circulant:
    """Return the graph of the paper: rank i sends to i + ⌊N·h⌋ for h = 1/2, 1/4, 3/4, 1/8, …, ⌊log2 N⌋ of them.

    Li et al., "MALT: Distributed Data-Parallelism for Existing ML Applications", EuroSys 2015, section 3.3.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: The graph is disconnected, as for 8, 12, 16, 24, 32, … ranks.

    >>> import sfb
    >>> sfb.topology.halton_published(10).offsets
    (5, 2, 7)
    """
    check_size(size)
    graph = Circulant("halton_published", size, _points(size, 1, size.bit_length() - 1))
    _ = graph.diameter
    return graph


def halton_malt2(size: int) -> Circulant:
    """Return the repair of MALT-2, which starts the sequence where the first offset is 1; it mixes badly.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    >>> import sfb
    >>> sfb.topology.halton_malt2(10).offsets
    (1, 6, 3)
    """
    check_size(size)
    digits = size.bit_length() - 1  # ⌊log2 N⌋
    first = 1 << max(0, digits - 1)  # h = 1/2^digits
    return Circulant("halton_malt2", size, _points(size, first, digits))


@functools.lru_cache(64)
def halton(size: int) -> Circulant:
    """Return the Halton graph: each offset lies in the cell of its Halton point, where the graph mixes best.

    The k-th point, of level ℓ = bit length of k, owns a cell of about N/2^ℓ ranks around ⌊N·h_k⌋. The function draws
    choices of ⌈log2 N⌉ offsets, one in each cell, and takes the one with the smallest λ2 among those whose diameter is
    no larger than the exponential graph's. The draws depend on N alone, so every machine takes the same offsets. The
    graph is connected for every N.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    >>> import sfb
    >>> graph = sfb.topology.halton(64)
    >>> graph.offsets, graph.diameter
    ((46, 22, 41, 8, 37, 25), 4)
    """
    check_size(size)
    count = (size - 1).bit_length()
    if count < 2:
        return Circulant("halton", size, [1] * count)
    reference = exponential(size)
    most, bound = reference.diameter, round(reference.second_eigenvalue, _DIGITS)
    lows, highs = _cells(size, count)
    draws = min(_DRAWS, max(8, _POINTS // size))
    for attempt in range(64):
        # No choice will do where cells are few ranks wide; let them overlap more and more.
        wider = attempt // 2
        choices = _draw(size, draws, np.maximum(1, lows - wider), np.minimum(size - 1, highs + wider), attempt)
        values = np.concatenate([_second(size, part) for part in np.array_split(choices, -(-draws * size // _BATCH))])
        found: tuple[float, int, Circulant] | None = None
        for index in np.argsort(values, kind="stable"):
            value = float(values[index])
            if value > bound or (found is not None and value > found[0]):
                break
            offsets = choices[index].tolist()
            if gcd(size, *offsets) != 1:
                continue
            graph = Circulant("halton", size, offsets)
            if graph.diameter <= most and (found is None or graph.diameter < found[1]):
                found = value, graph.diameter, graph
        if found is not None:
            return found[2]
    return Circulant("halton", size, reference.offsets)


def _points(size: int, first: int, count: int) -> list[int]:
    """Return ⌊N·h_k⌋ where it is not 0, for ``count`` points of the van der Corput sequence, in integers."""
    points = []
    for k in range(first, first + count):
        bits = k.bit_length()
        points.append(size * int(f"{k:b}"[::-1], 2) >> bits)
    return [point for point in points if point]


def _cells(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last offset of each cell."""
    lows, highs = [], []
    for k in range(1, count + 1):
        bits = k.bit_length()
        middle, half = size * int(f"{k:b}"[::-1], 2) >> bits, size >> (bits + 1)
        lows.append(min(max(1, middle - half), size - 1))
        highs.append(min(max(1, middle + half), size - 1))
    return np.array(lows, np.int64), np.array(highs, np.int64)


def _draw(size: int, draws: int, lows: np.ndarray, highs: np.ndarray, attempt: int) -> np.ndarray:
    """Return choices of offsets, draws×cells, by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).

    NumPy's generators may change their streams between versions; this one does not.
    """
    count = draws * len(lows)
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state += np.uint64((size * 64 + attempt) * 0xBF58476D1CE4E5B9 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    numbers = (state >> np.uint64(33)).reshape(draws, len(lows)).astype(np.int64)
    return lows + numbers % (highs - lows + 1)


def _second(size: int, choices: np.ndarray) -> np.ndarray:
    """Return the rounded λ2 of each choice of offsets."""
    rows = np.arange(len(choices))[:, None]
    weights = np.zeros((len(choices), size))
    weights[:, 0] = 1
    weights[rows, choices] = 1
    spectra = np.abs(np.fft.rfft(weights, axis=1))
    return np.round(spectra[:, 1:].max(axis=1) / spectra[:, 0], _DIGITS)
