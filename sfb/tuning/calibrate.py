"""Measuring a profile on the ranks that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

import sfb.kernels as kernels
from sfb._version import __version__
from sfb.runtime.agreement import on_all_ranks
from sfb.runtime.team import Team
from sfb.tuning.profile import LARGE, SMALL, Place, Profile, Use

__all__ = ["FIRST_USE", "Probes", "identity", "identity_of", "measure"]

# Seconds that the first choice of an algorithm may measure for.
FIRST_USE = 0.25
_DEPTHS = (1, 4, 16, 64, 256)
# Sizes in bytes, and the size up to which every collective is measured however long it takes.
_SIZES = tuple(1 << bits for bits in (8, 12, 15, 17, 20, 22, 24, 26))
_FIRST_SIZES = 1 << 17
# Rows of the matrices that products are measured on, of SMALL and of LARGE elements, and their columns. The columns of
# a deep product decide whether v stays in cache, so both have as many.
_ROWS, _COLUMNS = {"small": SMALL // 1000, "large": LARGE // 1000}, 1000
# From this depth arithmetic bounds a product, and a part of the large matrix has the same rate as the whole.
_DEEP = 64
# Phases of the board in one measurement.
_PHASES = 50
# Timed rounds of empty exchanges.
_EMPTY = 15
# Bytes that ranks gather before they time a collective. A network at rest takes that much at once, and shows its rate
# only afterwards.
_FLOOD = 1 << 18

Action = Callable[[], Any]


def _no_arrays(team: Team) -> None:
    return None


def _no_exchanges(team: Team) -> dict[str, tuple[Action, Sequence[Use]]]:
    return {}


class Probes(NamedTuple):
    """What a profile times of higher layers.

    Attributes:
        arrays: For a team, what makes this library's allreduce of so many bytes between nodes; None if the library
            leaves those to MPI.
        exchanges: For a team, the smallest exchange by each algorithm, and its cost.
    """

    arrays: Callable[[Team], Callable[[int], Action] | None] = _no_arrays
    exchanges: Callable[[Team], Mapping[str, tuple[Action, Sequence[Use]]]] = _no_exchanges


def identity(team: Team) -> dict[str, Any]:
    """Return what a profile of the ranks of ``team`` depends on; collective."""
    return identity_of(team.world, team.node_of, team.threads)


def identity_of(world: MPI.Intracomm, node_of: Sequence[int], threads: int) -> dict[str, Any]:
    """Return what a profile depends on; collective.

    Args:
        world: The ranks.
        node_of: The number of the node of each rank.
        threads: The number of threads of this rank.
    """
    return {
        "hosts": sorted(set(world.allgather(MPI.Get_processor_name()))),
        "ranks_per_node": np.bincount(node_of).tolist(),
        "mpi": MPI.Get_library_version().split("\n")[0].split(",")[0].strip().rstrip("\0"),
        "threads": threads,
        "sfb": __version__,
    }


def measure(team: Team, seconds: float, probes: Probes) -> Profile:
    """Measure a profile on the ranks of ``team`` in about ``seconds``; collective."""
    own = Team(team.world, team.node)  # calls may be under way on the other
    with on_all_ranks(own.world, "Comm"):
        own.load_kernels()
    began = perf_counter()

    def left() -> float:
        return own.world.bcast(seconds - (perf_counter() - began))

    source, target = np.ones((2, LARGE // 2), np.float32)
    memory_seconds = _median(own, lambda: np.copyto(target, source), 1, inner=1)
    tables: dict[str, list[tuple[float, float]]] = {}
    if max(own.slot_of) > 0:
        tables["sync"] = [(0.0, _sync(own))]
    first_use = seconds <= FIRST_USE
    calls = _collectives(own)
    # This takes longer than a first use has; the first calls of arrays are timed instead.
    arrays = None if first_use else probes.arrays(own)
    if arrays is not None:
        calls["arrays"] = arrays
    tables |= _by_size(own, calls, left, 3 if first_use else 5)
    profile = Profile(
        memory_rate=2 * source.nbytes / memory_seconds * own.sharing,
        place=Place.of(own.node_of, own.sharing),
        tables=tables,
        identity=identity(own),
    )
    depth, element_seconds = tables["rebuild/large"][-1]
    gemm_rate = 2 / max(1e-15, element_seconds / depth) * own.sharing
    profile = replace(profile, gemm_rate=gemm_rate, overheads=_overheads(own, profile, probes))
    own.free()
    return Profile.from_json(team.world.bcast(profile.to_json()))


def _median(team: Team, call: Action, repetitions: int, *, inner: int = 0) -> float:
    """Return the median seconds of one call, otherwise as `_medians`."""
    return _medians(team, [call], repetitions, inner=inner)[0]


def _medians(team: Team, calls: Sequence[Action], repetitions: int, *, inner: int = 0) -> list[float]:
    """Return the median seconds that each of ``calls`` takes the slowest rank.

    Every round times each call once, so that no call finds more of its data in cache than it would in a program. The
    first round does not count.

    Args:
        team: The ranks, which begin each call together.
        calls: What to time.
        repetitions: The rounds that count.
        inner: Calls in a row, if the calls do not wait for other ranks; the time then ends with the last rank's.
    """
    for call in calls:
        call()
    taken = np.empty((repetitions, len(calls)))
    for row in taken:
        for i, call in enumerate(calls):
            team.world.Barrier()
            began = perf_counter()
            for _ in range(max(1, inner)):
                call()
            if inner:
                team.world.Barrier()
            row[i] = (perf_counter() - began) / max(1, inner)
    team.world.Allreduce(MPI.IN_PLACE, taken, MPI.MAX)
    return np.maximum(np.median(taken, axis=0), 1e-9).tolist()


def _sync(team: Team) -> float:
    """Return the seconds of a phase of a node's board."""
    board, number = team.board, team.agree.begin()
    phase = 1

    def phases() -> None:
        nonlocal phase
        for _ in range(_PHASES):
            phase += 1
            if not board.join(number, phase, wait=True):
                board.phase(number, phase, "calibrate").Wait()

    seconds = _median(team, phases, 3) / _PHASES
    board.reach(number, board.last_phase)
    return seconds


def _by_size(
    team: Team, calls: Mapping[str, Callable[[int], Action]], left: Callable[[], float], repetitions: int
) -> dict[str, list[tuple[float, float]]]:
    """Return seconds by bytes of each collective, and seconds of products by depth.

    Every collective is measured at one size before any at the next, so that all tables end at the same size when no
    time is ``left``.
    """
    tables: dict[str, list[tuple[float, float]]] = {}
    flood = _gather(team.world, _FLOOD // team.size)
    for last, size in pairwise((0, *_SIZES)):
        if size > _FIRST_SIZES:
            if "rebuild/large" not in tables:
                tables |= _products(team)
            expected = (repetitions + 1) * size / last * sum(tables[kind][-1][1] for kind in calls)
            if expected > left():
                break
        for kind, make in calls.items():
            flood()
            taken = _median(team, make(size), 9 if size <= 1 << 15 else repetitions)
            tables.setdefault(kind, []).append((float(size), taken))
    return tables


def _products(team: Team) -> dict[str, list[tuple[float, float]]]:
    """Return seconds of an element by depth, of products added to a matrix while all ranks work."""
    tables: dict[str, list[tuple[float, float]]] = {}
    for size, rows in _ROWS.items():
        whole = np.zeros((rows, _COLUMNS), np.float32)
        for depth in _DEPTHS:
            out = whole[: rows // 16] if size == "large" and depth >= _DEEP else whole
            u, v = np.ones((depth, len(out)), np.float32), np.ones((depth, _COLUMNS), np.float32)
            add = partial(kernels.accumulate, u, v, out, threads=team.threads)
            inner = max(1, 32 // depth) if size == "small" else 1
            seconds = _median(team, add, 3, inner=inner)
            tables.setdefault(f"rebuild/{size}", []).append((float(depth), seconds / out.size))
    return tables


def _collectives(team: Team) -> dict[str, Callable[[int], Action]]:
    """Return, by kind, what makes a copy or a collective of MPI of so many bytes."""
    world, ranks = team.world, team.size

    def across(nbytes: int) -> Action:
        calls = [_gather(comm, nbytes) for _, comm in team.across()]
        return lambda: [call() for call in calls]

    def alltoall(nbytes: int) -> Action:
        mine = np.zeros((ranks, max(1, nbytes // 4 // ranks)), np.float32)
        theirs = np.empty_like(mine)
        return lambda: world.Alltoall(mine, theirs)

    def allreduce(nbytes: int) -> Action:
        array = np.zeros(nbytes // 4, np.float32)
        return lambda: world.Allreduce(MPI.IN_PLACE, array)

    def copy(nbytes: int) -> Action:
        source, target = np.zeros(nbytes // 4, np.float32), np.empty(nbytes // 4, np.float32)
        return lambda: np.copyto(target, source)

    found: dict[str, Callable[[int], Action]] = {"copy": copy}
    if ranks > 1:
        found["allgather"] = partial(_gather, world)
    if team.nodes > 1:
        found |= {"allreduce": allreduce, "alltoall": alltoall}
        if team.nodes < ranks:
            found["across"] = across
    return found


def _gather(comm: MPI.Intracomm, nbytes: int) -> Action:
    mine, everybody = np.zeros(nbytes // 4, np.float32), np.empty(nbytes // 4 * comm.size, np.float32)
    return lambda: comm.Allgather(mine, everybody)


def _overheads(team: Team, profile: Profile, probes: Probes) -> dict[str, float]:
    """Return the seconds that an exchange of next to nothing takes beyond its price, by algorithm."""
    exchanges = probes.exchanges(team)
    taken = _medians(team, [call for call, _ in exchanges.values()], _EMPTY)
    priced = [sum(profile.seconds(use, profile.place) for use in cost) for _, cost in exchanges.values()]
    return {name: max(0.0, t - p) for name, t, p in zip(exchanges, taken, priced, strict=True)}
