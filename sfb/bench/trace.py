"""What a trace costs: calls and steps with it and without, in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Benchmark, Column, Heading, Row, Timing, columns, measure, settle
from sfb.trace.now import NOW
from sfb.trace.recorder import Recorder
from sfb.training.sync import Tick
from sfb.training.train import Config as Training
from sfb.training.train import train
from sfb.training.trainer import Trainer
from sfb.units import microseconds

__all__ = ["COLUMNS", "Config", "run"]

# Calls of a timed loop; steps that choose algorithms and are not timed.
_CALLS, _FIRST = 200, 100


@dataclass(frozen=True, kw_only=True)
class Config(Timing):
    """What to measure.

    Attributes:
        data: What to train on, for the time of a step; "" for none.
        epochs: Passes over it.
    """

    data: str = "mnist"
    epochs: int = 2


COLUMNS = [
    Column("what", "what", width=34),
    *columns(lambda seconds: microseconds(seconds, 3), 12, off="off(us)", on="on(us)", added="added(us)"),
    Column("percent", "added(%)", lambda percent: "-" if percent is None else f"{percent:.2f}", 10),
]


@contextmanager
def _tracing(recorder: Recorder | None) -> Iterator[None]:
    """Record events, or not, in a ``with`` statement."""
    before = NOW.recorder
    NOW.recorder = recorder
    NOW.switch()
    try:
        yield
    finally:
        NOW.recorder = before
        NOW.switch()


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    heading(
        "sfb bench trace: calls with a trace and without, in turn",
        "off: without SFB_TRACE, SFB_DEBUG; on: with SFB_TRACE; time: median",
        "marks: what a call of sfb.Comm does for the watchdog in any run, beside an empty loop",
    )
    with tempfile.TemporaryDirectory() as folder, sfb.Comm(world) as comm:
        recorder = Recorder(Path(folder))
        yield _marks(world, config)
        yield _row("a span", *_in_turn(world, config, _spans, recorder), share=False)
        x = np.zeros(1)
        yield _row("Allreduce of 8 B", *_in_turn(world, config, lambda: comm.Allreduce(MPI.IN_PLACE, x), recorder))
        factors = sfb.Factors(np.ones((1, 16), np.float32), np.ones((1, 16), np.float32))
        target = np.zeros((16, 16), np.float32)
        comm.Allreduce(factors, target)
        settle(comm, factors, target)
        exchange = lambda: comm.Allreduce(factors, target)  # noqa: E731
        yield _row("Allreduce of factors, 16x16, S=1", *_in_turn(world, config, exchange, recorder))
        if config.data:
            yield _row(f"step of sfb train mlp --data {config.data}", *_steps(world, config, recorder))


def _row(what: str, off: float, on: float, *, share: bool = True) -> Row:
    percent = 100 * (on - off) / off if share else None
    return {"what": what, "off": off, "on": on, "added": on - off, "percent": percent}


def _marks(world: MPI.Intracomm, config: Config) -> Row:
    """Time the marks of a call, and the test whether anybody listens."""
    own = object()

    def empty() -> None:
        for _ in range(_CALLS):
            pass

    def marked() -> None:
        for _ in range(_CALLS):
            NOW.call = ["Allreduce", own, own, None]
            if NOW.on:
                raise RuntimeError("nobody is to listen")
            NOW.call = None

    with _tracing(None):
        times = measure(world, {"empty": empty, "marked": marked}, config)
    off, on = (times[name].each_of(_CALLS).median for name in ("empty", "marked"))
    return _row("marks of a call", off, on, share=False)


def _spans() -> None:
    with sfb.trace.span("a span"):
        pass


def _in_turn(
    world: MPI.Intracomm, config: Config, call: Callable[[], object], recorder: Recorder
) -> tuple[float, float]:
    """Return the seconds of a call without a trace and with one."""

    def calls(recorder: Recorder | None) -> None:
        with _tracing(recorder):
            for _ in range(_CALLS):
                call()

    times = measure(world, {"off": lambda: calls(None), "on": lambda: calls(recorder)}, config)
    return times["off"].each_of(_CALLS).median, times["on"].each_of(_CALLS).median


def _steps(world: MPI.Intracomm, config: Config, recorder: Recorder) -> tuple[float, float]:
    """Return the seconds of a step of a training without a trace and with one, of the slowest rank."""
    taken: dict[bool, list[float]] = {False: [], True: []}

    def begin(trainer: Trainer) -> Tick:
        began, traced, step = perf_counter(), False, 0

        def tick(loss: float, examples: int, wire_bytes: int) -> None:
            nonlocal began, traced, step
            now = perf_counter()
            step += 1
            if step > _FIRST:
                taken[traced].append(now - began)
            traced = not traced
            NOW.recorder = recorder if traced else None
            NOW.switch()
            began = perf_counter()

        return tick

    with _tracing(None):
        train(world, Training(data=config.data, epochs=config.epochs), begin=begin)
    medians = np.array([np.median(taken[traced] or [np.nan]) for traced in (False, True)])
    world.Allreduce(MPI.IN_PLACE, medians, MPI.MAX)
    return float(medians[0]), float(medians[1])


run = Benchmark(COLUMNS, _rows)
