"""The options of a `sfb.Comm`."""

from __future__ import annotations

from dataclasses import dataclass

from sfb.runtime.limits import MAX_BYTES, STALL
from sfb.tuning.profile import Profile

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """The options that a `sfb.Comm` was made with; its docstring describes them."""

    check: bool = True
    profile: Profile | None = None
    reproducible: bool = False
    max_bytes: int = MAX_BYTES
    progress: str = "thread"
    wire: str | None = None
    seed: int | None = None
    stall: float = STALL
