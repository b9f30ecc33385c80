"""Which MPI library and which launcher there are, and whether they fit; needs no MPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfb.doctor.finding import Finding, error, ok, warning
from sfb.launch import foreign_launcher, launched

__all__ = ["facts", "family", "first_process", "judge", "judge_alone"]

_TOPIC = "launcher"

# Seconds that a launcher may take to print its version.
_PATIENCE = 5.0

# Programs above a rank in the tree of processes, and what they belong to.
_PROGRAMS = {
    "hydra_pmi_proxy": "MPICH",
    "mpiexec.gforker": "MPICH",
    "pmi_proxy": "MPICH",
    "prted": "Open MPI",
    "prterun": "Open MPI",
    "orted": "Open MPI",
    "orterun": "Open MPI",
    "slurmstepd": "srun",
    "palsd": "PALS",
    "pbs_attach": "PBS",
}
# What a launcher prints for --version, and what it belongs to. Intel MPI's mpirun is Hydra, too.
_VERSIONS = (("Open MPI", r"Open ?MPI|OpenRTE|prte"), ("Intel MPI", r"Intel\(R\) MPI"), ("MPICH", r"HYDRA|MPICH"))
# srun and others start programs of any MPI.
_FAMILIES = {name for name, _ in _VERSIONS}
# Variables in which launchers give each process its number.
_NUMBERS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_PROCID")


def first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the launcher calls this process its first one, or says nothing; needs no MPI.

    Ranks that MPI leaves alone all have the rank 0. One of them speaks for all.
    """
    return next((environment[name] for name in _NUMBERS if environment.get(name, "").isdigit()), "0") == "0"


def family(text: str) -> str | None:
    """Return the MPI that the version of a library or a launcher names.

    >>> from sfb.doctor.launcher import family
    >>> family("HYDRA build details: Version: 5.0.2"), family("mpirun (Open MPI) 5.0.11"), family("ls 9.1")
    ('MPICH', 'Open MPI', None)
    """
    return next((name for name, pattern in _VERSIONS if re.search(pattern, text, re.IGNORECASE)), None)


def facts() -> dict[str, Any]:
    """Return what this process sees of its launcher; loads no MPI."""
    path = shutil.which("mpirun") or shutil.which("mpiexec")
    name, size = launched()
    return {
        "parent": _parent(),
        "variable": name,
        "started": size,
        "mpirun": path,
        "mpirun_family": family(_version(path)) if path else None,
        "beside_python": str(Path(sys.executable).parent / "mpirun"),
        "has_one_beside": (Path(sys.executable).parent / "mpirun").exists(),
        "foreign": foreign_launcher(),
    }


def judge_alone(seen: Mapping[str, Any], problem: str) -> list[Finding]:
    """Return what is to be said where no MPI can be loaded.

    Args:
        seen: What `facts` returned.
        problem: Why MPI cannot be loaded.
    """
    if seen["foreign"]:
        found, _, advice = seen["foreign"].partition("; ")
        return [error(_TOPIC, found, advice)]
    return [
        error(
            "MPI",
            f"no MPI library can be loaded: {problem}",
            "pip install 'sfb-mpi[mpich]' on a machine without one; on a cluster load the site's module of MPI",
        )
    ]


def judge(seen: Mapping[str, Any], version: str, library: str | None, size: int) -> list[Finding]:
    """Return whether the launcher fits the library.

    Args:
        seen: What `facts` returned on rank 0.
        version: What the library says of itself.
        library: The file of the library, None if unknown.
        size: The number of ranks.
    """
    own = family(version)
    said = " ".join(re.split(r"[\n,\0]", version, maxsplit=1)[0].split())
    found = [ok("MPI", f"{said}, {library or 'file not found'}")]
    name, started, by = seen["variable"], seen["started"], seen["parent"]
    use = f"use {seen['beside_python']}" if seen["has_one_beside"] else f"use the mpirun of {own or 'this MPI'}"
    ranks = f"{size} rank{'s' * (size != 1)}"
    if size == 1 and started > 1:
        text = f"the launcher{f', of {by},' * bool(by)} does not fit {own or 'MPI'}: it started {started} processes "
        if by == "srun" or name.startswith("SLURM"):
            use = f"give srun its --mpi=: pmix for Open MPI, mostly pmi2 for MPICH (srun --mpi=list); or {use}"
        return [*found, error(_TOPIC, f"{text}({name}={started}), each of which is rank 0 of 1", use)]
    if size > 1:
        return [*found, ok(_TOPIC, f"{by or 'it'} started {ranks}, which found each other")]
    if by is not None:
        if own and by in _FAMILIES and not _fit(own, by):
            text = f"one rank, started by {by}, the library is of {own}; several ranks would each be alone"
            return [*found, error(_TOPIC, text, use)]
        return [*found, ok(_TOPIC, f"{by} started {ranks}")]
    path, there = seen["mpirun"], seen["mpirun_family"]
    alone = "one rank, started without a launcher"
    if path is None:
        return [*found, warning(_TOPIC, f"{alone}; no mpirun is on PATH", use)]
    if own and there and not _fit(own, there):
        text = f"{alone}; {path}, first on PATH, is of {there}, the library of {own}"
        return [*found, warning(_TOPIC, text, f"{use}; under {path} each rank would be alone")]
    return [*found, ok(_TOPIC, f"{alone}; {path} would start several")]


def _fit(one: str, other: str) -> bool:
    """Return whether a library of one MPI starts under the launcher of another."""
    return one == other or {one, other} == {"MPICH", "Intel MPI"}


def _version(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return ""
    return done.stdout + done.stderr


def _parent() -> str | None:
    """Return the MPI, or the scheduler, whose program started this process, None if none is known."""
    pid = os.getppid()
    for _ in range(20):
        try:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            # comm is cut after 15 letters, and may hold blanks and parentheses.
            known = next((its for program, its in _PROGRAMS.items() if program[:15] == name), None)
            if known or pid <= 1:
                return known
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
    return None
