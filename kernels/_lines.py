"""Copies and reductions of plain arrays by lines of the cache, as LLVM vectors, through the caches or past them.

Arrays are addresses and bytes. A store past the caches, to memory, saves the read of a line that is overwritten;
`fence` has to follow it.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from sfb.kernels._compile import inner, kernel

__all__ = ["LINE", "MAX", "MIN", "PROD", "SUM", "TYPES", "address", "fence", "kind_of", "move", "nbytes_of", "reduce"]

SUM, PROD, MAX, MIN = range(4)
# The types of elements that are reduced; an element's kind is the index of its type.
TYPES = (types.float32, types.float64, types.int32, types.int64)
_FLOAT32, _FLOAT64, _INT32, _INT64 = range(4)

LINE = 64  # bytes

_I = types.int64
_WORD = ir.IntType(64)
_BYTE = ir.IntType(8)


@intrinsic
def address(typing_context, array):
    """Return the address of a C-contiguous array."""

    def generate(context, builder, signature, arguments):
        return builder.ptrtoint(make_array(array)(context, builder, *arguments).data, _WORD)

    return _I(array), generate


@intrinsic
def nbytes_of(typing_context, array):
    """Return the bytes of a C-contiguous array."""

    def generate(context, builder, signature, arguments):
        count = make_array(array)(context, builder, *arguments).nitems
        return builder.mul(count, ir.Constant(_WORD, array.dtype.bitwidth // 8))

    return _I(array), generate


@intrinsic
def kind_of(typing_context, array):
    """Return the kind of an array's elements."""
    kind = TYPES.index(array.dtype)
    return _I(array), lambda context, builder, signature, arguments: ir.Constant(_WORD, kind)


@intrinsic
def _pointer(typing_context, address, dtype):
    """Return a pointer to elements of a type of NumPy."""
    result = types.CPointer(dtype.dtype)

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(address, dtype), generate


def _is_real(vector):
    return isinstance(vector.type.element, (ir.FloatType, ir.DoubleType))


def _add(builder, first, second):
    return (builder.fadd if _is_real(first) else builder.add)(first, second)


def _multiply(builder, first, second):
    return (builder.fmul if _is_real(first) else builder.mul)(first, second)


def _choose(relation):
    def choose(builder, first, second):
        if not _is_real(first):
            return builder.select(builder.icmp_signed(relation, first, second), first, second)
        chosen = builder.select(builder.fcmp_ordered(relation, first, second), first, second)  # a NaN in second
        return builder.select(builder.fcmp_unordered("uno", first, first), first, chosen)  # or in first

    return choose


_COMBINE = {SUM: _add, PROD: _multiply, MAX: _choose(">"), MIN: _choose("<")}


class _Lines:
    """Emits loops over vectors, of a line or of one element.

    Args:
        builder: LLVM's builder.
        element: LLVM's type of an element.
        size: Bytes of an element.
        nbytes: Bytes of a vector.
        streamed: Whether stores go past the caches, to whole lines.
    """

    def __init__(self, builder, element, size, nbytes, streamed):
        self.builder = builder
        self.nbytes = nbytes
        self.vector = ir.VectorType(element, nbytes // size)
        self.streamed = streamed

    def _pointer(self, address):
        return self.builder.inttoptr(address, self.vector.as_pointer())

    def _load(self, address):
        return self.builder.load(self._pointer(address), align=1)

    def _store(self, value, address):
        store = self.builder.store(value, self._pointer(address), align=LINE if self.streamed else 1)
        if self.streamed:
            store.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))

    def _offset(self, i):
        return self.builder.mul(i, ir.Constant(_WORD, self.nbytes))

    def copy(self, source, target, count):
        builder = self.builder
        with cgutils.for_range(builder, count) as each:
            offset = self._offset(each.index)
            self._store(self._load(builder.add(source, offset)), builder.add(target, offset))

    def reduce(self, combine, terms, count_of_terms, begin, target, count):
        """Combine in the order of the terms; ``terms`` points to their addresses."""
        builder = self.builder
        total = cgutils.alloca_once(builder, self.vector)

        def load(term, offset):
            return self._load(builder.add(builder.load(builder.gep(terms, [term])), offset))

        with cgutils.for_range(builder, count) as each:
            offset = self._offset(each.index)
            at = builder.add(begin, offset)
            builder.store(load(ir.Constant(_WORD, 0), at), total)
            with cgutils.for_range(builder, count_of_terms, start=ir.Constant(_WORD, 1)) as term:
                builder.store(combine(builder, builder.load(total), load(term.index, at)), total)
            self._store(builder.load(total), builder.add(target, offset))


@intrinsic
def _copy(typing_context, source, target, nbytes):
    """Copy bytes through the caches."""

    def generate(context, builder, signature, arguments):
        source, target = (builder.inttoptr(argument, _BYTE.as_pointer()) for argument in arguments[:2])
        cgutils.raw_memcpy(builder, target, source, arguments[2], 1)
        return context.get_dummy_value()

    return types.void(_I, _I, _I), generate


@intrinsic
def _stream(typing_context, source, target, lines):
    """Copy lines past the caches."""

    def generate(context, builder, signature, arguments):
        _Lines(builder, _BYTE, 1, LINE, True).copy(*arguments)
        return context.get_dummy_value()

    return types.void(_I, _I, _I), generate


def _reducing(by_lines, streamed):
    """Make what combines bytes that lie ``begin`` behind the addresses in ``terms``, from an offset on."""

    def typed(typing_context, op, terms, begin, target, offset, nbytes):
        def generate(context, builder, signature, arguments):
            op, table, begin, to, offset, nbytes = arguments
            table = make_array(terms)(context, builder, table)
            many = builder.extract_value(table.shape, 0)
            size = target.dtype.bitwidth // 8
            vector = LINE if by_lines else size
            emitter = _Lines(builder, context.get_value_type(target.dtype), size, vector, streamed)
            begin, to = builder.add(begin, offset), builder.add(builder.ptrtoint(to, _WORD), offset)
            count = builder.udiv(nbytes, ir.Constant(_WORD, vector))
            for number, combine in _COMBINE.items():
                with builder.if_then(builder.icmp_signed("==", op, ir.Constant(_WORD, number))):
                    emitter.reduce(combine, table.data, many, begin, to, count)
            return context.get_dummy_value()

        return types.void(_I, terms, _I, target, _I, _I), generate

    return intrinsic(typed)


_reduce_elements, _reduce_lines = _reducing(False, False), _reducing(True, False)
_reduce_and_stream = _reducing(True, True)


@intrinsic
def fence(typing_context):
    """Make what has been streamed visible before anything that is stored after it."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@inner
def _divide(target, nbytes, aligned):
    """Return the bytes before the first line, which is whole if ``aligned``, and the bytes of all lines."""
    head = min(nbytes, -target % LINE) if aligned else 0
    return head, (nbytes - head) // LINE * LINE


@kernel([types.void(_I, _I, _I, types.boolean)], python=False)
def move(source, target, nbytes, streamed):
    """Copy bytes from one address to another, past the caches if ``streamed``."""
    if not streamed:
        _copy(source, target, nbytes)
        return
    head, lines = _divide(target, nbytes, True)
    tail = head + lines
    _copy(source, target, head)
    _stream(source + head, target + head, lines // LINE)
    _copy(source + tail, target + tail, nbytes - tail)


_TERMS = types.Array(_I, 1, "C")


@kernel(
    [types.void(_I, _TERMS, _I, types.CPointer(t), _I, _I, types.boolean) for t in TYPES],
    python=False,
)
def _reduce(op, terms, begin, target, at, nbytes, streamed):
    """Do what `reduce` does with elements of one kind, to which ``target`` points; ``at`` is its address."""
    head, lines = _divide(at, nbytes, streamed)
    tail = head + lines
    _reduce_elements(op, terms, begin, target, 0, head)
    if streamed:
        _reduce_and_stream(op, terms, begin, target, head, lines)
    else:
        _reduce_lines(op, terms, begin, target, head, lines)
    _reduce_elements(op, terms, begin, target, tail, nbytes - tail)


@kernel([types.void(_I, _I, _TERMS, _I, _I, _I, types.boolean)], python=False)
def reduce(kind, op, terms, begin, target, nbytes, streamed):
    """Set target ← terms[0] op terms[1] op … element by element, in this order; of `MAX` and `MIN`, NaN wins.

    Args:
        kind: The index of the elements' type in `TYPES`.
        op: `SUM`, `PROD`, `MAX` or `MIN`.
        terms: The addresses of the arrays.
        begin: Bytes in front of those that are combined.
        target: The address of the result, maybe that of an array; a multiple of an element's size if ``streamed``.
        nbytes: Bytes that are combined.
        streamed: Whether the result goes past the caches.
    """
    if kind == _FLOAT32:
        _reduce(op, terms, begin, _pointer(target, np.float32), target, nbytes, streamed)
    elif kind == _FLOAT64:
        _reduce(op, terms, begin, _pointer(target, np.float64), target, nbytes, streamed)
    elif kind == _INT32:
        _reduce(op, terms, begin, _pointer(target, np.int32), target, nbytes, streamed)
    else:
        _reduce(op, terms, begin, _pointer(target, np.int64), target, nbytes, streamed)
