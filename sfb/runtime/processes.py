"""Processes, as others can look them up; no MPI."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import NamedTuple

__all__ = ["Process", "state_of", "this_process"]


class Process(NamedTuple):
    """A process, as others can look it up.

    Attributes:
        host: The name of its host.
        pid: Its number.
        start: When it started, in ticks after the boot of the host: a later process may have its number.
        space: What processes share that see each other in /proc; "" where there is none.
    """

    host: str
    pid: int
    start: int
    space: str

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}"


def this_process() -> Process:
    """Return this process."""
    pid = os.getpid()
    found = _status(pid)
    space = ""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        space = f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    if found is None or os.readlink("/proc/self") != str(pid):  # no /proc, or that of other processes
        return Process(socket.gethostname(), pid, 0, "")
    return Process(socket.gethostname(), pid, found[1], space)


def state_of(process: Process) -> str:
    """Return "gone", "stopped" or "alive" for a process that shares the ``space`` of this one."""
    try:
        found = _status(process.pid)
    except OSError:  # it may not be looked at
        return "alive"
    if found is None or found[1] != process.start or found[0] in "ZXx":
        return "gone"
    return "stopped" if found[0] in "Tt" else "alive"


def _status(pid: int) -> tuple[str, int] | None:
    """Return the state and the start of a process; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return (fields[0].decode(), int(fields[19])) if len(fields) > 19 else None
