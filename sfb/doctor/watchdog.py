"""A process that ends this one if it does not end by itself; MPI may wait for ever in C, where Python sees no signal.

This file is also the program of that process. It imports nothing of sfb.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import TracebackType

__all__ = ["Watchdog"]

# Seconds by which a silent watchdog lets others speak first.
_GRACE = 3.0
_END = "\0"

_ADVICE = (
    "look whether mpirun and MPI belong together (mpirun --version), for a firewall between the nodes, and at the "
    "interfaces that MPI takes, docs/multinode.md; end processes that earlier jobs have left"
)


class Watchdog:
    """Kill this process, and so its job, unless the block ends within ``seconds``; say what it was doing.

    Args:
        seconds: The time that the block may take.
        what: What is killed, for the message.
        speaks: Whether to say so; of many ranks one should.
    """

    def __init__(self, seconds: float, what: str, *, speaks: bool = True) -> None:
        arguments = [str(os.getpid()), str(seconds), what if speaks else ""]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # launchers end the group of a rank that aborts
        )
        assert self._process.stdout is not None
        self._process.stdout.read(1)  # it listens now: a launcher may end the job as soon as MPI is loaded

    def phase(self, text: str, lost: str = "") -> None:
        """Say what this process does from now on.

        Args:
            text: What it does.
            lost: What to do if the process ends meanwhile, as MPI may end it; "" to say nothing then.
        """
        self._tell(f"{text}\t{lost}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # somebody has ended the other process
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(_END)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()


def _watch(pid: int, seconds: float, what: str) -> None:
    """Kill a process after ``seconds``, unless it says before that it has come to its end."""
    os.write(1, b".")
    end = time.monotonic() + seconds + (0.0 if what else _GRACE)
    phase, lost = "start", ""
    while select.select([0], [], [], max(0.0, end - time.monotonic()))[0]:
        said = os.read(0, 1 << 16).decode(errors="replace")
        if not said:
            if what and lost:
                _say(f"{what}: the process has ended at: {phase}", lost)
            return
        last = said.strip("\n").split("\n")[-1]
        if last == _END:
            return
        phase, _, lost = last.partition("\t")
    if what:
        _say(f"{what}: no end after {seconds:g} s; it was at: {phase}", _ADVICE)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _say(text: str, advice: str) -> None:
    with suppress(OSError):
        os.write(2, f"error    {text}\n         to do: {advice}\n".encode())


if __name__ == "__main__":
    _watch(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
