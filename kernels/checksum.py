"""Checksums of messages between nodes, and a search for elements that are not finite; both at the rate of memory.

A checksum sums lines of eight words: the halves of each word, xored with a key, are multiplied (Black et al., "UMAC:
Fast and Secure Message Authentication", CRYPTO 1999), and the word itself is added to the sum of its neighbour, as
xxHash does, so that no bit is lost. Sums of these sums tell the order of lines (Fletcher, IEEE Trans. Communications
30(1), 1982). At the end a round of xxHash, h ← P·rotate(h + Q·word, 31), takes each of the sums, the words of the last
line and the number of bytes. Damage goes unseen once in about 2⁶⁴ times. It is no defence against those who damage on
purpose.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sfb.kernels._compile import inner, kernel
from sfb.kernels._vectors import I32, I64

__all__ = ["checksum", "first_not_finite"]

_INT = types.int64

_P, _Q, _TURN = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 31
_LANES, _LINE = 8, 64  # words and bytes of a line
_KEYS = [(i + 1) * 0xD6E8FEB86659FD93 % (1 << 64) for i in range(_LANES)]
# Lines from which sums repay their end.
_FEW = 4

# Elements that are looked at together before the place of one that is not finite is looked for.
_BLOCK = 1024


def _constant(kind, *values):
    """Return a constant of words given without sign."""
    signed = [value - (value >> 63 << 64) for value in values]
    return ir.Constant(kind, signed if len(signed) > 1 else signed[0])


def _round(builder, total, word):
    added = builder.add(total, builder.mul(word, _constant(I64, _Q)))
    turned = builder.or_(builder.shl(added, I64(_TURN)), builder.lshr(added, I64(64 - _TURN)))
    return builder.mul(turned, _constant(I64, _P))


@intrinsic
def _mix(typing_context, total, word):
    """Return P·rotate(total + Q·word, 31)."""
    return _INT(_INT, _INT), lambda context, builder, signature, arguments: _round(builder, *arguments)


@intrinsic
def _sum_lines(typing_context, address, lines, start):
    """Return ``start`` mixed with the sums of so many lines."""

    def generate(context, builder, signature, arguments):
        address, lines, total = arguments
        vector = ir.VectorType(I64, _LANES)
        keys, low = _constant(vector, *_KEYS), ir.Constant(vector, [(1 << 32) - 1] * _LANES)
        half = ir.Constant(vector, [32] * _LANES)
        neighbours = ir.Constant(ir.VectorType(I32, _LANES), [lane ^ 1 for lane in range(_LANES)])
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * _LANES)) for _ in range(2)]
        with cgutils.for_range(builder, lines) as each:
            at = builder.add(address, builder.mul(each.index, I64(_LINE)))
            words = builder.load(builder.inttoptr(at, vector.as_pointer()), align=1)
            keyed = builder.xor(words, keys)
            product = builder.mul(builder.and_(keyed, low), builder.lshr(keyed, half))
            swapped = builder.shuffle_vector(words, ir.Constant(vector, ir.Undefined), neighbours)
            first = builder.add(builder.load(sums[0]), builder.add(product, swapped))
            builder.store(first, sums[0])
            builder.store(builder.add(builder.load(sums[1]), first), sums[1])
        for each in sums:
            values = builder.load(each)
            for lane in range(_LANES):
                total = _round(builder, total, builder.extract_element(values, I32(lane)))
        return total

    return _INT(_INT, _INT, _INT), generate


def _loading(bits):
    """Make an intrinsic that loads a number of so many bits from any address."""

    @intrinsic
    def load(typing_context, address):
        def generate(context, builder, signature, arguments):
            kind = ir.IntType(bits)
            value = builder.load(builder.inttoptr(arguments[0], kind.as_pointer()), align=1)
            return value if bits == 64 else builder.zext(value, I64)

        return _INT(_INT), generate

    return load


_word, _byte = _loading(64), _loading(8)


@kernel([_INT(_INT, _INT, _INT)])
def checksum(address, nbytes, start):
    """Return the checksum of memory.

    Args:
        address: The address of the first byte.
        nbytes: The number of bytes.
        start: Any number: the checksum of what comes before, for instance.
    """
    at, end, total = address, address + nbytes, start
    lines = nbytes // _LINE
    if lines >= _FEW:
        total = _sum_lines(at, lines, total)
        at += lines * _LINE
    while at + 8 <= end:
        total = _mix(total, _word(at))
        at += 8
    last = 0
    for i in range(end - at):
        last |= _byte(at + i) << 8 * i
    return _mix(_mix(total, last), nbytes)


@inner
def _first(values, start, stop):
    for i in range(start, stop):
        if not abs(values[i]) < float("inf"):
            return i
    return -1


@kernel([_INT(types.Array(t, 1, "C", readonly=True)) for t in (types.float32, types.float64)])
def first_not_finite(values):
    """Return the index of the first element that is NaN or infinite; −1 if there is none."""
    for start in range(0, values.size, _BLOCK):
        stop = min(start + _BLOCK, values.size)
        wrong = 0
        for i in range(start, stop):
            wrong += not abs(values[i]) < float("inf")
        if wrong:
            return _first(values, start, stop)
    return -1
