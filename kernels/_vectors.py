"""The machine's vectors, the LLVM code that loads, combines and stores them, and pointers to them."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

__all__ = ["AVX512", "I32", "I64", "VECTOR", "Vectors", "at", "flat", "shift"]

AVX512 = "+avx512f" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
VECTOR = 64 if AVX512 else 32  # bytes

I64 = ir.IntType(64)
I32 = ir.IntType(32)


@intrinsic
def at(typing_context, array, index):
    """Return a pointer to an element of a C-contiguous array, counted along its rows; it keeps nothing alive."""

    def generate(context, builder, signature, arguments):
        return builder.gep(make_array(array)(context, builder, arguments[0]).data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.int64), generate


@intrinsic
def shift(typing_context, pointer, count):
    """Return a pointer to the element that lies ``count`` elements behind that of another pointer."""
    return pointer(pointer, types.int64), lambda context, builder, signature, arguments: builder.gep(
        arguments[0], [arguments[1]]
    )


@intrinsic
def flat(typing_context, array):
    """Return a C-contiguous array's elements in a row; shorter than `reshape`, it keeps nothing alive."""

    def generate(context, builder, signature, arguments):
        old = make_array(array)(context, builder, *arguments)
        new = make_array(result)(context, builder)
        item = ir.Constant(I64, context.get_abi_sizeof(context.get_data_type(array.dtype)))
        populate_array(new, old.data, [old.nitems], [item], item, None)
        return new._getvalue()

    result = types.Array(array.dtype, 1, "C", readonly=not array.mutable)
    return result(array), generate


class Vectors:
    """Emits code for vectors of float32 or float64.

    Args:
        builder: LLVM's builder.
        element: LLVM's type of an element.
    """

    def __init__(self, builder, element):
        self.builder = builder
        self.element = element
        self.size = 4 if isinstance(element, ir.FloatType) else 8
        self.lanes = VECTOR // self.size
        self.vector = ir.VectorType(element, self.lanes)
        self.suffix = f"v{self.lanes}f{8 * self.size}"

    def call(self, name, result, *arguments):
        """Call a function of LLVM."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def constant(self, value):
        """Return a vector of equal elements."""
        return ir.Constant(self.vector, [ir.Constant(self.element, value)] * self.lanes)

    def splat(self, scalar):
        """Return a vector of equal elements."""
        vector = ir.VectorType(scalar.type, self.lanes)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        order = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), order)

    def mask(self, count, first=0):
        """Return the mask of a vector whose elements have numbers from ``first`` on: those below ``count``."""
        numbers = ir.Constant(ir.VectorType(I32, self.lanes), [first + lane for lane in range(self.lanes)])
        return self.builder.icmp_signed("<", numbers, self.splat(self.builder.trunc(count, I32)))

    def fma(self, a, b, c):
        """Return a·b + c, rounded once."""
        return self.call(f"llvm.fma.{self.suffix}", self.vector, a, b, c)

    def sqrt(self, a):
        """Return the square root."""
        return self.call(f"llvm.sqrt.{self.suffix}", self.vector, a)

    def load_vector(self, place, mask=None):
        """Load from a pointer to an element; 0 outside ``mask``."""
        place = self.builder.bitcast(place, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(place, align=self.size)
        align = ir.Constant(I32, self.size)
        return self.call(f"llvm.masked.load.{self.suffix}.p0", self.vector, place, align, mask, self.constant(0.0))

    def store_vector(self, vector, place, mask=None):
        """Store to a pointer to an element, inside ``mask``."""
        place = self.builder.bitcast(place, self.vector.as_pointer())
        if mask is None:
            self.builder.store(vector, place, align=self.size)
            return
        align = ir.Constant(I32, self.size)
        self.call(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), vector, place, align, mask)
