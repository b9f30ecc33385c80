import networkx
import numpy as np
import oracle
import pytest

import sfb

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("topology", ["halton", "ring", "complete", "star"])
def test_replicas_agree_in_the_end(world, rng, topology):
    graph = topology if topology != "star" else networkx.star_graph(world.size - 1)
    w0 = {"w": rng.standard_normal((5, 7)).astype(np.float32), "b": rng.standard_normal(3)}
    updates = rng.standard_normal((world.size, 5, 7)).astype(np.float32)
    errors = []
    with sfb.AveragingStore(world, w0, sfb.optim.SGD(lr=1.0), topology=graph) as store:
        store.push("w", np.ascontiguousarray(updates[world.rank]))
        errors.append(store.consensus_error())
        for _ in range(40):  # in lockstep, where push-sum finds the mean
            _ = store["w"]
            world.Barrier()
            store.clock()
            store._settle()
        errors.append(store.consensus_error())
        assert store.weight > 0
    oracle.assert_same_bits(world, store["w"])
    np.testing.assert_allclose(store["b"], w0["b"])
    if world.size > 1:
        assert errors[1] < 0.01 * errors[0]
        mean = w0["w"] - updates.mean(axis=0)
        assert abs(store["w"] - mean).max() < 0.01 * abs(updates).max()
    else:
        assert errors == [0, 0]


def test_trains_a_model(world, rng):
    """Least squares: every rank has data of its own, the mean model fits all of it."""
    shape, samples = (3, 4), 20
    truth = rng.standard_normal(shape)
    v = np.random.default_rng(world.rank).standard_normal((samples, 4))
    with sfb.AveragingStore(world, {"w": np.zeros(shape)}, sfb.optim.SGD(lr=0.2 / samples)) as store:
        for step in range(300):
            if step % 10 == 0:  # a rank that ends long before the others would mix their early replicas into its last
                world.Barrier()
            w = store["w"]
            store.push("w", sfb.Factors(v @ (w - truth).T, v))
            store.clock()
    np.testing.assert_allclose(store["w"], truth, atol=0.1)
    oracle.assert_same_bits(world, store["w"])


def test_a_rank_ahead_of_the_others_keeps_its_weight(world):
    """Nobody receives what it sends, so it gives away a share only once, and its updates are in the mean."""
    with sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0)) as store:
        if world.rank == 0:
            for _ in range(100):
                store.push("w", np.full(3, -1.0))
                store.clock()
            assert store.weight >= 1 / world.size
        world.Barrier()
    np.testing.assert_allclose(store["w"], 100 / world.size, rtol=1e-12)


def test_a_rank_that_does_nothing_holds_up_nobody(world):
    with sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0)) as store:
        for _ in range(20 * world.rank):
            store.push("w", np.ones(3))
            store.clock()
            assert (store["w"] <= 0).all()
        world.Barrier()  # rank 0 waits here until all others have finished without it
    oracle.assert_same_bits(world, store["w"])
    with pytest.raises(RuntimeError, match="closed"):
        store.push("w", np.ones(3))


def test_a_rank_that_fails_tells_the_others(world):
    if world.size == 1:
        pytest.skip("needs others")

    def work():
        with sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0)) as store:
            while True:
                store.push("w", np.ones(3))
                store.clock()
                if world.rank == 1:
                    raise ZeroDivisionError("lost")

    kind = ZeroDivisionError if world.rank == 1 else sfb.StoreError
    with pytest.raises(kind, match="lost"):
        work()


def test_a_rank_that_fails_ends_the_wait_of_the_others_for_it(world):
    if world.size == 1:
        pytest.skip("needs others")

    def work():
        with sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0)) as store:
            if world.rank == 1:
                raise ZeroDivisionError("lost")
            store.consensus_error()

    kind = ZeroDivisionError if world.rank == 1 else sfb.StoreError
    with pytest.raises(kind, match="lost"):
        work()


def test_errors(world):
    with pytest.raises(ValueError, match="halton"):
        sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0), topology="best")
    for name in ("stall", "timeout"):
        with pytest.raises(ValueError, match=f"{name} must be a number of seconds > 0, got 0"):
            sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0), **{name: 0})
    with sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0)) as store:
        with pytest.raises(KeyError, match="no table"):
            store.push("x", np.zeros(3))
        with pytest.raises(ValueError, match="must be \\(3,\\)"):
            store.push("w", np.zeros(4))
