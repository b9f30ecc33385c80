"""The stack of a thread, as another thread sees it."""

from __future__ import annotations

from contextlib import suppress
from itertools import accumulate, repeat, takewhile
from types import FrameType
from typing import Any

__all__ = ["stack_from"]


def stack_from(frame: FrameType | None) -> list[FrameType]:
    """Return a frame and those that have called it.

    No line of Python runs between two of them, as the thread that they belong to might go on meanwhile: in Python 3.11
    a frame that had ended since has once led to what is no frame.
    """
    found: list[Any] = []
    with suppress(AttributeError):  # of what is behind the last one
        found.extend(accumulate(repeat("f_back"), getattr, initial=frame))
    return list(takewhile(lambda each: isinstance(each, FrameType), found))
