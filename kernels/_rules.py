"""Update rules as LLVM vectors: the same bits wherever an element lies, and however a gradient came about."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sfb.kernels._tiles import Tile
from sfb.kernels._vectors import I64, Vectors, pointer
from sfb.kernels.rules import ADAGRAD, ADAM, ASSIGN, MOMENTUM, NESTEROV, PROXIMAL, SGD

__all__ = ["FEWER", "FEWEST", "apply", "rule_tile"]

# Rows of tiles that a rule takes: of one with two states, and of others. Each row of w and of its states
# is a stream from memory, and those of an even pitch share a set of the first cache.
FEWEST, FEWER = 2, 3


class _Rule(Vectors):
    """Emits what becomes of a vector of w, and of those of its states s and t, by one of g.

    Args:
        builder: Where to.
        element: LLVM's type of an element.
        numbers: Pointer to the rule's.
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
    """Emit a loop over rows and, within, vectors of them; the last has a mask."""
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


@intrinsic
def apply(typing_context, kind, p, g, g_at, g_step, w, s, t, at, step, rows, columns):
    """Let a rule take ``columns`` elements of so many rows of a gradient.

    All arrays are flat. Of g and of w rows begin at ``g_at`` and ``at`` and lie ``g_step`` and ``step`` apart; s and t
    are the states, of the places of w; any arrays where the rule has none. ``kind`` and the numbers p are as
    `sfb.kernels.rules` says.
    """

    def generate(context, builder, signature, arguments):
        kind, p, g, g_at, g_step, *arrays, at, step, rows, columns = arguments
        kinds = signature.args
        places = [pointer(context, builder, kinds[5 + i], array, at) for i, array in enumerate(arrays)]
        g = pointer(context, builder, kinds[2], g, g_at)
        p = pointer(context, builder, kinds[1], p, ir.Constant(I64, 0))
        rule = _Rule(builder, context.get_value_type(element), p)
        for number, (function, numbers, kept) in _RULES.items():
            with builder.if_then(builder.icmp_signed("==", kind, ir.Constant(I64, number))):
                _emit(rule, function, numbers, g, g_step, places[:kept], step, rows, columns)
        return context.get_dummy_value()

    element, i = w.dtype, types.int64
    return types.void(i, p, g, i, i, w, s, t, i, i, i, i), generate


def _rule_tile(rows):
    """Make what works a whole tile of so many rows and lets a rule take it.

    Arguments as of `sfb.kernels._tiles.tile` and, from ``kind`` on, `apply`; last, how far ahead of it that tile begins
    of which w and the states are prefetched.
    """

    def typed(typing_context, a, a_at, a_step, b, b_at, b_step, depth, alpha, kind, p, w, s, t, at, step, ahead):
        def generate(context, builder, signature, arguments):
            a, a_at, a_step, b, b_at, b_step, depth, alpha, kind, p, *arrays, at, step, ahead = arguments
            kinds = signature.args
            tile = Tile(builder, context.get_value_type(element), rows)
            a = pointer(context, builder, kinds[0], a, a_at)
            b = pointer(context, builder, kinds[3], b, b_at)
            p = pointer(context, builder, kinds[9], p, ir.Constant(I64, 0))
            places = [pointer(context, builder, kinds[10 + i], array, at) for i, array in enumerate(arrays)]
            nothing = [[tile.constant(0.0)] * len(tile.masks)] * rows
            scale, sums = tile.splat(alpha), tile.product(a, a_step, b, b_step, depth, nothing)
            sums = [[builder.fmul(scale, total) for total in row] for row in sums]
            rule = _Rule(builder, tile.element, p)
            for number, (function, numbers, kept) in _RULES.items():
                with builder.if_then(builder.icmp_signed("==", kind, ir.Constant(I64, number))):
                    values = rule.splats(numbers)
                    for row, offset in zip(sums, tile.offsets(step), strict=True):
                        for place in places[:kept]:
                            tile.prefetch(place, builder.add(offset, ahead))
                        given = [tile.load(place, offset) for place in places[:kept]]
                        results = [function(rule, values, g, *old) for g, *old in zip(row, *given, strict=True)]
                        for place, new in zip(places, zip(*results, strict=True), strict=False):
                            tile.store(new, place, offset)
            return context.get_dummy_value()

        element, i = w.dtype, types.int64
        return types.void(a, i, i, b, i, i, i, element, i, p, w, s, t, i, i, i), generate

    return intrinsic(typed)


# By rows.
rule_tile = {rows: _rule_tile(rows) for rows in (FEWEST, FEWER)}
