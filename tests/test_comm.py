"""A Comm is an Intracomm: COMM_WORLD and Comm(COMM_WORLD) pass the same checks."""

import pickle

import numpy as np
import pytest
from mpi4py import MPI

import sfb

pytestmark = pytest.mark.mpi

DTYPES = ["i1", "i4", "i8", "u4", "f4", "f8", "c8"]


@pytest.fixture(params=["COMM_WORLD", "Comm", "Comm without check", "Comm.Dup"])
def any_intracomm(request):
    if request.param == "COMM_WORLD":
        yield MPI.COMM_WORLD
        return
    comm = sfb.Comm(MPI.COMM_WORLD, check=request.param != "Comm without check")
    if request.param == "Comm.Dup":
        comm = comm.Dup()
        assert isinstance(comm, sfb.Comm)
    yield comm
    comm.free()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_allreduce(any_intracomm, dtype, count):
    comm = any_intracomm
    # The sums fit into int8: on overflow some MPIs wrap around, others saturate.
    x = (np.arange(count) % 10 + comm.rank).astype(dtype)
    expected = sum((np.arange(count) % 10 + r).astype(dtype) for r in range(comm.size))
    y = np.zeros(count, dtype)
    comm.Allreduce(x, y)
    np.testing.assert_array_equal(y, expected)
    comm.Allreduce(sendbuf=x, recvbuf=y, op=MPI.SUM)
    np.testing.assert_array_equal(y, expected)
    comm.Allreduce(MPI.IN_PLACE, x)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    ("op", "fold"),
    [(MPI.MAX, np.max), (MPI.MIN, np.min), (MPI.PROD, np.prod), (MPI.SUM, np.sum)],
    ids=["MAX", "MIN", "PROD", "SUM"],
)
def test_allreduce_ops(any_intracomm, op, fold):
    comm = any_intracomm
    y = np.zeros(3)
    comm.Allreduce(np.full(3, comm.rank + 1.0), y, op)
    np.testing.assert_allclose(y, fold(np.arange(1.0, comm.size + 1)))


def test_allreduce_with_a_user_op(any_intracomm):
    comm = any_intracomm
    op = MPI.Op.Create(lambda a, b, _: np.frombuffer(b, "i4").__iadd__(np.frombuffer(a, "i4")), commute=True)
    y = np.zeros(2, "i4")
    comm.Allreduce(np.full(2, 3, "i4"), y, op)
    op.Free()
    np.testing.assert_array_equal(y, 3 * comm.size)


def test_allreduce_buffer_specs(any_intracomm):
    comm = any_intracomm
    x, y = np.ones(6), np.zeros(6)
    comm.Allreduce([x, 4, MPI.DOUBLE], [y, 4, MPI.DOUBLE])
    np.testing.assert_array_equal(y, [comm.size] * 4 + [0] * 2)
    comm.Allreduce([x, MPI.DOUBLE], [y, MPI.DOUBLE])
    np.testing.assert_array_equal(y, comm.size)
    raw = bytearray(8)
    comm.Allreduce([np.array([5]), MPI.INT64_T], [raw, MPI.INT64_T])
    assert int.from_bytes(raw, "little") == 5 * comm.size


def test_allreduce_errors_are_those_of_mpi4py(any_intracomm):
    with pytest.raises(ValueError, match="mismatch"):
        any_intracomm.Allreduce(np.ones(3), np.ones(3, "f4"))
    with pytest.raises(TypeError):
        any_intracomm.Allreduce(np.ones(3), None)


def test_pickling_methods(any_intracomm):
    comm = any_intracomm
    assert comm.allreduce(comm.rank) == sum(range(comm.size))
    assert comm.allreduce([comm.rank]) == list(range(comm.size))
    assert comm.bcast({"rank": comm.rank}) == {"rank": 0}
    assert comm.allgather(comm.rank) == list(range(comm.size))
    assert comm.scatter(list(range(comm.size)) if comm.rank == 0 else None) == comm.rank
    assert comm.alltoall([comm.rank] * comm.size) == list(range(comm.size))


def test_other_collectives(any_intracomm):
    comm = any_intracomm
    x = np.full(2, comm.rank, "i8")
    gathered = np.zeros((comm.size, 2), "i8")
    comm.Allgather(x, gathered)
    np.testing.assert_array_equal(gathered[:, 0], range(comm.size))
    comm.Bcast(x, root=comm.size - 1)
    np.testing.assert_array_equal(x, comm.size - 1)
    y = np.zeros(1, "i8")
    comm.Reduce_scatter_block(np.ones(comm.size, "i8"), y)
    assert y[0] == comm.size
    comm.Scan(np.ones(1, "i8"), y)
    assert y[0] == comm.rank + 1
    comm.Barrier()
    comm.Ibarrier().Wait()
    one, total = np.ones(1), np.zeros(1)
    request = comm.Iallreduce(one, total)
    request.Wait()
    assert total[0] == comm.size


def test_point_to_point(any_intracomm):
    comm = any_intracomm
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    x, y = np.full(3, comm.rank, "f4"), np.zeros(3, "f4")
    comm.Sendrecv(x, right, 5, y, left, 5)
    np.testing.assert_array_equal(y, left)
    assert comm.sendrecv(comm.rank, right, source=left) == left


def test_communicators_made_from_it(any_intracomm):
    comm = any_intracomm
    half = comm.Split(comm.rank % 2, -comm.rank)
    assert half.size == (comm.size + 1 - comm.rank % 2) // 2
    assert half.allreduce(1) == half.size
    half.Free()
    none = comm.Split(MPI.UNDEFINED)
    assert none == MPI.COMM_NULL
    clone = comm.Clone()
    assert MPI.Comm.Compare(clone, comm) == MPI.CONGRUENT
    clone.Free()
    assert clone == MPI.COMM_NULL
    ring = comm.Create_cart([comm.size], periods=[True])
    assert ring.Shift(0, 1) == ((comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size)
    ring.Free()
    copy, request = comm.Idup()
    request.Wait()
    copy.Allreduce(np.ones(1), y := np.zeros(1))
    assert y[0] == comm.size
    copy.Free()


def test_is_the_communicator_it_is_made_from(comm, world):
    assert isinstance(comm, MPI.Intracomm)
    assert comm == world
    assert MPI.Comm.Compare(comm, world) == MPI.IDENT
    assert (comm.rank, comm.size) == (world.rank, world.size)
    assert pickle.loads(pickle.dumps(comm)) == world


def test_traffic_and_attributes_are_private(world):
    """The library sends nothing on the user's communicator, and copies nothing from it."""
    copies = []
    keyval = MPI.Comm.Create_keyval(copy_fn=lambda *args: copies.append(args))
    user = world.Dup()
    user.Set_attr(keyval, 1)
    with sfb.Comm(user) as comm:
        request = comm.Irecv(np.zeros(1), MPI.ANY_SOURCE, MPI.ANY_TAG)
        for algorithm in ("dense", "broadcast", "node"):
            comm.Allreduce(sfb.Factors(np.ones((1, 4)), np.ones((1, 3))), np.zeros((4, 3)), algorithm=algorithm)
        assert not request.Test()
        request.Cancel()
        request.Wait()
    assert not copies
    assert user.Get_attr(keyval) == 1
    user.Free()
    MPI.Comm.Free_keyval(keyval)


def test_free_frees_what_the_object_owns(world):
    user = world.Dup()
    factors = sfb.Factors(np.ones((1, 4)), np.ones((1, 3)))
    for _ in range(100):
        comm = sfb.Comm(user)
        comm.Allreduce(factors, np.zeros((4, 3)))
        comm.free()
        comm.free()
    user.Barrier()
    wrapped = sfb.Comm(user)
    copy = wrapped.Dup()
    copy.Allreduce(factors, np.zeros((4, 3)))
    copy.free()
    assert copy == MPI.COMM_NULL
    wrapped.Allreduce(factors, np.zeros((4, 3)))
    wrapped.Free()
    assert wrapped == MPI.COMM_NULL


def test_a_duplicate_keeps_the_settings(world):
    alone = world.Split(world.rank)
    comm = sfb.Comm(world, check=False, node=alone)
    info = MPI.Info.Create()
    soon = [comm.Idup(), comm.Idup_with_info(info)]
    for _, request in soon:
        request.Wait()
    for copy in (comm.Dup(), comm.Clone(), comm.Dup_with_info(info), *(copy for copy, _ in soon)):
        assert copy.node.size == 1
        assert not copy._options.check
        copy.Free()
    info.Free()
    comm.free()
    alone.Free()


def test_the_nodes_stay_when_it_is_used_again(world):
    g, factors = np.zeros((4, 3)), sfb.Factors(np.ones((1, 4)), np.ones((1, 3)))
    reverse = world.Split(0, -world.rank)  # other ranks than in the world
    part = reverse.Split(reverse.rank // 2, 0)
    comm = sfb.Comm(reverse, node=part)
    size = part.size
    part.Free()
    for _ in range(3):
        comm.Allreduce(factors, g)
        assert (g == world.size).all()
        assert comm.node.size == size
        nodes = comm.plan(factors, g).problem.place.nodes
        assert nodes == -(-world.size // 2)
        comm.free()
    copy = comm.Dup()  # of one that holds nothing now
    assert copy.node.size == size
    copy.Free()
    reverse.Free()


def test_a_duplicate_is_freed_at_the_end_of_a_block(comm):
    with comm.Dup() as copy:
        copy.Allreduce(np.ones(1), np.zeros(1))
    assert copy == MPI.COMM_NULL


def test_sub_communicators_reduce_factors(comm):
    half = sfb.Comm(comm.Split(comm.rank % 2, comm.rank))
    g = np.zeros((4, 3))
    half.Allreduce(sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), g)
    np.testing.assert_array_equal(g, 2 * half.size)
    half.Free()


def test_pickled_sum_of_factors(comm):
    total = comm.allreduce(sfb.Factors(np.full((1, 4), 1.0 + comm.rank), np.ones((1, 3))))
    assert len(total) == comm.size
    np.testing.assert_allclose(total.dense(), sum(range(1, comm.size + 1)))


def test_plan_says_what_will_be_done(comm):
    factors, g = sfb.Factors(np.ones((2, 400)), np.ones((2, 300))), np.zeros((400, 300))
    plan = comm.plan(factors, g)
    comm.Allreduce(factors, g)
    assert comm.last_exchange.algorithm == plan.algorithm
    assert comm.plan(factors, g, algorithm="dense").algorithm == "dense"
    for name in ("dense", "broadcast", "node", "taken"):
        assert name in plan.explain()
