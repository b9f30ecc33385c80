"""What a process holds: memory, descriptors, shared files, and handles of MPI."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

__all__ = ["Usage", "keep_large_blocks_apart", "usage"]

_SHM = "/dev/shm"
# Handles that are made to find the first that was never used; more than a run ever has at a time and gives back.
_COMMS, _WINDOWS = 256, 48
# Requests that come one by one are new ones; and the most that are made to find them.
_NEW, _REQUESTS = 16, 1 << 16
_M_MMAP_THRESHOLD, _LARGE = -3, 1 << 17  # glibc's mallopt; and its threshold as a process starts


class Usage(NamedTuple):
    """What this process holds.

    Attributes:
        memory: Bytes of memory of its own, without that of files and that which the ranks of a node share, of which a
            communicator keeps as much as its largest exchange has needed.
        descriptors: Open file descriptors, but for those of /proc, where threads look at other processes for moments.
        mapped: Files of /dev/shm that it maps, or deleted ones that were there.
        files: Files in /dev/shm, those of other jobs included.
        communicators: Communicators in use, plus a constant of the MPI library; 0 if they are not counted.
        windows: Windows in use, plus a constant; 0 if they are not counted.
        requests: Requests in use, plus a constant; 0 if they are not counted, and always the same under Open MPI,
            which numbers none by itself.
    """

    memory: int
    descriptors: int
    mapped: int
    files: int
    communicators: int
    windows: int
    requests: int

    def grown(self, before: Usage) -> dict[str, int]:
        """Return by how much what this process alone decides, memory aside, has grown."""
        names = ("descriptors", "mapped", "communicators", "windows", "requests")
        growth = {name: getattr(self, name) - getattr(before, name) for name in names}
        return {name: more for name, more in growth.items() if more > 0}


def keep_large_blocks_apart() -> None:
    """Let glibc map each large block for itself, so that what is freed goes back to the system.

    By default it takes them from the heap once one was freed, and small blocks between them keep their pages.
    """
    with suppress(AttributeError, OSError):  # of glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)


def usage(*, handles: bool = True) -> Usage:
    """Return what this process holds now.

    Args:
        handles: Whether to count handles of MPI: it makes and frees some over this process alone, and MPI keeps the
            memory of a block of requests more each time.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # of glibc
        ctypes.CDLL(None).malloc_trim(0)
    memory = _memory()
    counts = _handles() if handles else [0, 0, 0]
    lines = _read("/proc/self/maps").splitlines()
    return Usage(
        memory,
        _descriptors(),
        sum(_SHM in line for line in lines),
        len(os.listdir(_SHM)) if os.path.isdir(_SHM) else 0,
        *counts,
    )


def _descriptors() -> int:
    count = 0
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                count += not os.readlink(f"/proc/self/fd/{name}").startswith("/proc/")
    return count


def _handles() -> list[int]:
    """Return the communicators, windows and requests in use, each plus a constant."""
    self = MPI.COMM_SELF
    comms = [self.Dup() for _ in range(_COMMS)]
    requests = _requests(comms[0])
    windows = [MPI.Win.Create(None, comm=self) for _ in range(_WINDOWS)]
    counts = [_last(comms), _last(windows), requests]
    _free(windows, MPI.Win.Free)
    _free(comms, MPI.Comm.Free)
    return counts


def _last(handles: list[Any]) -> int:
    """Return the number of the last of many new handles: MPI numbers them from the first that is free."""
    return max(_number(handle.py2f()) for handle in handles)


def _requests(comm: MPI.Intracomm) -> int:
    """Return the requests in use, plus a constant.

    MPI takes new ones where none is left that came back. A job may have had thousands at a time, as each message that
    nobody waits for is one. They come back here from the first to the last, and so leave in the other order later.
    """
    buffer, most, new = np.empty(1), -1, 0
    made: list[tuple[int, MPI.Request]] = []
    while new < _NEW and len(made) < _REQUESTS:
        request = comm.Irecv(buffer, 0, 0)
        number = _number(request.py2f())
        new = new + 1 if number == most + 1 else 0
        most = max(most, number)
        made.append((number, request))
        if len(made) == _NEW and len({number for number, _ in made}) == 1:
            break  # no numbers
    for _, request in sorted(made, key=lambda each: each[0]):
        request.Cancel()
        request.Wait()
    return most + 1 - len(made)


def _number(handle: int) -> int:
    """Return the place of a handle among those of its kind.

    Open MPI numbers from 0. MPICH's handles have the block in bits 12 to 25 and the place in it below, and those of the
    first block, which was there from the start, another mark in the upper two bits.
    """
    if 0 <= handle < 1 << 26:
        return handle
    return (handle & 0x3FFFFFF) + (1 << 12 if (handle >> 30) & 3 == 3 else 0)


def _free(handles: list[Any], free: Callable[[Any], None]) -> None:
    for handle in reversed(handles):
        free(handle)


def _memory() -> int:
    """Return the bytes of this process that belong to no file; all resident ones where the kernel does not tell."""
    for line in _read("/proc/self/smaps_rollup").splitlines():
        name, _, size = line.partition(":")
        if name == "Anonymous":
            return int(size.split()[0]) << 10
    words = _read("/proc/self/statm").split()
    return int(words[1]) * os.sysconf("SC_PAGESIZE") if words else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
