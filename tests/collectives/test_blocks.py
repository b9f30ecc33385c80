"""Exchanges beyond the ceiling of memory, and messages of more elements than MPI counts."""

import numpy as np
import oracle
import pytest

import sfb
from sfb.runtime import limits

pytestmark = pytest.mark.mpi

RULE = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("max_bytes", [20_000, 5000, 1000])
@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense", "sharded", "auto"])
def test_a_ceiling(world, rng, algorithm, max_bytes, shared):
    shape = (150, 70)
    samples = [12 + r for r in range(world.size)]
    parts = oracle.draw(rng, samples, shape, np.float32)
    start = rng.standard_normal(shape).astype(np.float32)
    with sfb.Comm(world, max_bytes=max_bytes) as comm:
        w = comm.shared(shape) if shared else np.empty(shape, np.float32)
        if not shared or comm.node.rank == 0:
            w[...] = start
        comm.Barrier()
        optimizer = sfb.optim.SGD(w, **RULE)
        factors = sfb.Factors(*parts[world.rank])
        comm.Allreduce(factors, optimizer, algorithm=algorithm)
        g = np.empty(shape, np.float32)
        comm.Allreduce(factors, g, algorithm=algorithm)
        total, bound = oracle.total(parts, shape), oracle.bound(parts, shape, np.float32)
        assert (abs(g - total) <= bound).all()
        assert (abs(w - oracle.sgd(start, [total], **RULE)) <= bound + 1e-5).all()
        oracle.assert_same_bits(world, w)
        del w, optimizer


def test_blocks_of_rows_give_the_bits_of_the_whole(world, rng):
    shape, samples = (400, 60), [40] * world.size
    parts = oracle.draw(rng, samples, shape, np.float32)
    bits = set()
    for max_bytes in (1 << 30, 40 * world.size * 60 * 4 * 2):
        with sfb.Comm(world, max_bytes=max_bytes) as comm:
            for algorithm in ("node", "broadcast"):
                g = np.empty(shape, np.float32)
                comm.Allreduce(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
                bits.add(g.tobytes())
    assert len(bits) == 1


@pytest.mark.parametrize("option", ["max_bytes", "reproducible"])
def test_options_that_differ(world, option):
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    with sfb.Comm(world, **{option: 1 + world.rank if option == "max_bytes" else world.rank == 0}) as comm:
        factors = sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))
        with pytest.raises(sfb.MismatchError, match="ranks disagree"):
            comm.Allreduce(factors, np.empty((4, 3)))


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("algorithm", ["node", "broadcast", "dense", "sharded"])
def test_messages_of_more_elements_than_mpi_counts(any_comm, world, rng, monkeypatch, algorithm, blocking):
    monkeypatch.setattr(limits, "MAX_COUNT", 500)
    shape = (60, 50)
    parts = oracle.draw(rng, [400 + r for r in range(world.size)], shape, np.float64)
    g = np.empty(shape)
    factors = sfb.Factors(*parts[world.rank])
    if algorithm == "sharded" and world.size < 400 * 60 // 500:
        with pytest.raises(ValueError, match="name another algorithm"):
            any_comm.Allreduce(factors, g, algorithm=algorithm)
        return
    if blocking:
        any_comm.Allreduce(factors, g, algorithm=algorithm)
    else:
        any_comm.Iallreduce(factors, g, algorithm=algorithm).Wait()
    assert (abs(g - oracle.total(parts, shape)) <= oracle.bound(parts, shape, np.float64)).all()
