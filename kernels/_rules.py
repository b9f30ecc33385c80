"""Update rules as LLVM vectors: the same bits wherever an element lies, and wherever its gradient comes from."""

from collections import namedtuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sfb.kernels._tiles import ROWS, Tile
from sfb.kernels._vectors import I64, Vectors
from sfb.kernels.rules import ADAGRAD, ADAM, ASSIGN, MOMENTUM, NESTEROV, PROXIMAL, SGD

__all__ = ["FEWER", "FEWEST", "Update", "apply", "prefetch", "rule_tile"]

# A rule in rows of w and of its states s and t: the rule's kind; pointers to its numbers, to w, s and t, which are any
# arrays where it has no states; elements from one row to the next; and how many of w, s and t to prefetch.
Update = namedtuple("Update", "kind numbers w s t step arrays")

# Rows of tiles whose sums a rule takes: a rule with two states, and others. Each row of w and of its states is a stream
# from memory, and rows of an even pitch share a set of the first cache.
FEWEST, FEWER = 2, 3


class _Rule(Vectors):
    """Emits what becomes of vectors of w and of its states s and t when a rule takes a vector g of a gradient.

    Args:
        builder: LLVM's builder.
        element: LLVM's type of an element.
        numbers: Pointer to the rule's numbers.
    """

    def __init__(self, builder, element, numbers):
        super().__init__(builder, element)
        self._numbers = numbers

    def splats(self, count):
        """Return the rule's first numbers, each as a vector."""
        places = [self.builder.gep(self._numbers, [ir.Constant(I64, i)]) for i in range(count)]
        return [self.splat(self.builder.load(place, align=self.size)) for place in places]

    def minus(self, a, b, c):
        """Return c - a·b, rounded once."""
        return self.fma(self.builder.fneg(a), b, c)

    def assign(self, p, g, w):
        return (g,)

    def sgd(self, p, g, w):
        return (self.minus(p[0], self.fma(p[1], w, g), w),)

    def momentum(self, p, g, w, s):
        s = self.fma(p[2], s, self.fma(p[1], w, g))
        return self.minus(p[0], s, w), s

    def nesterov(self, p, g, w, s):
        d = self.fma(p[1], w, g)
        s = self.fma(p[2], s, d)
        return self.minus(p[0], self.fma(p[2], s, d), w), s

    def adam(self, p, g, w, s, t):
        builder = self.builder
        d = self.fma(p[1], w, g)
        s = self.fma(p[2], s, builder.fmul(p[3], d))
        t = self.fma(p[4], t, builder.fmul(p[5], builder.fmul(d, d)))
        step = builder.fdiv(builder.fmul(p[0], s), self.fma(self.sqrt(t), p[6], p[7]))
        return self.fma(p[8], w, builder.fneg(step)), s, t

    def adagrad(self, p, g, w, s):
        builder = self.builder
        d = self.fma(p[1], w, g)
        s = self.fma(d, d, s)
        return builder.fsub(w, builder.fdiv(builder.fmul(p[0], d), builder.fadd(self.sqrt(s), p[2]))), s

    def proximal(self, p, g, w):
        builder, name = self.builder, self.suffix
        x = self.minus(p[0], g, w)
        a = builder.fsub(self.call(f"llvm.fabs.{name}", self.vector, x), p[1])
        zero = self.constant(0.0)
        a = builder.select(builder.fcmp_ordered("<", a, zero), zero, a)
        return (builder.fmul(p[2], self.call(f"llvm.copysign.{name}", self.vector, a, x)),)


# For each rule its numbers and the arrays that it keeps, the parameter first.
_RULES = {
    ASSIGN: (_Rule.assign, 0, 1),
    SGD: (_Rule.sgd, 2, 1),
    MOMENTUM: (_Rule.momentum, 3, 2),
    NESTEROV: (_Rule.nesterov, 3, 2),
    ADAM: (_Rule.adam, 9, 3),
    ADAGRAD: (_Rule.adagrad, 3, 2),
    PROXIMAL: (_Rule.proximal, 3, 1),
}


def _emit(rule, step, numbers, g, g_step, places, w_step, rows, columns):
    """Emit a loop over the vectors of rows; the last vector of a row has a mask."""
    builder = rule.builder
    p = rule.splats(numbers)
    lanes = ir.Constant(I64, rule.lanes)
    whole, rest = builder.udiv(columns, lanes), builder.urem(columns, lanes)
    mask = rule.mask(rest)

    def work(row, column, mask=None):
        from_ = builder.gep(g, [builder.add(builder.mul(row, g_step), column)])
        at = builder.add(builder.mul(row, w_step), column)
        here = [builder.gep(place, [at]) for place in places]
        given = [rule.load_vector(place, mask) for place in here]
        results = step(rule, p, rule.load_vector(from_, mask), *given)
        for result, place in zip(results, here, strict=True):
            rule.store_vector(result, place, mask)

    with cgutils.for_range(builder, rows) as row:
        with cgutils.for_range(builder, whole) as vector:
            work(row.index, builder.mul(vector.index, lanes))
        with builder.if_then(builder.icmp_unsigned(">", rest, ir.Constant(I64, 0))):
            work(row.index, builder.mul(whole, lanes), mask)


def _unpack(builder, update, offset):
    """Return the fields of an `Update`, with pointers to w, s and t that lie ``offset`` elements further on."""
    kind, numbers, *arrays, step, used = cgutils.unpack_tuple(builder, update)
    return kind, numbers, [builder.gep(array, [offset]) for array in arrays], step, used


@intrinsic
def apply(typing_context, update, offset, g, rows, columns):
    """Let a rule take rows of a gradient g, in rows of w that begin ``offset`` elements further on."""

    def generate(context, builder, signature, arguments):
        kind, numbers, places, step, _ = _unpack(builder, *arguments[:2])
        pointer, g_step = cgutils.unpack_tuple(builder, arguments[2])
        rule = _Rule(builder, context.get_value_type(g.types[0].dtype), numbers)
        for number, (function, count, kept) in _RULES.items():
            with builder.if_then(builder.icmp_signed("==", kind, ir.Constant(I64, number))):
                _emit(rule, function, count, pointer, g_step, places[:kept], step, *arguments[3:])
        return context.get_dummy_value()

    return types.void(update, types.int64, g, types.int64, types.int64), generate


def _rule_tile(rows):
    """Make what works a whole tile of so many rows and lets a rule take α times its sums.

    Arguments are those of `sfb.kernels._tiles.tile` and of `apply`; last, how far ahead of it that tile begins of which
    w and the states are prefetched.
    """

    def typed(typing_context, a, b, depth, alpha, update, offset, ahead):
        dtype = a.types[0].dtype

        def generate(context, builder, signature, arguments):
            a_strip, b_strip, depth, alpha, update, offset, ahead = arguments
            tile = Tile(builder, context.get_value_type(dtype), rows)
            nothing = [[tile.constant(0.0)] * len(tile.masks)] * rows
            (a_at, a_step), (b_at, b_step) = (cgutils.unpack_tuple(builder, strip) for strip in (a_strip, b_strip))
            scale, sums = tile.splat(alpha), tile.product(a_at, a_step, b_at, b_step, depth, nothing)
            sums = [[builder.fmul(scale, total) for total in row] for row in sums]
            kind, numbers, places, step, _ = _unpack(builder, update, offset)
            rule = _Rule(builder, tile.element, numbers)
            for number, (function, count, kept) in _RULES.items():
                with builder.if_then(builder.icmp_signed("==", kind, ir.Constant(I64, number))):
                    values = rule.splats(count)
                    for row, start in zip(sums, tile.offsets(step), strict=True):
                        for place in places[:kept]:
                            tile.prefetch(place, builder.add(start, ahead))
                        given = [tile.load(place, start) for place in places[:kept]]
                        results = [function(rule, values, g, *old) for g, *old in zip(row, *given, strict=True)]
                        for place, new in zip(places, zip(*results, strict=True), strict=False):
                            tile.store(new, place, start)
            return context.get_dummy_value()

        return types.void(a, b, types.int64, dtype, update, types.int64, types.int64), generate

    return intrinsic(typed)


# By rows.
rule_tile = {rows: _rule_tile(rows) for rows in (FEWEST, FEWER)}


@intrinsic
def prefetch(typing_context, update, offset):
    """Bring `ROWS` rows, as wide as a tile, of the arrays of an update into the second cache; never faults."""

    def generate(context, builder, signature, arguments):
        _, _, places, step, used = _unpack(builder, *arguments)
        tile = Tile(builder, context.get_value_type(update.types[2].dtype), ROWS)
        for number, place in enumerate(places):
            with builder.if_then(builder.icmp_signed(">", used, ir.Constant(I64, number))):
                for start in tile.offsets(step):
                    tile.prefetch(place, start)
        return context.get_dummy_value()

    return types.void(update, types.int64), generate
