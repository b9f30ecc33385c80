"""Products of factors: W ← α·uᵀv, or β·W + α·uᵀv."""

from numba import types

from sfb.kernels._blocks import NO_RULE, Sums, block, matrix, signatures, vector
from sfb.kernels._compile import inner, kernel
from sfb.kernels._panels import BAND, DEPTH, panels_of_u, panels_of_v, plan, wide_of
from sfb.kernels._rules import Update
from sfb.kernels._tiles import LINE, ROWS, Ending
from sfb.kernels._vectors import at
from sfb.kernels.status import DONE, UNFIT

__all__ = ["accumulate", "overlap", "rows_of"]

# Tiles by which the result is prefetched, the first of the next row of them from the last of one.
_AHEAD = 12

_I, _F = types.int64, types.float64


@inner
def overlap(x, w):
    """Return whether two C-contiguous arrays share memory."""
    if x.size == 0 or w.size == 0:
        return False
    begin, first = w.ctypes.data, x.ctypes.data
    return first < begin + w.size * w.itemsize and begin < first + x.size * x.itemsize


@inner
def rows_of(u, v, w, first, start, stop):
    """Return the rows to work, all for a negative ``stop``; an end before the start if the arguments do not fit."""
    rows, end = w.shape[0], first + u.shape[1]
    if u.shape[0] != v.shape[0] or w.shape[1] != v.shape[1] or overlap(u, w) or overlap(v, w):
        return 1, 0
    if stop < 0:
        if (first >= 0 and end > rows) or (first <= 0 and end < rows):
            return 1, 0
        start, stop = max(start, first, 0), min(rows, end)
    if start < max(0, first) or stop > min(rows, end):
        return 1, 0
    return start, stop


def _accumulate(t):
    factors = [matrix(t, readonly=True)] * 2
    return _I(*factors, matrix(t), _I, _I, _I, types.boolean, _F, _F, vector(t))


@kernel(signatures(_accumulate))
def accumulate(u, v, w, first, start, stop, add, alpha, beta, scratch):
    """Set rows of w ← α·uᵀv, or to ``add`` w ← β·w + α·uᵀv; row ``first`` of w belongs to column 0 of u.

    Returns:
        `DONE`; `UNFIT` if the arguments do not fit, or the elements of scratch that it needs, with nothing done.
    """
    depth, columns = v.shape
    start, stop = rows_of(u, v, w, first, start, stop)
    if start > stop:
        return UNFIT
    width = LINE // w.itemsize
    stride, chunks = min(wide_of(depth) // w.itemsize, columns), max(1, -(-depth // DEPTH))
    packed_u, packed_v = plan(u, stop - start, depth, columns, stride, width, w.itemsize)
    if scratch.size < packed_u + packed_v:
        return packed_u + packed_v
    band, slab = scratch[:packed_u], scratch[packed_u : packed_u + packed_v]
    anything = at(w, 0)
    no_rule = Update(NO_RULE, anything, anything, anything, anything, columns, 0)
    for left in range(0, columns, max(1, stride)):
        across = min(stride, columns - left)
        for chunk in range(chunks):
            begin = chunk * DEPTH
            samples = min(DEPTH, depth - begin)
            b = panels_of_v(v, begin, samples, left, across, slab, False)
            scale = alpha if add or chunk == chunks - 1 else 1.0
            ending = Ending(chunk > 0 and not add, add, scale, beta if chunk == 0 else 1.0)
            for low in range(start, stop, BAND):
                rows = min(BAND, stop - low)
                a = panels_of_u(u, begin, samples, low - first, rows, ROWS, band)
                c = Sums(at(w, low * columns + left), columns, 1)
                block(a, b, samples, c, rows, across, ending, no_rule, ROWS, _AHEAD)
    return DONE
