"""The life of MPI: communicators are used after Init, and hear of Finalize."""

from __future__ import annotations

from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

from mpi4py import MPI

__all__ = ["FINALIZED", "Ending", "Finalized", "at_finalize", "check_initialized"]

FINALIZED = "MPI has been finalized: the communicator cannot be used any more"

_keyval = MPI.KEYVAL_INVALID
_numbers = count()


class Ending(Protocol):
    """What has to know that MPI ends."""

    def _end(self) -> None:
        """Let go of all that needs MPI."""


# By numbers: communicators of mpi4py are equal if their handles are.
_living: WeakValueDictionary[int, Ending] = WeakValueDictionary()


class Finalized:
    """Raises in place of what needed MPI.

    Attributes:
        left: As in `sfb.arrays.collectives.PlainCollectives`; no array is left to MPI.
    """

    left = 0

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(FINALIZED)


def check_initialized(comm: MPI.Comm) -> None:
    """Raise RuntimeError if ``comm`` cannot be used, because MPI is not initialized yet, or is finalized.

    Communicators other than the predefined ones exist only while MPI, or a session of it, is initialized.
    """
    if comm not in (MPI.COMM_WORLD, MPI.COMM_SELF):
        return
    if MPI.Is_finalized():
        raise RuntimeError(FINALIZED)
    if not MPI.Is_initialized():
        raise RuntimeError(
            "MPI has not been initialized: call MPI.Init() or MPI.Init_thread() first, or leave mpi4py.rc.initialize on"
        )


def at_finalize(ending: Ending) -> None:
    """Call `_end` of an object that is alive when the program calls `MPI.Finalize`, while MPI still works.

    MPI begins with the attributes of COMM_SELF. At the end of a program that does not call `MPI.Finalize`, mpi4py does
    so when Python has ended, and nothing is called.
    """
    global _keyval
    if not MPI.Is_initialized():  # sessions only
        return
    if _keyval == MPI.KEYVAL_INVALID:
        _keyval = MPI.Comm.Create_keyval(delete_fn=_call_all)
        MPI.COMM_SELF.Set_attr(_keyval, True)
    _living[next(_numbers)] = ending


def _call_all(comm: MPI.Comm, keyval: int, value: Any) -> None:
    for ending in list(_living.values()):
        ending._end()
