"""Checksums of messages between nodes, and a search for elements that are not finite; both at the rate of memory.

A checksum has eight lanes of 64 bits. Word i of 8 bytes goes into lane i mod 8 by h ← P·rotate(h ⊕ word, 29), with an odd
P; at the end the lanes go into each other in the same way, with the number of bytes. Each step can be undone, so a change
within one word always changes the checksum. Other damage goes unseen once in about 2⁶⁴ times. It is no defence against
those who damage messages on purpose.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfb.kernels._compile import inner, kernel
from sfb.kernels._vectors import I64

__all__ = ["checksum", "first_not_finite"]

_INT = types.int64

_PRIME, _TURN = 0x9E3779B185EBCA87, 29
_LINE = 64  # bytes of a step of all lanes

# Elements that are looked at together before the place of one that is not finite is looked for.
_BLOCK = 1024


@intrinsic
def _mix(typing_context, total, word):
    """Return P·rotate(total ⊕ word, 29)."""

    def generate(context, builder, signature, arguments):
        mixed = builder.xor(*arguments)
        turned = builder.or_(builder.shl(mixed, I64(_TURN)), builder.lshr(mixed, I64(64 - _TURN)))
        return builder.mul(turned, I64(_PRIME - (1 << 64)))

    return _INT(_INT, _INT), generate


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
    a, b, c, d = start, start + 1, start + 2, start + 3
    e, f, g, h = start + 4, start + 5, start + 6, start + 7
    at, end = address, address + nbytes
    for _ in range(nbytes // _LINE):
        a, b, c, d = _mix(a, _word(at)), _mix(b, _word(at + 8)), _mix(c, _word(at + 16)), _mix(d, _word(at + 24))
        e, f, g, h = _mix(e, _word(at + 32)), _mix(f, _word(at + 40)), _mix(g, _word(at + 48)), _mix(h, _word(at + 56))
        at += _LINE
    while at + 8 <= end:
        a = _mix(a, _word(at))
        at += 8
    last = 0
    for i in range(end - at):
        last |= _byte(at + i) << 8 * i
    total = _mix(_mix(_mix(a, b), _mix(c, d)), _mix(_mix(e, f), _mix(g, h)))
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
