"""Communicators and shared arrays that come and go, and calls that must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.soak.round import Round, Wrong

__all__ = ["CALLS"]


def _ones(r: Round, comm: sfb.Comm, receiver: np.ndarray) -> None:
    """Sum factors of ones, and check the sum."""
    rows, columns = receiver.shape
    comm.Allreduce(sfb.Factors(np.ones((1, rows), receiver.dtype), np.ones((1, columns), receiver.dtype)), receiver)
    r.equal(receiver, np.full(receiver.shape, comm.size, receiver.dtype))


def copies(r: Round) -> None:
    """Copy the communicator, use the copy and free it."""
    kind = r.dice.pick(("Dup", "Clone", "Idup", "Split", "Create"))
    r.begin(f"{kind} of the communicator")
    made: Any
    if kind == "Idup":
        made, request = r.comm.Idup()
        request.Wait()
    elif kind == "Split":
        colours = r.dice.whole(1, 3)
        made = sfb.Comm(MPI.Intracomm(r.comm.Split(r.rank % colours, -r.rank)), profile=sfb.Profile())
    elif kind == "Create":
        group = r.comm.Get_group()
        made = sfb.Comm(MPI.Intracomm(r.comm.Create(group)), profile=sfb.Profile())
        group.Free()
    else:
        made = getattr(r.comm, kind)()
    shared = r.dice.chance(0.4)
    g = made.shared((5, 7)) if shared else np.empty((5, 7), np.float32)
    _ones(r, made, g)
    x = np.arange(1000.0)
    made.Allreduce(MPI.IN_PLACE, x)
    r.equal(x, made.size * np.arange(1000.0))
    size = made.size
    made.Free()
    r.equal(g, np.full((5, 7), size, g.dtype), "an array after the end of its communicator")


def arrays(r: Round) -> None:
    """Make shared arrays, drop some, and see that the others keep their values."""
    r.begin("shared arrays")
    kept = []
    for number in range(r.dice.whole(1, 4)):
        shape, dtype = (r.dice.whole(0, 300), r.dice.whole(0, 300)), r.dice.pick(("f4", "f8", "i2"))
        keep = r.dice.chance(0.5)
        made = r.array(shape, dtype, number, shared=True)
        if keep:
            kept.append((number, made))
    for number, made in kept:
        r.equal(made, np.full(made.shape, number, made.dtype), "a shared array")


def again(r: Round) -> None:
    """Free what the library holds on the communicator, and use it again."""
    r.begin("free and use again")
    r.comm.free()
    _ones(r, r.comm, np.empty((r.dice.whole(1, 9), 4), np.float32))


def mistake(r: Round) -> None:
    """Let one rank pass what does not go with the others; all must hear of it, and go on."""
    kind = r.dice.pick(("shape", "dtype", "algorithm", "order"))
    culprit = r.dice.whole(0, r.size - 1)
    wrong = r.rank == culprit
    r.begin(f"Allreduce with a wrong {kind} on rank {culprit}")
    dtype: Any = np.float32
    rows, algorithm = 6, "auto"
    if wrong and kind == "shape":
        rows = 7
    if wrong and kind == "dtype":
        dtype = np.float64
    if wrong and kind == "algorithm":
        algorithm = "broadcast"
    g = np.zeros((rows, 4), dtype)
    factors = sfb.Factors(np.ones((2, rows), dtype), np.ones((2, 4), dtype))
    if wrong and kind == "order":
        factors.v = np.ones((4, 2), dtype).T
    heard: Exception | None = None
    try:
        r.comm.Allreduce(factors, g, algorithm=algorithm)
    except (sfb.MismatchError, TypeError, ValueError) as error:
        heard = error
    if heard is None and (r.size > 1 or kind == "order"):
        raise Wrong("no error was raised")
    _ones(r, r.comm, np.zeros((6, 4), np.float32))


CALLS: dict[Callable[[Round], None], float] = {copies: 2, arrays: 1, again: 1, mistake: 2}
