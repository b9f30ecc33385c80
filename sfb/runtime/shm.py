"""Files that MPI has left in the folder of shared memory, since its processes were killed; no MPI."""

from __future__ import annotations

import functools
import logging
import os
import time
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["describe", "leftovers", "warn_of_leftovers"]

_log = logging.getLogger("sfb")

# How MPICH and libraries derived from it, and Open MPI, name their files.
_NAMES = ("mpich_shm_*", "mpich_shar_tmp*", "Intel_MPI_*", "sm_segment.*", "vader_segment.*", "osc_sm*", "osc_rdma.*")
# Files that `describe` names.
_NAMED = 3
# Seconds after which a file that nobody maps is none that a job has just made.
_AGE = 10.0


def leftovers(folder: str = "/dev/shm", *, age: float = _AGE) -> dict[str, int]:
    """Return the files of this user that MPI has made and no process maps any more, and their bytes.

    Processes that /proc does not show, those of other containers that share the folder, are not known of.

    Args:
        folder: The folder of shared memory.
        age: Seconds since the last change after which a file counts.
    """
    found: dict[tuple[int, int], tuple[str, int]] = {}
    try:
        with os.scandir(folder) as entries:
            for each in entries:
                if any(fnmatch(each.name, name) for name in _NAMES):
                    its = each.stat(follow_symlinks=False)
                    if its.st_uid == os.getuid() and time.time() - its.st_mtime > age:
                        found[its.st_dev, its.st_ino] = each.path, its.st_blocks * 512
    except OSError:
        return {}
    pids = [str(os.getpid()), *(name for name in _listed("/proc") if name.isdigit())] if found else []
    for pid in pids:
        for key in _mapped(pid):
            found.pop(key, None)
        if not found:
            break
    return dict(sorted(found.values()))


def describe(files: dict[str, int]) -> str:
    """Return a sentence that says which files are left and how to remove them; of many it names some."""
    total, several = sum(files.values()) / 2**20, len(files) > 1
    named = " ".join([*files][:_NAMED])
    if len(files) > _NAMED:
        named += f" and {len(files) - _NAMED} more, which sfb doctor names"
    return (
        f"{len(files)} file{'s' * several} of jobs that were killed take{'s' * (not several)} {total:.1f} MiB on "
        f"{os.uname().nodename}; unless a container uses {'them' if several else 'it'}: rm {named}"
    )


@functools.cache
def warn_of_leftovers() -> None:
    """Log a warning of the logger "sfb" that names the files that are left, once in a process."""
    files = leftovers()
    if files:
        _log.warning("%s", describe(files))


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _mapped(pid: str) -> set[tuple[int, int]]:
    """Return device and inode of each file that a process maps or has open; none if it has ended, or is another's."""
    keys = set()
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, _, device, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            major, minor = (int(part, 16) for part in device.split(":"))
            keys.add((os.makedev(major, minor), int(inode)))
    for name in _listed(f"/proc/{pid}/fd"):
        try:
            its = os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        keys.add((its.st_dev, its.st_ino))
    return keys
