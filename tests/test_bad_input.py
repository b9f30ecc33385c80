"""Wrong arguments on one rank or on all: all ranks raise the same error, none hangs, and nothing has changed."""

import numpy as np
import pytest
from mpi4py import MPI

import sfb

pytestmark = pytest.mark.mpi


class OnGpu:
    __cuda_array_interface__ = {"shape": (4, 3), "typestr": "<f8", "data": (0, False), "version": 3}  # noqa: RUF012


def good():
    return sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))


def read_only():
    g = np.zeros((4, 3))
    g.flags.writeable = False
    return g


def overlapping():
    w = np.zeros((4, 3))
    return sfb.Factors(np.ones((4, 4)), w), w


WRONG = {
    "shape": (lambda: (good(), np.zeros((3, 4))), ValueError, "shape"),
    "dtype": (lambda: (good(), np.zeros((4, 3), np.float32)), ValueError, "dtype"),
    "integers": (lambda: (good(), np.zeros((4, 3), int)), TypeError, "float32 or float64"),
    "complex": (lambda: (good(), np.zeros((4, 3), complex)), TypeError, "float32 or float64"),
    "objects": (lambda: (good(), np.zeros((4, 3), object)), TypeError, "float32 or float64"),
    "big-endian": (lambda: (good(), np.zeros((4, 3), ">f8")), TypeError, "byte order"),
    "Fortran": (lambda: (good(), np.zeros((3, 4)).T), ValueError, "Fortran"),
    "strided": (lambda: (good(), np.zeros((4, 6))[:, ::2]), ValueError, "contiguous"),
    "read-only": (lambda: (good(), read_only()), ValueError, "read-only"),
    "list": (lambda: (good(), [[0.0] * 3] * 4), TypeError, "NumPy array"),
    "GPU": (lambda: (good(), OnGpu()), TypeError, "GPU"),
    "factors receive": (lambda: (good(), good()), TypeError, "NumPy array"),
    "overlap": (overlapping, ValueError, "shares memory"),
    "array into optimizer": (lambda: (np.ones((4, 3)), sfb.optim.SGD(np.zeros((4, 3)), lr=1.0)), TypeError, "Factors"),
}


def refuse(world, call, error, message):
    """Assert that every rank raises the same error, and return its text."""
    with pytest.raises(error, match=message) as caught:
        call()
    texts = world.allgather(str(caught.value))
    assert len(set(texts)) == 1
    return texts[0]


@pytest.mark.parametrize("who", ["all", "last"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(comm, world, what, who):
    make, error, message = WRONG[what]
    culprit = who == "all" or world.rank == world.size - 1
    sendbuf, recvbuf = make() if culprit else (good(), np.zeros((4, 3)))
    text = refuse(world, lambda: comm.Allreduce(sendbuf, recvbuf), error, message)
    assert "rank" in text
    if who == "last":
        assert f"rank {world.size - 1}:" in text
    if isinstance(recvbuf, np.ndarray):
        assert not recvbuf.any()
    comm.Allreduce(good(), recvbuf := np.zeros((4, 3)))  # the communicator works on
    np.testing.assert_array_equal(recvbuf, 2 * world.size)


@pytest.mark.parametrize("op", [MPI.MAX, MPI.PROD])
def test_only_sums(comm, world, op):
    refuse(world, lambda: comm.Allreduce(good(), np.zeros((4, 3)), op), ValueError, "MPI.SUM")


def test_unknown_algorithm(comm, world):
    refuse(world, lambda: comm.Allreduce(good(), np.zeros((4, 3)), algorithm="ring"), ValueError, "'ring'")
    refuse(world, lambda: comm.Allreduce(np.zeros(2), np.zeros(2), algorithm="node"), ValueError, "for Factors")


def several(world):
    if world.size == 1:
        pytest.skip("needs ranks that can disagree")


@pytest.mark.parametrize(
    "odd",
    [
        lambda: (sfb.Factors(np.ones((2, 5)), np.ones((2, 3))), np.zeros((5, 3)), "auto"),
        lambda: (sfb.Factors(np.ones((2, 4), "f4"), np.ones((2, 3), "f4")), np.zeros((4, 3), "f4"), "auto"),
        lambda: (good(), sfb.optim.SGD(np.zeros((4, 3)), lr=1.0), "auto"),
        lambda: (good(), np.zeros((4, 3)), "dense"),
        lambda: (np.ones((4, 3)), np.zeros((4, 3)), "auto"),
        lambda: (MPI.IN_PLACE, np.zeros((4, 3)), "auto"),
    ],
    ids=["shape", "dtype", "receiver", "algorithm", "an array", "in place"],
)
def test_ranks_that_disagree(comm, world, odd):
    several(world)
    if not isinstance(odd()[0], sfb.Factors) and comm.node.size == 1:
        pytest.skip("plain arrays are compared within a node only")
    sendbuf, recvbuf, algorithm = odd() if world.rank == 1 else (good(), np.zeros((4, 3)), "auto")
    text = refuse(
        world, lambda: comm.Allreduce(sendbuf, recvbuf, algorithm=algorithm), sfb.MismatchError, "ranks disagree"
    )
    assert "rank 1:" in text
    if isinstance(recvbuf, np.ndarray):
        assert not recvbuf.any()


def test_learning_rates_that_differ(comm, world):
    several(world)
    optimizer = sfb.optim.SGD(np.zeros((4, 3)), lr=0.1 + world.rank)
    text = refuse(world, lambda: comm.Allreduce(good(), optimizer), sfb.MismatchError, "ranks disagree")
    assert "lr=0.1," in text
    assert "lr=1.1," in text


@pytest.mark.parametrize("algorithm", ["auto", "broadcast"])
@pytest.mark.parametrize("call", ["Allreduce", "Allreduce_init", "Start", "Iallreduce"])
def test_steps_that_differ(any_comm, world, call, algorithm):
    several(world)
    adam = sfb.optim.Adam(np.zeros((4, 3)))
    any_comm.Allreduce(good(), adam)
    plan = any_comm.Allreduce_init(good(), adam, algorithm=algorithm)
    if world.rank == 0:
        adam.steps = 1000

    def exchange():
        if call == "Start":
            plan.Start()
            plan.Wait()
        else:
            request = getattr(any_comm, call)(good(), adam, algorithm=algorithm)
            if call == "Iallreduce":
                request.Wait()

    text = refuse(world, exchange, sfb.MismatchError, "ranks disagree")
    assert "after 1000 steps" in text
    assert "after 1 steps" in text
    adam.steps = 1
    any_comm.Allreduce(good(), adam)
    assert adam.steps == 2


@pytest.mark.parametrize("change", [{"max_norm": 1.0}, {"momentum": 0.9}])
def test_a_plan_holds_for_the_settings_that_it_rests_on(any_comm, world, change):
    optimizer = sfb.optim.SGD(np.zeros((4, 3)), lr=0.1)
    with any_comm.Allreduce_init(good(), optimizer, algorithm="dense") as plan:
        optimizer.lr = 0.2
        plan.Start()
        plan.Wait()
        np.testing.assert_allclose(optimizer.array, -0.4 * world.size)
        for name, value in change.items():
            setattr(optimizer, name, value)
        plan.Start()
        refuse(world, plan.Wait, ValueError, "make another")
    any_comm.Allreduce(good(), optimizer)


@pytest.mark.parametrize("options", [{"wire": "bfloat16"}, {"wire": "float16", "seed": 3}, {"max_bytes": 1 << 20}])
def test_options_that_differ(world, options):
    several(world)
    factors = sfb.Factors(np.ones((2, 4), "f4"), np.ones((2, 3), "f4"))
    with sfb.Comm(world, **(options if world.rank == 0 else {})) as comm:
        call = lambda: comm.Allreduce(factors, np.zeros((4, 3), "f4"))  # noqa: E731
        text = refuse(world, call, sfb.MismatchError, "ranks disagree")
    assert all(f"{name}={value!r}" in text for name, value in options.items())


@pytest.mark.parametrize("last", [{"names": ["a", "c"]}, {"offsets": [0, 8]}, {"itemsize": 16}], ids=str)
def test_fields_that_differ(comm, world, last):
    several(world)
    fields = {"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [0, 4], "itemsize": 12}
    dtype = np.dtype({**fields, **(last if world.rank == world.size - 1 else {})})
    refuse(world, lambda: comm.shared(3, dtype), sfb.MismatchError, "ranks disagree")
    assert comm.shared(3, np.dtype(fields)).dtype == np.dtype(fields)


@pytest.mark.parametrize("algorithm", ["auto", "broadcast", "dense"])
def test_after_an_exception_in_the_midst_of_an_exchange(any_comm, world, algorithm):
    class Odd(sfb.optim.SGD):
        def rule(self):
            raise OSError("odd")

    with pytest.raises(OSError, match="odd"):
        any_comm.Allreduce(good(), Odd(np.zeros((4, 3)), lr=0.1), algorithm=algorithm)
    for receiver in (np.zeros((4, 3)), sfb.optim.SGD(np.zeros((4, 3)), lr=0.1)):
        refuse(world, lambda to=receiver: any_comm.Allreduce(good(), to), RuntimeError, "broken, since OSError")
    any_comm.free()
    any_comm.Allreduce(good(), total := np.zeros((4, 3)))
    np.testing.assert_array_equal(total, 2 * world.size)


def test_shared_on_one_rank_only(comm, world):
    several(world)
    w = comm.shared((4, 3), np.float64)
    receiver = w if world.rank else np.zeros((4, 3))
    refuse(world, lambda: comm.Allreduce(good(), receiver), sfb.MismatchError, "shared memory")


def test_two_shared_arrays_in_different_order(comm, world):
    several(world)
    first, second = (comm.shared((4, 3), np.float64) for _ in range(2))
    receiver = first if world.rank else second
    refuse(world, lambda: comm.Allreduce(good(), receiver), sfb.MismatchError, "ranks disagree")


def test_shared_by_other_ranks(comm, world):
    several(world)
    w = comm.shared((4, 3), np.float64)
    if world.allreduce(comm.node.size, MPI.MIN) == 1:
        pytest.skip("needs ranks that share a node")
    part = world.Split(comm.node.rank == 0, world.rank)
    with sfb.Comm(part) as smaller, pytest.raises(ValueError, match="shared by other ranks"):
        smaller.Allreduce(good(), w)
    smaller.free()
    part.Free()


def test_private_velocity_of_a_shared_parameter(comm, world):
    optimizer = sfb.optim.SGD(comm.shared((4, 3), np.float64), lr=0.1, momentum=0.9)
    optimizer.velocity = np.zeros((4, 3))
    refuse(world, lambda: comm.Allreduce(good(), optimizer), ValueError, "state")


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        ((-1, 2), "f4", ValueError),
        ((1 << 62, 4), "f4", ValueError),
        ((2.5,), "f4", TypeError),
        ("no", "f4", TypeError),
        ((2, 2), object, TypeError),
        ((2,), "S", TypeError),
        ((2,), "what", TypeError),
    ],
    ids=str,
)
@pytest.mark.parametrize("who", ["all", "last"])
def test_impossible_shared_arrays(comm, world, shape, dtype, error, who):
    if who == "last" and world.rank != world.size - 1:
        shape, dtype = (2, 2), "f4"
    refuse(world, lambda: comm.shared(shape, dtype), error, "rank")


def test_shared_arrays_that_differ(comm, world):
    several(world)
    refuse(world, lambda: comm.shared((world.rank, 2)), sfb.MismatchError, "ranks disagree")


def test_not_an_intracommunicator():
    with pytest.raises(TypeError, match="Intracomm"):
        sfb.Comm("world")
    with pytest.raises(TypeError, match="Intracomm"):
        sfb.Comm(MPI.Comm(MPI.COMM_WORLD))
    with pytest.raises(TypeError, match="Intracomm"):
        sfb.Comm()


def test_another_communicators_array_on_one_rank_only(comm, world):
    """In the first call of a communicator, one rank passes a shared array of another communicator."""
    several(world)
    w = comm.shared((4, 3), np.float64)
    with sfb.Comm(world) as other:
        receiver = w if world.rank else np.zeros((4, 3))
        refuse(world, lambda: other.Allreduce(good(), receiver), sfb.MismatchError, "shared memory")
        other.Allreduce(good(), w)
    np.testing.assert_array_equal(w, 2 * world.size)


def refuse_after(world, comm, spoil, error, message):
    """Assert that a call fails after ``spoil`` has changed factors or optimizer on the last rank."""
    factors, optimizer = good(), sfb.optim.SGD(np.zeros((4, 3)), lr=0.1, momentum=0.9)
    comm.Allreduce(factors, optimizer)
    if world.rank == world.size - 1:
        spoil(factors, optimizer)
    refuse(world, lambda: comm.Allreduce(factors, optimizer), error, message)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("v", np.ones((2, 3), "f4"), ValueError, "same dtype"),
        ("v", np.ones((3, 2)).T, ValueError, "Fortran"),
        ("v", np.ones((5, 3)), ValueError, "one row per sample"),
        ("u", None, TypeError, "NumPy array"),
        ("u", np.ones(8), ValueError, "2 dimensions"),
    ],
)
def test_factors_spoilt_later(comm, world, name, value, error, message):
    refuse_after(world, comm, lambda factors, _: setattr(factors, name, value), error, message)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("array", np.zeros((4, 3), int), TypeError, "float32 or float64"),
        ("velocity", np.zeros((3, 4)), ValueError, "state must be"),
    ],
)
def test_optimizers_spoilt_later(comm, world, name, value, error, message):
    refuse_after(world, comm, lambda _, optimizer: setattr(optimizer, name, value), error, message)


def test_state_that_is_the_array_itself(comm, world):
    optimizer = sfb.optim.SGD(np.zeros((4, 3)), lr=0.1, momentum=0.9)
    optimizer.velocity = optimizer.array
    refuse(world, lambda: comm.Allreduce(good(), optimizer), ValueError, "shares memory")


def test_shared_velocities_in_different_order(comm, world):
    several(world)
    first, second = (comm.shared((4, 3), np.float64) for _ in range(2))
    optimizer = sfb.optim.SGD(comm.shared((4, 3), np.float64), lr=0.1, momentum=0.9)
    optimizer.velocity = first if world.rank else second
    refuse(world, lambda: comm.Allreduce(good(), optimizer), sfb.MismatchError, "ranks disagree: rank 0")


def test_plan_on_one_rank_and_allreduce_on_another(comm, world):
    several(world)
    call = comm.plan if world.rank == 0 else comm.Allreduce
    text = refuse(world, lambda: call(good(), np.zeros((4, 3))), sfb.MismatchError, "ranks disagree")
    assert "rank 0: plan with" in text


@pytest.mark.parametrize("which", ["kernels of plain arrays", "other kernels"])
@pytest.mark.parametrize("algorithm", ["broadcast", "node"])
def test_kernels_that_cannot_be_loaded_on_one_rank(world, monkeypatch, algorithm, which):
    from sfb import kernels

    def fail(module):
        raise OSError("no room for the cache")

    comm = sfb.Comm(world)
    if which == "other kernels":
        comm.node.Barrier()  # the first use of the node loads the kernels of plain arrays
    if world.rank == world.size - 1:
        monkeypatch.setattr(kernels, "load", fail)
    refuse(world, lambda: comm.Allreduce(good(), np.zeros((4, 3)), algorithm=algorithm), RuntimeError, "no room")
    comm.free()


def test_a_node_that_is_no_communicator(world):
    refuse(world, lambda: sfb.Comm(world, node=5), TypeError, "node must be")


def test_null_communicators(world):
    null = world.Split(MPI.UNDEFINED)
    freed = world.Dup()
    freed.Free()
    for comm in (null, freed, MPI.COMM_NULL):
        for make in (
            sfb.Comm,
            lambda comm: sfb.Store(comm, {"w": np.zeros(3)}, sfb.optim.SGD(lr=0.1)),
            lambda comm: sfb.AveragingStore(comm, {"w": np.zeros(3)}, sfb.optim.SGD(lr=0.1)),
        ):
            with pytest.raises(TypeError, match="COMM_NULL"):
                make(comm)
    last = world.Split(0 if world.rank < world.size - 1 else MPI.UNDEFINED)
    text = refuse(world, lambda: sfb.Comm(world, node=last), TypeError, "COMM_NULL")
    assert f"rank {world.size - 1}:" in text
    if last != MPI.COMM_NULL:
        last.Free()


def test_a_node_on_one_rank_only(world):
    """Rank 0 makes its Comm collectively; the others join it in their first Allreduce."""
    several(world)

    def call():
        comm = sfb.Comm(world, node=world if world.rank == 0 else None)
        comm.Allreduce(good(), np.zeros((4, 3)))

    refuse(world, call, sfb.MismatchError, "node given")


def test_a_node_with_ranks_from_outside(world):
    several(world)
    part = world.Split(world.rank == 0, world.rank)
    with pytest.raises(ValueError, match="node must hold ranks"):
        sfb.Comm(part, node=world)
    part.Free()
