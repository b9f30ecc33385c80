"""Copies and reductions of plain arrays by lines of a cache, written as LLVM vectors: through the caches or past them.

What goes past them, to memory, costs no reading of a line that is overwritten; `fence` follows it.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from sfb.kernels._compile import inner

__all__ = ["LINE", "MAX", "MIN", "PROD", "SUM", "copy", "fence", "move", "reduce"]

SUM, PROD, MAX, MIN = range(4)

LINE = 64  # bytes


_WORD = ir.IntType(64)


def _is_real(vector):
    return isinstance(vector.type.element, (ir.FloatType, ir.DoubleType))


def _add(builder, first, second):
    return (builder.fadd if _is_real(first) else builder.add)(first, second)


def _multiply(builder, first, second):
    return (builder.fmul if _is_real(first) else builder.mul)(first, second)


def _choose(relation):
    def choose(builder, first, second):
        compare = builder.fcmp_ordered if _is_real(first) else builder.icmp_signed
        return builder.select(compare(relation, first, second), first, second)

    return choose


_COMBINE = {SUM: _add, PROD: _multiply, MAX: _choose(">"), MIN: _choose("<")}


class _Lines:
    """Emits loops over the vectors of an array: of a line, or of one element. Addresses are integers.

    Args:
        builder: Where to.
        element: LLVM's type of an element.
        size: Bytes of an element.
        nbytes: Of a vector, or None for one element.
        streamed: Store past the caches, to whole lines.
    """

    def __init__(self, builder, element, size, nbytes, streamed):
        self.builder = builder
        self.nbytes = nbytes or size
        self.vector = ir.VectorType(element, self.nbytes // size)
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


def _lines_of(context, builder, array, nbytes, streamed):
    return _Lines(builder, context.get_value_type(array.dtype), array.dtype.bitwidth // 8, nbytes, streamed)


def _copying(nbytes, streamed):
    """Make what copies so many vectors, of the type of ``array``'s elements."""

    def typed(typing_context, array, source, target, count):
        def generate(context, builder, signature, arguments):
            _lines_of(context, builder, array, nbytes, streamed).copy(*arguments[1:])
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64, types.int64), generate

    return intrinsic(typed)


def _reducing(nbytes, streamed):
    """Make what reduces so many vectors that begin ``begin`` bytes behind the addresses in ``terms``."""

    def typed(typing_context, array, op, terms, begin, target, count):
        def generate(context, builder, signature, arguments):
            _, op, table, begin, target, count = arguments
            table = make_array(terms)(context, builder, table)
            many = builder.extract_value(table.shape, 0)
            emitter = _lines_of(context, builder, array, nbytes, streamed)
            for number, combine in _COMBINE.items():
                with builder.if_then(builder.icmp_signed("==", op, ir.Constant(_WORD, number))):
                    emitter.reduce(combine, table.data, many, begin, target, count)
            return context.get_dummy_value()

        i = types.int64
        return types.void(array, i, terms, i, i, i), generate

    return intrinsic(typed)


_stream = _copying(LINE, True)
_reduce_elements, _reduce_lines = _reducing(None, False), _reducing(LINE, False)
_reduce_and_stream = _reducing(LINE, True)


@intrinsic
def fence(typing_context):
    """Let what has been streamed be seen before anything that is stored after."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@inner
def copy(source, target):
    """Copy as many elements as ``target`` has."""
    for i in range(len(target)):
        target[i] = source[i]


@inner
def _lines(target, aligned):
    """Return the elements before the first line, which is whole if ``aligned``, and how many lines there are."""
    line = LINE // target.itemsize
    head = min(len(target), -(target.ctypes.data // target.itemsize) % line) if aligned else 0
    return head, (len(target) - head) // line


@inner
def move(source, target, streamed):
    """Copy as many elements as ``target`` has, past the caches if ``streamed``."""
    if not streamed:
        copy(source, target)
        return
    head, lines = _lines(target, True)
    tail = head + lines * (LINE // target.itemsize)
    copy(source[:head], target[:head])
    _stream(target, source.ctypes.data + head * target.itemsize, target[head:].ctypes.data, lines)
    copy(source[tail : len(target)], target[tail:])


@inner
def reduce(op, terms, begin, target, streamed):
    """Combine arrays in their order into ``target``, which may be one of them, past the caches if ``streamed``.

    Args:
        op: `SUM`, `PROD`, `MAX` or `MIN`.
        terms: The addresses of the arrays, as int64.
        begin: Elements before those that are combined.
        target: As many elements as are combined, aligned to them if ``streamed``.
        streamed: Past the caches.
    """
    size, at = target.itemsize, target.ctypes.data
    head, lines = _lines(target, streamed)
    tail = head + lines * (LINE // size)
    begin *= size
    _reduce_elements(target, op, terms, begin, at, head)
    if streamed:
        _reduce_and_stream(target, op, terms, begin + head * size, at + head * size, lines)
    else:
        _reduce_lines(target, op, terms, begin + head * size, at + head * size, lines)
    _reduce_elements(target, op, terms, begin + tail * size, at + tail * size, len(target) - tail)
