"""Requests of this library in the functions that complete several, beside requests of mpi4py."""

import threading

import numpy as np
import pytest
from mpi4py import MPI

import sfb

pytestmark = pytest.mark.mpi


@pytest.fixture(params=["thread", "poll"])
def progressing(request, world):
    with sfb.Comm(world, progress=request.param) as comm:
        yield comm


def good():
    return sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))


class Mixed:
    """Requests of all kinds: exchanges, a persistent one, a null one, a message each way, and a pickled message."""

    def __init__(self, comm):
        self.comm = comm
        left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
        self.left = left
        self.sums = [np.zeros((4, 3)) for _ in range(4)]
        self.received = np.zeros(1)
        self.plans = [comm.Allreduce_init(good(), to) for to in self.sums[2:]]
        self.plans[0].Start()  # the other one stays inactive
        self.sent = np.full(1, float(comm.rank))
        self.requests = [
            comm.Iallreduce(good(), self.sums[0]),
            comm.Irecv(self.received, left, 7),
            self.plans[0],
            comm.irecv(source=left, tag=8),
            comm.Iallreduce(good(), self.sums[1]),
            self.plans[1],
            MPI.REQUEST_NULL,
            comm.Isend(self.sent, right, 7),
            comm.isend({"from": comm.rank}, right, 8),
        ]
        self.active = {0, 1, 2, 3, 4, 7, 8}

    def check(self):
        for to in self.sums[:3]:
            np.testing.assert_array_equal(to, 2 * self.comm.size)
        assert not self.sums[3].any()
        assert self.received[0] == self.left
        assert not any(request.active for request in self.requests if hasattr(request, "active"))


def empty(status):
    return status.Get_count(MPI.BYTE) == 0 and status.Get_source() == MPI.ANY_SOURCE


@pytest.mark.parametrize("kind", [sfb.Request, sfb.Persistent])
def test_all(progressing, kind):
    mixed, statuses = Mixed(progressing), []
    objects = kind.waitall(mixed.requests, statuses)
    mixed.check()
    assert len(statuses) == len(objects) == len(mixed.requests)
    assert objects[3] == {"from": mixed.left}
    assert statuses[1].Get_source() == mixed.left
    assert all(empty(statuses[i]) for i in (0, 2, 4, 5))
    assert kind.Waitall(mixed.requests)
    assert kind.Testall(mixed.requests)


def test_testall(progressing):
    mixed, statuses = Mixed(progressing), [MPI.Status()]
    while not sfb.Request.Testall(mixed.requests, statuses):
        pass
    mixed.check()
    assert len(statuses) == len(mixed.requests)


@pytest.mark.parametrize("name", ["waitany", "testany"])
def test_any(progressing, name):
    mixed, done = Mixed(progressing), {}
    while len(done) < len(mixed.active):
        status = MPI.Status()
        i, *flag, item = getattr(sfb.Request, name)(mixed.requests, status)
        if flag in ([], [True]):
            assert i not in done
            done[i] = item
            assert status.Get_source() == mixed.left if i in (1, 3) else True
    mixed.check()
    assert done.keys() == mixed.active
    assert done[3] == {"from": mixed.left}
    assert sfb.Request.Waitany(mixed.requests) == MPI.UNDEFINED
    assert sfb.Request.Testany(mixed.requests) == (MPI.UNDEFINED, True)


@pytest.mark.parametrize("name", ["waitsome", "testsome"])
def test_some(progressing, name):
    mixed, done = Mixed(progressing), {}
    while len(done) < len(mixed.active):
        statuses = []
        indices, items = getattr(sfb.Request, name)(mixed.requests, statuses)
        assert len(statuses) == len(items) == len(indices)
        assert done.keys().isdisjoint(indices)
        done.update(zip(indices, items, strict=True))
    mixed.check()
    assert done[3] == {"from": mixed.left}
    assert sfb.Request.Waitsome(mixed.requests) is None
    assert sfb.Request.testsome(mixed.requests) == (None, None)


def test_without_requests():
    assert sfb.Request.Waitall([])
    assert sfb.Request.testall([]) == (True, [])
    assert sfb.Request.waitany([]) == (MPI.UNDEFINED, None)
    assert sfb.Request.Waitsome([]) is None


@pytest.mark.parametrize("name", ["Waitall", "Waitany", "Waitsome", "Testall", "Testany", "Testsome"])
def test_errors_of_exchanges(progressing, world, name):
    wrong = np.zeros((3, 4) if world.rank == world.size - 1 else (4, 3))
    g = np.zeros((4, 3))
    requests = [progressing.Iallreduce(good(), to) for to in (wrong, g)] + [world.Ibarrier()]

    def complete():
        while True:
            getattr(sfb.Request, name)(requests)

    with pytest.raises(ValueError, match=f"rank {world.size - 1}: the receiver must have the shape"):
        complete()
    sfb.Request.Waitall(requests)
    np.testing.assert_array_equal(g, 2 * world.size)


def test_single_requests_return_what_those_of_mpi4py_do(progressing):
    g = np.zeros((4, 3))
    request = progressing.Iallreduce(good(), g)
    while not request.Get_status():
        pass
    assert request
    assert request.wait(status := MPI.Status()) is None
    assert empty(status)
    assert not request
    assert request.Wait()
    assert request.test() == (True, None)
    assert request.Get_status()
    with pytest.raises(MPI.Exception):
        progressing.Iallreduce(good(), h := np.zeros((4, 3))).Cancel()
    progressing.Iallreduce(good(), h).Free()
    progressing.Iallreduce(good(), g).Wait()
    np.testing.assert_array_equal(h, 2 * progressing.size)


def test_startall(progressing):
    sums = [np.zeros((4, 3)) for _ in range(2)]
    one, total = np.ones(1), np.zeros(1)
    plans = [progressing.Allreduce_init(good(), to) for to in sums]
    if MPI.Get_version() >= (4, 0):
        plans.append(progressing.Allreduce_init(one, total))
    for _ in range(2):
        sfb.Persistent.Startall(plans)
        sfb.Persistent.Waitall(plans)
    np.testing.assert_array_equal(sums, 2 * progressing.size)
    assert total[0] in (0, progressing.size)
    for plan in plans:
        assert plan
        plan.Free()
        assert not plan


def test_an_error_is_raised_in_the_thread_that_waits(world):
    with sfb.Comm(world) as comm:
        if not comm._progress.threaded:
            pytest.skip("needs MPI_THREAD_MULTIPLE")
        wrong = np.zeros((3, 4) if world.rank == world.size - 1 else (4, 3))
        requests = [comm.Iallreduce(good(), wrong), comm.Iallreduce(good(), g := np.zeros((4, 3)))]
        caught = []

        def wait():
            try:
                MPI.Request.Waitall(requests)
            except ValueError as error:
                caught.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        assert len(caught) == 1
        requests[1].Wait()
        np.testing.assert_array_equal(g, 2 * world.size)
