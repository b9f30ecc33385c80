"""Fused and eager exchanges, which calls with a cached receiver take, beside the stepwise exchanges of other calls."""

import numpy as np
import oracle
import pytest
from nodes import split_hosts

import sfb
from sfb.collectives.call import Call
from sfb.collectives.eager import EagerBuffers
from sfb.collectives.engine import Engine

pytestmark = pytest.mark.mpi

# The rounds of an agreement divide a product of the last shape among nodes.
SMALL, LARGER = (4, 3), (31, 97)
EAGER = [("broadcast", SMALL), ("dense", SMALL), ("dense", LARGER)]
# A node sums a product of the last shape in two pieces.
FUSED = [("node", SMALL), ("dense", SMALL), ("dense", (260, 1100))]


@pytest.fixture(params=[("lone_comm", *way) for way in EAGER] + [("comm", *way) for way in FUSED], ids=str)
def cached(request):
    """A Comm, an algorithm and a shape whose exchange is fused or eager once the receiver is cached."""
    fixture, algorithm, shape = request.param
    return request.getfixturevalue(fixture), algorithm, shape


@pytest.mark.parametrize(("algorithm", "shape"), EAGER, ids=str)
def test_eager_exchanges_need_no_collectives(lone_comm, world, monkeypatch, algorithm, shape):
    factors = sfb.Factors(*(np.ones((2, n)) for n in shape))
    optimizer = sfb.optim.SGD(np.zeros(shape), lr=1.0)
    lone_comm.Allreduce(factors, optimizer, algorithm=algorithm)
    for collective in ("allgather_packed", "allgather_in_place", "allreduce", "gather"):
        monkeypatch.delattr(Call, collective)
    lone_comm.Allreduce(factors, optimizer, algorithm=algorithm)
    np.testing.assert_array_equal(optimizer.array, -4 * world.size)


def test_disagreement(cached, world):
    disagree(*cached, world)


@pytest.mark.parametrize("fixture", ["comm", "lone_comm"])
def test_disagreement_in_a_trial(request, fixture, world):
    disagree(request.getfixturevalue(fixture), "auto", SMALL, world)


def disagree(comm, algorithm, shape, world):
    """One rank, or its factors, differ from the others, in cached calls."""
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    optimizer = sfb.optim.SGD(np.zeros(shape), lr=1.0)
    last = world.rank == world.size - 1
    calls = 0

    def reduce(more=0):
        factors = sfb.Factors(np.ones((2, shape[0])), np.ones((2, shape[1] + more)))
        comm.Allreduce(factors, optimizer, algorithm=algorithm)

    def refused(error, match, more=0):
        with pytest.raises(error, match=match) as caught:
            reduce(more)
        assert len(set(world.allgather(str(caught.value)))) == 1

    for _ in range(3):
        for _ in range(2):
            reduce()
            calls += 1
        optimizer.lr = 1.0 + last
        refused(sfb.MismatchError, f"rank {world.size - 1}: .*lr=2.0")
        optimizer.lr = 1.0
        refused(ValueError, f"rank {world.size - 1}: the receiver must have the shape", last)
        np.testing.assert_array_equal(optimizer.array, -2 * world.size * calls)


@pytest.mark.parametrize("shape", [SMALL, LARGER], ids=str)
def test_algorithms_that_differ_between_nodes(lone_comm, world, shape):
    """Headers travel with the payloads of different algorithms."""
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    factors, g = sfb.Factors(*(np.ones((2, n)) for n in shape)), np.empty(shape)
    for algorithm in ("broadcast", "dense"):
        lone_comm.Allreduce(factors, g, algorithm=algorithm)
    with pytest.raises(sfb.MismatchError, match=r"ranks? 0.*: .*'dense'"):
        lone_comm.Allreduce(factors, g, algorithm="broadcast" if world.rank % 3 else "dense")
    lone_comm.Allreduce(factors, g, algorithm="dense")
    np.testing.assert_array_equal(g, 2 * world.size)


@pytest.mark.parametrize("part", [1, 2, 4])
def test_the_largest_payloads_of_nodes_that_differ(lone_comm, world, part):
    """One rank sends a product as large as the eager limit, or a multiple, and the others send factors of that size."""
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")
    room = (1 << 17) // world.size
    rows, samples = 8 * part, 7
    shape = rows, room // 64
    factors = sfb.Factors(*(np.ones((samples, n)) for n in shape))
    first, second = np.empty(shape), np.empty(shape)
    for algorithm in ("broadcast", "dense"):
        lone_comm.Allreduce(factors, first, algorithm=algorithm)
    with pytest.raises(sfb.MismatchError, match="'dense'"):
        lone_comm.Allreduce(factors, first, algorithm="dense" if world.rank else "broadcast")
    for target in (first, second if world.rank else first):  # rank 0 alone has the first in its cache
        lone_comm.Allreduce(factors, target, algorithm="dense")
        np.testing.assert_array_equal(target, samples * world.size)


def test_receivers_in_the_cache_of_some_ranks(cached, world):
    """Some ranks send data with their headers, or write it before, and others do not."""
    comm, algorithm, shape = cached
    g = np.empty(shape)
    for call in range(6):
        samples = (call + world.rank) % 3
        factors = sfb.Factors(*(np.ones((samples, n)) for n in shape))
        target = g if (call + world.rank) % 2 else np.empty_like(g)
        comm.Allreduce(factors, target, algorithm=algorithm)
        np.testing.assert_array_equal(target, sum((call + rank) % 3 for rank in range(world.size)))


@pytest.mark.parametrize("together", [True, False], ids=["one node", "nodes of one"])
def test_a_trial_in_which_receivers_are_new_to_some_ranks(world, together):
    """All ranks take the same algorithms, and end the trial with the same choice."""
    node = split_hosts(world, lambda slot: 0 if together else slot)
    # Stated rates: whether there is a trial does not depend on what this machine can do now.
    with sfb.Comm(world, node=node, profile=sfb.Profile()) as comm:
        factors, g = sfb.Factors(*(np.ones((2, n)) for n in SMALL)), np.empty(SMALL)
        for call in range(340):
            target = g if (call + world.rank) % 3 else np.empty_like(g)
            comm.Allreduce(factors, target)
            np.testing.assert_array_equal(target, 2 * world.size)
            assert len(set(world.allgather(comm.last_exchange.algorithm))) == 1
        plan = comm.plan(factors, g)
        assert plan.trial is None
        assert len(plan.measured) > 1 or world.size == 1
        assert len(set(world.allgather(repr((plan.algorithm, plan.measured))))) == 1
    node.Free()


@pytest.mark.parametrize(
    "rule",
    [
        sfb.optim.SGD(lr=0.5),
        sfb.optim.SGD(lr=0.5, momentum=0.9, nesterov=True),
        sfb.optim.Adam(lr=0.1),
        sfb.optim.Proximal(lr=0.1, l1=0.01),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_bits_are_those_of_stepwise_exchanges(cached, world, rng, rule, dtype):
    """One optimizer stays in the cache; another is new to some ranks in every call."""
    comm, algorithm, shape = cached
    (rows, columns), samples = shape, 3
    w = rng.standard_normal((rows, columns)).astype(dtype)
    usual, fresh = rule.bind(w.copy()), rule.bind(w.copy())
    for step in range(8):
        u, v = (rng.standard_normal((world.size, samples, n)).astype(dtype)[world.rank] for n in (rows, columns))
        # S changes between calls, on one rank or on all, and differs between ranks in some calls.
        few = samples - (step in (3, 4) and world.rank == 0) - (step == 6)
        factors = sfb.Factors(u[:few].copy(), v[:few].copy())
        comm.Allreduce(factors, usual, algorithm=algorithm)
        assert comm.last_exchange.algorithm == algorithm
        # A new object with the same values is not in the cache.
        if (step + world.rank) % 3:
            last, fresh = fresh, rule.bind(fresh.array.copy())
            for name in (*rule.states, *(("steps",) if hasattr(rule, "steps") else ())):
                setattr(fresh, name, getattr(last, name))
        comm.Allreduce(factors, fresh, algorithm=algorithm)
        np.testing.assert_array_equal(usual.array, fresh.array)
        oracle.assert_same_bits(world, usual.array)


def test_wrong_arguments_with_a_cached_receiver(cached, world):
    comm, algorithm, shape = cached
    w = np.zeros(shape, np.float32)
    optimizer = sfb.optim.SGD(w, lr=1.0, momentum=0.5)
    factors = sfb.Factors(*(np.ones((2, n), np.float32) for n in shape))
    last = world.rank == world.size - 1

    def reduce(u=factors.u, v=factors.v):
        comm.Allreduce(sfb.Factors(u, v) if last else factors, optimizer, algorithm=algorithm)

    for _ in range(3):
        reduce()
    before = w.copy()
    for error, match, wrong in (
        (ValueError, "shares memory", {"v": w[:2]}),
        (ValueError, "shares memory", {"v": optimizer.velocity[:2]}),
        (ValueError, "dtype", {"u": np.ones((2, shape[0])), "v": np.ones((2, shape[1]))}),
        (ValueError, "shape", {"u": np.ones((2, shape[0] + 1), np.float32)}),
    ):
        with pytest.raises(error, match=match):
            reduce(**wrong)
        np.testing.assert_array_equal(w, before)
    w.flags.writeable = not last
    with pytest.raises(ValueError, match="writeable"):
        reduce()
    w.flags.writeable = True
    np.testing.assert_array_equal(w, before)
    reduce()
    assert (w != before).all()


@pytest.mark.parametrize(("algorithm", "shape"), FUSED, ids=str)
@pytest.mark.parametrize("kind", ["shared", "private"])
def test_fused_exchanges_take_no_steps(comm, world, rng, monkeypatch, algorithm, shape, kind):
    if comm.node.size < world.size:
        pytest.skip("needs one node")
    w = comm.shared(shape) if kind == "shared" else np.zeros(shape, np.float32)
    optimizer = sfb.optim.Adam(w, lr=0.1)
    alone = sfb.optim.Adam(np.zeros(shape, np.float32), lr=0.1)
    for step in range(6):
        parts = [[rng.integers(-3, 4, (2, n)).astype(np.float32) for n in shape] for _ in range(world.size)]
        comm.Allreduce(sfb.Factors(*parts[world.rank]), optimizer, algorithm=algorithm)
        alone.step(sum(u.T @ v for u, v in parts))
        np.testing.assert_array_equal(w, alone.array)
        if world.size > 1 and step == 1:  # the first has created its state
            monkeypatch.delattr(Call, "meet")
            monkeypatch.delattr(Engine, "_propose")


@pytest.mark.parametrize(("algorithm", "shape"), FUSED, ids=str)
def test_other_exchanges_between_fused_ones(comm, world, algorithm, shape):
    """Other exchanges use the same memory of the node, and may need more of it."""
    factors, g = sfb.Factors(*(np.ones((2, n)) for n in shape)), np.empty(shape)
    for size in range(1, 4):
        for _ in range(2):
            comm.Allreduce(factors, g, algorithm=algorithm)
            np.testing.assert_array_equal(g, 2 * world.size)
        more = sfb.Factors(*(np.ones((50 * size, 50 * n)) for n in (3, 2)))
        out = np.empty(more.shape)
        for other in ("node", "sharded", "dense"):
            request = comm.Iallreduce(more, out, algorithm=other)
            comm.Allreduce(factors, g, algorithm=algorithm)
            np.testing.assert_array_equal(g, 2 * world.size)
            request.Wait()
            np.testing.assert_array_equal(out, 50 * size * world.size)


def test_a_rank_without_room_for_an_eager_exchange(lone_comm, world, monkeypatch):
    factors, g = sfb.Factors(*(np.ones((2, n)) for n in SMALL)), np.empty(SMALL)

    def fail(team):
        raise MemoryError

    if world.rank == world.size - 1:
        monkeypatch.setattr(EagerBuffers, "allocate", fail)
    for _ in range(3):
        lone_comm.Allreduce(factors, g, algorithm="dense")
        np.testing.assert_array_equal(g, 2 * world.size)
