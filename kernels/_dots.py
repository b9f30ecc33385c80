"""Inner products with the same bits on every processor, in vectors of 16 sums."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["LANES", "inner_product"]

# Sums of a product; a processor with shorter vectors takes several registers, in which the order of the sums is the
# same.
LANES = 16


@intrinsic
def inner_product(typing_context, x, y, count):
    """Return Σ x[i]·y[i] over the first ``count`` elements of two contiguous arrays, in float64.

    Sum k takes the elements i with i mod 16 = k by fused multiply-adds in their order; then the upper half of the sums
    is added to the lower half until one is left.
    """

    def generate(context, builder, signature, arguments):
        double, word = ir.DoubleType(), ir.IntType(32)
        sums_type = ir.VectorType(double, LANES)
        pointers = [
            make_array(kind)(context, builder, argument).data
            for kind, argument in zip(signature.args[:2], arguments[:2], strict=True)
        ]
        count = arguments[2]
        whole = builder.and_(count, ir.Constant(count.type, -LANES))
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(sums_type, [sums_type] * 3), f"llvm.fma.v{LANES}f64"
        )
        sums = cgutils.alloca_once_value(builder, ir.Constant(sums_type, [0.0] * LANES))

        def load(pointer, index, mask=None):
            element = pointer.type.pointee
            vector = ir.VectorType(element, LANES)
            size = 4 if isinstance(element, ir.FloatType) else 8
            place = builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())
            if mask is None:
                value = builder.load(place, align=size)
            else:
                kind = ir.FunctionType(vector, [place.type, word, mask.type, vector])
                name = f"llvm.masked.load.v{LANES}f{8 * size}.p0"
                function = cgutils.get_or_insert_function(builder.module, kind, name)
                zeros = ir.Constant(vector, [0.0] * LANES)
                value = builder.call(function, [place, ir.Constant(word, size), mask, zeros])
            return value if size == 8 else builder.fpext(value, sums_type)

        def accumulate(index, mask=None):
            x, y = (load(pointer, index, mask) for pointer in pointers)
            builder.store(builder.call(fma, [x, y, builder.load(sums)]), sums)

        with cgutils.for_range_slice(builder, ir.Constant(count.type, 0), whole, ir.Constant(count.type, LANES)) as (
            index,
            _,
        ):
            accumulate(index)
        rest = builder.sub(count, whole)
        with builder.if_then(builder.icmp_signed(">", rest, ir.Constant(rest.type, 0))):
            numbers = ir.VectorType(word, LANES)
            left = builder.insert_element(
                ir.Constant(numbers, ir.Undefined), builder.trunc(rest, word), ir.Constant(word, 0)
            )
            left = builder.shuffle_vector(left, ir.Constant(numbers, ir.Undefined), ir.Constant(numbers, [0] * LANES))
            accumulate(whole, builder.icmp_signed("<", ir.Constant(numbers, list(range(LANES))), left))
        value, lanes = builder.load(sums), LANES
        while lanes > 1:
            lanes //= 2
            halves = [
                builder.shuffle_vector(
                    value,
                    ir.Constant(value.type, ir.Undefined),
                    ir.Constant(ir.VectorType(word, lanes), [first + lane for lane in range(lanes)]),
                )
                for first in (0, lanes)
            ]
            value = builder.fadd(*halves)
        return builder.extract_element(value, ir.Constant(word, 0))

    return types.float64(x, y, types.int64), generate
