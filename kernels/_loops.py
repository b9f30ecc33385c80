"""Compiled loops; imported on first use, so that Numba is loaded only when a kernel runs.

Products follow Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008,
section 4: a slice of v and one of u are packed in the order in which tiles read them. Tiles advance along rows, so
that the result streams through the cache once however shallow the product.
"""

import math

import numpy as np
from numba import njit, types
from sfb.kernels._tiles import LINE, ROWS, fma, move, part, prefetch, tile
from sfb.kernels.rules import ADAGRAD, ADAM, ASSIGN, MOMENTUM, NESTEROV, SGD

# Samples of a tile's chain before it is put aside; the sum of a chain is part of what the bits are, so it is the same
# on every machine.
DEPTH = 256
# Samples up to which the rows of a matrix up to so many bytes stream one by one: packing would take longer.
STREAM, CACHED = 4, 1 << 18
# Bytes of a row that are worked at a time, and of a row of sums that wait for further samples.
WIDE, NARROW = 16384, 8192
# Rows packed at a time, and rows of sums that wait for further samples.
BAND, TALL = 96, 1024
# Fewer rows, or columns in tiles, than these do not repay packing what they are multiplied with.
_FEW_ROWS, _FEW_TILES = 4 * ROWS, 4
# Tiles by which the result is prefetched, the first of the next row of them from the last of one.
_AHEAD = 4
# Samples from which a rule's arrays are prefetched, too: there is time for it.
_SLOW = 100

# Contraction lets a·b + c become one FMA; nothing is reordered, and NaN and Inf keep their meaning.
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "no_cfunc_wrapper": True}
# Of what only other loops call, and of that where each operation is rounded as written.
_INNER = {**_OPTIONS, "no_cpython_wrapper": True}
_EXACT = {**_INNER, "fastmath": False}

_whole, _4, _2, _1 = (tile[rows] for rows in (ROWS, 4, 2, 1))
_whole_part, _4_part, _2_part, _1_part = (part[rows] for rows in (ROWS, 4, 2, 1))
_8, _8_part = tile.get(8, _whole), part.get(8, _whole_part)


def _signatures(build):
    return [build(t) for t in (types.float32, types.float64)]


def _input(t):
    return types.Array(t, 2, "C", readonly=True)


def _matrix(t):
    return types.Array(t, 2, "C")


def _vector(t, readonly=False):
    return types.Array(t, 1, "C", readonly=readonly)


_ENDS = [types.boolean, types.boolean, types.float64, types.float64]


@njit(
    _signatures(
        lambda t: types.void(
            *[_vector(t, readonly=True), types.int64, types.int64] * 2,
            types.int64,
            _vector(t),
            *[types.int64] * 4,
            *_ENDS,
        )
    ),
    **_INNER,
)
def _edge(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, rows, columns, resume, add, alpha, beta):
    """One tile with fewer rows or columns than a whole one."""
    full = columns * c.itemsize == LINE
    while rows > 0:
        if rows >= ROWS:
            n = ROWS
            if full:
                _whole(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, 0, resume, add, alpha, beta)
            else:
                _whole_part(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, columns, resume, add, alpha, beta)
        elif rows >= 8:
            n = 8
            if full:
                _8(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, 0, resume, add, alpha, beta)
            else:
                _8_part(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, columns, resume, add, alpha, beta)
        elif rows >= 4:
            n = 4
            if full:
                _4(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, 0, resume, add, alpha, beta)
            else:
                _4_part(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, columns, resume, add, alpha, beta)
        elif rows >= 2:
            n = 2
            if full:
                _2(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, 0, resume, add, alpha, beta)
            else:
                _2_part(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, columns, resume, add, alpha, beta)
        else:
            n = 1
            if full:
                _1(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, 0, resume, add, alpha, beta)
            else:
                _1_part(a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, columns, resume, add, alpha, beta)
        rows -= n
        a_at += n
        c_at += n * c_step


@njit(**_INNER)
def _pack_rows(u, first, depth, left, columns, band):
    """Put columns of u, from sample ``first`` on, into panels: band[p, j, i] ← u[first + j, left + p·ROWS + i]."""
    whole = columns // ROWS
    for j in range(depth):
        row = u[first + j, left : left + columns]
        for p in range(whole):
            panel = band[(p * depth + j) * ROWS : (p * depth + j + 1) * ROWS]
            for i in range(ROWS):
                panel[i] = row[p * ROWS + i]
        for i in range(columns - whole * ROWS):
            band[(whole * depth + j) * ROWS + i] = row[whole * ROWS + i]


@njit(**_INNER)
def _pack_columns(v, first, depth, left, columns, slab):
    """The same of v, in panels as wide as a tile."""
    width = LINE // slab.itemsize
    whole = columns // width
    flat = v.reshape(v.size)
    for j in range(depth):
        at = (first + j) * v.shape[1] + left
        for p in range(whole):
            move(flat, at + p * width, slab, (p * depth + j) * width)
        for i in range(columns - whole * width):
            slab[(whole * depth + j) * width + i] = flat[at + whole * width + i]


@njit(
    _signatures(
        lambda t: types.void(
            *[_input(t)] * 2,
            *[types.int64] * 6,
            *[_vector(t, readonly=True)] * 2,
            _vector(t),
            *[types.int64] * 2,
            *_ENDS,
            *[_vector(t)] * 3,
            *[types.int64] * 4,
        )
    ),
    **_INNER,
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
    resume,
    add,
    alpha,
    beta,
    w,
    s,
    t,
    arrays,
    next_at,
    next_step,
    ahead,
):
    """A block of uᵀv, all its tiles row after row of them.

    Of u and v it takes ``depth`` samples from ``first`` on, rows from ``low`` and columns from ``left`` on, as packed
    in ``band`` and ``slab`` or, where these are empty, as they lie. Meanwhile ``arrays`` of w, s and t are prefetched,
    that many tiles ``ahead``; the place of the block in them begins at ``next_at``.
    """
    # Sample j of panel p of A, what ROWS rows are made of, begins at a_at + p·a_panel + j·a_step; likewise B.
    a, a_at, a_step, a_panel = band, 0, ROWS, ROWS * depth
    if band.size == 0:
        a, a_at, a_step, a_panel = u.reshape(u.size), first * u.shape[1] + low, u.shape[1], ROWS
    width = LINE // c.itemsize
    b, b_at, b_step, b_panel = slab, 0, width, width * depth
    if slab.size == 0:
        b, b_at, b_step, b_panel = v.reshape(v.size), first * v.shape[1] + left, v.shape[1], width
    down, across = rows // ROWS, columns // width
    right = columns - across * width
    for p in range(down):
        at_a, at_c = a_at + p * a_panel, c_at + p * ROWS * c_step
        for q in range(across):
            if arrays:
                # At the end of a row of tiles, the beginning of the next.
                wrap = q + ahead >= across
                at = next_at + (p + wrap) * ROWS * next_step + (q + ahead - wrap * across) * width
                prefetch(w, at, next_step)
                if arrays > 1:
                    prefetch(s, at, next_step)
                if arrays > 2:
                    prefetch(t, at, next_step)
            at_b = b_at + q * b_panel
            _whole(a, at_a, a_step, b, at_b, b_step, depth, c, at_c + q * width, c_step, 0, resume, add, alpha, beta)
        if right:
            at_b = b_at + across * b_panel
            at_c += across * width
            _edge(a, at_a, a_step, b, at_b, b_step, depth, c, at_c, c_step, ROWS, right, resume, add, alpha, beta)
    over = rows - down * ROWS
    if over:
        at_a = a_at + down * a_panel
        for q in range(across + (right > 0)):
            at_b, at_c = b_at + q * b_panel, c_at + down * ROWS * c_step + q * width
            n = min(width, columns - q * width)
            _edge(a, at_a, a_step, b, at_b, b_step, depth, c, at_c, c_step, over, n, resume, add, alpha, beta)


@njit(**_INNER)
def _rows(u, v, w, first, start, stop):
    """Return the rows to work, all for a negative ``stop``; an end before the start if the arguments do not fit."""
    rows, end = w.shape[0], first + u.shape[1]
    if u.shape[0] != v.shape[0] or w.shape[1] != v.shape[1]:
        return 1, 0
    begin, after = w.ctypes.data, w.ctypes.data + w.size * w.itemsize
    for x in (u, v):
        if x.size and w.size and x.ctypes.data < after and begin < x.ctypes.data + x.size * x.itemsize:
            return 1, 0
    if stop < 0:
        if (first >= 0 and end > rows) or (first <= 0 and end < rows):
            return 1, 0
        start, stop = max(start, first, 0), min(rows, end)
    if start < max(0, first) or stop > min(rows, end):
        return 1, 0
    return start, stop


@njit(**_EXACT)
def _stream(u, v, k, row, add, alpha, beta):
    """One row of uᵀv from up to STREAM samples, with the bits of a tile."""
    zero = alpha * 0
    if len(v) == 0:
        for c in range(row.size):
            row[c] = alpha * zero + beta * row[c] if add else alpha * zero
    elif len(v) == 1:
        a, va = u[0, k], v[0]
        if add:
            for c in range(row.size):
                row[c] = fma(alpha, fma(a, va[c], zero), beta * row[c])
        else:
            for c in range(row.size):
                row[c] = alpha * fma(a, va[c], zero)
    elif len(v) == 2:
        a, b, va, vb = u[0, k], u[1, k], v[0], v[1]
        if add:
            for c in range(row.size):
                row[c] = fma(alpha, fma(b, vb[c], fma(a, va[c], zero)), beta * row[c])
        else:
            for c in range(row.size):
                row[c] = alpha * fma(b, vb[c], fma(a, va[c], zero))
    elif len(v) == 3:
        a, b, d, va, vb, vd = u[0, k], u[1, k], u[2, k], v[0], v[1], v[2]
        if add:
            for c in range(row.size):
                row[c] = fma(alpha, fma(d, vd[c], fma(b, vb[c], fma(a, va[c], zero))), beta * row[c])
        else:
            for c in range(row.size):
                row[c] = alpha * fma(d, vd[c], fma(b, vb[c], fma(a, va[c], zero)))
    else:
        a, b, d, e, va, vb, vd, ve = u[0, k], u[1, k], u[2, k], u[3, k], v[0], v[1], v[2], v[3]
        if add:
            for c in range(row.size):
                row[c] = fma(alpha, fma(e, ve[c], fma(d, vd[c], fma(b, vb[c], fma(a, va[c], zero)))), beta * row[c])
        else:
            for c in range(row.size):
                row[c] = alpha * fma(e, ve[c], fma(d, vd[c], fma(b, vb[c], fma(a, va[c], zero))))


@njit(**_INNER)
def _repays(rows, depth, nbytes):
    """Return whether to pack v: for many rows, or where its samples lie too far apart to be fetched ahead."""
    return rows > _FEW_ROWS or (depth > 16 and nbytes > WIDE)


@njit(**_INNER)
def _divide(scratch, depth, columns, width, pack_u, pack_v):
    """Return the parts of the scratch: for a packed band of u, a packed slab of v, and sums."""
    samples = min(depth, DEPTH)
    first = BAND * samples if pack_u else 0
    second = first + (-(-columns // width) * width * samples if pack_v else 0)
    return scratch[:first], scratch[first:second], scratch[second:]


@njit(
    _signatures(
        lambda t: types.boolean(
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
    **_OPTIONS,
)
def accumulate(u, v, w, first, start, stop, add, alpha, beta, scratch):
    """Rows of w ← α·uᵀv, or β·w + α·uᵀv to ``add``; row ``first`` of w belongs to column 0 of u.

    Returns whether the arguments fit; nothing is done otherwise.
    """
    depth, columns = v.shape
    start, stop = _rows(u, v, w, first, start, stop)
    if start > stop:
        return False
    if depth <= STREAM and w.size * w.itemsize <= CACHED:
        for k in range(start, stop):
            _stream(u, v, k - first, w[k], add, w.dtype.type(alpha), w.dtype.type(beta))
        return True
    width = LINE // w.itemsize
    wide, chunks = WIDE // w.itemsize, max(1, -(-depth // DEPTH))
    pack_u, pack_v = columns > _FEW_TILES * width, _repays(stop - start, depth, columns * w.itemsize)
    band, slab, _ = _divide(scratch, depth, min(wide, columns), width, pack_u, pack_v)
    flat = w.reshape(w.size)
    for left in range(0, columns, wide):
        across = min(wide, columns - left)
        for chunk in range(chunks):
            begin = chunk * DEPTH
            samples = min(DEPTH, depth - begin)
            if pack_v:
                _pack_columns(v, begin, samples, left, across, slab)
            resume = chunk > 0 and not add
            scale = alpha if add or chunk == chunks - 1 else 1.0
            keep = beta if chunk == 0 else 1.0
            for low in range(start, stop, BAND):
                rows = min(BAND, stop - low)
                if pack_u:
                    _pack_rows(u, begin, samples, low - first, rows, band)
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
                    flat,
                    at,
                    columns,
                    resume,
                    add,
                    scale,
                    keep,
                    flat,
                    flat,
                    flat,
                    1,
                    at,
                    columns,
                    _AHEAD,
                )
    return True


@njit(
    _signatures(
        lambda t: types.void(types.int64, *[_vector(t)] * 3, _vector(t, readonly=True), _vector(t, readonly=True))
    ),
    **_INNER,
)
def _apply(kind, w, s, t, g, p):
    """Let a rule take a gradient, element by element; p is what `sfb.kernels.Rule` says."""
    if kind == ASSIGN:
        w[:] = g
    elif kind == SGD:
        for c in range(w.size):
            w[c] -= p[0] * (g[c] + p[1] * w[c])
    elif kind == MOMENTUM:
        for c in range(w.size):
            b = p[2] * s[c] + (g[c] + p[1] * w[c])
            s[c] = b
            w[c] -= p[0] * b
    elif kind == NESTEROV:
        for c in range(w.size):
            d = g[c] + p[1] * w[c]
            b = p[2] * s[c] + d
            s[c] = b
            w[c] -= p[0] * (d + p[2] * b)
    elif kind == ADAM:
        for c in range(w.size):
            d = g[c] + p[1] * w[c]
            m = p[2] * s[c] + p[3] * d
            q = p[4] * t[c] + p[5] * (d * d)
            s[c] = m
            t[c] = q
            w[c] = p[8] * w[c] - p[0] * m / (math.sqrt(q) * p[6] + p[7])
    elif kind == ADAGRAD:
        for c in range(w.size):
            d = g[c] + p[1] * w[c]
            q = s[c] + d * d
            s[c] = q
            w[c] -= p[0] * d / (math.sqrt(q) + p[2])
    else:
        for c in range(w.size):
            x = w[c] - p[0] * g[c]
            a = abs(x) - p[1]
            w[c] = p[2] * math.copysign(0 * a if a < 0 else a, x)


@njit(
    _signatures(
        lambda t: types.boolean(
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
    **_OPTIONS,
)
def update(kind, p, u, v, w, s, t, arrays, first, start, stop, alpha, scratch):
    """Let a rule take α·uᵀv in rows of w and of its state; the sum never leaves the cache; returns as `accumulate`."""
    depth, columns = v.shape
    start, stop = _rows(u, v, w, first, start, stop)
    if start > stop:
        return False
    width = LINE // w.itemsize
    chunks = max(1, -(-depth // DEPTH))
    # Sums that wait for further samples are in the way, so fewer columns of more rows are worked at a time.
    wide = (WIDE if chunks == 1 else NARROW) // w.itemsize
    tall = stop - start if chunks == 1 else TALL
    pack_u, pack_v = columns > _FEW_TILES * width, _repays(stop - start, depth, columns * w.itemsize)
    stride = min(wide, columns)
    flat, flat_s, flat_t = w.reshape(w.size), s.reshape(s.size), t.reshape(t.size)
    band, slab, sums = _divide(scratch, depth, stride, width, pack_u, pack_v)
    for left in range(0, columns, wide):
        across = min(wide, columns - left)
        for low in range(start, stop, max(1, tall)):
            high = min(low + tall, stop)
            for chunk in range(chunks):
                begin = chunk * DEPTH
                samples = min(DEPTH, depth - begin)
                last = chunk == chunks - 1
                if pack_v and (chunks > 1 or low == start):
                    _pack_columns(v, begin, samples, left, across, slab)
                for middle in range(low, high, BAND):
                    if pack_u:
                        _pack_rows(u, begin, samples, middle - first, min(BAND, high - middle), band)
                    for row in range(middle, min(middle + BAND, high), ROWS):
                        rows = min(ROWS, high - row)
                        at = 0 if chunks == 1 else (row - low) * stride
                        offset = (row - middle) * samples
                        _product(
                            u,
                            v,
                            begin,
                            samples,
                            row - first,
                            rows,
                            left,
                            across,
                            band[offset:],
                            slab,
                            sums,
                            at,
                            stride,
                            chunk > 0,
                            False,
                            alpha if last else 1.0,
                            1.0,
                            flat,
                            flat_s,
                            flat_t,
                            arrays if last and depth >= _SLOW else 0,
                            row * columns + left,
                            columns,
                            0,
                        )
                        if last:
                            for k in range(rows):
                                g = sums[at + k * stride : at + k * stride + across]
                                here = slice(left, left + across)
                                _apply(kind, w[row + k][here], s[row + k][here], t[row + k][here], g, p)
    return True


@njit(
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
    **_OPTIONS,
)
def update_dense(kind, p, g, w, s, t, first, start, stop, alpha):
    """Let a rule take α·g in rows of w and of its state; row ``first`` of w belongs to row 0 of g."""
    scaled = np.empty(0 if alpha == 1 else w.shape[1], w.dtype)
    for k in range(start, stop):
        if alpha == 1:
            _apply(kind, w[k], s[k], t[k], g[k - first], p)
        else:
            for c in range(scaled.size):
                scaled[c] = alpha * g[k - first, c]
            _apply(kind, w[k], s[k], t[k], scaled, p)


@njit(_signatures(lambda t: types.void(_matrix(t), types.int64, types.int64, types.float64)), **_OPTIONS)
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


@njit(_signatures(lambda t: types.float64(_matrix(t), _matrix(t))), cache=True, nogil=True)
def inner(a, b):
    """The sum of the products of the elements of two arrays, one after the other, in float64."""
    total = 0.0
    for k in range(a.shape[0]):
        for c in range(a.shape[1]):
            total += np.float64(a[k, c]) * np.float64(b[k, c])
    return total


@njit(_signatures(lambda t: types.void(_matrix(t), types.int64, types.int64)), **_OPTIONS)
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
