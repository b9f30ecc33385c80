"""What an `sfb.Comm` makes, holds and refuses as mpi4py's communicators do."""

import copy
import pickle

import numpy as np
import pytest
from mpi4py import MPI

import sfb

pytestmark = pytest.mark.mpi


@pytest.fixture(params=["COMM_WORLD", "Comm"])
def either(request, world):
    """mpi4py's COMM_WORLD, and a Comm: both pass the same tests."""
    if request.param == "COMM_WORLD":
        yield world
        return
    with sfb.Comm(world) as comm:
        yield comm


def works(comm):
    """Assert that a communicator, of which others may be wrapped, reduces arrays and factors."""
    comm.Allreduce(np.ones(3), got := np.zeros(3))
    np.testing.assert_array_equal(got, comm.size)
    with sfb.Comm(comm) as wrapped:
        wrapped.Allreduce(sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), g := np.zeros((4, 3)))
        wrapped.Allreduce(MPI.IN_PLACE, got)
    np.testing.assert_array_equal(g, 2 * comm.size)
    np.testing.assert_array_equal(got, comm.size**2)


def free(*comms):
    for comm in comms:
        comm.Free()
        assert comm == MPI.COMM_NULL


def test_groups_of_ranks(either):
    group = either.Get_group()
    assert group.size == either.size
    assert either.group.rank == either.rank
    evens = group.Incl(range(0, either.size, 2))
    comm = either.Create(evens)
    assert (comm == MPI.COMM_NULL) == bool(either.rank % 2)
    if comm != MPI.COMM_NULL:
        works(comm)
        free(comm)
        comm = either.Create_group(evens, tag=3)
        assert type(comm) is MPI.Intracomm
        works(comm)
        free(comm)
    with pytest.raises(TypeError, match="COMM_NULL"):
        sfb.Comm(MPI.COMM_NULL)
    for each in (group, evens):
        each.Free()


def test_splits(either):
    parts = [either.Split(0, -either.rank), either.Split_type(MPI.COMM_TYPE_SHARED)]
    assert parts[0].rank == either.size - 1 - either.rank
    for part in parts:
        assert type(part) is MPI.Intracomm
        works(part)
    free(*parts)


def test_cartesian_communicators(either):
    dims = MPI.Compute_dims(either.size, 2)
    cart = either.Create_cart(dims, periods=[True, False])
    assert type(cart) is MPI.Cartcomm
    assert cart.Get_coords(cart.rank) == [cart.rank // dims[1], cart.rank % dims[1]]
    works(cart)
    rows = cart.Sub([False, True])
    assert type(rows) is MPI.Cartcomm
    works(rows)
    halo = np.zeros((4, 1))
    cart.Neighbor_allgather(np.full(1, cart.rank, float), halo)
    source, target = cart.Shift(0, 1)
    np.testing.assert_array_equal(halo[:2, 0], [source, target])
    wrapped = sfb.Comm(cart)  # reduces, and has the topology; its methods are those of the Cartcomm
    assert wrapped == cart
    assert wrapped.Get_topology() == MPI.CART
    assert wrapped.topology == MPI.CART
    wrapped.free()
    free(rows, cart)


def test_graph_communicators(either):
    size, rank = either.size, either.rank
    left, right = (rank - 1) % size, (rank + 1) % size
    index = [2 * (i + 1) for i in range(size)]
    edges = [j % size for i in range(size) for j in (i - 1, i + 1)]
    ring = either.Create_graph(index, edges)
    assert type(ring) is MPI.Graphcomm
    assert ring.Get_neighbors(rank) == [left, right]
    both = [
        either.Create_dist_graph_adjacent([left], [right]),
        either.Create_dist_graph([rank], [1], [right]),
    ]
    for comm in both:
        assert type(comm) is MPI.Distgraphcomm
        assert comm.Get_dist_neighbors()[:2] == ([left], [right])
        assert comm.neighbor_alltoall([rank]) == [left]
        works(comm)
    works(ring)
    free(ring, *both)


def test_intercommunicators(either):
    if either.size == 1:
        pytest.skip("needs two groups")
    first = either.rank < either.size // 2
    half = either.Split(int(first), either.rank)
    inter = half.Create_intercomm(0, either, either.size // 2 if first else 0, tag=9)
    assert type(inter) is MPI.Intercomm
    assert half.size + inter.remote_size == either.size
    inter.Allreduce(np.ones(2), got := np.zeros(2))
    np.testing.assert_array_equal(got, inter.remote_size)
    with pytest.raises(TypeError, match=r"must be an MPI\.Intracomm, got Intercomm"):
        sfb.Comm(inter)
    copied = inter.Dup()
    assert type(copied) is MPI.Intercomm
    merged = inter.Merge(high=not first)
    assert type(merged) is MPI.Intracomm
    assert merged.size == either.size
    works(merged)
    wrapped = sfb.Comm(half)
    again = wrapped.Create_intercomm(0, either, either.size // 2 if first else 0, tag=10)
    assert again.remote_size == inter.remote_size
    wrapped.free()
    free(again, merged, copied, inter, half)


def test_attributes(either):
    deleted = []
    keyval = MPI.Comm.Create_keyval(copy_fn=lambda comm, key, value: value + 1, delete_fn=lambda *_: deleted.append(1))
    either.Set_attr(keyval, 5)
    copied = either.Dup()
    assert (either.Get_attr(keyval), copied.Get_attr(keyval)) == (5, 6)
    either.Allreduce(np.ones(2), np.zeros(2))
    copied.Allreduce(np.ones(2), np.zeros(2))
    copied.Free()
    either.Delete_attr(keyval)
    assert len(deleted) == 2
    assert either.Get_attr(keyval) is None
    assert either.Get_attr(MPI.TAG_UB) >= 32767
    MPI.Comm.Free_keyval(keyval)


def test_error_handlers(either):
    codes = []
    handler = MPI.Comm.Create_errhandler(lambda comm, code: codes.append(code))
    user = either.Dup()
    before = user.Get_errhandler()
    assert before == MPI.ERRORS_RETURN
    user.Set_errhandler(handler)
    user.Call_errhandler(MPI.ERR_OTHER)
    assert codes == [MPI.ERR_OTHER]
    user.Allreduce(np.ones(2), got := np.zeros(2))  # the library's communicators do not inherit it
    np.testing.assert_array_equal(got, user.size)
    assert len(codes) == 1
    user.Set_errhandler(before)
    with pytest.raises(MPI.Exception) as caught:
        user.Send(np.ones(1), user.size)
    assert caught.value.error_class == MPI.ERR_RANK
    for each in (handler, before):
        each.Free()
    user.Free()


def test_names_and_hints(either):
    user = either.Dup()
    user.Set_name("mine")
    assert user.Get_name() == user.name == "mine"
    info = MPI.Info.Create({"mpi_assert_no_any_tag": "false"})
    user.Set_info(info)
    hinted = user.Dup_with_info(info)
    assert type(hinted) is type(user)
    user.info.Free()
    info.Free()
    assert either.Get_name() == "MPI_COMM_WORLD"
    assert (either.is_inter, either.is_intra, either.Is_inter()) == (False, True, False)
    free(hinted, user)


def test_handles(either):
    assert MPI.Comm.fromhandle(either.handle) == either
    assert MPI.Comm.f2py(either.py2f()) == either
    assert MPI._handleof(either) == MPI._handleof(MPI.COMM_WORLD)
    assert {MPI.Comm.Compare(either, other) for other in (MPI.COMM_WORLD, either)} == {MPI.IDENT}
    assert either
    assert either != MPI.COMM_SELF


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda comm: pickle.loads(pickle.dumps(comm))])
def test_copies(world, again):
    with sfb.Comm(world, check=False, wire="bfloat16", seed=3, reproducible=True) as comm:
        other = again(comm)
    assert type(other) is sfb.Comm
    assert other == world
    assert other._options == comm._options
    assert other._profiles.given == comm._profiles.given
    works(other)
    other.free()
    user = world.Dup()
    for one in (user, sfb.Comm(user), sfb.Comm(world, node=MPI.COMM_SELF)):
        with pytest.raises(ValueError, match="cannot serialize"):
            again(one)
        if one == world:
            one.free()
    user.Free()


def derived():
    """Return pairs of a committed datatype, and the elements of an array of 24 that one of it holds."""
    vector = MPI.DOUBLE.Create_vector(3, 2, 4)
    resized = MPI.DOUBLE.Create_resized(0, 16)
    indexed = MPI.DOUBLE.Create_indexed([1, 3], [1, 5])
    struct = MPI.Datatype.Create_struct([2, 1], [8, 32], [MPI.DOUBLE, MPI.DOUBLE])
    subarray = MPI.DOUBLE.Create_subarray([4, 6], [2, 3], [1, 2])
    contiguous = MPI.DOUBLE.Create_contiguous(5)
    return [
        (vector.Commit(), [0, 1, 4, 5, 8, 9]),
        (resized.Commit(), [0]),
        (indexed.Commit(), [1, 5, 6, 7]),
        (struct.Commit(), [1, 2, 4]),
        (subarray.Commit(), [8, 9, 10, 14, 15, 16]),
        (contiguous.Commit(), [0, 1, 2, 3, 4]),
    ]


def test_derived_types(either):
    """Between ranks; reductions of them need an operation of the user."""
    for datatype, places in derived():
        given, taken = np.arange(24.0) + 100 * either.rank, np.zeros((either.size, 24))
        either.Allgather([given, 1, datatype], [every := np.zeros((either.size, len(places))), len(places), MPI.DOUBLE])
        np.testing.assert_array_equal(every, np.array(places) + 100.0 * np.arange(either.size)[:, None])
        x = given.copy()
        either.Bcast([x, 1, datatype], root=0)
        expected = given.copy()
        expected[places] = places
        np.testing.assert_array_equal(x, expected)
        either.Sendrecv(
            [given, 1, datatype], (either.rank + 1) % either.size, 0, taken[0, : len(places)], MPI.ANY_SOURCE, 0
        )
        np.testing.assert_array_equal(
            taken[0, : len(places)], np.array(places) + 100.0 * ((either.rank - 1) % either.size)
        )
        datatype.Free()
    x = np.full(3, float(either.rank))
    absolute = MPI.DOUBLE.Create_hindexed([3], [MPI.Get_address(x)]).Commit()
    either.Allgather([MPI.BOTTOM, 1, absolute], [every := np.zeros((either.size, 3)), 3, MPI.DOUBLE])
    np.testing.assert_array_equal(every[:, 0], range(either.size))
    absolute.Free()


def test_a_reduction_of_derived_types(either):
    pair = MPI.DOUBLE.Create_contiguous(2).Commit()

    def add(given, result, datatype):
        result = np.frombuffer(result, float)
        result += np.frombuffer(given, float)

    op = MPI.Op.Create(add, commute=True)
    for count in (1, 3000):
        x, y = np.ones(2 * count), np.zeros(2 * count)
        either.Allreduce([x, count, pair], [y, count, pair], op)
        np.testing.assert_array_equal(y, either.size)
        either.Iallreduce(MPI.IN_PLACE, [y, count, pair], op).Wait()
        np.testing.assert_array_equal(y, either.size**2)
        part = np.zeros(2 * count)
        either.Reduce_scatter_block([np.tile(x, either.size), count, pair], [part, count, pair], op)
        np.testing.assert_array_equal(part, either.size)
    op.Free()
    pair.Free()


def test_vectors_of_counts(either):
    size, rank = either.size, either.rank
    counts = [i + 1 for i in range(size)]
    places = [2 * sum(counts[:i]) for i in range(size)]
    mine, every = np.full(counts[rank], rank, "i4"), np.full(2 * sum(counts), -1, "i4")
    either.Allgatherv(mine, [every, counts, places, MPI.INT])
    either.Allgatherv([mine, MPI.INT], (dense := np.zeros(sum(counts), "i4"), (counts, None), "i"))
    np.testing.assert_array_equal(dense, np.repeat(range(size), counts))
    for i in range(size):
        np.testing.assert_array_equal(every[places[i] : places[i] + counts[i]], i)
    either.Reduce_scatter(np.ones(sum(counts), "i4"), part := np.zeros(counts[rank], "i4"), counts)
    np.testing.assert_array_equal(part, size)
    sent, received = np.full(size, rank, "i4"), np.zeros(size, "i4")
    either.Alltoallv([sent, [1] * size], [received, [1] * size])
    np.testing.assert_array_equal(received, range(size))
    either.Alltoallw(
        [sent, ([1] * size, [4 * i for i in range(size)]), [MPI.INT] * size],
        [received, ([1] * size, [4 * i for i in range(size)]), [MPI.INT] * size],
    )
    np.testing.assert_array_equal(received, range(size))


def test_disconnect_frees_what_the_library_holds(world):
    with sfb.Comm(world) as comm:
        copied = comm.Dup()
    copied.Allreduce(MPI.IN_PLACE, x := np.ones(2))
    team = copied._team_or_none
    copied.Disconnect()
    np.testing.assert_array_equal(x, world.size)
    assert copied == MPI.COMM_NULL
    assert team.world == MPI.COMM_NULL
