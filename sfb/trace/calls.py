"""What is recorded and logged of the calls of this library while anybody listens (`Now.on`)."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from sfb.trace.now import NOW, describe
from sfb.trace.recorder import ASYNC, BLOCKING, INSTANT

__all__ = ["PlainCall", "by_mpi", "exchange_began", "exchange_ended", "message", "started"]

# Where arrays go that no rule of this library names: memory of the node.
_NODE = "node"


def started(name: str, where: Any, what: Any) -> None:
    """Log a call that begins now, and that later calls end.

    Args:
        name: The call.
        where: What has the ``position`` of the call: label and number of the last one.
        what: What it was given.
    """
    if NOW.log is not None:
        label, number = where.position
        NOW.log(f"{name} #{number + 1} of {label or 'a communicator'} begins: {describe(what)}")


class PlainCall:
    """A call of plain arrays, to be recorded and logged; a context manager.

    Args:
        name: The call.
        where: What has the ``position`` of the call: label and number of the last one.
        what: What receives.
    """

    def __init__(self, name: str, where: Any, what: Any) -> None:
        self._name, self._where, self._what = name, where, what

    def __enter__(self) -> PlainCall:
        self._before = self._where.position
        NOW.algorithm = _NODE
        if NOW.log is not None:
            started(self._name, self._where, self._what)
        self._start = 0 if NOW.recorder is None else NOW.recorder.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        recorder = NOW.recorder
        label, number = self._where.position
        if recorder is not None:
            end = recorder.clock()
            if (label, number) == self._before:  # MPI has done it, and nobody has numbered it
                number = -1 - recorder.sequence(f"{self._name} {label}")
            recorder.add(
                "exchange",
                self._name,
                self._start,
                end,
                detail=describe(self._what),
                algorithm=NOW.algorithm,
                label=label,
                number=number,
                nbytes=getattr(self._what, "nbytes", 0),
                flags=BLOCKING if label else 0,
            )
        if NOW.log is not None:
            NOW.log(f"{self._name} #{number} of {label} ends, by {NOW.algorithm}{_raising(error)}")


def exchange_began(engine: Any, pending: Any) -> None:
    """Log an exchange of factors that begins."""
    started(pending.call, engine, pending)


def exchange_ended(engine: Any, pending: Any, exchange: Any, seconds: float, wire_bytes: int) -> None:
    """Record an exchange of factors that is done, and log that.

    Args:
        engine: The engine (`sfb.collectives.engine.Engine`).
        pending: The call.
        exchange: The persistent exchange that has done it.
        seconds: The time that it took, without that of a plan.
        wire_bytes: Bytes received.
    """
    label, _ = engine.position
    recorder = NOW.recorder
    if recorder is not None:
        planning = round(pending.planning * 1e9)
        start = recorder.at(pending.began) - planning
        plan = pending.prepared.plan
        predicted = next((e.total for e in plan.estimates if e.algorithm == exchange.algorithm), -1e-9)
        rows, columns = plan.problem.shape
        recorder.add(
            "exchange",
            pending.call,
            start,
            start + planning + round(seconds * 1e9),
            detail=f"{rows}×{columns} {plan.problem.dtype}{' CSR' if pending.sparse else ''}",
            algorithm=exchange.algorithm,
            label=label,
            number=pending.number,
            waited=round(exchange.waited * 1e9) or -1,
            rebuild=round(exchange.rebuild_seconds * 1e9),
            nbytes=wire_bytes,
            predicted=round(predicted * 1e9),
            samples=len(pending.factors),
            flags=BLOCKING if pending.blocking else ASYNC,
        )
    if NOW.log is not None:
        NOW.log(
            f"{pending.call} #{pending.number} of {label} ends, by {exchange.algorithm} in {seconds * 1e3:.3f} ms, "
            f"{exchange.waited * 1e3:.3f} ms of them waiting"
        )


def by_mpi(name: str, array: Any, began: float, ended: float) -> None:
    """Record a collective of all ranks that MPI has done, between two readings of `time.perf_counter`."""
    recorder = NOW.recorder
    if recorder is not None:
        end = recorder.at(ended)
        recorder.add(
            "exchange",
            name,
            end - round((ended - began) * 1e9),
            end,
            detail=describe(array),
            algorithm="mpi",
            label="world",
            number=recorder.sequence(name),
            nbytes=getattr(array, "nbytes", 0),
            flags=BLOCKING,
        )
    if NOW.log is not None:
        NOW.log(f"{name} by MPI has taken {(ended - began) * 1e3:.3f} ms: {describe(array)}")


def message(name: str, peer: int, nbytes: int, detail: str = "") -> None:
    """Record that a message has left for a rank of its communicator, or has come from one."""
    recorder = NOW.recorder
    if recorder is not None:
        now = recorder.clock()
        recorder.add("message", name, now, now, detail=detail, nbytes=nbytes, peer=peer, flags=INSTANT)


def _raising(error: BaseException | None) -> str:
    return "" if error is None else f", raising {type(error).__name__}"
