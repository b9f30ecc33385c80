"""The events of one rank, in a ring buffer of fixed size."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any
from uuid import uuid4

import numpy as np

__all__ = ["ASYNC", "BLOCKING", "CAPACITY", "DTYPE", "INSTANT", "THREAD", "Recorder"]

# Events that a rank keeps; older ones make room for newer.
CAPACITY = 1 << 17

# The fields of an event, all little-endian. Times are nanoseconds, of durations -1 for none; names are numbers in a
# table. "number" is that of the call on its communicator, whose label is "label"; -1 for none.
_TIMES = ("start", "end", "number", "waited", "rebuild", "nbytes", "predicted")
_WORDS = ("kind", "name", "detail", "algorithm", "label", "peer", "samples", "flags")
DTYPE = np.dtype([*((name, "<i8") for name in _TIMES), *((name, "<i4") for name in _WORDS)])
_EVENT = struct.Struct(f"<{len(_TIMES)}q{len(_WORDS)}i")
assert _EVENT.size == DTYPE.itemsize

# Flags: all ranks of the communicator take part and wait; the call goes on beside others; another thread than the main
# one; a point in time.
BLOCKING, ASYNC, THREAD, INSTANT = 1, 2, 4, 8

# What tells the machine, since it was started, and the set of clocks that a process sees.
_BOOT, _NAMESPACE = "/proc/sys/kernel/random/boot_id", "/proc/self/ns/time"

# Names in the table at most; others become the last.
_NAMES = 1 << 16
_OTHER = "other names"


class Recorder:
    """Records the events of this rank.

    Args:
        folder: Where `sfb.trace.files.save` writes them.
        capacity: Events to keep.

    Attributes:
        folder: Where to write them.
        clock: Returns the nanoseconds of the clock of all events; tests replace it.
        clock_name: A text that processes have in common if they read the same clock.
        run: A text by which files of one run know each other, with the rank that has drawn it.
        clocks: Measurements of the clock against that of another rank: that rank of COMM_WORLD, the clock at that time,
            by how much it is ahead, and the uncertainty, in nanoseconds.
        communicators: The ranks of COMM_WORLD in each communicator, by its label.
        began: Seconds since the epoch at which the recorder was made.
        saved: The numbers of events and of measurements in the file written last.
    """

    def __init__(self, folder: Path, capacity: int = CAPACITY) -> None:
        self.folder = folder
        self.clock: Callable[[], int] = perf_counter_ns
        self.clock_name = _clock_name()
        self.run: tuple[int, str] = (sys.maxsize, uuid4().hex)
        self.clocks: list[tuple[int, int, int, int]] = []
        self.communicators: dict[str, list[int]] = {}
        self.began = time.time()
        self.saved = -1, -1
        self._pid = os.getpid()
        self._capacity = capacity
        self._memory = memoryview(np.zeros(capacity * _EVENT.size, np.uint8))  # pages come as they are written
        self._count = 0
        self._numbers: dict[str, int] = {"": 0}
        self._main = threading.main_thread().ident
        self._sequences: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def own(self) -> bool:
        """Whether this process has made the recorder, and not one that it was forked from."""
        return os.getpid() == self._pid

    @property
    def news(self) -> bool:
        """Whether there is anything that the file written last has not."""
        return self.saved != (self._count, len(self.clocks))

    def at(self, seconds: float) -> int:
        """Return the reading of `clock` at a reading of `time.perf_counter`."""
        return self.clock() - round((perf_counter() - seconds) * 1e9)

    def sequence(self, name: str) -> int:
        """Return the next number of calls that nobody else numbers."""
        number = self._sequences[name] = self._sequences.get(name, 0) + 1
        return number

    def add(
        self,
        kind: str,
        name: str,
        start: int,
        end: int,
        *,
        detail: str = "",
        algorithm: str = "",
        label: str = "",
        number: int = -1,
        waited: int = -1,
        rebuild: int = -1,
        nbytes: int = 0,
        predicted: int = -1,
        peer: int = -1,
        samples: int = -1,
        flags: int = 0,
    ) -> None:
        """Record an event.

        Args:
            kind: What sort of work it is (`sfb.trace.report`).
            name: The call or the phase.
            start: When it began, by `clock`.
            end: When it ended.
            detail: Shapes and dtypes.
            algorithm: How it was done.
            label: The communicator.
            number: The number of the call on it.
            waited: Nanoseconds of waiting for other ranks, where they are known.
            rebuild: Nanoseconds of forming and applying a sum.
            nbytes: Bytes received from other ranks, or sent.
            predicted: Nanoseconds that the plan has estimated.
            peer: The rank waited for, or of a message.
            samples: S of this rank.
            flags: `BLOCKING`, `ASYNC`, `INSTANT`.
        """
        if threading.get_ident() != self._main:
            flags |= THREAD
        with self._lock:
            numbers = self._numbers
            ids = [numbers[text] if text in numbers else self._enter(text)
                   for text in (kind, name, detail, algorithm, label)]  # fmt: skip
            at = self._count % self._capacity * _EVENT.size
            _EVENT.pack_into(
                self._memory, at, start, end, number, waited, rebuild, nbytes, predicted, *ids, peer, samples, flags
            )
            self._count += 1

    def _enter(self, text: str) -> int:
        """Return the number of a new name."""
        numbers = self._numbers
        if len(numbers) >= _NAMES - 1:
            text = _OTHER
        return numbers.setdefault(text, len(numbers))

    def snapshot(self) -> tuple[dict[str, Any], np.ndarray]:
        """Return what a file says of the events, and a copy of those that are kept, the oldest first."""
        with self._lock:
            kept = min(self._count, self._capacity)
            events = np.frombuffer(self._memory, DTYPE)[:kept].copy()
            if self._count > kept:
                events = np.roll(events, -(self._count % self._capacity))
            header = {
                "count": kept,
                "dropped": self._count - kept,
                "names": list(self._numbers),
                "clocks": list(self.clocks),
                "clock": self.clock_name,
                "communicators": dict(self.communicators),
            }
        return header, events

    def cost(self) -> float:
        """Return the nanoseconds that recording an event takes here, measured now."""
        scratch, calls = Recorder(self.folder, 64), 256
        began = perf_counter_ns()
        for number in range(calls):
            scratch.add("exchange", "Allreduce", began, began, detail="1×1", label="0.1", number=number, flags=BLOCKING)
        return (perf_counter_ns() - began) / calls


def _clock_name() -> str:
    """Return a text that processes have in common if they read the same clock."""
    with suppress(OSError):
        return f"{Path(_BOOT).read_text().strip()} {os.readlink(_NAMESPACE)}"
    return uuid4().hex
