"""Collectives of plain arrays: this library's own, and some that are MPI's, between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.soak.round import Round

__all__ = ["CALLS"]

_OPS: dict[str, tuple[MPI.Op, Callable[[Any, Any], Any], str]] = {
    "SUM": (MPI.SUM, np.add, "f4 f8 i4 i8 c8 u1"),
    "PROD": (MPI.PROD, np.multiply, "f4 f8 i8"),
    "MAX": (MPI.MAX, np.maximum, "f4 f8 i4 i8"),
    "MIN": (MPI.MIN, np.minimum, "f4 f8 i4 i8"),
    "BAND": (MPI.BAND, np.bitwise_and, "i4 i8 u1"),
    "LOR": (MPI.LOR, np.logical_or, "?"),
}
_KEEPS_NAN = ("MAX", "MIN")


def _numbers(r: Round, dtype: str, count: int, rank: int, *, nan: bool = False) -> np.ndarray:
    """Return the data of a rank."""
    rng, kind = r.rng(rank), np.dtype(dtype)
    if kind.kind in "fc":
        made = (rng.uniform(0.5, 1.5, count) * rng.choice([-1, 1], count)).astype(kind)
        if nan and count:
            made[rng.integers(0, count)] = np.nan
        return made
    return rng.integers(0 if kind.kind in "ub" else -3, 2 if kind.kind == "b" else 4, count).astype(kind)


def _draw(r: Round) -> tuple[str, str, int]:
    """Return the name of an operation, a dtype and a number of elements."""
    op = r.dice.pick(list(_OPS), (6, 1, 2, 2, 1, 1))
    return op, r.dice.pick(_OPS[op][2].split()), r.dice.size()


def _reduced(parts: list[np.ndarray], op: str) -> np.ndarray:
    wide = {"f": np.float64, "c": np.complex128}.get(parts[0].dtype.kind, parts[0].dtype)
    return reduce(_OPS[op][1], [part.astype(wide) for part in parts]).astype(wide)


def _slack(parts: list[np.ndarray], op: str, expected: np.ndarray) -> Any:
    if parts[0].dtype.kind not in "fc" or op in _KEEPS_NAN:
        return 0
    eps = float(np.finfo(parts[0].dtype).eps) * (len(parts) + 2)
    return eps * (abs(expected) if op == "PROD" else sum(abs(part) for part in parts))


def _reduce(
    r: Round, name: str, call: Callable[[Any, Any, MPI.Op], Any], *, own: int = 1, most: int | None = None
) -> None:
    """Check a reduction to all ranks, or one of which each rank gets a part.

    Args:
        r: The round.
        name: The call.
        call: Calls it, with buffers and operation.
        own: The number of parts of which a rank gets its own.
        most: Most elements; None for no limit.
    """
    op, dtype, count = _draw(r)
    nan = op in _KEEPS_NAN and r.dice.chance(0.2)
    in_place = r.dice.chance(0.3)
    if own > 1:
        count = min(count, 100_000)
    if most is not None:
        count = min(count, most)
    r.begin(f"{name} of {count} {dtype} by {op}{', in place' * in_place}{', NaN' * nan}")
    parts = [_numbers(r, dtype, own * count, rank, nan=nan) for rank in range(r.size)]
    send, expected = parts[r.rank].copy(), _reduced(parts, op)
    slack = _slack(parts, op, expected)
    place = slice(r.rank * count, (r.rank + 1) * count) if own > 1 else slice(None)
    got = send if in_place else np.empty(count, dtype)
    given: Any = got
    if r.own.chance(0.2) and not in_place:  # spelt otherwise, on some ranks
        given = [got, np.dtype(dtype).char]
    call(MPI.IN_PLACE if in_place else send, given, _OPS[op][0])
    got = got[:count]
    r.close(got, expected[place].astype(dtype), np.broadcast_to(slack, expected.shape)[place])
    if not in_place:
        r.equal(send, parts[r.rank], "what was sent")


def allreduce(r: Round) -> None:
    """Reduce to all ranks."""
    _reduce(r, "Allreduce", r.comm.Allreduce)


def iallreduce(r: Round) -> None:
    """Begin to reduce to all ranks, and wait."""

    def call(send: Any, recv: Any, op: MPI.Op) -> None:
        request = r.comm.Iallreduce(send, recv, op)
        if r.own.chance(0.5):
            request.Wait()
        else:
            while not request.Test():
                pass

    _reduce(r, "Iallreduce", call)


def persistent(r: Round) -> None:
    """Prepare to reduce, and do it."""
    # Open MPI 5.0.11 never frees the copy of the array that it makes in MPI_Allreduce_init.
    most = 50 if MPI.get_vendor()[0] == "Open MPI" else None

    def call(send: Any, recv: Any, op: MPI.Op) -> None:
        request = r.comm.Allreduce_init(send, recv, op)
        request.Start()
        request.Wait()
        request.Free()

    _reduce(r, "Allreduce_init", call, most=most)


def reduce_scatter(r: Round) -> None:
    """Reduce, and scatter the parts."""
    _reduce(r, "Reduce_scatter_block", r.comm.Reduce_scatter_block, own=r.size)


def allgather(r: Round) -> None:
    """Gather to all ranks."""
    dtype, count = r.dice.pick(("f4", "f8", "i8", "u1")), min(r.dice.size(), 100_000)
    in_place = r.dice.chance(0.3)
    r.begin(f"Allgather of {count} {dtype}{', in place' * in_place}")
    parts = [_numbers(r, dtype, count, rank) for rank in range(r.size)]
    got = np.zeros((r.size, count), dtype)
    if in_place:
        got[r.rank] = parts[r.rank]
    r.comm.Allgather(MPI.IN_PLACE if in_place else parts[r.rank], got)
    r.equal(got, np.stack(parts))


def shared_rows(r: Round) -> None:
    """Reduce arrays that all lie in one shared array."""
    dtype, count = r.dice.pick(("f4", "f8", "i8")), r.dice.whole(1, r.dice.pick((9, 5000, 200_000)))
    node = r.comm.node
    widest = np.array([node.size])
    r.comm.Allreduce(MPI.IN_PLACE, widest, MPI.MAX)
    rows = r.comm.shared((int(widest[0]), count), dtype)
    for _ in range(r.dice.whole(1, 3)):
        r.begin(f"Allreduce of {count} {dtype} in rows of a shared array")
        parts = [_numbers(r, dtype, count, rank) for rank in range(r.size)]
        rows[node.rank] = parts[r.rank]
        got = np.empty(count, dtype)
        r.comm.Allreduce(rows[node.rank], got)
        expected = _reduced(parts, "SUM")
        r.close(got, expected, _slack(parts, "SUM", expected))
        r.equal(rows[node.rank], parts[r.rank], "what was sent")


def by_mpi(r: Round) -> None:
    """Do collectives and messages that are mpi4py's own."""
    kind = r.dice.pick(("Bcast", "Reduce", "Alltoall", "Scan", "Sendrecv", "Ibarrier", "allgather"))
    count, root = min(r.dice.size(), 50_000), r.dice.whole(0, r.size - 1)
    r.begin(f"{kind} of {count} i8 by mpi4py")
    parts = [_numbers(r, "i8", count, rank) for rank in range(r.size)]
    own, comm = parts[r.rank].copy(), r.comm
    got = np.empty(count, "i8")
    if kind == "Bcast":
        comm.Bcast(own, root)
        r.equal(own, parts[root])
    elif kind == "Reduce":
        comm.Reduce(own, got if r.rank == root else None, MPI.SUM, root)
        if r.rank == root:
            r.equal(got, _reduced(parts, "SUM"))
    elif kind == "Alltoall":
        sent, taken = np.repeat(own[:10], r.size).reshape(-1, r.size).T.copy(), np.empty((r.size, len(own[:10])), "i8")
        comm.Alltoall(sent, taken)
        r.equal(taken, np.stack([part[:10] for part in parts]))
    elif kind == "Scan":
        comm.Scan(own, got)
        r.equal(got, _reduced(parts[: r.rank + 1], "SUM"))
    elif kind == "Sendrecv":
        comm.Sendrecv(own, (r.rank + 1) % r.size, 7, got, (r.rank - 1) % r.size, 7)
        r.equal(got, parts[r.rank - 1])
    elif kind == "Ibarrier":
        comm.Ibarrier().Wait()
    else:
        r.equal(np.stack(comm.allgather(own[:5])), np.stack([part[:5] for part in parts]))


CALLS: dict[Callable[[Round], None], float] = {
    allreduce: 4,
    iallreduce: 2,
    persistent: 1,
    reduce_scatter: 2,
    allgather: 2,
    shared_rows: 1,
    by_mpi: 1.5,
}
