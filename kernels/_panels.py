"""Panels of both factors of a product: whether to pack them, and packing in the order in which tiles read them.

They follow Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008, section 4.
"""

from numba import types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._tiles import LINE, ROWS, Panels, move
from sfb.kernels._vectors import at, flat

__all__ = ["BAND", "DEPTH", "FEW_ROWS", "SLAB", "WIDE", "panels_of_u", "panels_of_v", "plan", "wide", "wide_of"]

# Samples of a tile's chain before it is put aside; the sum of a chain is part of what the bits are, so it is the same
# on every machine.
DEPTH = 256
# Bytes of a slab of v, which is to stay in a core's own cache while all rows are worked, and of the row that it covers:
# at least, at most, and at most with a rule.
SLAB, _NARROW, _WIDEST, WIDE = 1 << 20, 1 << 12, 1 << 16, 1 << 14
# Rows packed at a time.
BAND = 96
# Fewer rows, or columns in tiles, than these do not repay packing what they are multiplied with.
FEW_ROWS, _FEW_TILES = 4 * ROWS, 4


def wide(depth):
    """Return the bytes of a row that are worked at a time without a rule."""
    return max(_NARROW, min(_WIDEST, SLAB // max(1, depth) // LINE * LINE))


wide_of = inner(wide)


@inner
def _repays(rows, depth, nbytes):
    """Return whether to pack v: for many rows, or where its samples lie too far apart to be fetched ahead."""
    return rows > FEW_ROWS or (depth > 16 and nbytes > WIDE)


@inner
def plan(u, rows, depth, columns, across, width, itemsize):
    """Return the elements of scratch for a packed band of u, 0 if its rows lie together, and for a slab of v."""
    samples = min(depth, DEPTH)
    pack_u = columns > _FEW_TILES * width and u.shape[1] > FEW_ROWS
    pack_v = _repays(rows, depth, columns * itemsize)
    return BAND * samples if pack_u else 0, -(-across // width) * width * samples if pack_v else 0


_I = types.int64


def _packing(t):
    return types.void(types.Array(t, 2, "C", readonly=True), *[_I] * 5, types.Array(t, 1, "C"))


_SIGNATURES = [_packing(t) for t in (types.float32, types.float64)]


@kernel(_SIGNATURES, python=False)
def _pack_u(u, first, depth, left, columns, height, band):
    """Set band[p, j, i] ← u[first + j, left + p·height + i]."""
    whole = columns // height
    for j in range(depth):
        row = u[first + j, left : left + columns]
        for p in range(whole):
            panel = band[(p * depth + j) * height : (p * depth + j + 1) * height]
            for i in range(height):
                panel[i] = row[p * height + i]
        for i in range(columns - whole * height):
            band[(whole * depth + j) * height + i] = row[whole * height + i]


@inner
def panels_of_u(u, first, depth, left, columns, height, band):
    """Return columns of ``depth`` samples of u, packed into ``band`` or, if that is empty, as they lie."""
    if band.size == 0:
        return Panels(at(u, first * u.shape[1] + left), u.shape[1], height)
    _pack_u(u, first, depth, left, columns, height, band)
    return Panels(at(band, 0), height, height * depth)


@kernel(_SIGNATURES, python=False)
def _pack_v(v, first, depth, left, columns, width, slab):
    """Set slab[p, j, i] ← v[first + j, left + p·width + i]."""
    whole = columns // width
    flat_v = flat(v)
    for j in range(depth):
        start = (first + j) * v.shape[1] + left
        for p in range(whole):
            move(at(flat_v, start + p * width), at(slab, (p * depth + j) * width))
        for i in range(columns - whole * width):
            slab[(whole * depth + j) * width + i] = flat_v[start + whole * width + i]


@inner
def panels_of_v(v, first, depth, left, columns, slab, packed):
    """Return columns of ``depth`` samples of v as `panels_of_u` does; ``slab`` may hold them ``packed`` already."""
    width = LINE // v.itemsize
    if slab.size == 0:
        return Panels(at(v, first * v.shape[1] + left), v.shape[1], width)
    if not packed:
        _pack_v(v, first, depth, left, columns, width, slab)
    return Panels(at(slab, 0), width, width * depth)
