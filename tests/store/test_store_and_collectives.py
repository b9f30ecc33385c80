"""Under `BSP` a collective of the user may follow a read, though no rank takes messages of the store in it."""

import itertools
from os import sched_yield

import numpy as np
import pytest
from mpi4py import MPI

import sfb
from sfb.store.entry import UPDATE, Entry, pack, unpack
from sfb.store.priority import Priority
from sfb.store.relay import Relay
from sfb.store.timer import Timer
from sfb.topology import create

LIMIT = 1 << 16


def timer(paused=lambda: None):
    """Return a clock that advances in pauses alone, a second in each."""
    pauses = itertools.count(1)
    now = [0.0]

    def pause():
        now[0] = next(pauses)
        paused()
        sched_yield()

    return Timer(now=lambda: now[0], pause=pause)


def update(nbytes):
    return sfb.Factors(np.ones((nbytes // 32, 2)), np.ones((nbytes // 32, 2)))


def opened(world, clock):
    options = {"topology": "complete", "max_bytes": LIMIT, "timer": clock}
    return sfb.Store(world, {"w": np.zeros((2, 2))}, sfb.optim.SGD(lr=1.0), **options)


@pytest.mark.mpi
def test_a_read_ends_when_all_has_left_that_others_need(world):
    if world.size == 1:
        pytest.skip("has nobody to send to")
    window = LIMIT // (world.size - 1)
    small, large = update(window // 5), update(9 * window // 10)
    reading, told = False, False

    def tell():
        """Let the other ranks, which return no credit before, begin to read."""
        nonlocal told
        if world.rank == 0 and reading and not told:
            told = True
            for rank in range(1, world.size):
                world.send(None, rank)

    with opened(world, timer(tell)) as store:
        if world.rank == 0:
            store.push("w", small)
        else:
            while store.stats().received_messages < 1:
                store["w"]
        world.Barrier()
        if world.rank == 0:
            while store.stats().received_messages < world.size - 1:  # the others have ended the clock
                store["w"]
            store.push("w", large)  # the windows have no room for both
            store.clock()
            assert store.stats().queued == world.size - 1
            reading = True
            try:
                store["w"]
                assert store.stats().queued == 0
            finally:
                tell()
        else:
            store.clock()
            world.recv(source=0)
            store["w"]
        world.Barrier()
        assert (store["w"] == -len(small) - len(large)).all()


@pytest.mark.mpi
def test_a_rank_that_has_read_pushes_without_help_of_the_others(world):
    pushes, held_up = 20, 0

    def note():
        nonlocal held_up
        held_up += 1
        assert held_up < 1000, "push waits for ranks that are in a collective"

    with opened(world, timer(note)) as store:
        for _ in range(3):
            store["w"]
            held_up = 0
            try:
                if world.rank == 0:
                    for _ in range(pushes):
                        store.push("w", update(LIMIT // 2))
            finally:
                world.Barrier()
            held_up = -(1 << 62)  # others may be late in what follows
            store.clock()
    assert (store["w"] == -3 * pushes * len(update(LIMIT // 2))).all()


@pytest.mark.mpi
@pytest.mark.parametrize("topology", ["halton", "ring", "complete"])
@pytest.mark.parametrize("bandwidth", [None, "100MB/s"])
def test_collectives_between_reads_and_pushes(world, rng, topology, bandwidth):
    counts = rng.integers(0, 5, (40, world.size))
    options = {"topology": topology, "max_bytes": LIMIT, "bandwidth": bandwidth}
    with sfb.Comm(world) as comm, sfb.Store(comm, {"w": np.zeros(3000)}, sfb.optim.SGD(lr=1.0), **options) as store:
        one = np.full(3000, -1.0)
        for clock, of_clock in enumerate(counts):
            store["w"]
            for _ in range(of_clock[world.rank]):
                store.push("w", one)
            assert (store["w"] == counts[:clock].sum()).all()
            comm.Barrier()
            comm.bcast(clock, root=clock % world.size)
            store.clock()


class Done:
    """A request that is complete."""

    def Test(self):
        return True


class Network:
    """A communicator of rank 1 that keeps what it sends, and receives what a test has put into it."""

    rank, size = 1, 3

    def __init__(self):
        self.inbox, self.sent = [], []

    def Improbe(self, source, tag, status):
        if not self.inbox:
            return None
        message = self.inbox.pop(0)
        status.Set_source(0)
        status.Set_tag(1)
        status.Set_elements(MPI.BYTE, message.nbytes)
        return Message(message)

    def Isend(self, buffer, rank, tag):
        self.sent.append((rank, tag, buffer[0].copy()))
        return Done()


class Message:
    def __init__(self, data):
        self._data = data

    def Irecv(self, buffer):
        buffer[0][:] = self._data
        return Done()


@pytest.mark.parametrize("late", [False, True])
def test_what_the_replica_keeps_takes_no_room(late):
    network, delivered = Network(), []
    relay = Relay(
        network, create("ring", 3), delivered.append, priority=Priority(), bucket=None, max_bytes=4096, timer=timer(),
        checks=lambda rank: False,
    )  # fmt: skip
    payload = np.zeros(1000, np.uint8)
    entries = [Entry(UPDATE, 0, clock, number=n, payload=payload) for n, clock in enumerate((5, 5, 6))]
    credit = lambda: sum(int(data[32:].view(np.int64).sum()) for _, tag, data in network.sent if tag == 2)  # noqa: E731
    if not late:
        relay.keep(5)
    network.inbox.append(pack(entries, 0, checked=False))
    for _ in range(3):
        relay.step(settle=True)
    assert len(delivered) == 3
    left = [data for rank, tag, data in network.sent if tag == 1]
    assert [entry.number for data in left for entry in unpack(data, 1, 0, ranks=3, hops=2, checked=False)] == [0]
    assert relay.awaited == [2]
    assert not relay.has_sent(5)
    assert relay.has_sent(4)
    nbytes = entries[0].nbytes
    assert credit() == (1 if late else 2) * nbytes
    relay.keep(5)
    relay.step(settle=True)
    assert credit() == 2 * nbytes  # of clock 6 only once it has left
    assert relay.fits(Entry(UPDATE, 1, 5, payload=np.zeros(1 << 20, np.uint8)))
