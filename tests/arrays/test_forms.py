"""Plain arrays that ranks write in different ways, that are wrong on one rank, or that differ between ranks."""

from array import array

import numpy as np
import pytest
from mpi4py import MPI
from nodes import comm_of_nodes

import sfb

pytestmark = pytest.mark.mpi

TYPES = {
    "f4": MPI.FLOAT,
    "f8": MPI.DOUBLE,
    "i4": MPI.INT,
    "i8": MPI.LONG,
    "i2": MPI.SHORT,
    "c8": MPI.C_FLOAT_COMPLEX,
}


def padded(a):
    """Return memory in which ``a`` begins at the third element, and that place as an array."""
    memory = np.zeros(a.size + 5, a.dtype)
    memory[2 : 2 + a.size] = a.reshape(-1)
    return memory, memory[2 : 2 + a.size]


# Of an array and the number of blocks of which mpi4py counts one: the buffer, and where its elements lie.
FORMS = [
    lambda a, blocks: (a, a),
    lambda a, blocks: (a.reshape(1, -1), a),
    lambda a, blocks: (memoryview(a), a),
    lambda a, blocks: ([a, a.size // blocks], a),
    lambda a, blocks: ((a, TYPES[a.dtype.str[1:]]), a),
    lambda a, blocks: ([a, a.size // blocks, TYPES[a.dtype.str[1:]]], a),
    lambda a, blocks: ([a, (a.size // blocks, 0), a.dtype.char if a.dtype.kind != "c" else "F"], a),
    lambda a, blocks: ([a.view("u1"), a.size // blocks, TYPES[a.dtype.str[1:]]], a),
    lambda a, blocks: ([a.view("u1"), TYPES[a.dtype.str[1:]]], a),
    lambda a, blocks: (lambda p: ([p[0], (a.size // blocks, 2)], p[1]))(padded(a)),
    lambda a, blocks: (lambda p: ([p[0], a.size // blocks, 2, TYPES[a.dtype.str[1:]]], p[1]))(padded(a)),
]


@pytest.fixture(params=["one node", "nodes of two", "nodes of one", "no check"])
def comms(request, world):
    """Communicators that compare, of one and of several nodes; and one that does not."""
    if request.param == "no check":
        with sfb.Comm(world, check=False) as comm:
            yield comm
        return
    with comm_of_nodes(world, {"one node": None, "nodes of two": 2, "nodes of one": 1}[request.param]) as comm:
        yield comm


@pytest.mark.parametrize("count", [0, 7, 5000])
@pytest.mark.parametrize("dtype", ["f4", "i8", "i2", "c8"])
def test_every_rank_may_write_a_call_in_its_own_way(comms, world, rng, dtype, count):
    size, rank = world.size, world.rank

    def form(a, blocks=1):
        choices = rng.integers(0, len(FORMS), size)  # the same on all ranks
        return FORMS[choices[rank]](a, blocks)

    mine, every = np.arange(count).astype(dtype) + rank, np.zeros(count * size, dtype)
    total = sum(np.arange(count).astype(dtype) + r for r in range(size))
    for _ in range(3):
        (sent, _), (received, got) = form(mine.copy()), form(np.zeros(count, dtype))
        comms.Allreduce(sent, received)
        np.testing.assert_array_equal(got, total)
        received, got = form(mine.copy())
        comms.Allreduce([None, MPI.IN_PLACE][rng.integers(2)], received)
        np.testing.assert_array_equal(got, total)
        (sent, _), (received, got) = form(mine.copy()), form(np.zeros(count, dtype))
        comms.Iallreduce(sent, received).Wait()
        np.testing.assert_array_equal(got, total)
        (sent, _), (received, got) = form(mine.copy()), form(every.copy(), size)
        comms.Allgather(sent, received)
        np.testing.assert_array_equal(got.reshape(size, count), [mine - rank + r for r in range(size)])
        (sent, _), (received, got) = form(np.tile(mine, size), size), form(np.zeros(count, dtype))
        comms.Reduce_scatter_block(sent, received)
        np.testing.assert_array_equal(got, total)
        received, got = form(np.tile(mine, size), size)
        comms.Reduce_scatter_block(MPI.IN_PLACE, received)
        np.testing.assert_array_equal(got[:count], total)


def read_only(count):
    a = np.ones(count)
    a.flags.writeable = False
    return a


WRONG = {
    "read-only": (read_only, BufferError),
    "big-endian": (lambda n: np.ones(n, ">f8"), BufferError),
    "a list": (lambda n: [1.0] * n, (TypeError, ValueError)),
    "None": (lambda n: None, TypeError),
    "strided": (lambda n: np.ones(2 * n)[::2], BufferError),
    "objects": (lambda n: np.ones(n, object), KeyError),
    "float16": (lambda n: np.ones(n, "f2"), (ValueError, KeyError)),
    "other integers": (lambda n: np.ones(n, "i8"), ValueError),
    "dates": (lambda n: np.ones(n, "M8[s]"), (ValueError, BufferError)),
    "fields": (lambda n: np.ones(n, [("a", "f8")]), KeyError),
    "longer": (lambda n: np.ones(n + 1), ValueError),
    "a null type": (lambda n: [np.ones(n), MPI.DATATYPE_NULL], (ValueError, RuntimeError)),
    "overlapping": (lambda n: None, ValueError),
}


@pytest.mark.parametrize("count", [3, 150_000])
@pytest.mark.parametrize("call", ["Allreduce", "Allgather", "Reduce_scatter_block"])
@pytest.mark.parametrize("what", WRONG)
def test_what_one_rank_finds_wrong_is_an_error_on_all_ranks_of_its_node(comm, world, what, call, count):
    if comm.node.size < world.size or world.size == 1:
        pytest.skip("needs several ranks on one node")
    make, error = WRONG[what]
    last = world.rank == world.size - 1
    given, taken = (
        np.ones(count * (world.size if call == "Reduce_scatter_block" else 1)),
        np.zeros(count * (world.size if call == "Allgather" else 1)),
    )
    sendbuf, recvbuf = given, taken
    if last:
        recvbuf = make(taken.size)
        if what == "overlapping":
            memory = np.ones(given.size + taken.size)
            sendbuf, recvbuf = memory[: given.size], memory[given.size - 1 : given.size - 1 + taken.size]
    reduce = getattr(comm, call)
    with pytest.raises(error, match=f"rank {world.size - 1}:") as caught:
        reduce(sendbuf, recvbuf)
    assert len(set(world.allgather(str(caught.value)))) == 1
    assert not taken.any()
    reduce(given, taken)
    assert taken.all()


DIFFERENT = {
    "dtype": lambda comm, n: comm.Allreduce(np.ones(n, "i4"), np.ones(n, "i4")),
    "size": lambda comm, n: comm.Allreduce(np.ones(n + 1, "f4"), np.ones(n + 1, "f4")),
    "dtype of the same bytes": lambda comm, n: comm.Allreduce(np.ones(n // 2), np.ones(n // 2)),
    "dtype that is MPI's": lambda comm, n: comm.Allreduce(np.ones(n // 2, "c8"), np.ones(n // 2, "c8")),
    "op": lambda comm, n: comm.Allreduce(np.ones(n, "f4"), np.ones(n, "f4"), MPI.MAX),
    "a form": lambda comm, n: comm.Allreduce([np.ones(n, "i4"), MPI.INT], [np.ones(n, "i4"), "i"]),
    "function": lambda comm, n: comm.Allgather(np.ones(n, "f4"), np.ones(n * comm.size, "f4")),
    "another function": lambda comm, n: comm.Reduce_scatter_block(np.ones(n * comm.size, "f4"), np.ones(n, "f4")),
}


def usual(comm, n):
    comm.Allreduce(np.ones(n, "f4"), np.ones(n, "f4"))


@pytest.mark.parametrize("count", [2, 1 << 19])
@pytest.mark.parametrize("what", DIFFERENT)
def test_arrays_that_differ_between_the_ranks_of_a_node(comm, world, what, count):
    if comm.node.size < world.size or world.size == 1:
        pytest.skip("needs several ranks on one node")
    with pytest.raises(sfb.MismatchError, match=r"ranks disagree: rank.*plain buffer of") as caught:
        (DIFFERENT[what] if world.rank == world.size - 1 else usual)(comm, count)
    assert len(set(world.allgather(str(caught.value)))) == 1
    comm.Allreduce(np.ones(count, "f4"), got := np.empty(count, "f4"))
    np.testing.assert_array_equal(got, world.size)


def test_large_arrays_that_differ_between_nodes(lone_comm, world):
    if world.size == 1:
        pytest.skip("needs several ranks")
    n, last = 1 << 18, world.rank == world.size - 1
    lone_comm.Allreduce(MPI.IN_PLACE, np.ones(n))
    for other in (np.ones(2 * n), np.ones(n, "i8"), read_only(n)):
        if lone_comm._plain.arrays._choices.get(n * 8) is False:
            pytest.skip("MPI is faster here")
        with pytest.raises((sfb.MismatchError, BufferError)):
            lone_comm.Allreduce(MPI.IN_PLACE, other if last else np.ones(n))
    lone_comm.Allreduce(MPI.IN_PLACE, got := np.ones(n))
    np.testing.assert_array_equal(got, world.size)


# How the memory `a` is written twice.
TWICE = {
    "one array": lambda a: (a, a),
    "two views": lambda a: (a[:], a[:]),
    "a form": lambda a: (a, [a, TYPES[a.dtype.str[1:]]]),
    "two forms": lambda a: ([a, a.size], memoryview(a)),
}


@pytest.mark.parametrize("count", [1, 150_000])
@pytest.mark.parametrize("dtype", ["f8", "i2"])
@pytest.mark.parametrize("how", TWICE)
def test_memory_that_is_sent_and_received_is_reduced_in_place(comms, world, how, dtype, count):
    for call in ("Allreduce", "Iallreduce"):
        a = np.ones(count, dtype)
        request = getattr(comms, call)(*TWICE[how](a))
        if request is not None:
            request.Wait()
        np.testing.assert_array_equal(a, world.size)
    every = np.zeros((world.size, count), dtype)
    every[world.rank] = world.rank
    comms.Allgather(TWICE[how](every[world.rank])[0], every)
    np.testing.assert_array_equal(every, np.arange(world.size)[:, None] + np.zeros_like(every))
    parts = np.ones(world.size * count, dtype)
    comms.Reduce_scatter_block(parts, parts[:count])
    np.testing.assert_array_equal(parts[:count], world.size)


def test_memory_of_other_kinds(comm, world):
    for data, kind in ((array("d", [1.0, 2.0]), "f8"), (bytearray(8), "u1")):
        sent = np.frombuffer(data, kind).copy()
        comm.Allreduce(sent, data, MPI.MAX)
        np.testing.assert_array_equal(np.frombuffer(data, kind), sent)
