"""What a process sees of its node, and of what started it; needs no MPI."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

from sfb.doctor import intranode, memory, placement, processors, scheduler
from sfb.doctor.finding import Finding

__all__ = ["facts", "judge"]


def facts() -> dict[str, Any]:
    """Return what this process sees, by topic; before anything limits its threads."""
    return {
        "host": platform.node(),
        "scheduler": scheduler.facts(),
        "placement": placement.facts(),
        "processors": processors.facts(),
        "memory": memory.facts(),
        "intranode": intranode.facts(),
    }


def judge(*seen: Mapping[str, Any], hosts: Sequence[str] = (), threads: int | None = None) -> list[Finding]:
    """Return what is to be said of the nodes.

    Args:
        seen: What `facts` returned on each rank.
        hosts: The host of each rank by MPI; by its operating system if empty.
        threads: The threads that a rank of sfb takes; None where MPI does not tell.
    """
    hosts = hosts or [its["host"] for its in seen]
    of = {topic: [its[topic] for its in seen] for topic in seen[0]}
    cores = [len(its["cores"]) for its in of["placement"]]
    granted = [] if threads is None else scheduler.judge(of["scheduler"][0], hosts, cores, threads)
    return [
        *granted,
        *placement.judge(of["placement"], hosts),
        *processors.judge(of["processors"], hosts),
        *memory.judge(of["memory"], hosts),
    ]
