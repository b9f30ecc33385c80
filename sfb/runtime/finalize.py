"""The life of MPI: communicators are used after Init, and hear of Finalize."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakMethod

from mpi4py import MPI

__all__ = ["FINALIZED", "Finalized", "at_finalize", "check_initialized"]

FINALIZED = "MPI has been finalized: the communicator cannot be used any more"

_keyval = MPI.KEYVAL_INVALID
_numbers = count()
_calls: dict[int, WeakMethod[Callable[[], None]]] = {}


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


def at_finalize(call: Callable[[], None]) -> None:
    """Call a method when the program calls `MPI.Finalize`, while MPI still works, if its object is alive then.

    MPI begins with the attributes of COMM_SELF. At the end of a program that does not call `MPI.Finalize`, mpi4py does
    so when Python has ended, and nothing is called.
    """
    global _keyval
    if not MPI.Is_initialized():  # sessions only
        return
    if _keyval == MPI.KEYVAL_INVALID:
        _keyval = MPI.Comm.Create_keyval(delete_fn=_call_all)
        MPI.COMM_SELF.Set_attr(_keyval, True)
    number = next(_numbers)
    _calls[number] = WeakMethod(call, lambda _: _calls.pop(number, None))


def _call_all(comm: MPI.Comm, keyval: int, value: Any) -> None:
    for reference in list(_calls.values()):
        call = reference()
        if call is not None:
            call()
