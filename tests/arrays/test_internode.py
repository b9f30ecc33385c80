"""Allreduce and Iallreduce of plain arrays between nodes, in rings of small messages."""

from itertools import pairwise

import numpy as np
import pytest
from mpi4py import MPI

import sfb
from sfb.arrays import dispatch, internode
from sfb.arrays.dispatch import Arrays
from sfb.arrays.internode import cuts
from sfb.runtime.requests import Request

pytestmark = pytest.mark.mpi

OPS = {"sum": (MPI.SUM, np.add), "prod": (MPI.PROD, np.multiply), "max": (MPI.MAX, np.maximum)}
# Bytes: arrays from which this library serves, and messages.
FAR, MESSAGE = 1 << 10, (1 << 7, 1 << 9)
# Elements: the least, odd, at the edges of messages of float32 and float64, of many segments.
COUNTS = [256, 511, 2047, 2048, 2049, 40_001]


@pytest.fixture
def far(any_comm, monkeypatch):
    """A Comm that leaves nothing to MPI between nodes, in many small messages."""
    monkeypatch.setattr(Arrays, "_choice", lambda self, nbytes: True)
    monkeypatch.setattr(dispatch, "_FAR", FAR)
    monkeypatch.setattr(internode, "_MESSAGE", MESSAGE)
    any_comm.node  # noqa: B018 (the first use is collective)
    return any_comm


def is_served(comm):
    """Return whether this library, and not MPI, reduces between the nodes of ``comm``; collective."""
    nodes = comm.allreduce(int(comm.node.rank == 0))
    return nodes > 1 and comm.allreduce(comm.node.size, MPI.MAX) == comm.allreduce(comm.node.size, MPI.MIN)


def draw(rng, dtype, count, size):
    """Return an array for each rank, the same on every rank."""
    if np.dtype(dtype).kind == "f":
        return rng.uniform(0.5, 1.5, (size, count)).astype(dtype)
    return rng.integers(-3, 4, (size, count)).astype(dtype)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8"])
def test_both_calls_give_the_same_bits_on_all_ranks(far, world, rng, dtype, op):
    handle, ufunc = OPS[op]
    for count in COUNTS:
        given = draw(rng, dtype, count, world.size)
        mine = given[world.rank].copy()
        results = np.zeros((4, count), dtype)
        in_place = results[1:3]
        in_place[:] = mine
        far.Allreduce(mine, results[0], handle)
        far.Allreduce(MPI.IN_PLACE, in_place[0], handle)
        far.Iallreduce(MPI.IN_PLACE, in_place[1], handle).Wait()
        far.Iallreduce(mine, results[3], handle).Wait()
        if is_served(far):
            np.testing.assert_array_equal(results, results[:1].repeat(4, axis=0))
            np.testing.assert_array_equal(results[0], world.bcast(results[0]))
        np.testing.assert_array_equal(mine, given[world.rank])
        exact = ufunc.reduce(given.astype("f8"), axis=0)
        tolerance = 1e-5 if dtype == "f4" else 1e-13
        np.testing.assert_allclose(results, np.broadcast_to(exact, results.shape), rtol=tolerance)


@pytest.mark.parametrize("count", COUNTS)
def test_the_order_of_a_sum_is_that_of_the_ring(lone_comm, world, rng, monkeypatch, count):
    """A part is summed from its own node on, around the ring."""
    monkeypatch.setattr(Arrays, "_choice", lambda self, nbytes: True)
    monkeypatch.setattr(dispatch, "_FAR", FAR)
    monkeypatch.setattr(internode, "_MESSAGE", MESSAGE)
    if world.size == 1:
        pytest.skip("needs nodes")
    given = draw(rng, "f4", count, world.size)
    got, expected = np.empty(count, "f4"), np.empty(count, "f4")
    lone_comm.Allreduce(given[world.rank].copy(), got)
    most = lone_comm._plain.arrays._rings.segment_bytes(got.nbytes) // got.itemsize
    for low, high in pairwise(cuts(count, -(-count // most))):
        for node, (first, last) in enumerate(pairwise(cuts(high - low, world.size))):
            total = np.zeros(last - first, "f4")
            for step in range(world.size):
                total += given[(node + step) % world.size, low + first : low + last]
            expected[low + first : low + last] = total
    np.testing.assert_array_equal(got, expected)


def test_a_message_has_a_least_and_a_most(lone_comm, world):
    lone_comm.node  # noqa: B018
    rings, nodes = internode.NodeRings(lone_comm._team), world.size
    least, most = internode._MESSAGE
    assert rings.segment_bytes(1) == nodes * least
    assert rings.segment_bytes(nodes * internode._IN_FLIGHT * 3 * least) == nodes * 3 * least
    assert rings.segment_bytes(1 << 40) == nodes * most


def test_many_under_way_end_in_any_order(far, world, rng):
    counts = rng.choice([300, 2049, 4000], 6)
    for wait in ("in order", "reversed", "by MPI", "by Test"):
        results = [np.full(count, world.rank + i) for i, count in enumerate(counts)]
        requests = [far.Iallreduce(MPI.IN_PLACE, result) for result in results]
        root = np.array([world.rank])
        other = far.Ibcast(root, 0)
        if wait == "by MPI":  # only the thread takes them forward
            MPI.Request.Waitall([*requests, other])
        else:
            for request in requests[::-1] if wait == "reversed" else requests:
                if wait == "by Test":
                    while not request.Test():
                        pass
                else:
                    request.Wait()
            other.Wait()
        assert root == 0
        for i, result in enumerate(results):
            np.testing.assert_array_equal(result, sum(range(world.size)) + i * world.size)


def test_between_exchanges_of_factors_and_other_calls(far, world):
    factors = sfb.Factors(np.ones((2, 40)), np.ones((2, 30)))
    for count in (10, 5000):
        products, sums = np.empty((3, 40, 30)), np.empty((4, count))
        terms = np.repeat(np.arange(3.0)[:, np.newaxis], count, axis=1)  # mpi4py's requests do not keep buffers
        requests = []
        for i in range(3):
            requests.append(far.Iallreduce(factors, products[i]))
            requests.append(far.Iallreduce(terms[i], sums[i]))
        far.Allreduce(np.ones(count), sums[3])
        far.Barrier()
        for request in requests[::-1]:
            request.Wait()
        np.testing.assert_array_equal(products, 2 * world.size)
        np.testing.assert_array_equal(sums, world.size * np.repeat([[0], [1], [2], [1]], count, axis=1))


@pytest.mark.parametrize(
    ("dtype", "op"), [("c16", MPI.SUM), ("i4", MPI.BXOR), ("?", MPI.LOR), ("u1", MPI.MAX), ("i2", MPI.SUM)]
)
def test_iallreduce_leaves_other_types_and_operations_to_mpi(far, world, dtype, op):
    mine, ones = np.full(5000, world.rank + 1).astype(dtype), np.ones(5000)
    got, beside, expected = np.empty_like(mine), np.empty(5000), np.empty_like(mine)
    world.Allreduce(mine, expected, op)
    requests = far.Iallreduce(mine, got, op), far.Iallreduce(ones, beside)
    MPI.Request.Waitall(requests)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(beside, world.size)


def test_an_operation_of_the_user_and_a_derived_type(far, world):
    def largest(a, b, datatype):
        into = np.frombuffer(b, "f8")
        np.maximum(into, np.frombuffer(a, "f8"), out=into)

    op = MPI.Op.Create(largest, commute=True)
    mine, got = np.full(5000, world.rank, "f8"), np.empty(5000)
    far.Iallreduce(mine, got, op).Wait()
    op.Free()
    np.testing.assert_array_equal(got, world.size - 1)


def test_iallreduce_takes_buffers_spelt_otherwise_on_one_rank(far, world):
    mine, got = np.ones(5000, "f4"), np.empty(5000, "f4")
    if world.rank == 0:
        request = far.Iallreduce([mine, MPI.FLOAT], [got, 5000, MPI.FLOAT])
    else:
        request = far.Iallreduce(mine, got)
    request.Wait()
    np.testing.assert_array_equal(got, world.size)


def test_iallreduce_is_a_request_of_this_library_where_it_serves(far):
    got = np.empty(5000)
    ones, one, small_got = np.ones(5000), np.ones(1), np.empty(1)
    request = far.Iallreduce(ones, got)
    small = far.Iallreduce(one, small_got)
    assert isinstance(request, MPI.Request)
    nodes = far.allreduce(int(far.node.rank == 0))
    equal = is_served(far)
    MPI.Request.Waitall([request, small])
    assert isinstance(request, Request) is (nodes > 1 and equal)
    assert not isinstance(small, Request)


def begin_one_after_the_other(comm):
    """Let each rank begin an Iallreduce when the rank before it has."""
    mine, got = np.ones(5000), np.empty(5000)
    if comm.rank:
        comm.recv(source=comm.rank - 1)
    request = comm.Iallreduce(mine, got)
    if comm.rank + 1 < comm.size:
        comm.send(None, comm.rank + 1)
    request.Wait()
    np.testing.assert_array_equal(got, comm.size)


def test_the_first_call_of_a_communicator_waits_for_nobody(world, monkeypatch):
    """MPI's Iallreduce may begin on one rank and wait for a message of another that has yet to begin it."""
    monkeypatch.setattr(dispatch, "_FAR", FAR)
    with sfb.Comm(world) as comm:
        begin_one_after_the_other(comm)


def test_later_calls_wait_for_nobody(far):
    for _ in range(3):
        begin_one_after_the_other(far)


def test_an_array_on_one_rank_and_factors_on_another(far, world):
    if world.size == 1 or not is_served(far):
        pytest.skip("needs equal nodes that disagree")
    large = np.ones((100, 50))
    given = sfb.Factors(np.ones((2, 100)), np.ones((2, 50))) if world.rank == 0 else large.copy()
    request = far.Iallreduce(given, large)
    with pytest.raises(sfb.MismatchError, match="ranks disagree"):
        request.Wait()
    ones = np.ones(5000)
    far.Iallreduce(ones, large.reshape(-1)).Wait()
    np.testing.assert_array_equal(large, world.size)


@pytest.mark.parametrize("options", [{"check": False}, {"progress": "poll"}])
def test_without_checks_or_a_thread_iallreduce_is_that_of_mpi(world, monkeypatch, options):
    monkeypatch.setattr(dispatch, "_FAR", FAR)
    part = world.Split(world.rank)
    with sfb.Comm(world, node=part, **options) as comm:
        mine, got = np.ones(5000), np.empty(5000)
        request = comm.Iallreduce(mine, got)
        assert not isinstance(request, Request)
        request.Wait()
        np.testing.assert_array_equal(got, world.size)
    part.Free()
