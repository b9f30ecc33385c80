"""Memory that the kernels need beside their arguments."""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np

from sfb.kernels.stages import compiled

__all__ = ["drop_scratch", "local", "room_for", "scratch", "scratch_for"]

_ALIGN = 64


class _Local(threading.local):
    """Scratch of a thread, which grows with what is asked of it.

    Attributes:
        memory: Arrays by the bytes of an element.
    """

    def __init__(self) -> None:
        self.memory = _none()


def _none() -> dict[int, np.ndarray]:
    return {4: np.empty(0, np.float32), 8: np.empty(0, np.float64)}


local = _Local()


def scratch(room: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Return this thread's scratch, after making room for ``room`` elements.

    Args:
        room: Elements to have room for; more may be there.
        dtype: float32 or float64.

    >>> import numpy as np
    >>> from sfb.kernels import scratch
    >>> memory = scratch(100, np.dtype(np.float32))
    >>> memory.size >= 100, memory.dtype
    (True, dtype('float32'))
    """
    memory = local.memory[dtype.itemsize]
    if memory.size < room:
        raw = np.empty(room * dtype.itemsize + _ALIGN, np.uint8)
        offset = -raw.ctypes.data % _ALIGN
        memory = local.memory[dtype.itemsize] = raw[offset : offset + room * dtype.itemsize].view(dtype)
    return memory


def scratch_for(depth: int, w: np.ndarray) -> np.ndarray:
    """Return this thread's scratch, with room for what any kernel does with up to ``depth`` samples of w's factors.

    Args:
        depth: Most samples.
        w: The parameter, K×D float32 or float64.

    >>> import numpy as np
    >>> from sfb.kernels import scratch_for
    >>> scratch_for(8, np.zeros((4, 100))).dtype
    dtype('float64')
    """
    return scratch(room_for(depth, w.shape[1], w.itemsize), w.dtype)


def drop_scratch() -> None:
    """Drop this thread's scratch, which is as large as any call has needed so far; the next call makes room anew.

    >>> import numpy as np
    >>> from sfb.kernels import drop_scratch, scratch
    >>> memory = scratch(100, np.dtype(np.float32))
    >>> drop_scratch()
    >>> scratch(1, np.dtype(np.float32)) is memory
    False
    """
    local.memory = _none()


@functools.lru_cache(1024)
def room_for(depth: int, columns: int, itemsize: int) -> int:
    """Return the elements of scratch for what any kernel does with up to ``depth`` samples: at most some 5 MiB.

    Args:
        depth: Most samples.
        columns: Columns D of the parameter.
        itemsize: Bytes of an element.

    >>> from sfb.kernels import room_for
    >>> 0 < room_for(8, 100, 4) * 4 < 6e6
    True
    """
    panels, tiles, updates = compiled("_panels"), compiled("_tiles"), compiled("_updates")
    samples, deep = min(depth, panels.DEPTH), depth > panels.DEPTH
    width = tiles.LINE // itemsize
    # The caller may accumulate or use a rule, and may have fewer samples in the end.
    across = min(columns, panels.wide(depth) // itemsize)
    packed = (panels.BAND + across + 2 * width) * samples
    if deep:
        return packed + updates.TALL * across
    return packed + tiles.ROWS * min(columns + width, panels.WIDE // itemsize)
