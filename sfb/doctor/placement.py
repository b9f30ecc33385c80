"""Where ranks lie: hosts, cores and threads; needs no MPI."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from sfb.doctor.finding import Finding, error, ok, ranks, several, warning, worst

__all__ = ["cgroup_value", "facts", "judge"]

_UNBIND = (
    "mpirun -bind-to none (MPICH), --bind-to none (Open MPI) or srun --cpu-bind=none --cpus-per-task=N leaves ranks "
    "more cores"
)


# Processes in the mean of a minute that are more than what any system does by the way.
_BUSY = 0.75


def facts() -> dict[str, Any]:
    """Return the cores that this process may use, and the threads that its libraries take."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return {
        "cores": mine,
        "host_cores": os.cpu_count() or len(mine),
        "quota": _quota(),
        "load": os.getloadavg()[0],
        "numa": _numa(mine),
        "physical": len({_siblings(core) for core in mine}),
        "blas": {
            Path(pool["filepath"]).name: pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"
        },
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.endswith("_NUM_THREADS")},
    }


def judge(seen: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[Finding]:
    """Return how ranks lie on hosts and cores, and whether their threads fit.

    Args:
        seen: What `facts` returned on each rank.
        hosts: The host of each rank.
    """
    of_host: dict[str, list[int]] = defaultdict(list)
    for rank, host in enumerate(hosts):
        of_host[host].append(rank)
    found = [_spread(of_host)]
    for judge_host in (_cores, _loads, _quotas, _domains, _blas):
        found += _together({host: judge_host(host, its, [seen[rank] for rank in its]) for host, its in of_host.items()})
    shown, one = {finding.topic for finding in found}, seen[0]
    if "cores" not in shown:
        text = f"{len(one['cores'])} of {one['host_cores']} for a rank, enough for the ranks of each node"
        if one["physical"] < len(one["cores"]):
            text += f"; they are hardware threads of {one['physical']} core{'s' * (one['physical'] != 1)}"
        found.append(ok("cores", text))
    if "BLAS threads" not in shown:
        each = max(one["blas"].values(), default=1)
        found.append(ok("BLAS threads", f"{each} a rank, no more than there are cores"))
    return found


def _together(of_hosts: Mapping[str, Finding | None]) -> list[Finding]:
    """Return the gravest finding of one check, which also tells on how many other hosts the check has found one."""
    found = {host: finding for host, finding in of_hosts.items() if finding is not None}
    if not found:
        return []
    gravest = worst(found.values())
    host, first = next((host, finding) for host, finding in found.items() if finding.level is gravest)
    others = [name for name in found if name != host]
    if not others:
        return [first]
    many = f"{len(others)} other node{'s' * (len(others) != 1)}"
    return [replace(first, found=f"{first.found}; likewise on {many}: {several(others)}")]


def _spread(of_host: Mapping[str, Sequence[int]]) -> Finding:
    counts = Counter(len(members) for members in of_host.values())
    size = sum(map(len, of_host.values()))
    names = several(of_host)
    if len(of_host) == 1:
        return ok("placement", f"{size} rank{'s' * (size != 1)} on {names}")
    if len(counts) == 1:
        return ok("placement", f"{size} ranks, {next(iter(counts))} on each of {len(of_host)} nodes: {names}")
    said = ", ".join(f"{each} on {number} node{'s' * (number != 1)}" for each, number in sorted(counts.items()))
    few = min(of_host, key=lambda host: len(of_host[host]))
    return warning(
        "placement",
        f"{size} ranks, {said}; {few} has the fewest",
        "the same number of ranks on every node: mpirun -ppn N (MPICH), --map-by ppr:N:node (Open MPI), "
        "srun --ntasks-per-node=N",
    )


def _cores(host: str, members: Sequence[int], seen: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Return a finding if ranks of a host have to share cores."""
    masks = [frozenset(its["cores"]) for its in seen]
    whole = max(its["host_cores"] for its in seen)
    for mask in sorted(set(masks), key=len):
        inside = [rank for rank, its in zip(members, masks, strict=True) if its <= mask]
        if len(inside) <= len(mask):
            continue
        text = f"{host}: {ranks(inside)} share {_cores_text(mask)}"
        if len(mask) < whole:
            return error("cores", f"{text} of {whole}, to which a launcher or scheduler has bound them", _UNBIND)
        return warning(
            "cores",
            f"{text}; they take turns, and a rank that waits may hold up one that computes",
            f"start at most {whole} ranks a node",
        )
    return None


def _cores_text(mask: frozenset[int]) -> str:
    return ranks(mask).replace("rank", "core")


def _loads(host: str, members: Sequence[int], seen: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Return a finding if other processes take cores that the ranks need."""
    load, cores = min(its["load"] for its in seen), max(its["host_cores"] for its in seen)
    if load < _BUSY or load + len(members) < cores + _BUSY:
        return None
    return warning(
        "load",
        f"{host}: {load:.1f} other processes ran in the last minute, on {cores} cores which the ranks need",
        "end what earlier jobs have left (top); do not measure beside other jobs, ask the scheduler for whole nodes",
    )


def _quotas(host: str, members: Sequence[int], seen: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Return a finding if a container has less time of processors than cores."""
    quota = min((its["quota"] for its in seen if its["quota"]), default=None)
    cores = len(frozenset().union(*(its["cores"] for its in seen)))
    if quota is None or quota >= cores:
        return None
    return warning(
        "CPU quota",
        f"{host}: a control group limits the ranks to the time of {quota:g} of {cores} cores, and stops them when it "
        "is used up",
        f"give the container whole cores, --cpuset-cpus in place of --cpus (docker, podman), and start at most "
        f"{max(1, int(quota))} threads in all; export OMP_NUM_THREADS and NUMBA_NUM_THREADS accordingly",
    )


def _domains(host: str, members: Sequence[int], seen: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Return a finding if several ranks may move between the NUMA domains of a host."""
    floating = [rank for rank, its in zip(members, seen, strict=True) if its["numa"] > 1]
    if len(members) == 1 or not floating:
        return None
    return warning(
        "binding",
        f"{host}: {ranks(floating)} may move between {max(its['numa'] for its in seen)} NUMA domains, away from their "
        "memory",
        "bind ranks: -bind-to core:N (MPICH), --bind-to core (Open MPI), srun --cpu-bind=cores",
    )


def _blas(host: str, members: Sequence[int], seen: Sequence[Mapping[str, Any]]) -> Finding | None:
    """Return a finding if the BLAS threads of the ranks of a host outnumber its cores."""
    threads = [max(its["blas"].values(), default=1) for its in seen]
    cores = len(frozenset().union(*(its["cores"] for its in seen)))
    # Ranks that outnumber cores are another finding.
    if sum(threads) <= max(cores, len(members)):
        return None
    share = max(1, cores // len(members))
    return warning(
        "BLAS threads",
        f"{host}: {len(members)} ranks of {max(threads)} BLAS threads have {cores} cores; sfb's own commands hold BLAS "
        "to a rank's share, scripts do not",
        f"export OPENBLAS_NUM_THREADS={share} OMP_NUM_THREADS={share} MKL_NUM_THREADS={share} before mpirun",
    )


def cgroup_value(new: str, controller: str, old: str, root: Path = Path("/")) -> str | None:
    """Return the text of a file of this process's control group, from the nearest group that has it.

    Args:
        new: The name of the file in version 2.
        controller: The controller in version 1.
        old: The name of the file in version 1.
        root: The root of the file system.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, name = root / "sys/fs/cgroup", new
            elif controller in controllers.split(","):
                top, name = root / "sys/fs/cgroup" / controller, old
            else:
                continue
            # A container sees its own group as the root of the hierarchy.
            groups = [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]
            for group in groups:
                with suppress(OSError):
                    return (top / group / name).read_text().strip()
    return None


def _quota() -> float | None:
    """Return the number of cores of whose time a control group leaves this process its share; None for all."""
    with suppress(ValueError, AttributeError, ZeroDivisionError):
        text = cgroup_value("cpu.max", "cpu", "cpu.cfs_quota_us") or ""
        quota, _, period = text.partition(" ")
        period = period or cgroup_value("cpu.max", "cpu", "cpu.cfs_period_us") or ""
        if float(quota) > 0:
            return float(quota) / float(period)
    return None


def _numa(cores: Sequence[int]) -> int:
    """Return the number of NUMA domains that hold these cores; 1 where that is unknown."""
    names = {path.name for core in cores for path in Path(f"/sys/devices/system/cpu/cpu{core}").glob("node[0-9]*")}
    return max(1, len(names))


def _siblings(core: int) -> str:
    """Return the hardware threads of the core that one of them belongs to, as the kernel lists them."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(core)
