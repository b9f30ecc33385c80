"""Blocks on a ring: where each is in each step, what moves, and what the ranks sum."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import assert_same_bits

from sfb import MismatchError
from sfb.schedule import BlockProgram, Rotation, Trace, seats


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_every_block_is_on_one_rank_at_a_time_and_visits_all(counts):
    ranks, first = len(counts), np.cumsum([0, *counts])
    lines = [list(range(first[rank], first[rank + 1])) for rank in range(ranks)]
    steps = seats(ranks, lines)
    assert len(steps) == ranks * max(counts)
    for numbers in steps:
        present = [number for number in numbers if number is not None]
        assert len(set(present)) == len(present)
    for rank in range(ranks):
        seen = [numbers[rank] for numbers in steps if numbers[rank] is not None]
        assert sorted(seen) == list(range(first[-1]))
    for number in range(first[-1]):  # a block moves to the next rank
        stops = [numbers.index(number) for numbers in steps if number in numbers]
        assert all((b - a) % ranks == 1 % ranks for a, b in pairwise(stops))


class Log(BlockProgram):
    """Counts visits in the blocks, and sums."""

    def __init__(self, rank):
        self.rank = rank
        self.summand = np.zeros(2)
        self.seen, self.totals, self.extra = [], [], 0

    def push(self, block):
        visits, values = block.arrays
        visits[self.rank] += 1
        values *= 2
        values += block.number
        self.seen.append(block.number)
        self.summand += [1, block.number]
        block.progress()

    def improve(self, block, done):
        assert self.seen[-1] == block.number
        assert done() in (True, False)
        block.arrays[0][self.rank] += 1000
        self.extra += 1

    def pull(self, total):
        self.totals.append(total.copy())


def blocks_of(world, count):
    """Return this rank's blocks: of different shapes, dealt to the ranks in turn."""
    return {
        number: [np.zeros(world.size, np.int64), np.ones((number, 2), np.float32)]
        for number in range(world.rank, count, world.size)
    }


@pytest.mark.mpi
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("sync", ["step", "sweep"])
@pytest.mark.parametrize("per_rank", [0.5, 1, 2, 2.5])
def test_every_rank_works_on_every_block(world, per_rank, sync, check):
    count, sweeps = int(per_rank * world.size), 3
    program = Log(world.rank)
    with Rotation(world, blocks_of(world, count), sync=sync, check=check) as rotation:
        for _ in range(sweeps):
            sweep = rotation.sweep(program)
            assert sweep.steps == count
            assert sweep.extra == 0
            assert sorted(rotation.blocks) == sorted(blocks_of(world, count))
        for number, (visits, values) in rotation.blocks.items():
            assert (visits == sweeps).all()
            expected = np.ones((number, 2), np.float32)
            for _ in range(sweeps * world.size):
                expected = 2 * expected + np.float32(number)
            np.testing.assert_array_equal(values, expected)
    assert sorted(program.seen) == sorted(list(range(count)) * sweeps)
    total = np.sum(program.totals, axis=0) if program.totals else np.zeros(2)
    assert total.tolist() == [count * world.size * sweeps, world.size * sweeps * sum(range(count))]
    assert len(program.totals) == (sweeps if sync == "sweep" else sweeps * rotation.steps)


@pytest.mark.mpi
def test_extra_passes_are_bounded_and_counted(world):
    program = Log(world.rank)
    with Rotation(world, blocks_of(world, 2 * world.size), passes=3, check=True) as rotation:
        sweeps = [rotation.sweep(program) for _ in range(2)]
        assert rotation.extra == program.extra == sum(sweep.extra for sweep in sweeps)
        assert all(sweep.extra <= 3 * sweep.steps for sweep in sweeps)
        made = sum(int(visits.sum()) // 1000 for visits, _ in rotation.blocks.values())
        assert sum(world.allgather(made)) == sum(world.allgather(program.extra))
        for visits, _ in rotation.blocks.values():
            assert (visits % 1000 == 2).all()


class Waits(BlockProgram):
    """Rank 0 works on its block until all others have made all their extra passes."""

    def __init__(self, world, passes):
        self.world, self.passes, self.made = world, passes, 0

    def push(self, block):
        if self.world.rank == 0:
            for rank in range(1, self.world.size):
                self.world.recv(source=rank, tag=7)

    def improve(self, block, done):
        if self.world.rank:
            self.made += 1
            if self.made % self.passes == 0:
                self.world.send(None, 0, tag=7)


@pytest.mark.mpi
def test_fast_ranks_improve_blocks_while_a_slow_one_works(world):
    program = Waits(world, 4)
    with Rotation(world, {world.rank: [np.zeros(1)]}, passes=4) as rotation:
        sweep = rotation.sweep(program)
    if world.rank:
        assert sweep.extra == 4 * world.size
        assert sweep.improve > 0


@pytest.mark.mpi
def test_results_are_those_of_one_rank_that_follows_the_ring(world):
    """Blocks change in the order of the ranks that they visit, starting at home."""

    class Digits(BlockProgram):
        def push(self, block):
            block.arrays[0][0] = 10 * block.arrays[0][0] + world.rank

    with Rotation(world, {world.rank: [np.zeros(1)], world.rank + world.size: [np.zeros(1)]}) as rotation:
        rotation.sweep(Digits())
        for number, (value,) in rotation.blocks.items():
            order = [(number + hop) % world.size for hop in range(world.size)]
            assert value[0] == sum(rank * 10 ** (world.size - 1 - hop) for hop, rank in enumerate(order))


@pytest.mark.mpi
def test_sums_have_the_same_bits_on_all_ranks(world, rng):
    class Sums(BlockProgram):
        summand = np.zeros(5)
        totals = None

        def push(self, block):
            self.summand += np.random.default_rng(world.rank).normal(size=5)

        def pull(self, total):
            self.totals = total.copy()

    program = Sums()
    with Rotation(world, blocks_of(world, world.size)) as rotation:
        rotation.sweep(program)
    assert_same_bits(world, program.totals)
    assert not program.summand.any()


@pytest.mark.mpi
@pytest.mark.parametrize("passes", [0, 2])
@pytest.mark.parametrize("where", ["push", "pull"])
def test_an_error_on_one_rank_is_raised_on_all(world, where, passes):
    class Fails(Log):
        def push(self, block):
            super().push(block)
            if where == "push" and self.rank == world.size - 1 and len(self.seen) == 2:
                raise KeyError("by hand")

        def pull(self, total):
            if where == "pull" and self.rank == world.size - 1:
                raise KeyError("by hand")

    with Rotation(world, blocks_of(world, 2 * world.size), passes=passes, sync="step") as rotation:
        with pytest.raises(KeyError, match="by hand"):
            rotation.sweep(Fails(world.rank))
        assert sorted(rotation.blocks) == sorted(blocks_of(world, 2 * world.size))
        assert rotation.sweep(Log(world.rank)).steps == 2 * world.size  # the ranks go on


@pytest.mark.mpi
def test_arrays_must_not_be_replaced(world):
    class Replaces(BlockProgram):
        def push(self, block):
            block.arrays[0] = block.arrays[0] + 1

    with (
        Rotation(world, blocks_of(world, world.size)) as rotation,
        pytest.raises(TypeError, match="in place, not replaced"),
    ):
        rotation.sweep(Replaces())


@pytest.mark.mpi
def test_debug_mode_fills_what_a_block_has_left(world):
    """A program that keeps arrays of a block which has moved on finds rubbish there."""
    kept = []

    class Keeps(BlockProgram):
        def push(self, block):
            kept.append((block.number, block.arrays[0]))
            block.arrays[0][:] = 7

    with Rotation(world, {world.rank: [np.zeros(3)]}, check=True) as rotation:
        rotation.sweep(Keeps())
        if world.size > 1:
            gone = [array for number, array in kept if number != world.rank]
            assert all(np.isnan(array).all() for array in gone)
        assert (rotation.blocks[world.rank][0] == 7).all()


BAD = {
    "a number twice": ({0: [np.zeros(1)], 1: [np.zeros(1)]}, {}, ValueError, "each once"),
    "objects": ({0: [np.array([None])]}, {}, TypeError, "cannot be sent"),
    "a list": ({0: [[1.0]]}, {}, TypeError, "NumPy arrays"),
    "an array for arrays": ({0: np.zeros(3)}, {}, TypeError, "sequence"),
    "text": ({"a": [np.zeros(1)]}, {}, TypeError, "integer"),
    "passes": ({}, {"passes": -1}, ValueError, "passes"),
    "sync": ({}, {"sync": "never"}, ValueError, "sync"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("what", BAD)
def test_what_one_rank_passes_is_wrong(world, what):
    blocks, options, kind, words = BAD[what]
    good = {} if world.size > 1 and world.rank == world.size - 1 else blocks_of(world, world.size)
    if world.size == 1 and what == "a number twice":
        blocks = {0: [np.zeros(1)], 2: [np.zeros(1)]}
    last = world.rank == world.size - 1
    with pytest.raises(kind, match=words):
        Rotation(world, blocks if last else good, **(options if last else {}))


@pytest.mark.mpi
def test_what_differs_between_ranks(world):
    if world.size == 1:
        return
    with pytest.raises(MismatchError, match="passes"):
        Rotation(world, {}, passes=world.rank)
    with Rotation(world, {}) as rotation:
        program = Log(world.rank)
        program.summand = np.zeros(2 + world.rank)
        with pytest.raises(MismatchError, match="summand"):
            rotation.sweep(program)


@pytest.mark.mpi
@pytest.mark.parametrize("summand", [np.zeros(3, np.int32), np.zeros((4, 4))[:, ::2], [0.0]], ids=str)
def test_what_cannot_be_summed(world, summand):
    program = Log(world.rank)
    program.summand = summand
    with Rotation(world, {}) as rotation, pytest.raises(TypeError, match="summand"):
        rotation.sweep(program)


@pytest.mark.mpi
def test_no_blocks_at_all(world):
    with Rotation(world, {}) as rotation:
        assert rotation.sweep(Log(world.rank)).steps == 0


@pytest.mark.mpi
def test_a_trace_of_a_rotation(world):
    trace = Trace(world)
    with Rotation(world, blocks_of(world, world.size), passes=2, trace=trace) as rotation:
        sweep = rotation.sweep(Log(world.rank))
    seconds = trace.seconds()
    assert seconds["work"] == pytest.approx(sweep.work)
    assert seconds.get("extra", 0.0) == pytest.approx(sweep.improve)
    assert sorted(span.name for span in trace.spans if span.kind == "work") == sorted(
        f"block {number}" for number in range(world.size)
    )
