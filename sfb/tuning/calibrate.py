"""Measuring a profile on the ranks it is for, and finding one that was measured before."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb._version import __version__
from sfb.arrays.dispatch import Arrays
from sfb.collectives import ALGORITHMS, Problem
from sfb.collectives.call import Call
from sfb.factors import Factors
from sfb.runtime.agreement import on_all_ranks
from sfb.runtime.team import Team
from sfb.tuning.profile import LARGE, SMALL, Profile, ProfileError
from sfb.units import format_rate, format_size, microseconds

if TYPE_CHECKING:
    from sfb.comm import Comm

__all__ = ["cache_file", "describe", "find_profile", "first_profile", "identity", "measure", "tune"]

# Seconds that the first choice of an algorithm may measure for.
_FIRST_USE = 0.25
_DEPTHS = (1, 4, 16, 64, 256)
# Bytes up to which every collective is measured, however long it takes.
_FIRST_SIZES = 1 << 17
_SIZES = tuple(1 << bits for bits in (8, 12, 15, 17, 20, 22, 24, 26))
# Rows of the matrices that work is measured on, of SMALL and of LARGE elements, and their columns: as many for both,
# since of deep products it is these that decide whether v stays in cache.
_ROWS, _COLUMNS = {"small": SMALL // 1000, "large": LARGE // 1000}, 1000
# From this depth, work is bound by arithmetic, and a part of the large matrix will do.
_DEEP = 64
# How often an exchange of next to nothing is timed.
_EMPTY = 15
# Bytes that ranks gather before collectives are timed: what a network takes at once, before its rate counts.
_FLOOD = 1 << 18
_log = logging.getLogger("sfb")
_measured: dict[str, str] = {}  # in this process, by identity


def find_profile(team: Team, given: Profile | None) -> Profile | None:
    """Return the profile given, or that of SFB_PROFILE or the user's cache, or None; collective.

    Raises:
        ProfileError: The file of SFB_PROFILE is no profile; raised on every rank.
    """
    who = identity(team)
    text: str | None = None
    with on_all_ranks(team.world, "Comm"):
        if team.rank == 0:
            text = _find(given, who)
    text = team.world.bcast(text)
    return None if text is None else Profile.from_json(text)


def first_profile(team: Team) -> Profile:
    """Measure a profile, and keep it for this process; collective."""
    profile = measure(team, _FIRST_USE)
    who = identity(team)
    if team.rank == 0:
        _measured[_key(who)] = profile.to_json()
    return profile


def identity(team: Team) -> dict[str, Any]:
    """Return what a profile depends on; collective."""
    hosts = team.world.allgather(MPI.Get_processor_name())
    by_node = np.bincount(team.node_of).tolist()
    return {
        "hosts": sorted(set(hosts)),
        "ranks_per_node": by_node,
        "mpi": MPI.Get_library_version().split("\n")[0].split(",")[0].strip().rstrip("\0"),
        "threads": team.threads,
        "sfb": __version__,
    }


def cache_file(who: Mapping[str, Any]) -> Path:
    """Return where the profile of ranks with this identity is kept for the user."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("sfb")) / f"profile-{_key(who)}.json"


def _key(who: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(who, sort_keys=True).encode(), digest_size=8).hexdigest()


def _find(given: Profile | None, who: dict[str, Any]) -> str | None:
    named = os.environ.get("SFB_PROFILE")
    if given is not None:
        profile, name = given, "the profile"
    elif named:
        profile, name = Profile.load(named), named
    elif (text := _measured.get(_key(who))) is not None:
        return text
    else:
        path = cache_file(who)
        if not path.is_file():
            return None
        try:
            return Profile.load(path).to_json()
        except ProfileError as error:
            _log.warning("ignoring a damaged profile: %s; measure it again with sfb tune", error)
            return None
    foreign = [key for key, value in who.items() if profile.identity and profile.identity.get(key) != value]
    if foreign:
        said = "; ".join(f"{key} {profile.identity.get(key)}, here {who[key]}" for key in foreign)
        _log.warning("%s was measured elsewhere (%s); sfb tune measures here", name, said)
    return profile.to_json()


def tune(comm: Comm, seconds: float) -> Profile:
    """Measure a profile of the ranks of ``comm`` in about ``seconds``, whatever is known already; collective."""
    return measure(comm._team, seconds)


def measure(team: Team, seconds: float) -> Profile:
    """Measure a profile on the ranks of ``team`` in about ``seconds``; collective."""
    with on_all_ranks(team.world, "Comm"):
        team.load_kernels()
    began = perf_counter()

    def left() -> float:
        return team.world.bcast(seconds - (perf_counter() - began))

    place = Problem((1, 1), np.dtype("f4"), np.ones(team.size, np.int64), team.node_of, 1, team.sharing).place
    tables: dict[str, list[tuple[float, float]]] = {}
    source, target = np.ones((2, LARGE // 2), np.float32)
    memory_rate = 2 * source.nbytes / _time(team, lambda: np.copyto(target, source), 1, inner=1) * team.sharing
    probe = Team(team.world, team.node)  # calls may be under way on the other
    if place.ranks_per_node > 1:
        tables["sync"] = [(0.0, _sync(probe))]
    candidates = _exchanges(team, probe)
    if seconds <= _FIRST_USE:
        candidates.pop("arrays", None)  # that takes longer; who is faster shows in the first calls
    few = 3 if seconds <= _FIRST_USE else 5  # of two the median would be the mean
    flood = _gather(team.world, _FLOOD // team.size)
    # One size of every collective at a time, so that all are known to the same size when time is up.
    for last, size in pairwise((0, *_SIZES)):
        if size > _FIRST_SIZES:
            if "rebuild/large" not in tables:
                tables |= _work(team)
            expected = (few + 1) * size / last * sum(tables[kind][-1][1] for kind in candidates)
            if expected > left():
                break
        for kind, make in candidates.items():
            flood()
            taken = _time(team, make(size), 9 if size <= 1 << 15 else few)
            tables.setdefault(kind, []).append((float(size), taken))
    probe.free()
    profile = Profile(memory_rate=memory_rate, place=place, tables=tables, identity=identity(team))
    gemm = 2 / max(1e-15, (tables["rebuild/large"][-1][1] / tables["rebuild/large"][-1][0])) * team.sharing
    profile = replace(profile, gemm_rate=gemm, overheads=_overheads(team, profile))
    return Profile.from_json(team.world.bcast(profile.to_json()))


def _time(team: Team, once: Callable[[], Any], repetitions: int, *, inner: int = 0) -> float:
    """Return the median seconds of `_in_turn` for a single function."""
    return _in_turn(team, [once], repetitions, inner=inner)[0]


def _in_turn(team: Team, calls: Sequence[Callable[[], Any]], repetitions: int, *, inner: int = 0) -> list[float]:
    """Return the median seconds that each of ``calls`` takes the slowest rank; the first round is not counted.

    Args:
        team: The ranks, which begin together.
        calls: To be timed in turn, none with more of the caches than it would find elsewhere.
        repetitions: How often.
        inner: For what ranks do without waiting for each other: calls in a row, to the end of the last rank.
    """
    for once in calls:
        once()
    taken = np.empty((repetitions, len(calls)))
    for row in taken:
        for i, once in enumerate(calls):
            team.world.Barrier()
            began = perf_counter()
            for _ in range(max(1, inner)):
                once()
            if inner:
                team.world.Barrier()
            row[i] = (perf_counter() - began) / max(1, inner)
    team.world.Allreduce(MPI.IN_PLACE, taken, MPI.MAX)
    return np.maximum(np.median(taken, axis=0), 1e-9).tolist()


def _sync(probe: Team) -> float:
    """Return the seconds of a phase of a node's board."""
    call = Call(probe, probe.agree.begin(), "calibrate", blocking=True)
    repetitions = 50

    def meet() -> None:
        for _ in range(repetitions):
            for step in call.meet():
                step.Wait()

    seconds = _time(probe, meet, 3) / repetitions
    call.finish()
    return seconds


def _work(team: Team) -> dict[str, list[tuple[float, float]]]:
    """Return seconds of an element by depth, of products added to a matrix, all ranks working at once."""
    tables: dict[str, list[tuple[float, float]]] = {}
    for size, rows in _ROWS.items():
        whole = np.zeros((rows, _COLUMNS), np.float32)
        for depth in _DEPTHS:
            out = whole[: rows // 16] if size == "large" and depth >= _DEEP else whole
            u, v = np.ones((depth, len(out)), np.float32), np.ones((depth, _COLUMNS), np.float32)
            add = partial(kernels.accumulate, u, v, out, threads=team.threads)
            inner = max(1, 32 // depth) if size == "small" else 1
            seconds = _time(team, add, 3, inner=inner)
            tables.setdefault(f"rebuild/{size}", []).append((float(depth), seconds / out.size))
    return tables


def _exchanges(team: Team, probe: Team) -> dict[str, Callable[[int], Callable[[], Any]]]:
    """Return, by kind, what makes a collective of a number of bytes; ``probe`` is of the same ranks, and idle."""
    world, ranks = team.world, team.size

    def across(nbytes: int) -> Callable[[], Any]:
        calls = [_gather(comm, nbytes) for _, comm in team.across()]
        return lambda: [call() for call in calls]

    def alltoall(nbytes: int) -> Callable[[], Any]:
        mine = np.zeros((ranks, max(1, nbytes // 4 // ranks)), np.float32)
        theirs = np.empty_like(mine)
        return lambda: world.Alltoall(mine, theirs)

    def allreduce(nbytes: int) -> Callable[[], Any]:
        array = np.zeros(nbytes // 4, np.float32)
        return lambda: world.Allreduce(MPI.IN_PLACE, array)

    def arrays(nbytes: int) -> Callable[[], Any]:
        array = np.zeros(nbytes // 4, np.float32)
        return lambda: own.allreduce_everywhere(MPI.IN_PLACE, array, MPI.SUM, lambda: None, always=True)

    def copy(nbytes: int) -> Callable[[], Any]:
        source, target = np.zeros(nbytes // 4, np.float32), np.empty(nbytes // 4, np.float32)
        return lambda: np.copyto(target, source)

    found: dict[str, Callable[[int], Callable[[], Any]]] = {"copy": copy}
    if ranks > 1:
        found["allgather"] = lambda nbytes: _gather(world, nbytes)
    if team.nodes > 1:
        found |= {"allreduce": allreduce, "alltoall": alltoall}
        if team.nodes < ranks:
            found["across"] = across
        own = Arrays(probe, lambda: None)
        if own.far:
            found["arrays"] = arrays
    return found


def _gather(comm: MPI.Intracomm, nbytes: int) -> Callable[[], Any]:
    mine, everybody = np.zeros(nbytes // 4, np.float32), np.empty(nbytes // 4 * comm.size, np.float32)
    return lambda: comm.Allgather(mine, everybody)


def _overheads(team: Team, profile: Profile) -> dict[str, float]:
    """Return what an exchange of next to nothing takes beyond its price."""
    rows, columns = 8, 8
    factors = Factors(np.ones((1, rows), np.float32), np.ones((1, columns), np.float32))
    g = np.empty((rows, columns), np.float32)
    problem = Problem(g.shape, g.dtype, np.ones(team.size, np.int64), team.node_of, passes=1, sharing=team.sharing)
    from sfb.comm import Comm  # it imports this module

    with Comm(team.world, node=team.node, reproducible=True) as probe:
        calls = [partial(probe.Allreduce, factors, g, algorithm=name) for name in ALGORITHMS]
        taken = _in_turn(team, calls, _EMPTY)
    found = {}
    for (name, module), seconds in zip(ALGORITHMS.items(), taken, strict=True):
        priced = sum(profile.seconds(use, problem.place) for use in module.cost(problem))
        found[name] = max(0.0, seconds - priced)
    return found


def describe(profile: Profile) -> list[str]:
    """Return a profile in words and tables, line by line."""
    p = profile.place
    lines = [
        f"measured on {p.ranks} ranks, up to {p.ranks_per_node} on each of {p.nodes} nodes, {p.sharing:g} to a core",
        f"a core: memory {format_rate(profile.memory_rate)}, deep products {profile.gemm_rate / 1e9:.0f} Gflop/s",
    ]
    for kind, table in profile.tables.items():
        if "/" in kind:
            cells = [f"{depth:g}: {1e9 * seconds:.3f}" for depth, seconds in table]
            lines.append(f"{kind:<14} ns an element by depth   " + "  ".join(cells))
        else:
            cells = [f"{format_size(n)}: {microseconds(seconds)}" for n, seconds in table]
            lines.append(f"{kind:<14} µs by bytes             " + "  ".join(cells))
    cells = [f"{name}: {microseconds(seconds)}" for name, seconds in profile.overheads.items()]
    lines.append(f"{'overhead':<14} µs of an empty exchange " + "  ".join(cells))
    return lines
