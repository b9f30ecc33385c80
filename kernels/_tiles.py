"""The innermost loop: a tile of uᵀv held in registers while it runs over the samples, written as LLVM vectors.

Every element of a tile is one chain of fused multiply-adds over the samples in their order, so its bits
depend neither on the place of the tile nor on the width of the machine's vectors.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfb.kernels._vectors import AVX512, I32, I64, VECTOR, Vectors, pointer

__all__ = ["LINE", "ROWS", "Tile", "move", "part", "prefetch", "tile"]

# So many vectors wide, and so many rows, that accumulators, operands and a broadcast fill 16 or 32 registers. Few rows,
# since each is a stream from memory: 12 of half the width took 1.6 times as long at depth 1.
_VECTORS = 4 if AVX512 else 2
ROWS = 6
LINE = VECTOR * _VECTORS  # bytes of a row of a tile


class Tile(Vectors):
    """Emits the code of one tile of ``rows`` rows.

    Args:
        builder: Where to.
        element: LLVM's type of an element.
        rows: Of the tile.
        columns: Of the tile if it may have fewer than its vectors hold, else None.
        vectors: Of a row.
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
        """Bring a row, of a whole tile or of memory that is not there, into the second cache."""
        row = self.builder.bitcast(self.builder.gep(base, [offset]), ir.IntType(8).as_pointer())
        for start in range(0, LINE, 64):
            place = self.builder.gep(row, [ir.Constant(I64, start)])
            self.call("llvm.prefetch.p0", ir.VoidType(), place, *(ir.Constant(I32, hint) for hint in (0, 2, 1)))

    def product(self, a, a_step, b, b_step, depth, first):
        """Return ``first`` plus the sum over ``depth`` samples; steps lie between samples."""
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
        """Return where the rows begin."""
        return [self.builder.mul(step, ir.Constant(I64, i)) for i in range(self.rows)]

    def emit(self, a, a_step, b, b_step, depth, c, c_step, resume, add, alpha, beta, ahead=None):
        """C ← α·(C if ``resume``, plus the sum) or, to ``add``, C ← β·C + α·sum; prefetch what lies ``ahead`` of C.

        Row by row, amid the loads and stores: prefetches of a tile at once would fill the buffers for misses.
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


def _product(rows, masked):
    """Make what works a tile of C: sample j of A begins at ``a_at + j·a_step``, row i of C at ``c_at + i·c_step``.

    In the place of ``columns``, a whole tile takes how far ahead of it that one begins which is to be prefetched.
    """

    def typed(context, a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, columns, resume, add, alpha, beta):
        def generate(context, builder, signature, arguments):
            a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, columns, *ends = arguments
            kinds = signature.args
            a = pointer(context, builder, kinds[0], a, a_at)
            b = pointer(context, builder, kinds[3], b, b_at)
            c = pointer(context, builder, kinds[7], c, c_at)
            rest = a, a_step, b, b_step, depth, c, c_step, *ends
            element = context.get_value_type(c_type.dtype)
            if not masked:
                Tile(builder, element, rows).emit(*rest, ahead=columns)
                return context.get_dummy_value()
            # The narrowest that holds them: 784 columns leave a sixteenth of a tile.
            narrow = 0
            for vectors in (1, 2, 4)[: _VECTORS.bit_length()]:
                lanes = vectors * VECTOR // (c_type.dtype.bitwidth // 8)
                above, within = (
                    builder.icmp_signed(relation, columns, ir.Constant(I64, limit))
                    for relation, limit in ((">", narrow), ("<=", lanes))
                )
                with builder.if_then(builder.and_(above, within)):
                    Tile(builder, element, rows, columns, vectors).emit(*rest)
                narrow = lanes
            return context.get_dummy_value()

        c_type, i, t = c, types.int64, c.dtype
        return types.void(a, i, i, b, i, i, i, c, i, i, i, types.boolean, types.boolean, t, t), generate

    return intrinsic(typed)


@intrinsic
def move(typing_context, source, at, target, to):
    """Copy a row of a whole tile from one flat array to another."""

    def generate(context, builder, signature, arguments):
        emitter = Tile(builder, context.get_value_type(target.dtype), 1)
        zero = ir.Constant(I64, 0)
        from_ = pointer(context, builder, signature.args[0], *arguments[:2])
        emitter.store(emitter.load(from_, zero), pointer(context, builder, signature.args[2], *arguments[2:]), zero)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


@intrinsic
def prefetch(typing_context, array, at, step):
    """Bring `ROWS` rows, as wide as a tile, of a flat array into the second cache; never faults."""

    def generate(context, builder, signature, arguments):
        array, at, step = arguments
        tile = Tile(builder, context.get_value_type(element), ROWS)
        for offset in tile.offsets(step):
            tile.prefetch(pointer(context, builder, signature.args[0], array, at), offset)
        return context.get_dummy_value()

    element, i = array.dtype, types.int64
    return types.void(array, i, i), generate


# By the rows that are left: those of a whole tile, and the powers of two that any fewer are made of.
tile = {rows: _product(rows, False) for rows in (ROWS, 4, 2, 1)}
part = {rows: _product(rows, True) for rows in tile}
