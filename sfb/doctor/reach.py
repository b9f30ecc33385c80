"""Whether messages arrive at all: no rank waits longer than a given time, so that silence has a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.doctor.finding import Finding, error, ok, ranks, several

__all__ = ["Reach", "judge", "reach"]

_HELLO, _ANSWER, _PAIR, _SILENT, _VERDICT = range(5)

# Nodes up to which every pair exchanges a message; of more nodes those at distances 1, 2, 4, … do.
_ALL_PAIRS = 128
_PAUSE = 1e-3


@dataclass
class Reach:
    """Who has heard from whom.

    Attributes:
        hosts: The host of each rank, "" for a silent one; empty on other ranks than 0.
        silent: Ranks that rank 0 has not heard from; [0] on a rank that has not heard from rank 0.
        broken: Pairs of ranks on different hosts one of which has not heard from the other.
    """

    hosts: list[str] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    broken: list[tuple[int, int]] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether all have heard from each other."""
        return not self.silent and not self.broken


def reach(world: MPI.Intracomm, seconds: float) -> Reach:
    """Let each rank send a message to rank 0 and back, and each host's first rank one to those of the other hosts.

    Messages are between two ranks each. If some do not arrive, requests stay pending: end the job by `MPI.Comm.Abort`.

    Args:
        world: The ranks.
        seconds: The time that each of the two parts may take.

    Returns:
        What rank 0 knows, on rank 0; on other ranks whether all is well.
    """
    host = MPI.Get_processor_name()
    if world.rank > 0:
        return _answer(world, host, seconds)
    found = Reach(hosts=["" for _ in range(world.size)])
    found.hosts[0] = host
    heard = _collect(world, _HELLO, range(1, world.size), seconds)
    for rank, its in heard.items():
        found.hosts[rank] = its
    found.silent = [rank for rank in range(1, world.size) if rank not in heard]
    leaders = [] if found.silent else [found.hosts.index(its) for its in dict.fromkeys(found.hosts)]
    _tell(world, _ANSWER, (leaders, bool(found.silent)), heard)
    if found.silent or len(leaders) == 1:
        return found
    missing = {0: _pairs(world, leaders, seconds)}
    heard = _collect(world, _SILENT, leaders[1:], 2 * seconds)
    missing |= heard
    found.silent = [rank for rank in leaders[1:] if rank not in heard]
    found.broken = sorted({(min(a, b), max(a, b)) for a, peers in missing.items() for b in peers})
    _tell(world, _VERDICT, found.whole, range(1, world.size))
    return found


def _answer(world: MPI.Intracomm, host: str, seconds: float) -> Reach:
    """Take part on another rank than 0."""
    sent = [world.isend(host, 0, _HELLO)]
    mute = Reach(silent=[0])
    heard = _collect(world, _ANSWER, [0], 2 * seconds)
    if not heard:
        return mute
    leaders, broken = heard[0]
    if broken:
        return Reach(silent=[-1])
    if len(leaders) == 1:
        return Reach()
    if world.rank in leaders:
        sent.append(world.isend(_pairs(world, leaders, seconds), 0, _SILENT))
    heard = _collect(world, _VERDICT, [0], 4 * seconds)
    if not heard:
        return mute
    if heard[0]:
        MPI.Request.waitall(sent)
    return Reach() if heard[0] else Reach(broken=[(-1, -1)])


def _pairs(world: MPI.Intracomm, leaders: Sequence[int], seconds: float) -> list[int]:
    """Exchange a byte with other leaders, and return those that none came from."""
    n, me = len(leaders), leaders.index(world.rank)
    steps = (
        range(1, n) if n <= _ALL_PAIRS else {s for k in range(n.bit_length()) for s in (1 << k, n - (1 << k)) if s < n}
    )
    peers = sorted({leaders[(me + step) % n] for step in steps} - {world.rank})
    received = np.zeros(len(peers), np.uint8)
    wanted = [world.Irecv(received[i : i + 1], peer, _PAIR) for i, peer in enumerate(peers)]
    sent = [world.Isend(np.ones(1, np.uint8), peer, _PAIR) for peer in peers]
    _until(lambda: all(request.Test() for request in wanted), seconds)
    silent = [peer for peer, request in zip(peers, wanted, strict=True) if not request.Test()]
    if not silent:
        MPI.Request.Waitall(sent)
    return silent


def _collect(world: MPI.Intracomm, tag: int, sources: Sequence[int] | range, seconds: float) -> dict[int, Any]:
    """Return an object from each of the sources, without those from which none comes in time."""
    found: dict[int, Any] = {}
    status = MPI.Status()

    def all_here() -> bool:
        while (message := world.improbe(MPI.ANY_SOURCE, tag, status)) is not None:
            found[status.Get_source()] = message.recv()
        return len(found) == len(sources)

    _until(all_here, seconds)
    return found


def _tell(world: MPI.Intracomm, tag: int, value: Any, to: Any) -> None:
    for request in [world.isend(value, rank, tag) for rank in to]:
        _until(lambda: bool(request.test()[0]), 1.0)  # noqa: B023


def _until(done: Callable[[], bool], seconds: float) -> None:
    """Look until something is done, or ``seconds`` have passed."""
    end = monotonic() + seconds
    while not done() and monotonic() < end:
        sleep(_PAUSE)


def judge(found: Reach, seconds: float) -> list[Finding]:
    """Return who does not answer.

    Args:
        found: What rank 0 knows.
        seconds: How long it has waited.
    """
    topic = "messages"
    where = {rank: host or "unknown host" for rank, host in enumerate(found.hosts)}
    advice = (
        "let TCP pass between the nodes on all ports, and name the interface that joins them: -iface, FI_TCP_IFACE or "
        "UCX_NET_DEVICES (MPICH), --mca btl_tcp_if_include (Open MPI), docs/multinode.md"
    )
    findings = []
    if found.silent:
        text = f"rank 0 on {where.get(0, '?')} has heard nothing from {ranks(found.silent)} in {seconds:g} s"
        findings.append(error(topic, text, advice))
    if found.broken:
        pairs = several(f"{where.get(a, '?')} (rank {a}) and {where.get(b, '?')} (rank {b})" for a, b in found.broken)
        findings.append(error(topic, f"no messages within {seconds:g} s between {pairs}", advice))
    if not findings:
        hosts = len(set(found.hosts))
        among = f", and the {hosts} nodes each other" if hosts > 1 else ""
        findings.append(ok(topic, f"all ranks reach rank 0{among}"))
    return findings
