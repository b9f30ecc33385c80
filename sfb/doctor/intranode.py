"""How messages pass between ranks of a node: by one copy (XPMEM, CMA, KNEM), or by two through shared memory.

`process_vm_readv` reads another process's memory, as cross memory attach (CMA) does.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfb.doctor.finding import Finding, error, ok, several, warning

__all__ = ["built_with", "facts", "judge", "measure", "read"]

_TOPIC = "within nodes"
_PATIENCE = 5.0
_WORDS = ("xpmem", "cma", "knem")
_WORD = 0x5FB0C70125ABCDEF  # what ranks read in each other's memory


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return the devices and settings by which a process may read another's memory."""
    try:
        scope: int | None = int((root / "proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        scope = None
    return {
        **{name: os.access(root / "dev" / name, os.R_OK | os.W_OK) for name in ("xpmem", "knem")},
        "ptrace_scope": scope,
    }


def built_with(version: str, library: str | None) -> list[str] | None:
    """Return the names among xpmem, cma and knem that MPI says it was built with; None if it does not say.

    MPICH names them in the options that its version lists. Of Open MPI ``ompi_info`` beside the library lists
    components.

    Args:
        version: What the library says of itself.
        library: The file of the library.
    """
    if "Open MPI" in version:
        beside = [str(Path(library).parent.parent / "bin" / "ompi_info")] if library else []
        program = next((path for path in beside if os.access(path, os.X_OK)), shutil.which("ompi_info"))
        if program is None:
            return None
        try:
            listed = subprocess.run(
                [program, "--parsable"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE
            ).stdout
        except (OSError, subprocess.TimeoutExpired, ValueError):
            return None
        components = set(re.findall(r"^mca:(?:smsc|btl):(\w+):", listed, re.MULTILINE))
        return [name for name in _WORDS if name in components] if components else None
    options = re.search(r"configure:(.*)", version, re.IGNORECASE)
    if options is None:
        return None
    return [name for name in _WORDS if re.search(rf"--with-{name}(?!=no)|--enable-{name}(?!=no)", options[1])]


def read(pid: int, address: int) -> int:
    """Read 8 bytes in the memory of another process; return 0 if they are the expected ones, else an errno, or -1.

    Args:
        pid: The process.
        address: Where it keeps `_WORD`.
    """

    class Part(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    word = ctypes.c_uint64()
    mine, theirs = Part(ctypes.addressof(word), 8), Part(address, 8)
    try:
        call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    except AttributeError:  # not Linux
        return -1
    call.restype, one, none = ctypes.c_ssize_t, ctypes.c_ulong(1), ctypes.c_ulong(0)
    done = call(ctypes.c_int(pid), ctypes.byref(mine), one, ctypes.byref(theirs), one, none)
    if done < 0:
        return ctypes.get_errno()
    return 0 if done == 8 and word.value == _WORD else -1


def measure(node: Any) -> int | None:
    """Let each rank of a node read the memory of the first by `process_vm_readv`; collective.

    Args:
        node: The communicator of the ranks that share memory.

    Returns:
        What `read` returned; None on the first rank.
    """
    word = np.array([_WORD], np.uint64)
    pid, address = node.bcast((os.getpid(), word.ctypes.data))
    result = None if node.rank == 0 else read(pid, address)
    node.Barrier()  # the first rank keeps its array until all have read it
    return result


def judge(
    seen: Sequence[Mapping[str, Any]],
    hosts: Sequence[str],
    results: Sequence[int | None],
    built: Sequence[str] | None,
    sharing: Sequence[int],
) -> list[Finding]:
    """Return by what ranks of a node reach each other's memory.

    Args:
        seen: What `facts` returned on each rank.
        hosts: The host of each rank.
        results: What `measure` returned on each rank.
        built: What `built_with` returned on rank 0.
        sharing: The number of ranks that share memory with each rank, itself included.
    """
    names = dict.fromkeys(hosts)
    apart = dict.fromkeys(h for h, n in zip(hosts, sharing, strict=True) if n < hosts.count(h))
    if apart:
        return [
            error(
                _TOPIC,
                f"{several(apart)}: MPI keeps ranks of a host apart, so sfb finds several nodes there, keeps more "
                "copies of arrays and sends messages",
                "unset MPIR_CVAR_NOLOCAL, let OMPI_MCA_btl hold sm, and start containers with --ipc=host",
            )
        ]
    if len(names) == len(hosts):
        return [ok(_TOPIC, "one rank a node")]
    said = "MPI does not say which of them it uses" if built is None else f"MPI was built with {_and(built)}"
    way = [name for name in ("xpmem", "knem") if all(its[name] for its in seen)]
    failed = {host: code for host, code in zip(hosts, results, strict=True) if code}
    tried = any(code is not None for code in results)
    if tried and not failed:
        way.insert(0, "CMA")
    if way:
        return [ok(_TOPIC, f"ranks can read each other's memory by {' and '.join(way)}; {said}")]
    code = next(iter(failed.values()), -1)
    why = os.strerror(code) if code > 0 else "it reads something else"
    scopes = {its["ptrace_scope"] for its in seen if its["ptrace_scope"]}
    advice = "--cap-add=SYS_PTRACE lets a container do so (docker, podman)"
    if scopes:
        why += f", kernel.yama.ptrace_scope is {max(scopes)}"
        advice = f"sysctl kernel.yama.ptrace_scope=0 on the nodes; {advice}"
    return [
        warning(
            _TOPIC,
            f"{several(failed)}: ranks cannot read each other's memory ({why}; no /dev/xpmem or /dev/knem), so MPI "
            f"copies large messages twice; {said}; sfb's exchanges within a node do not depend on it",
            advice,
        )
    ]


def _and(names: Sequence[str]) -> str:
    return " and ".join(names) if names else "none of xpmem, cma and knem by name"
