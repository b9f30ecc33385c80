"""The store under every consistency, the store that averages, and blocks that rotate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import csr_array

import sfb
from sfb.schedule import Block, BlockProgram, Rotation
from sfb.soak import oracle
from sfb.soak.round import Round, Wrong

__all__ = ["CALLS"]

_TOPOLOGIES = ("halton", "exponential", "ring", "chord", "torus", "complete")
_LR = 0.1
_ROOM = 1 << 26  # bytes for all updates of a clock

# An update: the number of its table, what a rank pushes, the dense matrix that it stands for, and its magnitude.
_Update = tuple[int, Any, np.ndarray, np.ndarray]


def _updates(rng: np.random.Generator, shapes: list[tuple[int, int]], dtype: type, least: int) -> list[_Update]:
    """Return what a rank pushes in a clock; ``least`` tables get an update whatever is drawn."""
    found = []
    for number in [*range(least), *rng.integers(0, len(shapes), rng.integers(0, 4))]:
        shape, kind = shapes[number], rng.integers(0, 4)
        ((u, v),) = oracle.draw(rng, [int(rng.integers(0, 5))], shape, dtype)
        if kind == 0:
            dense = rng.standard_normal(shape).astype(dtype)
            found.append((int(number), dense, dense.astype(np.float64), abs(dense)))
            continue
        if kind == 1:
            v *= rng.random(v.shape) < 0.2
        update = sfb.Factors(u, csr_array(v) if kind == 1 else v)
        exact = u.T.astype(np.float64) @ v.astype(np.float64)
        found.append((int(number), update, exact, abs(u).T @ abs(v)))
    return found


def store(r: Round) -> None:
    """Push, read and clock, and compare the end with all that all ranks have pushed."""
    dtype = r.dice.pick((np.float32, np.float64))
    shapes = [(r.dice.whole(1, 60), r.dice.whole(1, 60)) for _ in range(r.dice.whole(1, 3))]
    consistency = r.dice.pick((sfb.BSP(), sfb.SSP(0), sfb.SSP(r.dice.whole(1, 4)), sfb.ASP()), (3, 1, 3, 2))
    ordered = isinstance(consistency, sfb.BSP)
    momentum = 0.9 if ordered and r.dice.chance(0.4) else 0.0
    topology = r.dice.pick(_TOPOLOGIES)
    options: dict[str, Any] = {
        "progress": r.dice.pick(("poll", "thread")),
        "priority": r.dice.pick(("fifo", "random", "round-robin", "absolute", "relative")),
        "bandwidth": "2GB/s" if r.dice.chance(0.2) else None,
        "max_bytes": r.dice.pick((1 << 16, _ROOM)),
    }
    most = r.dice.whole(1, 6)
    clocks = [most if ordered or r.dice.chance(0.5) else r.dice.whole(1, most) for _ in range(r.size)]
    chosen = ", ".join(f"{name}={value!r}" for name, value in options.items())
    r.begin(f"Store of {shapes} {np.dtype(dtype)}, {consistency!r}, {topology}, clocks {clocks}, {chosen}")
    starts = [r.rng(0, 1, n).standard_normal(shape).astype(dtype) for n, shape in enumerate(shapes)]
    pushed = [
        [_updates(r.rng(rank, 2, clock), shapes, dtype, len(shapes) * (rank == 0)) for clock in range(clocks[rank])]
        for rank in range(r.size)
    ]
    tables = {f"t{n}": start for n, start in enumerate(starts)}
    rule = sfb.optim.SGD(lr=_LR, momentum=momentum)
    together = ordered and r.dice.chance(0.5)
    with sfb.Store(r.comm, tables, rule, topology=topology, consistency=consistency, **options) as made:
        for updates in pushed[r.rank]:
            for number, update, _, _ in updates:
                if together or r.own.chance(0.5):
                    made[f"t{number}"]
                made.push(f"t{number}", update)
            if together:  # all have read in this clock, so a collective call may follow
                made["t0"]
                r.comm.Barrier()
            r.dawdle()
            made.clock()
        if r.own.chance(0.3):
            made.flush()
    for n, start in enumerate(starts):
        end = made[f"t{n}"]
        sums = [
            sum(
                (dense for of_rank in pushed for m, _, dense, _ in _at(of_rank, clock) if m == n), np.zeros(start.shape)
            )
            for clock in range(max(clocks))
        ]
        sizes = [size for of_rank in pushed for updates in of_rank for m, _, _, size in updates if m == n]
        expected = oracle.sgd(start, sums, _LR, momentum)
        terms = (5 * len(sizes) + 8) * (10 if momentum else 1) * float(np.spacing(np.ones((), dtype)))
        r.close(end, expected, terms * (abs(start) + sum(sizes, np.zeros(start.shape))), f"the table t{n}")
        if ordered:
            r.same(end)


def _at(of_rank: list[list[_Update]], clock: int) -> list[_Update]:
    return of_rank[clock] if clock < len(of_rank) else []


def averaging(r: Round) -> None:
    """Let replicas fall, each at its own speed, and see that their mean is where it can be."""
    dtype, shape = r.dice.pick((np.float32, np.float64)), (r.dice.whole(1, 60), r.dice.whole(1, 60))
    topology, clocks = r.dice.pick(_TOPOLOGIES), r.dice.whole(1, 6)
    r.begin(f"AveragingStore of {shape} {np.dtype(dtype)}, {topology}, {clocks} clocks")
    start = r.rng(0, 1).standard_normal(shape).astype(dtype)
    with sfb.AveragingStore(r.comm, {"w": start}, sfb.optim.SGD(lr=_LR), topology=topology) as made:
        for clock in range(clocks):
            made.push("w", r.rng(r.rank, 2, clock).random(shape).astype(dtype))  # from 0 to 1
            r.dawdle()
            made.clock()
            made["w"]
    end = made["w"]
    r.same(end)
    slack = 1e-5 * (1 + abs(start))
    if not ((end <= start + slack) & (end >= start - _LR * clocks - slack)).all():
        raise Wrong("the mean of the replicas lies outside of all that they have been")


class _Visits(BlockProgram):
    """Counts the ranks that a block visits, and the elements that this rank has seen."""

    def __init__(self) -> None:
        self.summand = np.zeros(1, np.int64)
        self.total = 0

    def push(self, block: Block) -> None:
        assert self.summand is not None
        for array in block.arrays:
            array += 1
            self.summand += array.size

    def pull(self, total: np.ndarray) -> None:
        self.total += int(total[0])


def rotation(r: Round) -> None:
    """Let blocks move around the ring of ranks."""
    count, check = r.dice.whole(1, 2 * r.size + 1), r.dice.chance(0.3)
    sizes = [r.dice.whole(0, r.dice.pick((9, 4000))) for _ in range(count)]
    r.begin(f"Rotation of {count} blocks of {sizes} elements")
    owners = [r.dice.whole(0, r.size - 1) for _ in range(count)]
    blocks = {n: [np.full(sizes[n], n, np.int64)] for n in range(count) if owners[n] == r.rank}
    program, sweeps = _Visits(), r.dice.whole(1, 3)
    with Rotation(r.comm, blocks, check=check) as made:
        for _ in range(sweeps):
            r.begin("sweep")
            made.sweep(program)
        for n, (array,) in made.blocks.items():
            r.equal(array, np.full(sizes[n], n + sweeps * r.size, np.int64), f"block {n}")
        if set(made.blocks) != set(blocks):
            raise Wrong(f"the rank holds the blocks {sorted(made.blocks)}, expected {sorted(blocks)}")
    if program.total != sweeps * r.size * sum(sizes):
        raise Wrong(f"the ranks have seen {program.total} elements, expected {sweeps * r.size * sum(sizes)}")


CALLS: dict[Callable[[Round], None], float] = {store: 3, averaging: 1, rotation: 1}
