"""The options of a `sfb.Comm`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sfb.kernels.half import FORMATS
from sfb.runtime.limits import MAX_BYTES, STALL, timeout_or_default

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """The options of a `sfb.Comm`, whose docstring describes them.

    Raises:
        ValueError: An option is out of range.
    """

    check: bool = True
    reproducible: bool = False
    max_bytes: int = MAX_BYTES
    progress: str = "thread"
    wire: str | None = None
    seed: int | None = None
    stall: float = STALL
    check_finite: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.progress not in ("thread", "poll"):
            raise ValueError(f'progress must be "thread" or "poll", got {self.progress!r}')
        if not self.max_bytes > 0:
            raise ValueError(f"max_bytes must be > 0, got {self.max_bytes!r}")
        if not self.stall > 0:
            raise ValueError(f"stall must be a number of seconds > 0, got {self.stall!r}")
        timeout_or_default(self.timeout)
        wire, seed = self.wire, self.seed
        if wire is not None and wire not in FORMATS:
            raise ValueError(f"wire must be None, {' or '.join(map(repr, FORMATS))}, got {wire!r}")
        if seed is not None and (wire is None or isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError(f"seed must be an integer, and goes with wire, got {seed!r} and {wire!r}")

    @property
    def compared(self) -> dict[str, object]:
        """The options that have to be equal on all ranks."""
        return {name: getattr(self, name) for name in ("max_bytes", "reproducible", "wire", "seed", "check_finite")}

    @property
    def described(self) -> str:
        """What ranks compare and the user has chosen, for messages."""
        defaults = {field.name: field.default for field in fields(self)}
        return "".join(f", {name}={value!r}" for name, value in self.compared.items() if value != defaults[name])
