"""The memory that ranks of a node can share; needs no MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sfb.doctor.finding import Finding, error, ok, several, warning
from sfb.doctor.placement import cgroup_value
from sfb.runtime import shm

__all__ = ["NEEDED", "facts", "judge"]

_TOPIC = "/dev/shm"

# The matrices of the quickstart, with the momentum of SGD, and what MPI and sfb need beside them.
NEEDED = 192 << 20
# Room for a few matrices of 4096×4096.
_AMPLE = 1 << 30
# What containers get unless told otherwise.
_CONTAINER = 64 << 20

_LARGER = (
    "start the container with --shm-size=4g or --ipc=host (docker, podman), or with a memory medium mounted at "
    "/dev/shm (Kubernetes); on a host: mount -o remount,size=50% /dev/shm"
)


def facts(folder: str = "/dev/shm") -> dict[str, Any]:
    """Return the size and the room of the folder of shared memory, and the memory that this process may use."""
    seen: dict[str, Any] = {"memory": _memory()}
    try:
        there = os.statvfs(folder)
        seen |= {
            "size": there.f_blocks * there.f_frsize,
            "free": there.f_bavail * there.f_frsize,
            "files": len(os.listdir(folder)),
            "writable": os.access(folder, os.W_OK | os.X_OK),
            "left": shm.leftovers(folder),
        }
    except OSError as problem:
        seen["problem"] = str(problem)
    return seen


def judge(seen: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[Finding]:
    """Return whether the ranks of each node can share enough memory.

    Args:
        seen: What `facts` returned on each rank.
        hosts: The host of each rank.
    """
    first = {host: seen[hosts.index(host)] for host in hosts}
    groups: dict[Finding, list[str]] = {}
    for host, its in first.items():
        for finding in (_of_host(its, hosts.count(host)), *_left(its)):
            groups.setdefault(finding, []).append(host)
    return [replace(finding, found=f"{several(names)}: {finding.found}") for finding, names in groups.items()]


def _of_host(its: Mapping[str, Any], members: int) -> Finding:
    # A rank that is alone on its node shares nothing.
    fails = error if members > 1 else warning
    if "problem" in its:
        return fails(_TOPIC, f"{its['problem']}; ranks of a node cannot share memory", _LARGER)
    if not its["writable"]:
        return fails(_TOPIC, "cannot be written; ranks of a node cannot share memory", "chmod 1777 /dev/shm")
    if its["size"] == 0:  # the kernel states no limit
        return ok(_TOPIC, "no limit")
    found = f"{_mib(its['free'])} left of {_mib(its['size'])}"
    if its["free"] >= _AMPLE or its["free"] >= its["memory"] / 4:
        return ok(_TOPIC, found)
    advice = _LARGER
    if its["size"] <= _CONTAINER:
        found += ", what a container gets unless told otherwise"
    elif its["size"] >= _AMPLE:
        found += f", {its['files']} files take the rest"
        advice = "remove what ended jobs have left: ls -l /dev/shm; " + advice
    found += "; Comm.shared, the exchanges within a node and MPI's own messages lie there"
    if its["free"] < NEEDED:
        found += f"; several ranks a node need {_mib(NEEDED)} for the quickstart alone"
        return fails(_TOPIC, found, advice)
    return warning(_TOPIC, found, advice)


def _left(its: Mapping[str, Any]) -> list[Finding]:
    """Return that files of jobs that were killed are left, if any are."""
    files = its.get("left")
    if not files:
        return []
    several = "s" * (len(files) > 1)
    found = f"{len(files)} file{several} of jobs that were killed take {_mib(sum(files.values()))}"
    return [warning(_TOPIC, found, f"unless a container uses them: rm {' '.join(files)}")]


def _mib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.0f} MiB"


def _memory() -> int:
    """Return the bytes of memory that this process may use: the host's, or its control group's."""
    try:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
    limit = cgroup_value("memory.max", "memory", "memory.limit_in_bytes") or ""
    return min(host, int(limit)) if limit.isdigit() and int(limit) > 0 else host
