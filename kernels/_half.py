"""Kernels of `sfb.kernels.half`: float32 to 16 bits and back."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sfb.kernels._compile import inner, kernel

_TINY = np.float32(2.0**-14)  # the least normal float16
_STEP = np.float32(2.0**-24)  # between those below
_MOST = np.float32(65504)


@intrinsic
def _bits(typing_context, x):
    """Return the bits of a float32."""
    return types.uint32(types.float32), lambda c, builder, s, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic
def _float(typing_context, bits):
    """Return the float32 that has these bits."""
    return types.float32(types.uint32), lambda c, builder, s, arguments: builder.bitcast(arguments[0], ir.FloatType())


@inner
def _to_half(x):
    """Return the bits of the float16 nearest to a float32, ties to even, without instructions for float16.

    Not every processor has those; integers and float32 give the same bits on all.
    """
    bits = _bits(x)
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # The sum with 0.5 has the step of float16 below its least normal number, and is rounded to it.
    tiny = np.uint32(_bits(np.float32(_float(size) + np.float32(0.5))) - np.uint32(0x3F000000))
    # The exponent has 15 in place of 127 for 1; what is cut off counts as a half or less, or carries.
    odd = np.uint32(size >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32(np.uint32(size + np.uint32(0xC8000FFF)) + odd) >> np.uint32(13)
    quiet = np.uint32(0x7E00) | np.uint32(np.uint32(size >> np.uint32(13)) & np.uint32(0x3FF))
    half = np.uint32(tiny if size < np.uint32(0x38800000) else normal)
    half = np.uint32(np.uint32(0x7C00) if size >= np.uint32(0x47800000) else half)
    half = np.uint32(quiet if size > np.uint32(0x7F800000) else half)
    return np.uint16(half | np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000)))


@inner
def _from_half(half):
    """Return the float32 equal to the float16 that has these bits; a NaN becomes quiet."""
    bits = np.uint32(half)
    size = np.uint32(np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13))
    normal = np.uint32(size + np.uint32(0x38000000))
    # A fraction without the leading 1 that its exponent implies: put it there, and take it away.
    tiny = _bits(np.float32(_float(np.uint32(size + np.uint32(0x38800000))) - _TINY))
    infinite = np.uint32(size + np.uint32(0x70000000))
    quiet = np.uint32(infinite | np.uint32(0x00400000))
    found = np.uint32(tiny if size < np.uint32(0x00800000) else normal)
    found = np.uint32(infinite if size >= np.uint32(0x0F800000) else found)
    found = np.uint32(quiet if size > np.uint32(0x0F800000) else found)
    return _float(np.uint32(found | np.uint32(np.uint32(bits & np.uint32(0x8000)) << np.uint32(16))))


@inner
def _random(low, high, i):
    """Return 32 random bits for element i: MurmurHash3's finalizer (Appleby, 2011), once with each word of a seed.

    LLVM vectorises it.
    """
    h = np.uint32(np.uint32(i) * np.uint32(0x9E3779B9) + low)
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)) + high
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@inner
def _cut(bits, lost):
    """Return the upper half of a float32's bits after adding ``lost``; for a NaN, that of a quiet NaN."""
    upper = np.uint32(bits + lost) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.uint16(quiet if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000) else upper)


@kernel(
    [
        types.void(
            types.Array(types.float32, 1, "C", readonly=True),
            types.Array(types.uint16, 1, "C"),
            types.int64,
            types.boolean,
            types.uint64,
        )
    ]
)
def pack(x, packed, kind, stochastic, seed):
    """Round x to bfloat16, kind 0, or float16, kind 1: to nearest, or to either neighbour."""
    low, high = np.uint32(seed), np.uint32(seed >> np.uint64(32))
    if kind == 0 and stochastic:
        for i in range(x.size):
            packed[i] = _cut(_bits(x[i]), _random(low, high, i) >> np.uint32(16))
    elif kind == 0:
        for i in range(x.size):
            bits = _bits(x[i])
            packed[i] = _cut(bits, np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    elif not stochastic:
        for i in range(x.size):
            packed[i] = _to_half(x[i])
    else:
        for i in range(x.size):
            value = x[i]
            random = _random(low, high, i)
            size = abs(value)
            if size < _TINY:
                whole = np.floor(value / _STEP + np.float32(random >> np.uint32(8)) * np.float32(2.0**-24))
                value = np.copysign(whole * _STEP, value)
            elif size <= _MOST:
                bits = (_bits(value) + (random >> np.uint32(19))) & np.uint32(0xFFFFE000)
                value = min(max(_float(bits), -_MOST), _MOST)
            packed[i] = _to_half(value)


@kernel([types.void(types.Array(types.uint16, 1, "C", readonly=True), types.Array(types.float32, 1, "C"), types.int64)])
def unpack(packed, x, kind):
    """Set x to the float32 equal to each packed element."""
    if kind == 0:
        for i in range(x.size):
            x[i] = _float(np.uint32(packed[i]) << np.uint32(16))
    else:
        for i in range(x.size):
            x[i] = _from_half(packed[i])
