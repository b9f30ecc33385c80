"""A run of many rounds, its progress, and what is left at its end."""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import product
from time import monotonic
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.sparse import csr_array

import sfb
from sfb.collectives import ALGORITHMS
from sfb.kernels import drop_scratch
from sfb.runtime.buffers import drop_free_buffers
from sfb.soak import arrays, factors, lives, stores
from sfb.soak.dice import LARGEST, SAMPLES
from sfb.soak.patience import Patience
from sfb.soak.round import Round, Wrong
from sfb.soak.usage import Usage, keep_large_blocks_apart, usage

__all__ = ["Config", "SoakError", "soak"]

_REPORT = 60.0  # seconds between two lines of progress
_WARM = 1 / 3, 1 / 2  # the start is measured between these parts of the run,
_WARM_ROUNDS = 100  # and after so many rounds: caches have filled then
_LOOKS = 100  # for MPI to end its messages
_MOST_CALLS = 8  # of a round
_FRESH = 0.25  # part of the rounds whose communicator is made for them
_COLOURS, _NODES = (1, 2, 3), (None, 1, 2, 3)  # parts of the ranks, and ranks of a node
_ROOM = 1 << 30  # bytes that hold the factors of all ranks

_CALLS: dict[Callable[[Round], None], float] = {
    call: share * weight / sum(module.CALLS.values())
    for module, share in ((factors, 10.0), (arrays, 7.0), (stores, 2.0), (lives, 3.0))
    for call, weight in module.CALLS.items()
}
# Communicators that live as long as the run: ranks of a node, and options.
_LASTING: tuple[tuple[int | None, dict[str, Any]], ...] = (
    (None, {}),
    (2, {}),
    (1, {}),
    (None, {"progress": "poll", "max_bytes": 1 << 18}),
    (2, {"reproducible": True}),
    (None, {"check": False, "profile": sfb.Profile()}),
    (1, {"wire": "bfloat16", "seed": 3, "profile": sfb.Profile()}),
)


class SoakError(Exception):
    """A round has gone wrong on this rank."""


@dataclass(frozen=True)
class Config:
    """How long to run, and where to begin.

    Attributes:
        minutes: Minutes after which the run ends.
        seed: Seed of all that is drawn.
        first: Number of the first round.
        rounds: Most rounds; None for no limit.
        patience: Seconds that a round may take.
        growth: Most bytes by which the memory of a rank may grow between the start, as it is measured after a third of
            the run, and the end.
    """

    minutes: float = 1.0
    seed: int = 0
    first: int = 0
    rounds: int | None = None
    patience: float = 300.0
    growth: int = 32 << 20


@dataclass(frozen=True)
class _Lane:
    """A communicator, and what a round must know of it.

    Attributes:
        comm: The communicator.
        title: What it is.
        wire: See `Round`.
        roomy: See `Round`.
        fresh: Whether it is made for a round.
    """

    comm: sfb.Comm
    title: str
    wire: str | None
    roomy: bool
    fresh: bool


def soak(world: MPI.Intracomm, config: Config, say: Callable[[str], None]) -> dict[str, Any]:
    """Do rounds of calls until the time is over; collective.

    Args:
        world: The ranks.
        config: How long, and where to begin; equal on all ranks.
        say: Takes lines of progress, on rank 0.

    Returns:
        The numbers of rounds, calls of each kind, what ranks have held at the start and at the end, and whether that
        has grown: handles, descriptors and mappings at all, memory beyond the bound; for JSON.

    Raises:
        SoakError: A call gave a wrong result, or an error that it must not; on the ranks that saw it.
    """
    return _Run(world, config, say).run()


class _Run:
    def __init__(self, world: MPI.Intracomm, config: Config, say: Callable[[str], None]) -> None:
        self._world = world
        self._config = config
        self._say = say if world.rank == 0 else lambda line: None
        self._calls: Counter[str] = Counter()
        self._round: Round | None = None
        self._number = config.first

    def run(self) -> dict[str, Any]:
        """Do all rounds."""
        keep_large_blocks_apart()
        control = MPI.Intracomm(self._world.Dup())
        began = reported = monotonic()
        start: np.ndarray | None = None
        with Patience(self._config.patience, self._where) as patience:
            lanes = [_lasting(self._world, *each) for each in _LASTING]
            for lane in lanes:
                _prepare(lane, patience.renew)
            while (order := self._next(control, began, reported, start is None))[0]:
                patience.renew()
                if order[1]:
                    measured = self._gather(control, lanes, handles=bool(order[2]))
                    reported = monotonic()
                    start = measured if order[2] else start
                    self._progress((reported - began) / 60, measured)
                self._do(lanes)
                self._number += 1
            patience.renew()
            end = self._gather(control, lanes, handles=True)
            for lane in lanes:
                lane.comm.free()
            control.Free()
        return self._result((monotonic() - began) / 60, start, end)

    def _next(self, control: MPI.Intracomm, began: float, reported: float, cold: bool) -> tuple[int, int, int]:
        """Return whether to go on, whether to measure before, and whether that is the start; as rank 0 says."""
        config, now, done = self._config, monotonic(), self._number - self._config.first
        order = np.zeros(3, np.int8)
        if control.rank == 0:
            seconds = 60 * config.minutes
            order[0] = now - began < seconds and (config.rounds is None or done < config.rounds)
            warm = _WARM[0] * seconds <= now - began <= _WARM[1] * seconds and done >= _WARM_ROUNDS
            order[2] = cold and warm
            order[1] = order[2] or now - reported >= _REPORT
        control.Bcast(order)
        go, measure, first = order.tolist()
        return go, measure, first

    def _do(self, lanes: list[_Lane]) -> None:
        """Do a round."""
        made = self._round = Round(self._config.seed, self._number, self._world.rank)
        try:
            with self._lane(made, lanes) as lane:
                made.comm, made.wire, made.title, made.roomy = lane.comm, lane.wire, lane.title, lane.roomy
                names = [call for call in _CALLS if lane.fresh or call is not lives.again]
                weights = [_CALLS[call] for call in names]
                for _ in range(made.dice.whole(1, _MOST_CALLS)):
                    call = made.dice.pick(names, weights)
                    before = made.calls
                    call(made)
                    self._calls[f"{call.__module__.rpartition('.')[2]}.{call.__name__}"] += made.calls - before
                _compare(made)
        except Exception as error:
            shown = "" if isinstance(error, Wrong) else "".join(traceback.format_exception(error))
            raise SoakError(f"rank {self._world.rank}, {self._where()}: {error}\n{shown}{self._replay()}") from error

    @contextmanager
    def _lane(self, made: Round, lanes: list[_Lane]) -> Iterator[_Lane]:
        """Yield a communicator: a lasting one, or one that is made for the round, maybe of a part of the ranks."""
        dice = made.dice
        if not dice.chance(_FRESH):
            yield dice.pick(lanes)
            return
        colours = dice.pick(_COLOURS, (4, 1, 1))
        base: MPI.Intracomm = self._world
        if colours > 1:
            base = MPI.Intracomm(self._world.Split(self._world.rank % colours, dice.pick((1, -1)) * self._world.rank))
        options: dict[str, Any] = {
            "profile": sfb.Profile(),
            "check": dice.chance(0.8),
            "progress": dice.pick(("thread", "poll")),
            "max_bytes": dice.pick((1 << 17, 1 << 20, _ROOM)),
        }
        if dice.chance(0.15):
            options |= {"wire": dice.pick(("bfloat16", "float16")), "seed": dice.pick((None, 7))}
        per_node = dice.pick(_NODES)
        lane = _made(base, per_node, options, fresh=True)
        yield lane
        lane.comm.free()
        if base is not self._world:
            base.Free()

    def _gather(self, control: MPI.Intracomm, lanes: list[_Lane], *, handles: bool) -> np.ndarray:
        """Return what each rank holds, a row a rank, with or without handles of MPI; collective."""
        gc.collect()
        drop_free_buffers()  # they are as large as the largest exchange so far
        drop_scratch()
        # Shared arrays that no rank uses any more are freed when a communicator of the same node makes another.
        for colours, per_node in product(_COLOURS, _NODES):
            base = MPI.Intracomm(self._world.Split(self._world.rank % colours, self._world.rank))
            with _made(base, per_node, {"profile": sfb.Profile()}, fresh=True).comm as comm:
                comm.shared(1)
            base.Free()
        for lane in lanes:
            lane.comm.shared(1)
        # MPI would hold one request more for each message of a rank that has looked before this one does.
        found = np.empty((control.size, len(Usage._fields)), np.int64)
        others = [rank for rank in range(control.size) if rank != control.rank]
        requests = [control.Irecv(found[rank], rank) for rank in others]
        control.Barrier()
        for _ in range(_LOOKS):
            control.Iprobe()  # lets MPI end what it has sent
        found[control.rank] = usage(handles=handles)
        requests += [control.Isend(found[control.rank], rank) for rank in others]
        MPI.Request.Waitall(requests)
        return found

    def _where(self) -> str:
        made = self._round
        if made is None:
            return f"seed {self._config.seed}, before the first round"
        return f"seed {self._config.seed}, round {self._number}, call {made.calls}: {made.text}; {made.title}"

    def _replay(self) -> str:
        return (
            f"again: mpirun -n {self._world.size} sfb soak --seed {self._config.seed} --first {self._number} --rounds 1"
        )

    def _progress(self, minutes: float, measured: np.ndarray) -> None:
        most = Usage(*measured.max(axis=0).tolist())
        self._say(
            f"# {minutes:.1f} min: {self._number - self._config.first} rounds, {sum(self._calls.values())} calls, "
            f"0 errors; a rank has at most {most.memory / 2**20:.1f} MiB of its own, {most.descriptors} descriptors, "
            f"{most.mapped} mappings of /dev/shm"
        )

    def _result(self, minutes: float, start: np.ndarray | None, end: np.ndarray) -> dict[str, Any]:
        ranks = [[Usage(*row)._asdict() for row in table.tolist()] for table in (end if start is None else start, end)]
        pairs = [] if start is None else list(zip(start.tolist(), end.tolist(), strict=True))
        leaks: Counter[str] = Counter()
        for before, after in pairs:
            leaks |= Counter(Usage(*after).grown(Usage(*before)))
        growth = max((after[0] - before[0] for before, after in pairs), default=None)
        return {
            "format": 1,
            "config": asdict(self._config),
            "minutes": minutes,
            "rounds": self._number - self._config.first,
            "calls": sum(self._calls.values()),
            "calls_by_kind": dict(sorted(self._calls.items())),
            "errors": 0,
            "memory_growth": max((after[0] / before[0] - 1 for before, after in pairs), default=None),
            "memory_growth_bytes": growth,
            "memory_grew": None if growth is None else growth > self._config.growth,
            "leaks": None if start is None else dict(leaks),
            "start": None if start is None else ranks[0],
            "end": ranks[1],
        }


def _lasting(world: MPI.Intracomm, per_node: int | None, options: dict[str, Any]) -> _Lane:
    return _made(world, per_node, options, fresh=False)


def _prepare(lane: _Lane, renew: Callable[[], None]) -> None:
    """Let a communicator make what it keeps: kernels, communicators, and memory of nodes; collective."""
    comm = lane.comm
    renew()
    for elements in (1, 1 << 14, 1 << 19):
        x, total = np.zeros(elements), np.empty(elements)
        comm.Allreduce(x, total)
        comm.Iallreduce(x, total).Wait()
        comm.Allgather(x[: elements // comm.size], total[: elements // comm.size * comm.size])
        comm.Reduce_scatter_block(x[: elements // comm.size * comm.size], total[: elements // comm.size])
    u, v = np.ones((1, 4), np.float32), np.ones((1, 3), np.float32)
    for receiver in (np.empty((4, 3), np.float32), comm.shared((4, 3))):
        for algorithm in ALGORITHMS:
            comm.plan(sfb.Factors(u, v), receiver, algorithm=algorithm)
        if lane.wire is None:
            comm.plan(sfb.Factors(u, csr_array(v)), receiver, algorithm="node")
    if comm.node.size > 1:
        return  # what its ranks share is not counted
    # A communicator keeps as much memory of the node as its largest exchange takes: all factors, two sets of slabs used
    # in turn, or a whole gradient that is shared and gathered by columns, of which there are more than rows.
    dtype, shape = np.float64 if lane.wire is None else np.float32, (LARGEST - 1, LARGEST)
    for gradient in (np.empty(shape, dtype), comm.shared(shape, dtype)):
        for algorithm, samples in (("dense", 1), ("dense", 1), ("node", SAMPLES), ("node", SAMPLES), ("sharded", 1)):
            renew()
            factors = sfb.Factors(*(np.ones((samples, side), dtype) for side in shape))
            comm.Allreduce(factors, gradient, algorithm=algorithm)


def _made(base: MPI.Intracomm, per_node: int | None, options: dict[str, Any], *, fresh: bool) -> _Lane:
    """Return a communicator whose nodes are so many ranks of a host each, all of them if None; collective."""
    title = f"Comm of {per_node or 'all'} ranks a node, {options}"
    facts = title, options.get("wire"), options.get("max_bytes", _ROOM) >= _ROOM, fresh
    if per_node is None:
        return _Lane(sfb.Comm(base, **options), *facts)
    host = base.Split_type(MPI.COMM_TYPE_SHARED, base.rank)
    node = host.Split(host.rank // per_node, host.rank)
    comm = sfb.Comm(base, node=node, **options)
    node.Free()
    host.Free()
    return _Lane(comm, *facts)


def _compare(made: Round) -> None:
    """Raise Wrong on all ranks of the communicator if results differ that must be the same."""
    whole = blake2b(b"".join(bits for _, bits in made.bits), digest_size=8).digest()
    mine, all_bits = np.frombuffer(whole, np.uint64), np.empty(made.size, np.uint64)
    MPI.Intracomm.Allgather(made.comm, mine, all_bits)
    if (all_bits == all_bits[0]).all():
        return
    everybody = made.comm.allgather(made.bits)
    for each in zip(*everybody, strict=False):
        if len({bits for _, bits in each}) > 1:
            raise Wrong(f"ranks hold different bits after {each[0][0]}: {[bits.hex() for _, bits in each]}")
    raise Wrong(f"ranks have made different numbers of calls: {[len(bits) for bits in everybody]}")
