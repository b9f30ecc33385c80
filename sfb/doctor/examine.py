"""All checks, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from mpi4py import MPI

from sfb.doctor import allreduce, caches, clocks, intranode, launcher, local, network, pairs
from sfb.doctor.finding import Finding, warning
from sfb.doctor.report import Report
from sfb.environment import mpi_library, slow_blas
from sfb.runtime.threads import limit_process
from sfb.tuning.calibrate import identity_of

__all__ = ["Nodes", "examine"]

# Parts of the time that is left which rates between nodes, and Allreduce, may take.
_FOR_CLOCKS, _FOR_PAIRS, _FOR_ALLREDUCE = 0.1, 0.45, 0.6


class Nodes:
    """The nodes of the ranks; collective.

    Args:
        world: The ranks.

    Attributes:
        node: The ranks that share memory with this one.
        leaders: The first ranks of all nodes; COMM_NULL on other ranks.
        node_of: The number of the node of each rank.
        names: The name of each node: its host, and its first rank where a host has several.
    """

    def __init__(self, world: MPI.Intracomm) -> None:
        self.node = MPI.Intracomm(world.Split_type(MPI.COMM_TYPE_SHARED, world.rank))
        self.leaders = MPI.Intracomm(world.Split(0 if self.node.rank == 0 else MPI.UNDEFINED, world.rank))
        firsts = world.allgather((self.node.bcast(world.rank), MPI.Get_processor_name()))
        numbers = {first: number for number, first in enumerate(sorted({first for first, _ in firsts}))}
        self.node_of = [numbers[first] for first, _ in firsts]
        hosts = [firsts[first][1] for first in numbers]
        self.names = [
            host if hosts.count(host) == 1 else f"{host} (rank {first})"
            for host, first in zip(hosts, numbers, strict=True)
        ]

    def free(self) -> None:
        """Free the communicators; collective."""
        self.node.Free()
        if self.leaders != MPI.COMM_NULL:
            self.leaders.Free()


def examine(
    world: MPI.Intracomm,
    report: Report,
    seen: Mapping[str, Any],
    launch: Mapping[str, Any] | None,
    end: float,
    phase: Callable[[str], None],
) -> None:
    """Make all checks that need working messages; collective.

    Args:
        world: The ranks.
        report: Takes the findings, on rank 0.
        seen: What `sfb.doctor.local.facts` returned.
        launch: What `sfb.doctor.launcher.facts` returned; None on other ranks than the launcher's first.
        end: When to be done, by `time.monotonic`.
        phase: Takes what this rank does from now on.
    """
    phase("what each rank sees")
    threads = limit_process(world)
    nodes = Nodes(world)
    everything = world.gather((MPI.Get_processor_name(), seen, nodes.node.size, intranode.measure(nodes.node)))
    if everything is not None:
        hosts, facts, sharing, read = ([its[i] for its in everything] for i in range(4))
        version, library = MPI.Get_library_version(), mpi_library()
        report.add(launcher.judge(launch or launcher.facts(), version, library, world.size))
        report.add([*local.judge(*facts, hosts=hosts, threads=threads), *_slow_blas(report.environment)])
        built = intranode.built_with(version, library)
        report.add(intranode.judge([its["intranode"] for its in facts], hosts, read, built, sharing))
    phase("caches")
    own = _caches(world, nodes, threads, report)
    link = _network(world, nodes, report, end, phase)
    phase("Allreduce")
    if world.size > 1:
        seconds = world.bcast((end - monotonic()) * _FOR_ALLREDUCE)
        measured = allreduce.measure(world, nodes.node, len(nodes.names), link, seconds, own=own)
        report.measured["allreduce"] = measured
        if world.rank == 0:
            report.add(allreduce.judge(measured, world.size, "" if own else "the kernels are not compiled, sfb warmup"))
    nodes.free()


def _slow_blas(environment: dict[str, Any]) -> list[Finding]:
    text = slow_blas(environment)
    return [] if text is None else [warning("BLAS", *text.split("; ", 1))]


def _caches(world: MPI.Intracomm, nodes: Nodes, threads: int, report: Report) -> bool:
    """Look at caches and profile, and return whether the kernels are compiled on all nodes; collective."""
    who = identity_of(world, nodes.node_of, threads)
    own = True
    if nodes.leaders != MPI.COMM_NULL:
        mine = caches.facts()
        made = caches.token(mine["numba"]) if nodes.leaders.rank == 0 else None
        name = nodes.leaders.bcast(made and made.name.rpartition("/")[2])
        shared = None if name is None else caches.sees(mine["numba"], name)
        all_seen = nodes.leaders.gather((mine, shared))
        if made is not None:
            made.close()
        own = mine["compiled"]
        if all_seen is not None:
            report.add(caches.judge(nodes.names, [its for its, _ in all_seen], [its for _, its in all_seen]))
            report.add([caches.judge_profile(caches.profile_facts(who))])
    return bool(world.allreduce(int(own), MPI.MIN))


def _network(world: MPI.Intracomm, nodes: Nodes, report: Report, end: float, phase: Callable[[str], None]) -> float:
    """Look at clocks and links, and return the rate of the slowest node's link, on rank 0; collective."""
    leaders, names = nodes.leaders, nodes.names
    if leaders == MPI.COMM_NULL:
        return 0.0
    phase("clocks")
    left = leaders.bcast(end - monotonic())
    offsets = clocks.measure(leaders, left * _FOR_CLOCKS)
    if leaders.rank == 0:
        report.measured["clocks"] = dict(zip(names, offsets, strict=False))
        report.add(clocks.judge(names, offsets, world.size))
    if leaders.size == 1:
        return 0.0
    phase("rates between pairs of nodes")
    before = network.counters()
    measured = pairs.measure(leaders, left * _FOR_PAIRS)
    moved = leaders.scatter(measured.get("moved"))
    seen = leaders.gather((network.facts(), network.carrier(before, network.counters(), moved)))
    if seen is None:
        return 0.0
    best = pairs.best_of_nodes(measured["rates"])
    report.measured["pairs"] = {"nodes": names, **measured}
    report.add(pairs.judge(names, measured, [network.stated_rate(its, by) for its, by in seen]))
    report.add(network.judge(names, [its for its, _ in seen], [by for _, by in seen]))
    return min((rate for rate in best if rate > 0), default=math.inf)
