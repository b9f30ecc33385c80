"""Memory that ranks may still take."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
from mpi4py import MPI

__all__ = ["Room", "room"]

_GIB = 1 << 30


class Room:
    """The memory of each rank, known to all.

    Args:
        rooms: For each rank, its host, the bytes that are free there, and those that the rank may take at most.
    """

    def __init__(self, rooms: list[tuple[str, float, float]]) -> None:
        self._hosts: dict[str, list[float]] = {}
        self._own: dict[str, float] = {}
        for host, free, own in rooms:
            self._hosts.setdefault(host, []).append(free)
            self._own[host] = min(own, self._own.get(host, np.inf))

    def lacks(self, nbytes: float) -> str:
        """Return which host lacks memory if each rank takes ``nbytes``; nothing if none does."""
        for host, free in self._hosts.items():
            ranks = len(free)
            if ranks * nbytes > min(free):
                return f"{host} has {min(free) / _GIB:.1f} GiB for {ranks} of them"
            if nbytes > self._own[host]:
                return f"a rank on {host} may take {self._own[host] / _GIB:.1f} GiB"
        return ""


def room(comm: MPI.Intracomm) -> Room:
    """Return the memory that the ranks may still take; collective."""
    return Room(comm.allgather((MPI.Get_processor_name(), _available(), _own())))


def _available() -> float:
    """Return the bytes of memory that are free on this host, infinite if that is not known."""
    free = [_number(Path("/proc/meminfo"), "MemAvailable:") * 1024]
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        free.append(_number(Path(folder, limit)) - _number(Path(folder, used), otherwise=0.0))
    return min(free)


def _own() -> float:
    """Return the bytes that this process may still take by its own limits (``ulimit``), infinite without them."""
    free = np.inf
    for limit, used in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        most, _ = resource.getrlimit(limit)
        if most != resource.RLIM_INFINITY:
            free = min(free, most - 1024 * _number(Path("/proc/self/status"), used, otherwise=0.0))
    return free


def _number(path: Path, name: str = "", otherwise: float = np.inf) -> float:
    """Return the number in a file, or in its line that begins with ``name``."""
    try:
        lines = [line.removeprefix(name) for line in path.read_text().splitlines() if line.startswith(name)]
        return float(lines[0].split()[0])
    except (OSError, ValueError, IndexError):
        return otherwise
