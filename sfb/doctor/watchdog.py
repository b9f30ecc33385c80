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
from types import TracebackType

__all__ = ["Watchdog"]


class Watchdog:
    """Kill this process, and so its job, unless the block ends within ``seconds``; say what it was doing.

    Args:
        seconds: The time that the block may take.
        what: What is killed, for the message.

    Attributes:
        ADVICE: What a user can do then.
    """

    ADVICE = (
        "look whether mpirun and MPI belong together (mpirun --version), for a firewall between the nodes, and at the "
        "interfaces that MPI takes, docs/multinode.md; end processes that earlier jobs have left"
    )

    def __init__(self, seconds: float, what: str = "sfb doctor") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(seconds), what, self.ADVICE],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )

    def phase(self, text: str) -> None:
        """Say what this process does from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())
        self._process.stdin.flush()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _watch(pid: int, seconds: float, what: str, advice: str) -> None:
    """Kill a process after ``seconds``, unless it closes its end of standard input before."""
    end, phase = time.monotonic() + seconds, "start"
    while select.select([0], [], [], max(0.0, end - time.monotonic()))[0]:
        said = os.read(0, 1 << 16)
        if not said:
            return
        phase = said.decode(errors="replace").strip().split("\n")[-1]
    os.write(2, f"{what}: no end after {seconds:g} s; it was at: {phase}\n       to do: {advice}\n".encode())
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _watch(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
