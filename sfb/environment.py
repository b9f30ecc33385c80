"""Software and hardware of a run, for `sfb info`, benchmark headers and JSON."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

from mpi4py import MPI
from threadpoolctl import threadpool_info

from sfb._version import __version__
from sfb.runtime.threads import affinity, cores, same_host

__all__ = ["apart", "describe", "header", "mpi_library", "slow_blas"]

_PACKAGES = ("mpi4py", "numpy", "numba", "scipy")


def mpi_library() -> str | None:
    """Return the path of the MPI library that this process has loaded, or None where /proc does not show it."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[5] for line in lines if line.count("/") and "/libmpi" in line}
    return min(paths, key=lambda path: (len(Path(path).name), path), default=None)


def describe(comm: MPI.Intracomm) -> dict[str, Any]:
    """Return versions, MPI, hosts, ranks, cores, threads and BLAS as a JSON object; collective."""
    node = MPI.Intracomm(comm.Split_type(MPI.COMM_TYPE_SHARED))
    sharing = comm.allreduce(node.size, MPI.MAX)
    node.Free()
    hosts = Counter(comm.allgather(MPI.Get_processor_name()))
    host = same_host(comm)
    available = cores(host)
    host.Free()
    blas = [
        {
            "library": Path(pool["filepath"]).name,
            "version": pool["version"],
            "threads": pool["num_threads"],
            "architecture": pool.get("architecture"),
        }
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return {
        "sfb": __version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "mpi": " ".join(re.split(r"[\n,\0]", MPI.Get_library_version(), maxsplit=1)[0].split()),
        "mpi_standard": ".".join(map(str, MPI.Get_version())),
        "mpi_library": mpi_library(),
        "machine": f"{platform.system()} {platform.machine()}",
        "hosts": sorted(hosts),
        "ranks": comm.size,
        "ranks_per_node": max(hosts.values()),
        "ranks_sharing_memory": sharing,
        "cores_per_node": available,
        "cores_per_rank": len(affinity()),
        "blas": blas,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.endswith("_NUM_THREADS") or name.startswith(("SFB_", "NUMBA_", "OPENBLAS_"))
        },
    }


def apart(environment: dict[str, Any]) -> str | None:
    """Return a warning if the ranks of a host cannot share memory, else None."""
    together, sharing = environment["ranks_per_node"], environment["ranks_sharing_memory"]
    if sharing >= together:
        return None
    return (
        f"of {together} ranks on a host at most {sharing} share memory, so sfb finds several nodes there, keeps more "
        "copies of arrays and sends messages; MPIR_CVAR_NOLOCAL, OMPI_MCA_btl without sm, and containers that do "
        "not share /dev/shm keep ranks apart"
    )


def _version(package: str) -> str:
    """Return the version of a package, which may have come without its metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", "unknown"))


def slow_blas(environment: dict[str, Any]) -> str | None:
    """Return a warning if OpenBLAS uses AVX2 kernels on a processor with AVX-512, else None."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return None
    narrow = [b["library"] for b in environment["blas"] if b["architecture"] in ("Haswell", "Zen")]
    if not narrow or not all(f" avx512{part}" in flags for part in ("f", "cd", "bw", "dq", "vl")):
        return None
    return (
        f"{narrow[0]} uses AVX2 though this processor has AVX-512; OPENBLAS_CORETYPE=SkylakeX may double the rate of "
        "products"
    )


def header(environment: dict[str, Any]) -> list[str]:
    """Return the lines that show an environment, `describe`, above a benchmark or a run."""
    e = environment
    shown = ", ".join(e["hosts"][:4]) + (", …" if len(e["hosts"]) > 4 else "")
    threads = ", ".join(
        f"{b['library']} ({b['architecture']}) {b['threads']} thread{'s' * (b['threads'] != 1)}" for b in e["blas"]
    )
    packages = ", ".join(f"{package} {e[package]}" for package in _PACKAGES)
    lines = [
        f"sfb {e['sfb']}, Python {e['python']}, {packages}",
        f"{e['mpi']} (MPI {e['mpi_standard']}), {e['mpi_library'] or 'library not found'}",
        f"{e['ranks']} rank{'s' * (e['ranks'] != 1)}, up to {e['ranks_per_node']} per node, "
        f"{e['cores_per_node']} cores per node; hosts: {shown}",
        f"BLAS: {threads or 'none found'}",
    ]
    if e["ranks_per_node"] > e["cores_per_node"]:
        lines.append(
            f"note: {e['ranks_per_node']} ranks share {e['cores_per_node']} cores; "
            "times include computation that the ranks do one after the other"
        )
    return lines
