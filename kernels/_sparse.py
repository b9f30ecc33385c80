"""Products of factors whose v is sparse, and update rules that take them.

Non-zeros are ordered by column, and within a column by sample. A panel holds as many columns of u as fill a cache line.
For each column of v that has non-zeros, one chain of fused multiply-adds over them gives as many rows of that column of
uᵀv. So the bits do not depend on the rows that a call works, and those of finite factors are the bits of dense v.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfb.kernels._blocks import matrix, signatures, take, vector
from sfb.kernels._compile import kernel
from sfb.kernels._rules import Update
from sfb.kernels._tiles import Strip
from sfb.kernels._vectors import I64, VECTOR, Vectors, at

__all__ = ["ADD", "RULE", "SET", "TOUCHED", "order", "room", "squares", "update"]

# What becomes of the sums: they are set; added; taken by a rule in all columns, or in those of non-zeros.
SET, ADD, RULE, TOUCHED = range(4)

# Bytes of a row of a panel.
_LINE = 64
# Columns whose sums wait for a rule, and columns that are scaled before sums are added.
_BLOCK = 256
# Rows of the panels of `squares`.
_SQUARED = 8

_I, _F = types.int64, types.float64


def room(depth, itemsize):
    """Return the elements of scratch that `update` needs for so many samples."""
    wide = _LINE // itemsize
    return wide * (depth + 3 * _BLOCK + 1)


@intrinsic
def _sum_column(typing_context, panel, samples, values, begin, end, out):
    """Set a row of a panel to Σ value·(row of the panel of its sample), over the non-zeros between two.

    All but ``begin`` and ``end`` are pointers.
    """
    dtype = panel.dtype

    def generate(context, builder, signature, arguments):
        panel, samples, values, begin, end, out = arguments
        vectors = Vectors(builder, context.get_value_type(dtype))
        lanes = range(0, _LINE // vectors.size, VECTOR // vectors.size)
        wide = ir.Constant(I64, _LINE // vectors.size)
        before = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("entries", "entry", "summed"))
        builder.branch(head)
        builder.position_at_end(head)
        entry = builder.phi(I64)
        entry.add_incoming(begin, before)
        sums = [builder.phi(vectors.vector) for _ in lanes]
        for total in sums:
            total.add_incoming(vectors.constant(0.0), before)
        builder.cbranch(builder.icmp_signed("<", entry, end), body, done)
        builder.position_at_end(body)
        sample = builder.sext(builder.load(builder.gep(samples, [entry])), I64)
        value = vectors.splat(builder.load(builder.gep(values, [entry])))
        row = builder.mul(sample, wide)
        for total, lane in zip(sums, lanes, strict=True):
            factor = vectors.load_vector(builder.gep(panel, [builder.add(row, ir.Constant(I64, lane))]))
            total.add_incoming(vectors.fma(factor, value, total), body)
        entry.add_incoming(builder.add(entry, ir.Constant(I64, 1)), body)
        builder.branch(head)
        builder.position_at_end(done)
        for total, lane in zip(sums, lanes, strict=True):
            vectors.store_vector(total, builder.gep(out, [ir.Constant(I64, lane)]))
        return context.get_dummy_value()

    return types.void(panel, samples, values, types.int64, types.int64, out), generate


@intrinsic
def _fused(typing_context, a, b, c):
    """Return a·b + c, rounded once."""
    return a(a, b, c), lambda context, builder, signature, arguments: builder.fma(*arguments)


def _given(t, dimensions=1):
    return types.Array(t, dimensions, "C", readonly=True)


_WORDS, _NUMBERS, _TABLE = _given(types.int64), _given(types.int32), _given(types.int64, 2)


def _order(t):
    pairs = types.Array(types.int32, 2, "C")
    given = _TABLE, _WORDS, _NUMBERS, _given(t)
    return _I(_I, _I, *given, pairs, pairs, matrix(t), vector(types.int64))


@kernel(signatures(_order))
def order(bits, passes, table, starts, columns, values, keys, samples, entries, begins):
    """Order the non-zeros of all ranks by column, those of a column by sample: a radix sort.

    Args:
        bits: Bits of a digit.
        passes: The number of digits.
        table: As in `sfb.kernels.sparse.Parts`, like the following three.
        starts: Where each sample begins among the non-zeros of its rank.
        columns: The column of each non-zero.
        values: Its value.
        keys: 2×n, for n non-zeros; row ``passes`` % 2 receives their columns, the other row the distinct ones.
        samples: 2×n; the same row receives their samples.
        entries: 2×n; the same row receives their values.
        begins: n+1; receives where each distinct column begins, and n at the end.

    Returns:
        The number of distinct columns.
    """
    size = sample = 0
    for r in range(table.shape[0]):
        for s in range(table[r, 0]):
            for e in range(starts[table[r, 2] + s], starts[table[r, 2] + s + 1]):
                keys[0, size] = columns[table[r, 3] + e]
                samples[0, size] = sample
                entries[0, size] = values[table[r, 4] + e]
                size += 1
            sample += 1
    mask, source = (1 << bits) - 1, 0
    counts = np.empty(1 << bits, np.int64)
    for number in range(passes):
        low, target = number * bits, 1 - source
        counts[:] = 0
        for e in range(size):
            counts[(keys[source, e] >> low) & mask] += 1
        total = 0
        for digit in range(counts.size):
            total, counts[digit] = total + counts[digit], total
        for e in range(size):
            digit = (keys[source, e] >> low) & mask
            to = counts[digit]
            counts[digit] += 1
            keys[target, to] = keys[source, e]
            samples[target, to] = samples[source, e]
            entries[target, to] = entries[source, e]
        source = target
    found = 0
    for e in range(size):
        if e == 0 or keys[source, e] != keys[source, e - 1]:
            keys[1 - source, found] = keys[source, e]
            begins[found] = e
            found += 1
    begins[found] = size
    return found


def _update(t):
    product = _given(t), _TABLE, _NUMBERS, _WORDS, _NUMBERS, _given(t)
    return types.void(_I, _I, vector(t), *product, *[matrix(t)] * 3, _I, _I, _I, _I, _I, _F, _F, vector(t))


@kernel(signatures(_update))
def update(
    mode, kind, p, u, table, touched, begins, samples, values, w, s, t, arrays, rows, first, start, stop, alpha, beta,
    scratch,
):  # fmt: skip
    """Set rows of w to α·uᵀv or to β·w + α·uᵀv, or let a rule take α·uᵀv in rows of w and of its state.

    Args:
        mode: `SET`, `ADD`, `RULE` or `TOUCHED`. `ADD` with β = 1, and `TOUCHED`, touch columns with non-zeros only.
        kind: The rule, as in `sfb.kernels.rules`.
        p: Its numbers.
        u: As in `sfb.kernels.sparse.Parts`, like ``table``.
        table: Where the samples of each rank lie.
        touched: The columns with non-zeros, ascending.
        begins: Where each of them begins among the non-zeros, and the number of these at the end.
        samples: The sample of each non-zero.
        values: Its value.
        w: As many columns as v.
        s: The rule's first state, like w; w itself if it has none.
        t: Its second.
        arrays: How many of w, s and t it uses.
        rows: Columns of u.
        first: The row of w that column 0 of u belongs to.
        start: First row to work.
        stop: End of the rows.
        alpha: Factor of the gradient.
        beta: Factor of w.
        scratch: As many elements as `room` says.
    """
    wide, columns, found = _LINE // w.itemsize, w.shape[1], touched.size
    depth = 0
    for r in range(table.shape[0]):
        depth += table[r, 0]
    panel = at(scratch, 0)
    here = wide * depth
    sums, waiting = scratch[here : here + wide], scratch[here + wide : here + wide * (_BLOCK + 1)]
    here += wide * (_BLOCK + 1)
    old_w, old_s = scratch[here : here + wide * _BLOCK], scratch[here + wide * _BLOCK : here + wide * 2 * _BLOCK]
    # As elements.
    sums[0], sums[1] = alpha, beta
    scale, keep = sums[0], sums[1]
    for low in range(start, stop, wide):
        high = min(wide, stop - low)
        row = 0
        for r in range(table.shape[0]):
            begin = table[r, 1] + low - first
            for _ in range(table[r, 0]):
                for i in range(high):
                    scratch[row + i] = u[begin + i]
                for i in range(high, wide):
                    scratch[row + i] = 0
                row += wide
                begin += rows
        q = 0
        if mode == SET or (mode == ADD and beta != 1):
            for left in range(0, columns, _BLOCK):
                right = min(left + _BLOCK, columns)
                for i in range(high):
                    line = w[low + i, left:right]
                    if mode == SET:
                        line[:] = 0
                    else:
                        for c in range(line.size):
                            line[c] *= keep
                while q < found and touched[q] < right:
                    c = touched[q]
                    _sum_column(panel, at(samples, 0), at(values, 0), begins[q], begins[q + 1], at(sums, 0))
                    for i in range(high):
                        if mode == SET:
                            w[low + i, c] = scale * sums[i]
                        else:
                            w[low + i, c] = _fused(scale, sums[i], w[low + i, c])
                    q += 1
        elif mode == ADD:
            for q in range(found):
                c = touched[q]
                _sum_column(panel, at(samples, 0), at(values, 0), begins[q], begins[q + 1], at(sums, 0))
                for i in range(high):
                    w[low + i, c] = _fused(scale, sums[i], w[low + i, c])
        elif mode == RULE:
            for left in range(0, columns, _BLOCK):
                right = min(left + _BLOCK, columns)
                waiting[:] = 0 * scale  # NaN if α is
                while q < found and touched[q] < right:
                    c = touched[q] - left
                    _sum_column(panel, at(samples, 0), at(values, 0), begins[q], begins[q + 1], at(sums, 0))
                    for i in range(high):
                        waiting[i * _BLOCK + c] = scale * sums[i]
                    q += 1
                begin = low * columns + left
                rule = Update(kind, at(p, 0), at(w, begin), at(s, begin), at(t, begin), columns, 0)
                take(rule, 0, Strip(at(waiting, 0), _BLOCK), high, right - left)
        else:
            for left in range(0, found, _BLOCK):
                right = min(left + _BLOCK, found)
                for q in range(left, right):
                    c = touched[q]
                    _sum_column(panel, at(samples, 0), at(values, 0), begins[q], begins[q + 1], at(sums, 0))
                    for i in range(high):
                        waiting[i * _BLOCK + q - left] = scale * sums[i]
                        old_w[i * _BLOCK + q - left] = w[low + i, c]
                        if arrays > 1:
                            old_s[i * _BLOCK + q - left] = s[low + i, c]
                # Rules that keep two states change elements without a gradient.
                rule = Update(kind, at(p, 0), at(old_w, 0), at(old_s, 0), at(old_s, 0), _BLOCK, 0)
                take(rule, 0, Strip(at(waiting, 0), _BLOCK), high, right - left)
                for q in range(left, right):
                    c = touched[q]
                    for i in range(high):
                        w[low + i, c] = old_w[i * _BLOCK + q - left]
                        if arrays > 1:
                            s[low + i, c] = old_s[i * _BLOCK + q - left]


def _squares(t):
    return types.void(_given(t), _TABLE, _I, _WORDS, _NUMBERS, _given(t), _I, vector(types.float64))


@kernel(signatures(_squares))
def squares(u, table, rows, begins, samples, values, found, out):
    """Set ``out`` to the square of each row of uᵀv, in float64; arguments are those of `update`."""
    depth = 0
    for r in range(table.shape[0]):
        depth += table[r, 0]
    panel, sums, totals = np.empty(depth * _SQUARED), np.empty(_SQUARED), np.empty(_SQUARED)
    for low in range(0, rows, _SQUARED):
        high = min(_SQUARED, rows - low)
        row = 0
        for r in range(table.shape[0]):
            for sample in range(table[r, 0]):
                begin = table[r, 1] + sample * rows + low
                for i in range(_SQUARED):
                    panel[row + i] = u[begin + i] if i < high else 0.0
                row += _SQUARED
        totals[:] = 0
        for q in range(found):
            sums[:] = 0
            for e in range(begins[q], begins[q + 1]):
                value, row = np.float64(values[e]), samples[e] * _SQUARED
                for i in range(_SQUARED):
                    sums[i] += panel[row + i] * value
            for i in range(_SQUARED):
                totals[i] += sums[i] * sums[i]
        for i in range(high):
            out[low + i] = totals[i]
