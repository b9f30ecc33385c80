"""Collectives of plain arrays, beside MPI's own."""

from array import array

import numpy as np
import pytest
from mpi4py import MPI

import sfb
from sfb.arrays import dispatch as arrays
from sfb.arrays import internode
from sfb.arrays.buffers import read
from sfb.arrays.dispatch import Arrays

OPS = {"sum": MPI.SUM, "prod": MPI.PROD, "max": MPI.MAX, "min": MPI.MIN}
# Small, at the edges of slots and of their lines, and of several chunks.
SIZES = [0, 1, 7, 2048, 2049, 33333, 300_007]

pytestmark = pytest.mark.mpi


@pytest.fixture
def ours(any_comm, monkeypatch):
    """A Comm that leaves nothing to MPI between nodes, in many segments."""
    monkeypatch.setattr(Arrays, "_choice", lambda self, nbytes: True)
    monkeypatch.setattr(arrays, "_FAR", 1 << 16)
    monkeypatch.setattr(internode, "_MESSAGE", (1 << 9, 1 << 12))
    return any_comm


def numbers(rng, dtype, count, rank):
    rng = np.random.default_rng([*rng.integers(0, 1 << 30, 2), rank])
    if np.dtype(dtype).kind == "f":
        return (rng.uniform(0.5, 1.5, count) * rng.choice([-1, 1], count)).astype(dtype)
    return rng.integers(-3, 4, count).astype(dtype)


def close(got, expected):
    if got.dtype.kind == "f":
        scale = np.finfo(got.dtype).eps * 16
        np.testing.assert_allclose(got, expected, rtol=scale, atol=scale)
    else:
        np.testing.assert_array_equal(got, expected)


def same_everywhere(world, got):
    np.testing.assert_array_equal(got, world.bcast(got))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8"])
def test_allreduce_equals_that_of_mpi(ours, world, rng, dtype, op):
    for count in SIZES:
        mine = numbers(rng, dtype, count, world.rank)
        expected, got, in_place = np.empty_like(mine), np.empty_like(mine), mine.copy()
        world.Allreduce(mine, expected, OPS[op])
        ours.Allreduce(mine, got, OPS[op])
        ours.Allreduce(MPI.IN_PLACE, in_place, OPS[op])
        close(got, expected)
        same_everywhere(world, got)
        np.testing.assert_array_equal(in_place, got)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c8", "i8", "?"])
def test_every_type_that_mpi_takes(comm, world, dtype):
    op = MPI.LOR if dtype == "?" else MPI.SUM
    for shape in [(), (3,), (40, 50), (2, 3, 1000)]:
        mine = np.ones(shape, dtype)
        got = np.empty_like(mine)
        comm.Allreduce(mine, got, op)
        np.testing.assert_array_equal(got, np.full(shape, 1 if dtype == "?" else world.size, dtype))


@pytest.mark.parametrize("op", ["BAND", "BXOR", "LAND", "MAX"])
def test_every_operation_that_mpi_takes(comm, world, op):
    mine, got, expected = np.full(5000, world.rank + 1), np.empty(5000, int), np.empty(5000, int)
    comm.Allreduce(mine, got, getattr(MPI, op))
    world.Allreduce(mine, expected, getattr(MPI, op))
    np.testing.assert_array_equal(got, expected)


def test_an_operation_of_the_user(comm, world):
    def add(a, b, datatype):
        np.frombuffer(b, "f4")[:] += np.frombuffer(a, "f4")

    op = MPI.Op.Create(add, commute=True)
    got = np.empty(5000, "f4")
    comm.Allreduce(np.ones(5000, "f4"), got, op)
    op.Free()
    np.testing.assert_array_equal(got, world.size)


@pytest.mark.parametrize(
    "spec",
    [
        lambda a: [a, MPI.FLOAT],
        lambda a: [a, a.size, MPI.FLOAT],
        lambda a: (a, (a.size, 0), MPI.FLOAT),
        lambda a: [a, "f"],
        lambda a: memoryview(a),
    ],
)
def test_buffers_spelt_otherwise_on_one_rank(ours, world, spec):
    for count in (10, 50_000):
        mine, got = np.ones(count, "f4"), np.empty(count, "f4")
        if world.rank == 0:
            ours.Allreduce(spec(mine), spec(got))
        else:
            ours.Allreduce(mine, got)
        np.testing.assert_array_equal(got, world.size)


def test_buffers_are_read_as_mpi4py_does():
    a = np.arange(12, dtype="f4")
    row = MPI.FLOAT.Create_vector(2, 1, 3).Commit()
    cases = [
        (a, 48),
        ([a, MPI.FLOAT], 48),
        ([a, 5], 20),
        ([a, 5, MPI.FLOAT], 20),
        ([a, (5, 1), "f"], 20),
        ([a, 5, 2, "f"], 20),
        ([a, None, 2, "f"], 40),
        ([a, (None, 3)], 36),
        (array("d", [1, 2]), 16),
        (b"abc", 3),
        ([None, 0, MPI.FLOAT], 0),
        ([a, 2, row], 16),
    ]
    assert [read(buffer).nbytes for buffer, _ in cases] == [nbytes for _, nbytes in cases]
    row.Free()
    np.testing.assert_array_equal(read([a, (5, 1), "f"]).vector, a[1:6])
    assert (read(a, 4).nbytes, read([a, 4, "f"], 2).nbytes, read([a, 4, "f"], 2).vector.size) == (12, 16, 8)


WRONG = {
    "a list": ([1.0, 2.0, 3.0], TypeError),
    "a number": (3, TypeError),
    "nothing": ([], ValueError),
    "too much": ([np.zeros(3), 1, 1, MPI.DOUBLE, 1], ValueError),
    "big-endian": (np.zeros(3, ">f8"), BufferError),
    "strided": (np.zeros(6)[::2], BufferError),
    "objects": (np.zeros(3, object), KeyError),
    "a displacement beyond the end": ([np.zeros(3), 1, 4, MPI.DOUBLE], ValueError),
    "a negative count": ([np.zeros(3), -1, MPI.DOUBLE], ValueError),
    "no whole elements": ([bytearray(9), MPI.DOUBLE], ValueError),
    "no whole blocks": (np.zeros(3), ValueError),
    "a null type": ([np.zeros(3), MPI.DATATYPE_NULL], (ValueError, MPI.Exception)),
}


@pytest.mark.parametrize("what", WRONG)
def test_buffers_that_are_none(what):
    buffer, error = WRONG[what]
    with pytest.raises(error):
        read(buffer, 2)


def test_strided_and_read_only_arrays(comm, world):
    whole = np.ones((300, 400), "f4")
    got = np.empty((300, 200), "f4")
    with pytest.raises((BufferError, ValueError)):
        comm.Allreduce(whole[:, ::2], got)
    with pytest.raises((BufferError, ValueError)):
        world.Allreduce(whole[:, ::2], got)
    fixed = np.ones(300)
    fixed.flags.writeable = False
    result = np.empty(300)
    comm.Allreduce(fixed, result)
    np.testing.assert_array_equal(result, world.size)
    with pytest.raises((BufferError, ValueError)):
        comm.Allreduce(result, fixed)
    fortran = np.asfortranarray(np.ones((50, 60)))
    turned = np.asfortranarray(np.empty((50, 60)))
    comm.Allreduce(fortran, turned)
    np.testing.assert_array_equal(turned, world.size)


@pytest.mark.parametrize(
    ("given", "taken"), [(np.zeros(3), np.zeros(4)), (np.zeros(3), None), (None, 3), ("x", np.zeros(2))]
)
def test_errors_are_those_of_mpi4py(comm, given, taken):
    def error(of):
        try:
            of.Allreduce(given, taken)
        except Exception as caught:
            return type(caught), str(caught)
        return None

    assert error(comm) == error(MPI.COMM_SELF) is not None


def test_arrays_in_shared_memory(ours, world, rng):
    comm = ours
    rows = comm.allreduce(comm.node.size, MPI.MAX)
    for count in (5, 5000, 100_003):
        mine = numbers(rng, "f8", count, world.rank)
        expected = np.empty_like(mine)
        comm.Allreduce(mine, expected)
        given, taken, one = comm.shared((rows, count), "f8"), comm.shared((rows, count), "f8"), comm.shared(count, "f8")
        given[comm.node.rank] = mine
        comm.Allreduce(given[comm.node.rank], one)
        np.testing.assert_array_equal(one, expected)
        comm.Allreduce(given[comm.node.rank], taken[comm.node.rank])
        np.testing.assert_array_equal(taken[comm.node.rank], expected)
        comm.Allreduce(MPI.IN_PLACE, given[comm.node.rank])
        np.testing.assert_array_equal(given[comm.node.rank], expected)
        # Shared on one rank only, beside another array of the node's.
        mixed = given[comm.node.rank] if world.rank == 0 else expected.copy()
        comm.Allreduce(MPI.IN_PLACE, mixed)
        close(mixed, expected * world.size)
        comm.Barrier()


def test_large_and_small_calls_in_turn(ours, world, rng):
    """Slots are used again while other ranks may still read them."""
    for step in range(60):
        count = int(rng.choice([1, 100, 2048, 5000, 70_000, 300_000]))
        kind = rng.integers(3)
        if kind == 0:
            got = np.empty(count, "i8")
            ours.Allreduce(np.full(count, world.rank + step), got)
            np.testing.assert_array_equal(got, sum(range(world.size)) + step * world.size)
        elif kind == 1:
            got = np.empty(count, "i8")
            ours.Reduce_scatter_block(np.repeat(np.arange(world.size) + step, count), got)
            np.testing.assert_array_equal(got, (world.rank + step) * world.size)
        else:
            every = np.empty((world.size, count), "i8")
            ours.Allgather(np.full(count, world.rank + step), every)
            np.testing.assert_array_equal(every, np.arange(world.size)[:, None] + step + 0 * every)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "i2"])
def test_reduce_scatter_and_allgather_equal_those_of_mpi(any_comm, world, rng, dtype):
    for count in (1, 1024, 5001, 100_003):
        mine = numbers(rng, dtype, count * world.size, world.rank)
        expected, got = np.empty(count, dtype), np.empty(count, dtype)
        for op in (MPI.SUM, MPI.MIN):
            world.Reduce_scatter_block(mine, expected, op)
            any_comm.Reduce_scatter_block(mine, got, op)
            close(got, expected)
        in_place = mine.copy()
        any_comm.Reduce_scatter_block(MPI.IN_PLACE, in_place, MPI.MIN)
        np.testing.assert_array_equal(in_place[:count], got)
        every, expected = np.empty((world.size, count), dtype), np.empty((world.size, count), dtype)
        world.Allgather(got, expected)
        any_comm.Allgather(got, every)
        np.testing.assert_array_equal(every, expected)
        every[:] = 0
        every[world.rank] = got
        any_comm.Allgather(MPI.IN_PLACE, every)
        np.testing.assert_array_equal(every, expected)


def test_many_duplicates_and_parts(world):
    for step in range(20):
        with sfb.Comm(world.Split(world.rank % 2 if step % 2 else 0, -world.rank)) as comm:
            copy = comm.Dup()
            got = np.empty(5000)
            copy.Allreduce(np.ones(5000), got)
            np.testing.assert_array_equal(got, comm.size)
            copy.Free()
            comm.Allreduce(MPI.IN_PLACE, got)
            np.testing.assert_array_equal(got, comm.size**2)


def test_plain_arrays_beside_exchanges_under_way(any_comm, world):
    comm = any_comm
    factors, g = sfb.Factors(np.ones((2, 40)), np.ones((2, 30))), np.empty((40, 30))
    for count in (10, 5000, 100_000):
        requests = [comm.Iallreduce(factors, np.empty((40, 30))) for _ in range(3)]
        request = comm.Iallreduce(factors, g)
        got = np.empty(count)
        comm.Allreduce(np.ones(count), got)
        for one in (*requests, request):
            one.Wait()
        np.testing.assert_array_equal(got, world.size)
        np.testing.assert_array_equal(g, 2 * world.size)


def test_a_large_array_and_factors(ours, world):
    """Between nodes, too, ranks find out before anything is sent."""
    if world.size == 1:
        pytest.skip("needs ranks that disagree")
    if ours.allreduce(ours.node.size, MPI.MIN) != ours.allreduce(ours.node.size, MPI.MAX):
        pytest.skip("nodes of unlike size leave arrays to MPI")
    large = np.ones((200, 100))
    ours.Allreduce(large.copy(), large)
    given = sfb.Factors(np.ones((2, 200)), np.ones((2, 100))) if world.rank == 0 else large.copy()
    with pytest.raises(sfb.MismatchError, match="ranks disagree"):
        ours.Allreduce(given, large)
    ours.Allreduce(np.ones(1), large[0, :1])
    np.testing.assert_array_equal(large[0, 0], world.size)


def test_between_nodes_the_first_calls_tell_who_is_faster(lone_comm, world):
    if world.size == 1:
        pytest.skip("needs nodes")
    large, got = np.ones(200_000), np.empty(200_000)
    ours = lone_comm._plain.of(lone_comm, lambda: lone_comm._team)
    for _ in range(arrays.SETTLED):
        lone_comm.Allreduce(large, got)
        np.testing.assert_array_equal(got, world.size)
    assert ours._choice(large.nbytes) in (True, False)
    assert len(set(world.allgather(ours._choice(large.nbytes)))) == 1


@pytest.mark.parametrize("faster", ["arrays", "allreduce"])
def test_between_nodes_a_profile_tells_who_is_faster(world, faster):
    if world.size == 1:
        pytest.skip("needs nodes")
    tables = {kind: ((1.0, 1e-3), (1e8, 0.1 if kind == faster else 1.0)) for kind in ("arrays", "allreduce")}
    part = world.Split(world.rank)
    with sfb.Comm(world, node=part, profile=sfb.Profile(tables=tables)) as comm:
        large = np.ones(200_000)
        comm.Allreduce(MPI.IN_PLACE, large)
        np.testing.assert_array_equal(large, world.size)
        assert comm._plain.arrays._choice(large.nbytes) is (faster == "arrays")
    with sfb.Comm(world, node=part, reproducible=True) as comm:
        comm.Allreduce(MPI.IN_PLACE, large)
        assert comm._plain.arrays._choice(large.nbytes) is False
    part.Free()


def test_one_result_for_all_ranks_of_a_node(ours, world):
    """Where ranks pass the same memory, none may compute in it."""
    for count in (1, 1500, 5000, 100_003):
        result = ours.shared(count, "f8")
        for step in range(50):
            ours.Allreduce(np.full(count, world.rank + step, "f8"), result)
            expected = sum(range(world.size)) + step * world.size
            assert (result == expected).all()
            ours.Barrier()


def test_spellings_may_differ_between_lone_ranks(lone_comm, world):
    """Not every rank need see at once that an array is MPI's; later exchanges agree nevertheless."""
    given, got = np.ones(100, "f4"), np.empty(100, "f4")
    factors, total = sfb.Factors(np.ones((1, 3), "f4"), np.ones((1, 4), "f4")), np.empty((3, 4), "f4")
    for step in range(3):
        lone_comm.Allreduce(given, [got, MPI.FLOAT] if (world.rank + step) % 2 else got)
        np.testing.assert_array_equal(got, world.size)
        lone_comm.Allreduce(factors, total)
        np.testing.assert_array_equal(total, world.size)


def test_shared_arrays_with_a_result_each_in_place(ours, world):
    """Every rank's result is its own array, which the others read."""
    if ours.node.size != world.size:
        pytest.skip("arrays of one node")
    for count in (5000, 100_003):
        arrays = ours.shared((world.size, count), "f8")
        arrays[world.rank] = np.arange(count) * (world.rank + 1)
        ours.Barrier()
        ours.Allreduce(MPI.IN_PLACE, arrays[world.rank])
        np.testing.assert_array_equal(arrays[world.rank], np.arange(count) * world.size * (world.size + 1) / 2)
