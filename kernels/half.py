"""float32 rounded to 16 bits for the wire, and back: bfloat16 and float16, to nearest or stochastically."""

from __future__ import annotations

import numpy as np

from sfb.kernels.stages import compiled

__all__ = ["FORMATS", "pack", "unpack"]

FORMATS = ("bfloat16", "float16")


def pack(x: np.ndarray, packed: np.ndarray, kind: str, seed: int | None = None) -> None:
    """Round float32 to 16 bits.

    Args:
        x: C-contiguous float32 of any shape.
        packed: C-contiguous uint16 of as many elements; receives the bits.
        kind: "bfloat16" or "float16"; beyond the range of float16 (65504) lies infinity.
        seed: Round to nearest, ties to even, without one. With a seed, to one of the two neighbours, to each with a
            probability such that the mean is exact (Gupta et al., "Deep Learning with Limited Numerical Precision",
            ICML 2015, section 3); the same seed gives the same bits.

    Raises:
        TypeError: Other dtypes or orders.
        ValueError: Different sizes, or an unknown kind.
    """
    _check(x, packed, kind)
    loops = compiled("_half")
    loops.pack(x.reshape(-1), packed.reshape(-1), FORMATS.index(kind), seed is not None, (seed or 0) % 2**64)


def unpack(packed: np.ndarray, x: np.ndarray, kind: str) -> None:
    """Turn the bits that `pack` returns into float32, exactly; arguments and errors are those of `pack`."""
    _check(x, packed, kind)
    if not x.flags.writeable:
        raise TypeError("x must be writeable")
    compiled("_half").unpack(packed.reshape(-1), x.reshape(-1), FORMATS.index(kind))


def _check(x: np.ndarray, packed: np.ndarray, kind: str) -> None:
    if kind not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if x.dtype != np.float32 or packed.dtype != np.uint16:
        raise TypeError(f"expected float32 and uint16, got {x.dtype} and {packed.dtype}")
    if not (x.flags.c_contiguous and packed.flags.c_contiguous):
        raise TypeError("both arrays must be C-contiguous")
    if x.size != packed.size:
        raise ValueError(f"both arrays must have as many elements, got {x.size} and {packed.size}")
