"""Compiled loops; imported on first use, so that Numba is loaded only when a kernel runs.

Products follow Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008,
section 4: a slice of v and one of u are packed in the order in which tiles read them. Tiles advance along rows, so
that the result streams through the cache once however shallow the product.
"""

import math

import numpy as np
from numba import types

from sfb.kernels._compile import inner, kernel
from sfb.kernels._rules import FEWER, FEWEST, apply, rule_tile
from sfb.kernels._tiles import LINE, ROWS, move, part, prefetch, tile
from sfb.kernels._vectors import AVX512, flat
from sfb.kernels.status import DONE, UNFIT

# Samples of a tile's chain before it is put aside; the sum of a chain is part of what the bits are, so it is the same
# on every machine.
DEPTH = 256
# Bytes of a slab of v, which is to stay in a core's own cache while all rows are worked, and of the row that it covers:
# at least, at most, and at most with a rule.
SLAB, _NARROW, _WIDEST, WIDE = 1 << 20, 1 << 12, 1 << 16, 1 << 14
# Rows packed at a time, and rows of sums that wait for further samples.
BAND, TALL = 96, 1024
# Fewer rows, or columns in tiles, than these do not repay packing what they are multiplied with.
_FEW_ROWS, _FEW_TILES = 4 * ROWS, 4
# Tiles by which the result is prefetched, the first of the next row of them from the last of one.
_AHEAD = 12
# Samples up to which a rule takes sums from registers; half as many if it keeps two states, or of few rows. More of
# them take longer, and need all the registers.
SHALLOW = 64 if AVX512 else 32
# Samples from which a rule's arrays are prefetched while sums are worked: there is time for it.
_SLOW = 100
# In place of a rule's kind.
NO_RULE = -1

_whole, _4, _2, _1 = (tile[rows] for rows in (ROWS, 4, 2, 1))
_whole_part, _4_part, _2_part, _1_part = (part[rows] for rows in (ROWS, 4, 2, 1))
_fewest_ruled, _fewer_ruled = rule_tile[FEWEST], rule_tile[FEWER]


def _signatures(build):
    return [build(t) for t in (types.float32, types.float64)]


def _input(t):
    return types.Array(t, 2, "C", readonly=True)


def _matrix(t):
    return types.Array(t, 2, "C")


def _vector(t, readonly=False):
    return types.Array(t, 1, "C", readonly=readonly)


_ENDS = [types.boolean, types.boolean, types.float64, types.float64]


@kernel(
    _signatures(
        lambda t: types.void(
            *[_vector(t, readonly=True), types.int64, types.int64] * 2,
            types.int64,
            types.int64,
            _vector(t),
            *[types.int64] * 4,
            *_ENDS,
        )
    ),
    python=False,
    contract=True,
)
def _edge(a, a_at, a_step, b, b_at, b_step, b_panel, depth, c, c_at, c_step, rows, columns, resume, add, alpha, beta):
    """What is too few rows, or too few columns, for whole tiles; the first column of B's next tile is b_panel on."""
    width = LINE // c.itemsize
    whole = columns // width
    right = columns - whole * width
    b_end, c_end = b_at + whole * b_panel, c_at + whole * width
    while rows > 0:
        if rows >= ROWS:
            n = ROWS
            for q in range(whole):
                to, at = b_at + q * b_panel, c_at + q * width
                _whole(a, a_at, a_step, b, to, b_step, depth, c, at, c_step, 0, resume, add, alpha, beta)
            if right:
                _whole_part(a, a_at, a_step, b, b_end, b_step, depth, c, c_end, c_step, right, resume, add, alpha, beta)
        elif rows >= 4:
            n = 4
            for q in range(whole):
                to, at = b_at + q * b_panel, c_at + q * width
                _4(a, a_at, a_step, b, to, b_step, depth, c, at, c_step, 0, resume, add, alpha, beta)
            if right:
                _4_part(a, a_at, a_step, b, b_end, b_step, depth, c, c_end, c_step, right, resume, add, alpha, beta)
        elif rows >= 2:
            n = 2
            for q in range(whole):
                to, at = b_at + q * b_panel, c_at + q * width
                _2(a, a_at, a_step, b, to, b_step, depth, c, at, c_step, 0, resume, add, alpha, beta)
            if right:
                _2_part(a, a_at, a_step, b, b_end, b_step, depth, c, c_end, c_step, right, resume, add, alpha, beta)
        else:
            n = 1
            for q in range(whole):
                to, at = b_at + q * b_panel, c_at + q * width
                _1(a, a_at, a_step, b, to, b_step, depth, c, at, c_step, 0, resume, add, alpha, beta)
            if right:
                _1_part(a, a_at, a_step, b, b_end, b_step, depth, c, c_end, c_step, right, resume, add, alpha, beta)
        rows -= n
        a_at += n
        c_at += n * c_step
        c_end += n * c_step


@inner(contract=True)
def _pack_rows(u, first, depth, left, columns, height, band):
    """Put columns of u, from sample ``first`` on, into panels: band[p, j, i] ← u[first + j, left + p·height + i]."""
    whole = columns // height
    for j in range(depth):
        row = u[first + j, left : left + columns]
        for p in range(whole):
            panel = band[(p * depth + j) * height : (p * depth + j + 1) * height]
            for i in range(height):
                panel[i] = row[p * height + i]
        for i in range(columns - whole * height):
            band[(whole * depth + j) * height + i] = row[whole * height + i]


@inner(contract=True)
def _pack_columns(v, first, depth, left, columns, slab):
    """The same of v, in panels as wide as a tile."""
    width = LINE // slab.itemsize
    whole = columns // width
    flat_v = flat(v)
    for j in range(depth):
        at = (first + j) * v.shape[1] + left
        for p in range(whole):
            move(flat_v, at + p * width, slab, (p * depth + j) * width)
        for i in range(columns - whole * width):
            slab[(whole * depth + j) * width + i] = flat_v[at + whole * width + i]


@kernel(
    _signatures(
        lambda t: types.void(
            *[_input(t)] * 2,
            *[types.int64] * 6,
            *[_vector(t, readonly=True)] * 2,
            _vector(t),
            *[types.int64] * 3,
            *_ENDS,
            types.int64,
            *[_vector(t)] * 4,
            *[types.int64] * 5,
        )
    ),
    python=False,
    contract=True,
)
def _product(
    u,
    v,
    first,
    depth,
    low,
    rows,
    left,
    columns,
    band,
    slab,
    c,
    c_at,
    c_step,
    moves,
    resume,
    add,
    alpha,
    beta,
    kind,
    numbers,
    w,
    s,
    t,
    arrays,
    w_at,
    w_step,
    height,
    ahead,
):
    """A block of uᵀv, all its tiles row after row of them.

    Of u and v it takes ``depth`` samples from ``first`` on, rows from ``low`` and columns from ``left`` on, as packed
    in ``band`` and ``slab`` or, where these are empty, as they lie. Tiles are of ``height`` rows: `ROWS` for `NO_RULE`,
    where each has its place in c; another ``kind`` of rule takes them into w, s and t, the block of which begins at
    ``w_at``. Unless c ``moves`` on, it has room for one row of them. What tiles change is prefetched so many tiles
    ``ahead``, and where c is not w, so many ``arrays`` of w, s and t are beside the tile that their rule will come to.
    """
    # Sample j of panel p of A, what ``height`` rows are made of, begins at a_at + p·a_panel + j·a_step; likewise B.
    a, a_at, a_step, a_panel = band, 0, height, height * depth
    if band.size == 0:
        a, a_at, a_step, a_panel = flat(u), first * u.shape[1] + low, u.shape[1], height
    width = LINE // c.itemsize
    b, b_at, b_step, b_panel = slab, 0, width, width * depth
    if slab.size == 0:
        b, b_at, b_step, b_panel = flat(v), first * v.shape[1] + left, v.shape[1], width
    down, across = rows // height, columns // width
    right, ahead = columns - across * width, min(ahead, across)
    for p in range(down):
        at_a, at_c, at_w = a_at + p * a_panel, c_at + moves * p * height * c_step, w_at + p * height * w_step
        for q in range(across):
            # At the end of a row of tiles, the beginning of the next.
            wrap = q + ahead >= across
            step = c_step if kind == NO_RULE else w_step
            far = wrap * height * step + (ahead - wrap * across) * width
            if arrays:
                prefetch(w, at_w + q * width, w_step)
                if arrays > 1:
                    prefetch(s, at_w + q * width, w_step)
                if arrays > 2:
                    prefetch(t, at_w + q * width, w_step)
            at_b, at = b_at + q * b_panel, at_c + moves * q * width
            if kind == NO_RULE:
                _whole(a, at_a, a_step, b, at_b, b_step, depth, c, at, c_step, far, resume, add, alpha, beta)
            else:
                rest = kind, numbers, w, s, t, at_w + q * width, w_step, far
                if height == FEWEST:
                    _fewest_ruled(a, at_a, a_step, b, at_b, b_step, depth, alpha, *rest)
                else:
                    _fewer_ruled(a, at_a, a_step, b, at_b, b_step, depth, alpha, *rest)
        if right:
            at_b, at = b_at + across * b_panel, at_c + moves * across * width
            _edge(a, at_a, a_step, b, at_b, b_step, 0, depth, c, at, c_step, height, right, resume, add, alpha, beta)
            if kind != NO_RULE:
                apply(kind, numbers, c, at, c_step, w, s, t, at_w + across * width, w_step, height, right)
    over = rows - down * height
    if over:
        at_a, at_c, at_w = a_at + down * a_panel, c_at + moves * down * height * c_step, w_at + down * height * w_step
        _edge(
            a, at_a, a_step, b, b_at, b_step, b_panel, depth, c, at_c, c_step, over, columns, resume, add, alpha, beta
        )
        if kind != NO_RULE:
            apply(kind, numbers, c, at_c, c_step, w, s, t, at_w, w_step, over, columns)


@inner(contract=True)
def overlap(x, w):
    """Return whether two C-contiguous arrays share memory."""
    if x.size == 0 or w.size == 0:
        return False
    begin, first = w.ctypes.data, x.ctypes.data
    return first < begin + w.size * w.itemsize and begin < first + x.size * x.itemsize


@inner(contract=True)
def _rows(u, v, w, first, start, stop):
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


def wide(depth):
    """Return the bytes of a row that are worked at a time without a rule."""
    return max(_NARROW, min(_WIDEST, SLAB // max(1, depth) // LINE * LINE))


_wide = inner(wide)


@inner(contract=True)
def _repays(rows, depth, nbytes):
    """Return whether to pack v: for many rows, or where its samples lie too far apart to be fetched ahead."""
    return rows > _FEW_ROWS or (depth > 16 and nbytes > WIDE)


@inner(contract=True)
def _plan(u, rows, depth, columns, across, width, itemsize):
    """Return the elements of scratch for a packed band of u, 0 if its rows lie together, and for a slab of v."""
    samples = min(depth, DEPTH)
    pack_u = columns > _FEW_TILES * width and u.shape[1] > _FEW_ROWS
    pack_v = _repays(rows, depth, columns * itemsize)
    return BAND * samples if pack_u else 0, -(-across // width) * width * samples if pack_v else 0


@kernel(
    _signatures(
        lambda t: types.int64(
            _input(t),
            _input(t),
            _matrix(t),
            types.int64,
            types.int64,
            types.int64,
            types.boolean,
            types.float64,
            types.float64,
            _vector(t),
        )
    ),
    contract=True,
)
def accumulate(u, v, w, first, start, stop, add, alpha, beta, scratch):
    """Rows of w ← α·uᵀv, or β·w + α·uᵀv to ``add``; row ``first`` of w belongs to column 0 of u.

    Returns DONE; UNFIT if the arguments do not fit, or the elements of scratch that it needs, with nothing done.
    """
    depth, columns = v.shape
    start, stop = _rows(u, v, w, first, start, stop)
    if start > stop:
        return UNFIT
    width = LINE // w.itemsize
    stride, chunks = min(_wide(depth) // w.itemsize, columns), max(1, -(-depth // DEPTH))
    packed_u, packed_v = _plan(u, stop - start, depth, columns, stride, width, w.itemsize)
    if scratch.size < packed_u + packed_v:
        return packed_u + packed_v
    band, slab = scratch[:packed_u], scratch[packed_u : packed_u + packed_v]
    flat_w = flat(w)
    for left in range(0, columns, max(1, stride)):
        across = min(stride, columns - left)
        for chunk in range(chunks):
            begin = chunk * DEPTH
            samples = min(DEPTH, depth - begin)
            if packed_v:
                _pack_columns(v, begin, samples, left, across, slab)
            resume = chunk > 0 and not add
            scale = alpha if add or chunk == chunks - 1 else 1.0
            keep = beta if chunk == 0 else 1.0
            for low in range(start, stop, BAND):
                rows = min(BAND, stop - low)
                if packed_u:
                    _pack_rows(u, begin, samples, low - first, rows, ROWS, band)
                at = low * columns + left
                _product(
                    u,
                    v,
                    begin,
                    samples,
                    low - first,
                    rows,
                    left,
                    across,
                    band,
                    slab,
                    flat_w,
                    at,
                    columns,
                    1,
                    resume,
                    add,
                    scale,
                    keep,
                    NO_RULE,
                    flat_w,
                    flat_w,
                    flat_w,
                    flat_w,
                    0,
                    at,
                    columns,
                    ROWS,
                    _AHEAD,
                )
    return DONE


@kernel(
    _signatures(
        lambda t: types.int64(
            types.int64,
            _vector(t),
            _input(t),
            _input(t),
            _matrix(t),
            _matrix(t),
            _matrix(t),
            types.int64,
            types.int64,
            types.int64,
            types.int64,
            types.float64,
            _vector(t),
        )
    ),
    contract=True,
)
def update(kind, p, u, v, w, s, t, arrays, first, start, stop, alpha, scratch):
    """Let a rule take α·uᵀv in rows of w and of its state; the sum never leaves the cache; returns as `accumulate`."""
    depth, columns = v.shape
    start, stop = _rows(u, v, w, first, start, stop)
    if start > stop or s.shape != w.shape or t.shape != w.shape:
        return UNFIT
    width = LINE // w.itemsize
    chunks = max(1, -(-depth // DEPTH))
    stride = min(min(WIDE, _wide(depth)) // w.itemsize, columns)
    # Sums of so many rows wait for further samples. Where there are none, there is one row of tiles of sums.
    tall = stop - start if chunks == 1 else TALL
    shallow = depth <= (SHALLOW if arrays < 3 and stop - start > _FEW_ROWS else SHALLOW // 2)
    height = ROWS if not shallow else FEWEST if arrays == 3 else FEWER
    packed_u, packed_v = _plan(u, stop - start, depth, columns, stride, width, w.itemsize)
    packed = packed_u + packed_v
    waiting = (ROWS if chunks == 1 else TALL) * stride
    if scratch.size < packed + waiting:
        return packed + waiting
    band, slab, sums = scratch[:packed_u], scratch[packed_u:packed], scratch[packed:]
    flat_w, flat_s, flat_t = flat(w), flat(s), flat(t)
    for left in range(0, columns, max(1, stride)):
        across = min(stride, columns - left)
        for low in range(start, stop, max(1, tall)):
            high = min(low + tall, stop)
            for chunk in range(chunks):
                begin = chunk * DEPTH
                samples = min(DEPTH, depth - begin)
                last = chunk == chunks - 1
                if packed_v and (chunks > 1 or low == start):
                    _pack_columns(v, begin, samples, left, across, slab)
                for middle in range(low, high, BAND):
                    if packed_u:
                        _pack_rows(
                            u,
                            begin,
                            samples,
                            middle - first,
                            min(BAND, high - middle),
                            height,
                            band,
                        )
                    # The rows of a band at once where their sums stay in registers, else a row of tiles.
                    step = BAND if shallow else ROWS
                    for row in range(middle, min(middle + BAND, high), step):
                        rows, here = min(step, high - row), row * columns + left
                        at = 0 if chunks == 1 else (row - low) * stride
                        _product(
                            u,
                            v,
                            begin,
                            samples,
                            row - first,
                            rows,
                            left,
                            across,
                            band[(row - middle) * samples :],
                            slab,
                            sums,
                            at,
                            stride,
                            not shallow,
                            chunk > 0,
                            False,
                            alpha if last else 1.0,
                            1.0,
                            kind if shallow else NO_RULE,
                            p,
                            flat_w,
                            flat_s,
                            flat_t,
                            arrays if last and depth >= _SLOW else 0,
                            here,
                            columns,
                            height,
                            _AHEAD if shallow else 0,
                        )
                        if last and not shallow:
                            apply(kind, p, sums, at, stride, flat_w, flat_s, flat_t, here, columns, rows, across)
    return DONE


@kernel(
    _signatures(
        lambda t: types.void(
            types.int64,
            _vector(t),
            _input(t),
            _matrix(t),
            _matrix(t),
            _matrix(t),
            types.int64,
            types.int64,
            types.int64,
            types.float64,
        )
    ),
    contract=True,
)
def update_dense(kind, p, g, w, s, t, first, start, stop, alpha):
    """Let a rule take α·g in rows of w and of its state; row ``first`` of w belongs to row 0 of g."""
    columns = w.shape[1]
    flat_w, flat_s, flat_t = flat(w), flat(s), flat(t)
    if alpha == 1:
        at, rows = start * columns, stop - start
        apply(kind, p, flat(g), at - first * columns, columns, flat_w, flat_s, flat_t, at, columns, rows, columns)
        return
    scaled = np.empty(columns, w.dtype)
    for k in range(start, stop):
        for c in range(columns):
            scaled[c] = alpha * g[k - first, c]
        apply(kind, p, scaled, 0, columns, flat_w, flat_s, flat_t, k * columns, columns, 1, columns)


@kernel(_signatures(lambda t: types.void(_matrix(t), types.int64, types.int64, types.float64)), contract=True)
def shrink_rows(w, start, stop, threshold):
    """Shorten each row by ``threshold``, to nothing if it is no longer than that."""
    for k in range(start, stop):
        row = w[k]
        square = 0.0
        for c in range(row.size):
            square += np.float64(row[c]) * np.float64(row[c])
        length = math.sqrt(square)
        scale = 1 - threshold / length if length > threshold else 0 * length
        for c in range(row.size):
            row[c] *= scale


@kernel(_signatures(lambda t: types.float64(_matrix(t), _matrix(t))))
def inner(a, b):
    """The sum of the products of the elements of two arrays, one after the other, in float64."""
    total = 0.0
    for k in range(a.shape[0]):
        for c in range(a.shape[1]):
            total += np.float64(a[k, c]) * np.float64(b[k, c])
    return total


@kernel(_signatures(lambda t: types.void(_matrix(t), types.int64, types.int64)), contract=True)
def reduce(parts, start, stop):
    """Add the elements of all rows of ``parts`` to those of its first, in the order of rows."""
    block = 4096 // parts.itemsize
    for left in range(start, stop, block):
        right = min(left + block, stop)
        total = parts[0, left:right]
        for r in range(1, parts.shape[0]):
            term = parts[r, left:right]
            for c in range(right - left):
                total[c] += term[c]
