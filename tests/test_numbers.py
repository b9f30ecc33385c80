"""Numbers that are no numbers, and those at the edges of their types: as in NumPy, on all ranks."""

import numpy as np
import pytest
from mpi4py import MPI
from scipy.sparse import csr_array

import sfb
from sfb.runtime.finite import check_finite, not_finite

NANS = [np.nan, np.inf, -np.inf]


def edge_values(dtype):
    """Return numbers at the edges of a type: zeros of both signs, denormals, the largest, and what is no number."""
    info = np.finfo(dtype)
    some = [0.0, -0.0, 1.0, -1.0, info.smallest_subnormal, -info.smallest_subnormal, info.tiny, -info.tiny]
    return np.array([*some, info.tiny / 4, info.max, -info.max, *NANS], dtype)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "f2", "i4", "?"])
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 3000])
def test_the_first_element_that_is_no_number(dtype, size, rng):
    array = np.ones(size, dtype)
    assert not_finite(array) == -1
    if size and array.dtype.kind in "fc":
        array[-1] = np.nan
        for index in (size - 1, size // 2, 0):
            array[index] = np.inf
            assert not_finite(array) == index
    largest = np.full(5, np.finfo("f4").max, "f4")
    assert not_finite(largest) == -1


def test_messages_say_where():
    for name, array, text in (
        ("x", np.array(np.nan), "x holds nan, and"),
        ("x", np.array([0, -np.inf]), "x holds -inf at 1, and"),
        ("u", np.array([[0, 1], [np.nan, 0]]), r"u holds nan at \(1, 0\), and"),
        ("v", csr_array(np.array([[0, 1.0, 0], [0, 0, np.inf]])), r"v holds inf at \(1, 2\), and"),
    ):
        with pytest.raises(ValueError, match=text):
            check_finite(name, array)


@pytest.fixture(params=[None, 1], ids=["one node", "nodes of one"])
def checking(request, world):
    """A Comm that refuses what is no number."""
    from nodes import split_hosts

    node = None if request.param is None else split_hosts(world, lambda rank: rank)
    with sfb.Comm(world, check_finite=True, node=node) as comm:
        yield comm
    if node is not None:
        node.Free()


@pytest.mark.mpi
@pytest.mark.parametrize("value", NANS, ids=str)
@pytest.mark.parametrize("way", ["Allreduce", "Iallreduce", "Start"])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_factors_are_refused_on_all_ranks_before_anything_changes(checking, world, value, way, form):
    last = world.rank == world.size - 1
    u, v = np.ones((2, 3)), np.ones((2, 4))
    factors = sfb.Factors(u, csr_array(v) if form == "csr" else v)
    optimizer = sfb.optim.SGD(np.zeros((3, 4)), lr=1.0)
    plan = checking.Allreduce_init(factors, optimizer)

    def reduce():
        if way == "Start":
            plan.Start()
            plan.Wait()
        elif way == "Iallreduce":
            checking.Iallreduce(factors, optimizer).Wait()
        else:
            checking.Allreduce(factors, optimizer)

    for step in range(1, 4):
        reduce()
        u[1, 2] = value if last else 1
        with pytest.raises(ValueError, match=rf"rank {world.size - 1}: u holds {value} at \(1, 2\)|^u holds {value}"):
            reduce()
        u[1, 2] = 1
        np.testing.assert_array_equal(optimizer.array, -2 * world.size * step)


@pytest.mark.mpi
def test_plain_arrays_are_refused_on_all_ranks(checking, world):
    x, y = np.ones(3 * world.size), np.zeros(3 * world.size)
    x[1] = np.nan if world.rank == 0 else 1
    calls = {
        "Allreduce": lambda: checking.Allreduce(x, y),
        "Iallreduce": lambda: checking.Iallreduce([x, MPI.DOUBLE], y).Wait(),
        "Reduce_scatter_block": lambda: checking.Reduce_scatter_block(x, y[:3]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name}: rank 0: the array holds nan at 1"):
            call()
        assert not y.any()
    in_place = x.copy()
    with pytest.raises(ValueError, match="rank 0: the array holds nan at 1"):
        checking.Allreduce(MPI.IN_PLACE, in_place)
    x[1] = 1
    for call in calls.values():
        call()
        assert y[0] == world.size


@pytest.mark.mpi
@pytest.mark.parametrize("kind", [sfb.Store, sfb.AveragingStore])
def test_a_store_refuses_updates_that_are_no_numbers(world, kind):
    with kind(world, {"a": np.zeros(3), "b": np.zeros((2, 3))}, sfb.optim.SGD(lr=1.0), check_finite=True) as store:
        with pytest.raises(ValueError, match=f"rank {world.rank} pushes to table 'a': the update holds nan at 2, and"):
            store.push("a", np.array([0, 1, np.nan]))
        with pytest.raises(ValueError, match=r"pushes to table 'b': v holds inf at \(0, 0\)"):
            store.push("b", sfb.Factors(np.ones((1, 2)), np.full((1, 3), np.inf)))
        store.push("a", np.ones(3))
        store.clock()
    assert np.isfinite(store["a"]).all()
    assert not store["b"].any()


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("size", [13, 300_000])
def test_plain_sums_at_the_edges_of_a_type_are_those_of_numpy(any_comm, world, dtype, size):
    """In any order of the ranks: rank 0 has the edge values, the others zeros or values that lead beyond the edges."""
    edges = np.resize(edge_values(dtype), size)
    others = [edges, np.full(size, -0.0, dtype), edges[::-1].copy(), np.full(size, np.finfo(dtype).max, dtype)]
    for theirs in (others[1], others[3]) if world.size == 2 else (others[1],):
        x = edges if world.rank == 0 else theirs
        y = np.empty_like(x)
        with np.errstate(all="ignore"):
            any_comm.Allreduce(x, y)
            expected = edges.copy()
            for _ in range(1, world.size):
                expected = expected + theirs
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(np.signbit(y[~np.isnan(y)]), np.signbit(expected[~np.isnan(expected)]))


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("algorithm", ["broadcast", "dense", "node"])
def test_products_at_the_edges_of_a_type_are_those_of_numpy(any_comm, world, dtype, algorithm):
    """One sample on rank 0: each element is one product, rounded once."""
    edges = edge_values(dtype)
    u, v = edges[None], np.array([[1.0, -1.0, 0.5, 2.0, np.finfo(dtype).tiny]], dtype)
    mine = slice(0, 1 if world.rank == 0 else 0)
    g = np.empty((edges.size, 5), dtype)
    any_comm.Allreduce(sfb.Factors(u[mine].copy(), v[mine].copy()), g, algorithm=algorithm)
    with np.errstate(all="ignore"):
        expected = u.T * v + dtype_zero(dtype)
    np.testing.assert_array_equal(g, expected)
    assert (np.signbit(g) == np.signbit(expected))[(expected != 0) & ~np.isnan(expected)].all()


def dtype_zero(dtype):
    return np.zeros((), dtype)


@pytest.mark.parametrize("value", NANS, ids=str)
def test_clipping_never_hides_what_is_no_number(value, rng):
    u, v = rng.standard_normal((4, 6)), rng.standard_normal((4, 5))
    u[2, 3] = value
    for rule in (sfb.optim.SGD(lr=0.1, max_norm=0.5), sfb.optim.Adam(lr=0.1, max_norm=0.5)):
        dense, factored, sparse = (rule.bind(np.ones((6, 5))) for _ in range(3))
        with np.errstate(all="ignore"):
            dense.step(u.T @ v)
        for optimizer, factors in ((factored, sfb.Factors(u, v)), (sparse, sfb.Factors(u, csr_array(v)))):
            with sfb.Comm(MPI.COMM_SELF) as comm:
                comm.Allreduce(factors, optimizer)
        for optimizer in (dense, factored, sparse):
            assert np.isnan(optimizer.array).all()
