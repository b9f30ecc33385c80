"""Update rules that take uᵀv, which is never stored, or a gradient that exists."""

import math

import numpy as np
from numba import types

from sfb.kernels._blocks import NO_RULE, Sums, block, matrix, signatures, take, vector
from sfb.kernels._compile import inner, kernel
from sfb.kernels._panels import BAND, DEPTH, FEW_ROWS, WIDE, panels_of_u, panels_of_v, plan, wide_of
from sfb.kernels._products import rows_of
from sfb.kernels._rules import FEWER, FEWEST, Update
from sfb.kernels._tiles import LINE, ROWS, Ending, Panels, Strip
from sfb.kernels._vectors import AVX512, at, shift
from sfb.kernels.status import DONE, UNFIT

__all__ = ["TALL", "project_rows", "shrink_rows", "update", "update_dense"]

# Rows of sums that wait for further samples.
TALL = 1024
# Tiles by which what a rule changes is prefetched.
_AHEAD = 12
# Samples up to which a rule takes sums from registers; half as many if it keeps two states, or of few rows. More of
# them take longer, and need all the registers.
_SHALLOW = 64 if AVX512 else 32
# Samples from which a rule's arrays are prefetched while sums are worked: there is time for it.
_SLOW = 100
# Lengths of rows from this to its inverse have squares that neither underflow nor overflow.
_SHORT = 2.0**-480

_I, _F = types.int64, types.float64


def _update(t):
    factors = [matrix(t, readonly=True)] * 2
    return _I(_I, vector(t), *factors, *[matrix(t)] * 3, _I, _I, _I, _I, _F, vector(t))


@kernel(signatures(_update))
def update(kind, p, u, v, w, s, t, arrays, first, start, stop, alpha, scratch):
    """Let a rule take α·uᵀv in rows of w and of its state; the sum never leaves the cache.

    Args:
        kind: The rule, as in `sfb.kernels.rules`.
        p: Its numbers.
        u: m×K.
        v: m×D.
        w: As many columns as v.
        s: The rule's first state, like w; w itself if it has none.
        t: Its second.
        arrays: How many of w, s and t it uses.
        first: The row of w that column 0 of u belongs to.
        start: First row to work.
        stop: End of the rows; all that u has if negative.
        alpha: Factor of the gradient.
        scratch: Memory.

    Returns:
        `DONE`; `UNFIT` if the arguments do not fit, or the elements of scratch that it needs, with nothing done.
    """
    depth, columns = v.shape
    start, stop = rows_of(u, v, w, first, start, stop)
    if start > stop or s.shape != w.shape or t.shape != w.shape:
        return UNFIT
    width = LINE // w.itemsize
    chunks = max(1, -(-depth // DEPTH))
    stride = min(min(WIDE, wide_of(depth)) // w.itemsize, columns)
    # Sums of so many rows wait for further samples. Where there are none, there is one row of tiles of sums.
    tall = stop - start if chunks == 1 else TALL
    shallow = depth <= (_SHALLOW if arrays < 3 and stop - start > FEW_ROWS else _SHALLOW // 2)
    height = ROWS if not shallow else FEWEST if arrays == 3 else FEWER
    packed_u, packed_v = plan(u, stop - start, depth, columns, stride, width, w.itemsize)
    packed = packed_u + packed_v
    waiting = (ROWS if chunks == 1 else TALL) * stride
    if scratch.size < packed + waiting:
        return packed + waiting
    band, slab, sums = scratch[:packed_u], scratch[packed_u:packed], scratch[packed:]
    # The rows of a band at once where their sums stay in registers, else a row of tiles.
    step, ahead = (BAND, _AHEAD) if shallow else (ROWS, 0)
    for left in range(0, columns, max(1, stride)):
        across = min(stride, columns - left)
        for low in range(start, stop, max(1, tall)):
            high = min(low + tall, stop)
            for chunk in range(chunks):
                begin = chunk * DEPTH
                samples = min(DEPTH, depth - begin)
                last = chunk == chunks - 1
                b = panels_of_v(v, begin, samples, left, across, slab, chunks == 1 and low > start)
                ending = Ending(chunk > 0, False, alpha if last else 1.0, 1.0)
                prefetched = arrays if last and depth >= _SLOW else 0
                for middle in range(low, high, BAND):
                    a = panels_of_u(u, begin, samples, middle - first, min(BAND, high - middle), height, band)
                    for row in range(middle, min(middle + BAND, high), step):
                        rows, here = min(step, high - row), row * columns + left
                        its = Panels(shift(a.pointer, (row - middle) // height * a.pitch), a.step, a.pitch)
                        c = Sums(at(sums, 0 if chunks == 1 else (row - low) * stride), stride, 0 if shallow else 1)
                        rule = Update(kind, at(p, 0), at(w, here), at(s, here), at(t, here), columns, prefetched)
                        taken = Update(
                            kind if shallow else NO_RULE, rule.numbers, rule.w, rule.s, rule.t, columns, prefetched
                        )
                        block(its, b, samples, c, rows, across, ending, taken, height, ahead)
                        if last and not shallow:
                            take(rule, 0, Strip(c.pointer, stride), rows, across)
    return DONE


def _update_dense(t):
    return types.void(_I, vector(t), matrix(t, readonly=True), *[matrix(t)] * 3, _I, _I, _I, _F)


@kernel(signatures(_update_dense))
def update_dense(kind, p, g, w, s, t, first, start, stop, alpha):
    """Let a rule take α·g in rows of w and of its state; row ``first`` of w belongs to row 0 of g."""
    columns = w.shape[1]
    rule = Update(kind, at(p, 0), at(w, 0), at(s, 0), at(t, 0), columns, 0)
    if alpha == 1:
        given = Strip(at(g, (start - first) * columns), columns)
        take(rule, start * columns, given, stop - start, columns)
        return
    scaled = np.empty(columns, w.dtype)
    for k in range(start, stop):
        for c in range(columns):
            scaled[c] = alpha * g[k - first, c]
        take(rule, k * columns, Strip(at(scaled, 0), columns), 1, columns)


@inner
def _scaled_length(row, length):
    """Return ‖row‖ where squares underflow or overflow; ``length`` if the row is 0 or not finite."""
    peak = 0.0
    for c in range(row.size):
        peak = max(peak, abs(np.float64(row[c])))
    if not 0 < peak < np.inf:
        return length
    square = 0.0
    for c in range(row.size):
        square += (np.float64(row[c]) / peak) ** 2
    return peak * math.sqrt(square)


@inner
def _length(row):
    """Return ‖row‖."""
    square = 0.0
    for c in range(row.size):
        square += np.float64(row[c]) * np.float64(row[c])
    length = math.sqrt(square)
    return length if _SHORT < length < 1 / _SHORT else _scaled_length(row, length)


@kernel(signatures(lambda t: types.void(matrix(t), _I, _I, _F)))
def project_rows(w, start, stop, radius):
    """Scale each row r by min(1, radius/‖r‖); a row that holds NaN stays as it is."""
    for k in range(start, stop):
        row = w[k]
        length = _length(row)
        if length > radius:
            scale = radius / length
            for c in range(row.size):
                row[c] *= scale


@kernel(signatures(lambda t: types.void(matrix(t), _I, _I, _F)))
def shrink_rows(w, start, stop, threshold):
    """Scale each row r by max(0, 1 − threshold/‖r‖); a row that holds NaN becomes NaN."""
    for k in range(start, stop):
        row = w[k]
        length = _length(row)
        scale = 1 - threshold / length if length > threshold else 0 * length
        for c in range(row.size):
            row[c] *= scale
