import gc
import itertools
from os import sched_yield

import networkx
import numpy as np
import oracle
import pytest
from mpi4py import MPI

import sfb
from sfb.store.timer import Timer
from sfb.units import parse_rate

pytestmark = pytest.mark.mpi

GRAPHS = ["halton", "exponential", "ring", "complete"]
MODES = [sfb.BSP(), sfb.SSP(1), sfb.SSP(3), sfb.ASP()]


def everybody_draws(rng, size, clocks, shape, dtype, most=4):
    """Return for each clock and rank a list of pushes (u, v); the same on all ranks."""
    return [
        [oracle.draw(rng, rng.integers(0, most, rng.integers(0, 3)), shape, dtype) for _ in range(size)]
        for _ in range(clocks)
    ]


@pytest.mark.parametrize("topology", GRAPHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bulk_synchronous_clocks_are_the_steps_of_allreduce(world, rng, topology, dtype):
    shape = 7, 11
    w0 = rng.standard_normal(shape).astype(dtype)
    pushes = everybody_draws(rng, world.size, 6, shape, dtype)
    rule = sfb.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.01)
    with sfb.Store(world, {"W": w0}, rule, topology=topology) as store, sfb.Comm(world) as comm:
        reference = rule.bind(w0.copy())
        for parts in pushes:
            for u, v in parts[world.rank]:
                store.push("W", sfb.Factors(u, v))
            store.clock()
            us, vs = ([np.empty((0, n), dtype)] + [p[i] for p in parts[world.rank]] for i, n in enumerate(shape))
            if any(parts):
                own = sfb.Factors(np.concatenate(us), np.concatenate(vs))
                comm.Allreduce(own, reference, algorithm="broadcast")
            np.testing.assert_array_equal(store["W"], reference.array)
            oracle.assert_same_bits(world, store["W"])


@pytest.mark.parametrize("consistency", MODES, ids=repr)
@pytest.mark.parametrize("topology", ["halton", "ring"])
@pytest.mark.parametrize("progress", ["poll", "thread"])
def test_every_update_reaches_every_rank_once(world, rng, consistency, topology, progress):
    if progress == "thread" and MPI.Query_thread() != MPI.THREAD_MULTIPLE:
        pytest.skip("this MPI has no MPI_THREAD_MULTIPLE")
    # Each update adds a power of two of its own to one element: a sum tells which arrived, and how often.
    clocks, tables = 12, {"a": np.zeros((world.size, 12)), "b": np.zeros(world.size)}
    counts = rng.integers(0, 3, (world.size, clocks))
    own = np.random.default_rng([world.rank, 1])
    store = sfb.Store(
        world, tables, sfb.optim.SGD(lr=1.0), topology=topology, consistency=consistency, progress=progress,
        max_bytes=4000,
    )  # fmt: skip
    with store:
        for clock in range(clocks):
            for _ in range(own.integers(0, 100)):  # ranks get ahead of each other
                sched_yield()
            if own.random() < 0.8:
                seen = store["a"]
                bound = consistency.bound(clock)
                for rank in range(world.size):
                    due = max(0, bound + 1)
                    assert (seen[rank, :due] == -counts[rank, :due]).all()
                if not consistency.ordered:
                    assert (seen[world.rank, :clock] == -counts[world.rank, :clock]).all()
            for _ in range(counts[world.rank, clock]):
                u, v = np.zeros((1, world.size)), np.zeros((1, 12))
                u[0, world.rank] = v[0, clock] = 1
                store.push("a", sfb.Factors(u, v))
            dense = np.zeros(world.size)
            dense[world.rank] = 2.0**clock
            store.push("b", dense)
            store.clock()
    assert (store["a"] == -counts).all()
    assert (store["b"] == -(2.0**clocks - 1)).all()
    stats = store.stats()
    assert stats.updates == counts.sum() + world.size * clocks
    # P − 1 transmissions of everything, whatever the graph.
    sent = world.allreduce(stats.sent_bytes), world.allreduce(stats.received_bytes)
    assert sent[0] == sent[1]
    assert stats.queued == 0


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_the_bound_is_never_violated(world, staleness):
    own = np.random.default_rng([world.rank, staleness])
    clocks = 10_000 // (3 * world.size)
    with sfb.Store(world, {"w": np.zeros(world.size)}, sfb.optim.SGD(lr=1.0), consistency=sfb.SSP(staleness)) as store:
        one = np.zeros(world.size)
        one[world.rank] = -1
        for clock in range(clocks):
            for _ in range(own.integers(0, 3)):  # a rank may not read, and read often
                w = store["w"]
                assert (w >= clock - staleness).all()
                assert w[world.rank] == clock
            store.push("w", one)
            store.clock()
        staleness_seen = store.stats().staleness
    assert max(staleness_seen, default=0) <= staleness
    assert (store["w"] == clocks).all()


@pytest.mark.parametrize("consistency", MODES, ids=repr)
def test_ranks_may_end_early_or_push_nothing(world, consistency):
    with sfb.Store(world, {"w": np.zeros((3, 4), np.float32)}, sfb.optim.SGD(lr=1.0), consistency=consistency) as store:
        for _ in range(5 * world.rank):
            store.push("w", np.ones((3, 4), np.float32))
            store.clock()
            _ = store["w"]
    total = sum(5 * rank for rank in range(world.size))
    assert (store["w"] == -total).all()


@pytest.mark.parametrize("consistency", [sfb.BSP(), sfb.ASP()], ids=repr)
def test_a_rank_that_pauses_holds_up_its_senders(world, consistency):
    samples, shape, limit, pushes = 4, (250, 250), 100_000, 60
    factors = sfb.Factors(np.ones((samples, shape[0]), np.float32), np.ones((samples, shape[1]), np.float32))
    rule = sfb.optim.SGD(lr=1.0)
    pushed, held_up, looks = 0, [], itertools.count()

    def pause():
        """Tell rank 0, which stays away until then, that this rank has looked for room many times in vain."""
        if world.rank > 0 and next(looks) == 1000:
            world.send(pushed, 0)
        sched_yield()

    options = {"consistency": consistency, "max_bytes": limit, "timer": Timer(pause=pause)}
    with sfb.Store(world, {"w": np.zeros(shape, np.float32)}, rule, **options) as store:
        if world.rank == 0:
            held_up = [world.recv(source=rank) for rank in range(1, world.size)]
        for pushed in range(pushes):  # noqa: B007 - pause reads it
            store.push("w", factors)
            store.clock()
            _ = store["w"]
        pushed = pushes
    assert all(count < pushes - 1 for count in held_up)
    assert (store["w"] == -samples * pushes * world.size).all()
    stats = store.stats()
    size = factors.nbytes + 200
    edges = 2 * len(store.topology.out_neighbours(world.rank)) * max(limit, size)  # messages in flight
    waiting = 2 * world.size * size if consistency.ordered else limit + world.size * size
    classes = max(limit, store.topology.diameter * len(store.topology.in_neighbours(world.rank)) * size)
    assert stats.peak_bytes <= limit + size + classes + edges + waiting


@pytest.mark.parametrize("priority", ["fifo", "random", "round-robin", "absolute", "relative"])
def test_priorities_and_budgets_lose_nothing(world, rng, priority):
    shapes = {"a": (20, 30), "b": (5, 8)}
    counts = rng.integers(0, 9, (2, world.size))
    parts = {name: oracle.draw(rng, counts[i], shapes[name], np.float64) for i, name in enumerate(shapes)}
    tables = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    store = sfb.Store(
        world, tables, sfb.optim.SGD(lr=1.0), consistency=sfb.ASP(), priority=priority, bandwidth="400kB/s"
    )
    with store:
        for name in shapes:
            store.push(name, sfb.Factors(*parts[name][world.rank]))
        store.clock()
    for name, shape in shapes.items():
        np.testing.assert_allclose(store[name], tables[name] - oracle.total(parts[name], shape), atol=1e-12)


@pytest.mark.parametrize("priority", ["absolute", "relative"])
def test_priorities_of_what_is_long_or_not_finite(world, priority):
    u, v, g = np.eye(2, 8, dtype="f4"), np.full((2, 9), 1e20, "f4"), np.full((8, 9), 1e20, "f4")
    g[0, 0] = np.nan
    with sfb.Store(world, {"w": g}, sfb.optim.SGD(lr=0.0), consistency=sfb.ASP(), priority=priority) as store:
        sizes = [part[2] for update in (sfb.Factors(u, v), g) for part in store._parts(0, update)]
    assert sizes[-1] == np.inf
    if priority == "absolute":
        np.testing.assert_allclose(sizes[:-1], 3e20)


def test_sends_no_more_than_its_budget(world):
    if world.size == 1:
        pytest.skip("has nobody to send to")
    rate, seconds = parse_rate("2MB/s"), 0.7
    factors = sfb.Factors(np.ones((8, 500), np.float32), np.ones((8, 500), np.float32))
    looks = itertools.count()
    timer = Timer(now=lambda: 1e-4 * next(looks))
    options = {"consistency": sfb.ASP(), "bandwidth": "2MB/s", "max_bytes": 100_000, "timer": timer}
    with sfb.Store(world, {"w": np.zeros((500, 500), np.float32)}, sfb.optim.SGD(lr=0.0), **options) as store:
        begin = timer.now()
        while timer.now() < begin + seconds:
            store.push("w", factors)
            _ = store["w"]
        assert 0 < store.stats().sent_bytes <= rate * (timer.now() - begin) + 0.1 * rate


@pytest.mark.parametrize(
    "rule",
    [
        sfb.optim.Adam(lr=0.1),
        sfb.optim.Proximal(lr=0.1, l1=0.1),
        sfb.optim.Proximal(lr=0.1, radius=0.7),
        sfb.optim.SGD(lr=0.1, max_norm=1.0),
    ],
    ids=repr,
)
def test_all_rules_and_shapes(world, rng, rule):
    shapes = [(4, 6), (5,), (), (2, 3, 4)]
    tables = {str(i): rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    gradients = {name: rng.standard_normal((world.size, *w.shape)).astype(np.float32) for name, w in tables.items()}
    with sfb.Store(world, tables, rule) as store:
        for name in tables:
            store.push(name, np.asarray(gradients[name][world.rank]))
        store.clock()
        for name, w in tables.items():
            expected = np.array(w, ndmin=2).reshape(w.shape[0] if w.ndim > 1 else 1, -1)
            total = gradients[name][0]
            for gradient in gradients[name][1:]:
                total = total + gradient
            rule.bind(expected).step(np.ascontiguousarray(total).reshape(expected.shape))
            assert store[name].shape == w.shape
            np.testing.assert_allclose(store[name].reshape(expected.shape), expected, rtol=1e-6)
            oracle.assert_same_bits(world, store[name])


def test_factors_and_arrays_of_one_clock_are_one_step(world, rng):
    u, v = oracle.draw(rng, [3], (4, 5), np.float64)[0]
    w0, dense = np.zeros((4, 5)), rng.standard_normal((4, 5))
    with sfb.Store(world, {"w": w0}, sfb.optim.SGD(lr=1.0, momentum=0.5)) as store:
        store.push("w", sfb.Factors(u, v))
        store.push("w", dense)
        store.clock()
        np.testing.assert_allclose(store["w"], -world.size * (u.T @ v + dense), atol=1e-12)


def test_a_rank_that_fails_tells_the_others(world):
    if world.size == 1:
        pytest.skip("needs others")

    def work():
        with sfb.Store(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0)) as store:
            for clock in range(100):
                store.push("w", np.ones(3))
                store.clock()
                _ = store["w"]
                if world.rank == 1 and clock == 5:
                    raise ZeroDivisionError("lost")

    if world.rank == 1:
        with pytest.raises(ZeroDivisionError):
            work()
    else:
        with pytest.raises(sfb.StoreError, match="rank 1 has left the store: ZeroDivisionError: lost"):
            work()


def test_the_replica_is_read_only_and_a_copy(world):
    w0 = np.zeros((2, 3))
    with sfb.Store(world, {"w": w0}, sfb.optim.SGD(lr=1.0)) as store:
        with pytest.raises(ValueError, match="read-only"):
            store["w"][0, 0] = 1
        store.push("w", np.ones((2, 3)))
        store.clock()
        assert store["w"][0, 0] == -world.size
        store.optimizer("w").lr = 0.0
        store.push("w", np.ones((2, 3)))
        store.flush()
    assert (w0 == 0).all()
    assert store["w"][0, 0] == -world.size


def test_many_stores_come_and_go(world):
    for _ in range(30):
        with sfb.Store(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=1.0)) as store:
            store.push("w", np.ones(3))
        store.close()
    gc.collect()


WRONG = [
    ({"tables": {}}, TypeError, "one or more names"),
    ({"tables": {"w": [1.0]}}, TypeError, "NumPy array"),
    ({"tables": {"w": np.zeros(3, np.int64)}}, TypeError, "float32 or float64, got int64"),
    ({"rule": "sgd"}, TypeError, "must be an optimizer"),
    ({"rule": {}}, TypeError, "the rule of 'w'"),
    ({"rule": {"w": sfb.optim.SGD(lr=1.0), "x": sfb.optim.SGD(lr=1.0)}}, ValueError, "do not exist: x"),
    ({"consistency": 3}, TypeError, "BSP"),
    ({"bandwidth": "fast"}, ValueError, "1Gbit/s"),
    ({"bandwidth": -1}, ValueError, "above 0"),
    ({"priority": "best"}, ValueError, "fifo"),
    ({"topology": "star"}, ValueError, "halton"),
    ({"topology": networkx.empty_graph(4)}, ValueError, "disconnected"),
    ({"max_bytes": 0}, ValueError, "max_bytes"),
    ({"progress": "fast"}, ValueError, "poll"),
    ({"stall": -1}, ValueError, "stall"),
]


@pytest.mark.parametrize(("wrong", "kind", "text"), WRONG, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("everywhere", [True, False])
def test_wrong_arguments_are_an_error_everywhere(world, wrong, kind, text, everywhere):
    right = {"tables": {"w": np.zeros(3)}, "rule": sfb.optim.SGD(lr=1.0)}
    arguments = right | (wrong if everywhere or world.rank == world.size - 1 else {})
    with pytest.raises(kind, match=text):
        sfb.Store(world, **arguments)


@pytest.mark.parametrize(
    "different",
    [
        {"tables": {"w": np.zeros(4)}},
        {"tables": {"w": np.ones(3)}},
        {"tables": {"v": np.zeros(3)}},
        {"rule": sfb.optim.SGD(lr=0.5)},
        {"consistency": sfb.SSP(2)},
        {"topology": "ring"},
        {"max_bytes": 12345},
    ],
    ids=str,
)
def test_ranks_that_disagree_are_told(world, different):
    if world.size < 4:
        pytest.skip("graphs of few ranks are alike")
    arguments = {"tables": {"w": np.zeros(3)}, "rule": sfb.optim.SGD(lr=1.0)}
    arguments |= different if world.rank == 1 else {}
    with pytest.raises(sfb.MismatchError, match="rank 1"):
        sfb.Store(world, **arguments)


def test_wrong_updates_are_errors(world):
    with sfb.Store(world, {"w": np.zeros((2, 3))}, sfb.optim.SGD(lr=1.0)) as store:
        with pytest.raises(KeyError, match="no table 'x'; there are 'w'"):
            store.push("x", np.zeros((2, 3)))
        with pytest.raises(KeyError, match="no table"):
            store["x"]
        with pytest.raises(TypeError, match="Factors or an array"):
            store.push("w", 1.0)
        with pytest.raises(ValueError, match="must be \\(2, 3\\) float64, got \\(3, 2\\)"):
            store.push("w", np.zeros((3, 2)))
        with pytest.raises(ValueError, match="got \\(2, 3\\) float32"):
            store.push("w", sfb.Factors(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32)))
        store.clock()
        assert (store["w"] == 0).all()
        assert store.stats().updates == 0
    for use in (lambda: store.push("w", np.zeros((2, 3))), store.clock, store.flush):
        with pytest.raises(RuntimeError, match="closed"):
            use()


@pytest.mark.parametrize("change", [{"steps": 1000}, {"lr": 0.5}, {"max_norm": 1.0}], ids=str)
@pytest.mark.parametrize("consistency", [sfb.BSP(), sfb.SSP(2), sfb.ASP()], ids=repr)
def test_settings_change_on_all_ranks_alike(world, consistency, change):
    update = sfb.Factors(np.ones((1, 4)), np.ones((1, 3)))
    for who in ("all", "one"):
        store = sfb.Store(world, {"w": np.zeros((4, 3))}, sfb.optim.Adam(lr=0.1), consistency=consistency)

        def train(store=store, who=who):
            with store:
                for clock in range(6):
                    store.push("w", update)
                    if clock == 2 and (who == "all" or world.rank == 0):
                        for name, value in change.items():
                            # Each rank has taken its own number of steps.
                            ahead = store.optimizer("w").steps if name == "steps" else 0
                            setattr(store.optimizer("w"), name, value + ahead)
                    store.clock()
                    store["w"]

        if who == "all" or world.size == 1:
            train()
            continue
        with pytest.raises(sfb.StoreError, match=r"ranks disagree: rank 0: clock 2 with 'w' Adam.*; rank") as caught:
            train()
        name, value = next(iter(change.items()))
        assert (f"{value} steps ahead" if name == "steps" else f"{name}={value}") in str(caught.value)
