"""Update rules as LLVM vectors: the same bits wherever an element lies, and however a gradient came about."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from sfb.kernels._tiles import Tile
from sfb.kernels._vectors import AVX512, I64, Vectors, pointer
from sfb.kernels.rules import ADAGRAD, ADAM, ASSIGN, MOMENTUM, NESTEROV, PROXIMAL, SGD

__all__ = ["RULE_ROWS", "apply", "tile_and_apply"]

RULE_ROWS = 3 if AVX512 else 4


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


def _emit(rule, step, numbers, arrays, g, g_step, places, w_step, rows, columns):
    """Emit a loop over rows and, within, vectors of them; the last has a mask."""
    builder = rule.builder
    p = rule.splats(numbers)
    lanes = ir.Constant(I64, rule.lanes)
    whole, rest = builder.udiv(columns, lanes), builder.urem(columns, lanes)
    mask = rule.mask(rest)

    def work(row, column, mask=None):
        from_ = builder.gep(g, [builder.add(builder.mul(row, g_step), column)])
        at = builder.add(builder.mul(row, w_step), column)
        here = [builder.gep(place, [at]) for place in places[:arrays]]
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

    Args:
        kind: Of `sfb.kernels.rules`.
        p: Its numbers.
        g: Flat array of gradients; its rows begin at ``g_at`` and lie ``g_step`` apart.
        w: Flat array of the parameter; its rows begin at ``at`` and lie ``step`` apart.
        s: State of that shape, if the rule has one.
        t: A second one, likewise.
    """

    def generate(context, builder, signature, arguments):
        kind, p, g, g_at, g_step, w, s, t, at, step, rows, columns = arguments
        kinds, zero = signature.args, ir.Constant(I64, 0)
        places = [pointer(context, builder, kinds[i], arguments[i], at) for i in (5, 6, 7)]
        g = pointer(context, builder, kinds[2], g, g_at)
        rule = _Rule(builder, context.get_value_type(w_type.dtype), pointer(context, builder, kinds[1], p, zero))
        for number, (function, numbers, arrays) in _RULES.items():
            with builder.if_then(builder.icmp_signed("==", kind, ir.Constant(I64, number))):
                _emit(rule, function, numbers, arrays, g, g_step, places, step, rows, columns)
        return context.get_dummy_value()

    w_type, i = w, types.int64
    return types.void(i, p, g, i, i, w, s, t, i, i, i, i), generate


@intrinsic
def tile_and_apply(typing_context, a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, resume, alpha, *rest):
    """Work a whole tile of `RULE_ROWS` rows, which resumes from one of c, and let a rule take it.

    Args as of `sfb.kernels._tiles.tile` and, from ``kind`` on, `apply`.
    """

    def generate(context, builder, signature, arguments):
        a, a_at, a_step, b, b_at, b_step, depth, c, c_at, c_step, resume, alpha, rest = arguments
        kinds = signature.args
        rest = cgutils.unpack_tuple(builder, rest)
        kind, p, _, _, _, at, step = rest
        types_of = kinds[12].types
        zero = ir.Constant(I64, 0)
        element = context.get_value_type(c_type.dtype)
        tile = Tile(builder, element, RULE_ROWS, None)
        a = pointer(context, builder, kinds[0], a, a_at)
        b = pointer(context, builder, kinds[3], b, b_at)
        c = pointer(context, builder, kinds[7], c, c_at)
        places = [pointer(context, builder, types_of[i], rest[i], at) for i in (2, 3, 4)]
        sums = tile.sums(a, a_step, b, b_step, depth, c, c_step, resume)
        scale = tile.splat(alpha)
        sums = [[builder.fmul(scale, total) for total in row] for row in sums]
        rule = _Rule(builder, element, pointer(context, builder, types_of[1], p, zero))
        for number, (function, numbers, arrays) in _RULES.items():
            with builder.if_then(builder.icmp_signed("==", kind, ir.Constant(I64, number))):
                p = rule.splats(numbers)
                for row, offset in zip(sums, tile.offsets(step), strict=True):
                    given = [tile.load(place, offset) for place in places[:arrays]]
                    results = [function(rule, p, g, *old) for g, *old in zip(row, *given, strict=True)]
                    for place, new in zip(places, zip(*results, strict=True), strict=False):
                        tile.store(new, place, offset)
        return context.get_dummy_value()

    c_type, i = c, types.int64
    return types.void(a, i, i, b, i, i, i, c, i, i, types.boolean, c.dtype, types.Tuple(rest)), generate
