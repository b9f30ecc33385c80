"""The innermost loop: a tile of uᵀv held in registers while it runs over the samples, written as LLVM vectors.

Every element of a tile is one chain of fused multiply-adds over the samples in their order, so its bits
depend neither on the place of the tile nor on the width of the machine's vectors.
"""

from collections import namedtuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sfb.kernels._vectors import AVX512, I32, I64, VECTOR, Vectors

__all__ = ["LINE", "ROWS", "Ending", "Panels", "Strip", "Tile", "move", "row", "tile", "width_of"]

# So many vectors wide, and so many rows, that accumulators, operands and a broadcast fill 16 or 32 registers. Few rows,
# since each is a stream from memory: 12 of half the width took 1.6 times as long at depth 1.
_VECTORS = 4 if AVX512 else 2
ROWS = 6
LINE = VECTOR * _VECTORS  # bytes of a row of a tile

# Rows of an array, or samples of a factor: a pointer to the first, and elements from one to the next.
Strip = namedtuple("Strip", "pointer step")
# Columns of a factor: sample j of panel p, as many columns as a tile has rows or columns, begins at
# pointer + p·pitch + j·step.
Panels = namedtuple("Panels", "pointer step pitch")
# What becomes of the sums of a tile of C: C ← α·(sums, after C if ``resume``) or, to ``add``, C ← β·C + α·sums.
Ending = namedtuple("Ending", "resume add alpha beta")


class Tile(Vectors):
    """Emits the code of one tile of ``rows`` rows.

    Args:
        builder: LLVM's builder.
        element: LLVM's type of an element.
        rows: Rows of the tile.
        columns: Columns of the tile if it may have fewer than its vectors hold, else None.
        vectors: Vectors of a row.
    """

    def __init__(self, builder, element, rows, columns=None, vectors=_VECTORS):
        super().__init__(builder, element)
        self.rows = rows
        self.masks = [None if columns is None else self.mask(columns, self.lanes * v) for v in range(vectors)]

    def _places(self, base, offset):
        """Yield the place and the mask of each vector of a row."""
        for v, mask in enumerate(self.masks):
            yield self.builder.gep(base, [self.builder.add(offset, ir.Constant(I64, v * self.lanes))]), mask

    def load(self, base, offset):
        """Load a row; 0 beyond the last column."""
        return [self.load_vector(place, mask) for place, mask in self._places(base, offset)]

    def store(self, row, base, offset):
        """Store a row."""
        for vector, (place, mask) in zip(row, self._places(base, offset), strict=True):
            self.store_vector(vector, place, mask)

    def prefetch(self, base, offset):
        """Bring a row of a whole tile into the second cache; its memory need not exist."""
        row = self.builder.bitcast(self.builder.gep(base, [offset]), ir.IntType(8).as_pointer())
        for start in range(0, LINE, 64):
            place = self.builder.gep(row, [ir.Constant(I64, start)])
            self.call("llvm.prefetch.p0", ir.VoidType(), place, *(ir.Constant(I32, hint) for hint in (0, 2, 1)))

    def product(self, a, a_step, b, b_step, depth, first):
        """Return ``first`` plus the sum over ``depth`` samples, which lie ``a_step`` and ``b_step`` apart."""
        builder = self.builder
        entry = builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("samples", "sample", "summed"))
        builder.branch(head)
        builder.position_at_end(head)
        zero = ir.Constant(I64, 0)
        counters = [builder.phi(I64) for _ in range(3)]
        sums = [[builder.phi(self.vector) for _ in row] for row in first]
        for counter in counters:
            counter.add_incoming(zero, entry)
        for row, its in zip(sums, first, strict=True):
            for total, start in zip(row, its, strict=True):
                total.add_incoming(start, entry)
        sample, at_a, at_b = counters
        builder.cbranch(builder.icmp_signed("<", sample, depth), body, done)
        builder.position_at_end(body)
        columns = self.load(b, at_b)
        for i, row in enumerate(sums):
            scalar = builder.load(builder.gep(a, [builder.add(at_a, ir.Constant(I64, i))]), align=self.size)
            factor = self.splat(scalar)
            for total, column in zip(row, columns, strict=True):
                total.add_incoming(self.fma(factor, column, total), body)
        for counter, step in zip(counters, (ir.Constant(I64, 1), a_step, b_step), strict=True):
            counter.add_incoming(builder.add(counter, step), body)
        builder.branch(head)
        builder.position_at_end(done)
        return sums

    def offsets(self, step):
        """Return the offsets of the rows."""
        return [self.builder.mul(step, ir.Constant(I64, i)) for i in range(self.rows)]

    def emit(self, a, a_step, b, b_step, depth, c, c_step, resume, add, alpha, beta, ahead=None):
        """Emit a tile that ends as `Ending` says, and prefetch what lies ``ahead`` of C.

        Prefetches go row by row between loads and stores: those of a tile at once would fill the buffers for misses.
        """
        builder = self.builder
        offsets = self.offsets(c_step)
        nothing = self.constant(0.0)
        entry = builder.block
        resumed, ready = (builder.append_basic_block(name) for name in ("resumed", "ready"))
        builder.cbranch(resume, resumed, ready)
        builder.position_at_end(resumed)
        before = [self.load(c, offset) for offset in offsets]
        resumed = builder.block
        builder.branch(ready)
        builder.position_at_end(ready)
        first = [[builder.phi(self.vector) for _ in row] for row in before]
        for row, its in zip(first, before, strict=True):
            for start, value in zip(row, its, strict=True):
                start.add_incoming(nothing, entry)
                start.add_incoming(value, resumed)
        sums = self.product(a, a_step, b, b_step, depth, first)
        scale, keep = self.splat(alpha), self.splat(beta)
        adding, scaling, setting, end = (builder.append_basic_block(n) for n in ("adding", "scaling", "setting", "end"))
        one = ir.Constant(beta.type, 1.0)
        kind = builder.select(builder.fcmp_ordered("==", beta, one), ir.Constant(I32, 1), ir.Constant(I32, 2))
        switch = builder.switch(builder.select(add, kind, ir.Constant(I32, 0)), setting)
        switch.add_case(ir.Constant(I32, 1), adding)
        switch.add_case(ir.Constant(I32, 2), scaling)
        for block in adding, scaling:
            builder.position_at_end(block)
            for row, offset in zip(sums, offsets, strict=True):
                if ahead is not None:
                    self.prefetch(c, builder.add(offset, ahead))
                old = self.load(c, offset)
                if block is scaling:
                    old = [builder.fmul(keep, w) for w in old]
                self.store([self.fma(scale, total, w) for total, w in zip(row, old, strict=True)], c, offset)
            builder.branch(end)
        builder.position_at_end(setting)
        for row, offset in zip(sums, offsets, strict=True):
            if ahead is not None:
                self.prefetch(c, builder.add(offset, ahead))
            self.store([builder.fmul(scale, total) for total in row], c, offset)
        builder.branch(end)
        builder.position_at_end(end)


def _unpack(context, builder, dtype, a, b, c, ending):
    """Return LLVM's values of the fields of what a tile takes, with α and β as elements."""
    resume, add, *factors = cgutils.unpack_tuple(builder, ending)
    factors = [context.cast(builder, factor, types.float64, dtype) for factor in factors]
    return *(cgutils.unpack_tuple(builder, strip) for strip in (a, b, c)), (resume, add, *factors)


@intrinsic
def tile(typing_context, a, b, depth, c, ahead, ending):
    """Work a whole tile, C ← sum over samples j of a[j]·b[j]ᵀ, as its `Ending` says.

    All but ``depth`` and ``ahead`` are tuples with names; ``ahead`` is how many elements behind this tile that one
    begins which is to be prefetched.
    """
    dtype = c.types[0].dtype

    def generate(context, builder, signature, arguments):
        a, b, depth, c, ahead, ending = arguments
        a, b, c, ending = _unpack(context, builder, dtype, a, b, c, ending)
        Tile(builder, context.get_value_type(dtype), ROWS).emit(*a, *b, depth, *c, *ending, ahead=ahead)
        return context.get_dummy_value()

    return types.void(a, b, types.int64, c, types.int64, ending), generate


def _row(rows):
    """Make what works a row of tiles of so many rows; the last tile may have fewer columns than the others.

    Arguments are those of `tile`, except: panel q of b, a `Panels`, belongs to tile q; and C has ``columns``.
    """

    def typed(typing_context, a, b, depth, c, columns, ending):
        dtype = c.types[0].dtype
        lanes = VECTOR // (dtype.bitwidth // 8)

        def generate(context, builder, signature, arguments):
            a, b, depth, c, columns, ending = arguments
            a, (b_at, b_step, pitch), (c_at, c_step), ending = _unpack(context, builder, dtype, a, b, c, ending)
            element, width = context.get_value_type(dtype), ir.Constant(I64, lanes * _VECTORS)
            whole, right = builder.udiv(columns, width), builder.urem(columns, width)

            def emit(q, *masked):
                to = builder.gep(c_at, [builder.mul(q, width)])
                its = builder.gep(b_at, [builder.mul(q, pitch)]), b_step
                Tile(builder, element, rows, *masked).emit(*a, *its, depth, to, c_step, *ending)

            with cgutils.for_range(builder, whole) as each:
                emit(each.index)
            # The narrowest tile that holds the rest: 784 columns leave a sixteenth of one.
            narrow = 0
            for vectors in (1, 2, 4)[: _VECTORS.bit_length()]:
                above = builder.icmp_unsigned(">", right, ir.Constant(I64, narrow))
                narrow = lanes * vectors
                within = builder.icmp_unsigned("<=", right, ir.Constant(I64, narrow))
                with builder.if_then(builder.and_(above, within)):
                    emit(whole, right, vectors)
            return context.get_dummy_value()

        return types.void(a, b, types.int64, c, types.int64, ending), generate

    return intrinsic(typed)


# By rows: those of a whole tile, and the powers of two that any fewer are made of.
row = {rows: _row(rows) for rows in (ROWS, 4, 2, 1)}


@intrinsic
def width_of(typing_context, pointer):
    """Return the columns of a whole tile."""
    width = LINE // (pointer.dtype.bitwidth // 8)
    return types.int64(pointer), lambda context, builder, signature, arguments: ir.Constant(I64, width)


@intrinsic
def move(typing_context, source, target):
    """Copy a row of a whole tile."""

    def generate(context, builder, signature, arguments):
        emitter = Tile(builder, context.get_value_type(target.dtype), 1)
        zero = ir.Constant(I64, 0)
        emitter.store(emitter.load(arguments[0], zero), arguments[1], zero)
        return context.get_dummy_value()

    return types.void(source, target), generate
