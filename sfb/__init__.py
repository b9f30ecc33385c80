"""MPI collectives over sufficient factors.

`Comm` is imported, and with it MPI initialised, when it is first used.
"""

from typing import TYPE_CHECKING, Any

from sfb import optim
from sfb._version import __version__
from sfb.factors import Factors

if TYPE_CHECKING:
    from sfb.agreement import MismatchError
    from sfb.comm import Comm, Exchange

__all__ = ["Comm", "Exchange", "Factors", "MismatchError", "__version__", "optim"]


def __getattr__(name: str) -> Any:
    if name in ("Comm", "Exchange"):
        from sfb import comm

        return getattr(comm, name)
    if name == "MismatchError":
        from sfb.agreement import MismatchError

        return MismatchError
    raise AttributeError(f"module 'sfb' has no attribute {name!r}")
