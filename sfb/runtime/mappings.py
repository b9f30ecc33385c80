"""Memory mappings of this process: where they come from, room for them, and second mappings of the same memory."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path

__all__ = ["again", "folder_of", "populate"]

_MAYMOVE, _POPULATE_WRITE = 1, 23  # of Linux


def folder_of(address: int) -> str | None:
    """Return the folder of the file that is mapped at an address; None if it is no file, or /proc does not say."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        span, *_, path = line.split(maxsplit=5)
        first, _, end = span.partition("-")
        if int(first, 16) <= address < int(end, 16):
            return os.path.dirname(path) if path.startswith("/") else None
    return None


def populate(address: int, nbytes: int) -> bool:
    """Give each page its memory, and return False if there is not enough; True, undone, where the kernel cannot.

    Linux can since 5.14.
    """
    start, length = _pages(address, nbytes)
    madvise = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if madvise is None:
        return True
    failed = madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _POPULATE_WRITE)
    return not failed or ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.EPERM)


def again(address: int, nbytes: int) -> memoryview | None:
    """Map memory that processes share a second time, for as long as the result lives; None where that fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mremap"):
        return None
    start, length = _pages(address, nbytes)
    libc.mremap.restype = ctypes.c_void_p
    # The old size 0 leaves the old mapping as it is (mremap(2)).
    made = libc.mremap(ctypes.c_void_p(start), ctypes.c_size_t(0), ctypes.c_size_t(length), _MAYMOVE)
    if made is None or made == ctypes.c_void_p(-1).value:
        return None
    memory = (ctypes.c_uint8 * nbytes).from_address(made + address - start)
    end = weakref.finalize(memory, libc.munmap, ctypes.c_void_p(made), ctypes.c_size_t(length))
    end.atexit = False  # the process gives it back
    return memoryview(memory).cast("B")


def _pages(address: int, nbytes: int) -> tuple[int, int]:
    """Return the first byte and the length of the pages that hold ``nbytes`` from an address on."""
    start = address - address % mmap.PAGESIZE
    return start, -(-(address + nbytes - start) // mmap.PAGESIZE) * mmap.PAGESIZE
