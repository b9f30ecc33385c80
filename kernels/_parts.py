"""What the fused and the eager kernels share: the checks of their arrays, and the work on a matrix."""

from numba import types

from sfb.kernels._compile import inner
from sfb.kernels._products import accumulate, overlap
from sfb.kernels._updates import update
from sfb.kernels.rules import ASSIGN, SGD
from sfb.kernels.status import DONE

SMALL = "a kernel refused the arrays or the scratch of an exchange"

FLOATS = types.float32, types.float64


def array_type(t, dimensions, readonly=False):
    """Return the type of an array in C order."""
    return types.Array(t, dimensions, "C", readonly=readonly)


@inner
def take(kind, alpha, beta, p, u, v, w, s, t, arrays, start, stop, scratch):
    """Let a rule take uᵀv in some rows."""
    if kind in (ASSIGN, SGD):
        done = accumulate(u, v, w, 0, start, stop, kind == SGD, alpha, beta, scratch)
    else:
        done = update(kind, p, u, v, w, s, t, arrays, 0, start, stop, alpha, scratch)
    if done != DONE:
        raise RuntimeError(SMALL)


@inner
def form(u, v, product, scratch, low=0):
    """Form rows of uᵀv, from ``low`` on; return whether that was possible."""
    return accumulate(u, v, product, -low, 0, product.shape[0], False, 1.0, 0.0, scratch) == DONE


@inner
def fits(u, v, w, s, t, samples, rows, columns):
    """Return whether the arrays are of these sizes, and u and v apart from those that a sum changes."""
    if w.shape != (rows, columns) or s.shape != w.shape or t.shape != w.shape:
        return False
    if u.shape != (samples, rows) or v.shape != (samples, columns):
        return False
    apart = True
    for array in (w, s, t):
        apart = apart and not (overlap(u, array) or overlap(v, array))
    return apart
