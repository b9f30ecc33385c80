"""MPI collectives over sufficient factors.

`Comm` is imported, and with it MPI initialised, when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfb import optim, topology, trace
from sfb._version import __version__
from sfb.factors import Factors
from sfb.launch import end_job_on_error
from sfb.store.consistency import ASP, BSP, SSP
from sfb.tuning.profile import Profile, ProfileError

if TYPE_CHECKING:
    from sfb.collectives.engine import Exchange
    from sfb.comm import Comm
    from sfb.runtime.errors import MismatchError, RankFailedError
    from sfb.runtime.requests import Persistent, Request
    from sfb.runtime.seals import DamagedMessageError
    from sfb.store.averaging import AveragingStore
    from sfb.store.base import StoreError
    from sfb.store.store import Store

__all__ = [
    "ASP",
    "BSP",
    "SSP",
    "AveragingStore",
    "Comm",
    "DamagedMessageError",
    "Exchange",
    "Factors",
    "MismatchError",
    "Persistent",
    "Profile",
    "ProfileError",
    "RankFailedError",
    "Request",
    "Store",
    "StoreError",
    "__version__",
    "end_job_on_error",
    "optim",
    "topology",
    "trace",
]

# Where the names are that need MPI.
_NEED_MPI = {
    "AveragingStore": "sfb.store.averaging",
    "Comm": "sfb.comm",
    "DamagedMessageError": "sfb.runtime.seals",
    "Exchange": "sfb.collectives.engine",
    "MismatchError": "sfb.runtime.errors",
    "Persistent": "sfb.runtime.requests",
    "RankFailedError": "sfb.runtime.errors",
    "Request": "sfb.runtime.requests",
    "Store": "sfb.store.store",
    "StoreError": "sfb.store.base",
}


def __getattr__(name: str) -> Any:
    if name in _NEED_MPI:
        return getattr(import_module(_NEED_MPI[name]), name)
    raise AttributeError(f"module 'sfb' has no attribute {name!r}")
