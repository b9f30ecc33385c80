"""A block of a product, tile by tile; a rule may take its sums.

Tiles advance along rows, so that the result streams through the cache once however shallow the product.
"""

from collections import namedtuple

from numba import types

from sfb.kernels._compile import kernel
from sfb.kernels._rules import FEWER, FEWEST, Update, apply, prefetch, rule_tile
from sfb.kernels._tiles import ROWS, Ending, Panels, Strip, row, tile, width_of
from sfb.kernels._vectors import shift

__all__ = ["NO_RULE", "Sums", "block", "matrix", "signatures", "take", "vector"]

# In place of a rule's kind.
NO_RULE = -1

# Where sums go: a pointer to the first, elements from one row to the next, and 1 if each tile has its place there, or 0
# if there is room for one row of one tile, which all tiles use.
Sums = namedtuple("Sums", "pointer step moves")

_row, _row_4, _row_2, _row_1 = (row[rows] for rows in (ROWS, 4, 2, 1))
_fewest_ruled, _fewer_ruled = rule_tile[FEWEST], rule_tile[FEWER]


def signatures(build):
    """Return the signatures that ``build`` makes of each type of elements."""
    return [build(t) for t in (types.float32, types.float64)]


def matrix(t, readonly=False):
    """Return the type of a C-contiguous matrix."""
    return types.Array(t, 2, "C", readonly=readonly)


def vector(t):
    """Return the type of a C-contiguous vector."""
    return types.Array(t, 1, "C")


def _named(kind, *fields):
    return types.BaseTuple.from_types(fields, kind)


def _strip(t):
    return _named(Strip, types.CPointer(t), _I)


def _panels(t):
    return _named(Panels, types.CPointer(t), _I, _I)


_I, _BOOL = types.int64, types.boolean
_ENDING = _named(Ending, _BOOL, _BOOL, types.float64, types.float64)


@kernel(
    signatures(lambda t: types.void(_strip(t), _panels(t), _I, _strip(t), _I, _I, _ENDING)),
    python=False,
)
def _edge(a, b, depth, c, rows, columns, ending):
    """Work what has too few rows, or too few columns, for whole tiles; all columns of a lie together."""
    while rows >= ROWS:
        _row(a, b, depth, c, columns, ending)
        rows -= ROWS
        a, c = Strip(shift(a.pointer, ROWS), a.step), Strip(shift(c.pointer, ROWS * c.step), c.step)
    if rows >= 4:
        _row_4(a, b, depth, c, columns, ending)
        rows -= 4
        a, c = Strip(shift(a.pointer, 4), a.step), Strip(shift(c.pointer, 4 * c.step), c.step)
    if rows >= 2:
        _row_2(a, b, depth, c, columns, ending)
        rows -= 2
        a, c = Strip(shift(a.pointer, 2), a.step), Strip(shift(c.pointer, 2 * c.step), c.step)
    if rows >= 1:
        _row_1(a, b, depth, c, columns, ending)


def _update(t):
    return _named(Update, _I, *[types.CPointer(t)] * 4, _I, _I)


@kernel(signatures(lambda t: types.void(_update(t), _I, _strip(t), _I, _I)), python=False)
def take(update, offset, g, rows, columns):
    """Let a rule take rows of a gradient g, in rows of w that begin ``offset`` elements behind those of ``update``."""
    apply(update, offset, g, rows, columns)


def _block(t):
    sums = _named(Sums, types.CPointer(t), _I, _I)
    return types.void(_panels(t), _panels(t), _I, sums, _I, _I, _ENDING, _update(t), _I, _I)


@kernel(signatures(_block), python=False)
def block(a, b, depth, c, rows, columns, ending, update, height, ahead):
    """Work a block of a·bᵀ, all its tiles row after row of them: c ← sum over samples j of a[j]·b[j]ᵀ.

    Args:
        a: The columns of u that the rows of the block belong to, in panels of ``height``.
        b: The columns of v that its columns belong to, in panels as wide as a tile.
        depth: Samples.
        c: Where the sums go, or wait for a rule.
        rows: Rows of the block.
        columns: Columns of the block.
        ending: What becomes of the sums of a tile in c.
        update: A rule that takes the sums in rows of w, s and t from the block's first element on; `NO_RULE` to leave
            them in c. Its ``arrays``, if any, are prefetched beside each tile.
        height: Rows of a tile: `ROWS` for `NO_RULE`, else `FEWEST` or `FEWER`.
        ahead: Tiles by which what a tile changes is prefetched.
    """
    width, ruled = width_of(c.pointer), update.kind != NO_RULE
    down, across = rows // height, columns // width
    right, ahead = columns - across * width, min(ahead, across)
    step = update.step if ruled else c.step
    for p in range(down):
        left = Strip(shift(a.pointer, p * a.pitch), a.step)
        to, offset = shift(c.pointer, c.moves * p * height * c.step), p * height * update.step
        for q in range(across):
            # At the end of a row of tiles, the beginning of the next.
            wrap = q + ahead >= across
            far = wrap * height * step + (ahead - wrap * across) * width
            prefetch(update, offset + q * width)
            top = Strip(shift(b.pointer, q * b.pitch), b.step)
            if not ruled:
                tile(left, top, depth, Strip(shift(to, c.moves * q * width), c.step), far, ending)
            elif height == FEWEST:
                _fewest_ruled(left, top, depth, ending.alpha, update, offset + q * width, far)
            else:
                _fewer_ruled(left, top, depth, ending.alpha, update, offset + q * width, far)
        if right:
            sums, rest = Strip(shift(to, c.moves * across * width), c.step), shift(b.pointer, across * b.pitch)
            _edge(left, Panels(rest, b.step, b.pitch), depth, sums, height, right, ending)
            if ruled:
                take(update, offset + across * width, sums, height, right)
    over = rows - down * height
    if over:
        left = Strip(shift(a.pointer, down * a.pitch), a.step)
        sums = Strip(shift(c.pointer, c.moves * down * height * c.step), c.step)
        _edge(left, b, depth, sums, over, columns, ending)
        if ruled:
            take(update, down * height * update.step, sums, over, columns)
