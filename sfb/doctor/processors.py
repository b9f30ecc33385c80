"""Whether all nodes have the same kind of processor; needs no MPI."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfb.doctor.finding import Finding, ok, several, warning

__all__ = ["facts", "judge"]

_TOPIC = "processors"

# Instruction sets that decide how fast kernels are, from the narrowest: x86, then Arm.
_SETS = ("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx512_bf16", "amx_tile", "asimd", "sve", "sve2")


def facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Return the model and the instruction sets of this host's processors."""
    lines: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            lines[name.strip()] = value.strip()
    except OSError:
        pass
    arm = " ".join(f"{lines[key]}" for key in ("CPU implementer", "CPU part") if key in lines)
    flags = set(lines.get("flags", lines.get("Features", "")).split())
    return {
        "machine": platform.machine(),
        "model": lines.get("model name") or arm or platform.processor() or "unknown",
        "sets": [name for name in _SETS if name in flags],
    }


def judge(seen: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[Finding]:
    """Return whether processors are equal.

    Args:
        seen: What `facts` returned on each rank.
        hosts: The host of each rank.
    """
    kinds: dict[tuple[str, str, tuple[str, ...]], dict[str, None]] = defaultdict(dict)
    for its, host in zip(seen, hosts, strict=True):
        kinds[its["machine"], its["model"], tuple(its["sets"])][host] = None
    if len(kinds) == 1:
        _, model, sets = next(iter(kinds))
        widest = sets[-1] if sets else "no vectors known"
        nodes = "all nodes have " if len(set(hosts)) > 1 else ""
        return [ok(_TOPIC, f"{nodes}{model}, up to {widest}")]
    said = "; ".join(f"{several(names)}: {model}" for (_, model, _), names in kinds.items())
    common = set.intersection(*(set(sets) for _, _, sets in kinds))
    lacking = {
        name: several(names)
        for (_, _, sets), names in kinds.items()
        for name in _SETS
        if name not in sets and name not in common and any(name in other for _, _, other in kinds)
    }
    sets_said = "".join(f"; {names} without {name}" for name, names in lacking.items())
    return [
        warning(
            _TOPIC,
            f"{len(kinds)} kinds, {said}{sets_said}",
            "ask the scheduler for nodes of one kind (srun --constraint=); the results of sfb are the same, but all "
            "ranks wait for the slowest, and other libraries may compute other bits; sfb warmup on all ranks compiles "
            "for each kind",
        )
    ]
