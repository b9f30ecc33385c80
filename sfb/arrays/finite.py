"""The check that the plain arrays of all ranks hold numbers only."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.runtime.agreement import compare
from sfb.runtime.finite import check_finite

__all__ = ["check_everywhere"]


def check_everywhere(comm: MPI.Intracomm, call: str, sendbuf: Any, recvbuf: Any) -> None:
    """Raise ValueError on every rank if one passes NaN or infinity; collective.

    Args:
        comm: The ranks.
        call: The user's call, for messages.
        sendbuf: As in `MPI.Intracomm.Allreduce`; of buffers that are no arrays of NumPy only their elements, in the
            first item, are looked at.
        recvbuf: As in `MPI.Intracomm.Allreduce`.
    """
    comm = MPI.Intracomm(comm)
    given = recvbuf if sendbuf is MPI.IN_PLACE or sendbuf is None else sendbuf
    if isinstance(given, (list, tuple)) and given:
        given = given[0]
    error: Exception | None = None
    try:
        if isinstance(given, np.ndarray):
            check_finite("the array", given)
    except ValueError as caught:  # the other ranks wait to hear of it
        error = caught
    wrong = np.array([error is not None], np.int32)
    comm.Allreduce(MPI.IN_PLACE, wrong, MPI.MAX)
    if wrong[0]:
        compare(comm, call, error=error)
