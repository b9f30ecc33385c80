"""Traces that tests make up: what ranks would have recorded, on clocks that run as the test says."""

from pathlib import Path

from sfb.trace.files import save
from sfb.trace.recorder import BLOCKING, Recorder

__all__ = ["MS", "US", "Ranks", "recording"]

US, MS = 1_000, 1_000_000


class Ranks:
    """Recorders of several ranks, which a test feeds.

    Args:
        folder: Where `save` writes.
        size: The number of ranks.
        clocks: For each rank, a function from the true time to that of its clock, in nanoseconds; None for one clock.
    """

    def __init__(self, folder, size, clocks=None):
        self.size = size
        self.recorders = [Recorder(Path(folder), 4096) for _ in range(size)]
        self.clocks = clocks or [lambda true: true] * size
        self.calls = 0
        for rank, recorder in enumerate(self.recorders):
            recorder.run = 0, "run"
            recorder.clock_name = f"clock {rank}" if clocks else "clock"

    def measure(self, true, unsure=2 * US):
        """Let all ranks measure their clocks against that of rank 0 at a time."""
        for recorder, clock in zip(self.recorders, self.clocks, strict=True):
            recorder.clocks.append((0, clock(true), clock(true) - self.clocks[0](true), unsure))

    def add(self, rank, kind, name, start, end, **facts):
        """Record an event between two true times."""
        clock = self.clocks[rank]
        self.recorders[rank].add(kind, name, clock(start), clock(end), **facts)

    def exchange(self, starts, seconds, name="Allreduce", **facts):
        """Record a collective, which ends for all ranks some time after the last has come; return that time."""
        end = max(starts) + seconds
        for rank, start in enumerate(starts):
            self.add(rank, "exchange", name, start, end, label="0.1", number=self.calls, flags=BLOCKING, **facts)
        self.calls += 1
        return end

    def save(self, *, but=()):
        """Write the files of all ranks, or of all but some."""
        return [
            save(recorder, rank, self.size, f"node{rank}", "test")
            for rank, recorder in enumerate(self.recorders)
            if rank not in but
        ]


class recording:
    """Record events of this process in a ``with`` statement."""

    def __init__(self, recorder):
        self.recorder = recorder

    def __enter__(self):
        from sfb.trace.now import NOW

        self.before = NOW.recorder
        NOW.recorder = self.recorder
        NOW.switch()
        return self.recorder

    def __exit__(self, *rest):
        from sfb.trace.now import NOW

        NOW.recorder = self.before
        NOW.switch()
