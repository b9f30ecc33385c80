"""Factors that travel in 16 bits: rounded once, then summed as exactly as others, to the same bits on all ranks."""

import numpy as np
import oracle
import pytest
from nodes import split_hosts

import sfb
from sfb.collectives import ALGORITHMS
from sfb.kernels import half

pytestmark = pytest.mark.mpi


def rounded(x, kind):
    packed, result = np.empty(x.shape, np.uint16), np.empty_like(x)
    half.pack(x, packed, kind)
    half.unpack(packed, result, kind)
    return result


@pytest.mark.parametrize("per_node", [1, 2, None])
@pytest.mark.parametrize("kind", half.FORMATS)
@pytest.mark.parametrize("samples", [3, 40])
def test_sum_of_rounded_factors(world, rng, kind, samples, per_node):
    shape = (130, 400)
    counts = [samples + rank % 2 * (samples == 40) for rank in range(world.size)]
    parts = oracle.draw(rng, counts, shape, np.float32)
    near = [tuple(rounded(x, kind) for x in part) for part in parts]
    expected, bound = oracle.total(near, shape), oracle.bound(near, shape, np.float32)
    group = None if per_node is None else split_hosts(world, lambda slot: slot // per_node)
    with sfb.Comm(world, node=group, wire=kind) as comm:
        for algorithm in [*ALGORITHMS, "auto"]:
            for begin in (comm.Allreduce, comm.Iallreduce):
                g = np.full(shape, np.nan, np.float32)
                request = begin(sfb.Factors(*parts[world.rank]), g, algorithm=algorithm)
                if request is not None:
                    request.Wait()
                assert (abs(g - expected) <= bound).all(), algorithm
                oracle.assert_same_bits(world, g)
    if group is not None:
        group.Free()


def test_half_the_bytes(world, rng):
    if world.size == 1:
        pytest.skip("nothing travels")
    factors = sfb.Factors(*oracle.draw(rng, [64], (300, 500), np.float32)[0])
    received = []
    for wire in (None, "bfloat16"):
        with sfb.Comm(world, wire=wire) as comm:
            comm.Allreduce(factors, np.empty((300, 500), np.float32), algorithm="broadcast")
            received.append(comm.last_exchange.wire_bytes)
    assert received[1] * 2 == received[0]


def test_a_seed_rounds_differently_in_every_call_and_equally_in_every_run(world, rng):
    factors = sfb.Factors(*oracle.draw(rng, [4], (60, 50), np.float32)[0])
    runs = []
    for seed in (1, 1, 2):
        with sfb.Comm(world, wire="bfloat16", seed=seed, reproducible=True) as comm:
            results = []
            for _ in range(2):
                g = np.empty((60, 50), np.float32)
                comm.Allreduce(factors, g)
                oracle.assert_same_bits(world, g)
                results.append(g.tobytes())
        assert results[0] != results[1]
        runs.append(results)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_refuses(world):
    with pytest.raises(ValueError, match="wire must be"):
        sfb.Comm(world, wire="int8")
    with pytest.raises(ValueError, match="seed must be"):
        sfb.Comm(world, seed=3)
    with sfb.Comm(world, wire="float16") as comm, pytest.raises(TypeError, match="float32 factors"):
        comm.Allreduce(sfb.Factors(np.ones((1, 2)), np.ones((1, 3))), np.empty((2, 3)))
