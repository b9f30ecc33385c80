"""How ranks wait for each other, and whom they name in warnings; on clocks of the tests."""

import itertools
import logging
import re

import numpy as np
import pytest

import sfb
from sfb.runtime.board import Board, Event, Watch
from sfb.runtime.inquiry import Inquiry
from sfb.runtime.limits import tag

STALL = 10.0


@pytest.fixture
def warnings(caplog):
    """Return a function that returns the warnings logged so far, but for those of files that other jobs have left."""
    with caplog.at_level(logging.WARNING, "sfb"):
        yield lambda: [text for record in caplog.records if "/dev/shm" not in (text := record.getMessage())]


@pytest.fixture
def board():
    """The board of a single rank, whose clock advances by a second with every look."""
    from mpi4py import MPI

    seconds = itertools.count()
    self = MPI.COMM_SELF
    board = Board(self, self, [7], crowded=False, stall=STALL, clock=lambda: next(seconds))
    yield board
    board.free()


def test_a_watch_warns_whenever_the_stall_is_over(warnings):
    now = 100.0
    watch = Watch(STALL, 2, lambda: now)
    for seconds, count in ((100.0, 0), (109.9, 0), (110.0, 1), (119.9, 1), (125.0, 2), (134.9, 2), (135.0, 3)):
        now = seconds
        watch.look(lambda: [0, 3], "Allreduce")
        assert len(warnings()) == count
    assert warnings()[1] == "rank 2 has waited 25 s in Allreduce for ranks 0, 3"


@pytest.mark.parametrize(("missing", "whom"), [([], "other ranks"), ([5], "rank 5"), ([5, 6], "ranks 5, 6")])
def test_a_watch_names_the_ranks_waited_for(warnings, missing, whom):
    Watch(0.0, 1, lambda: 0.0).look(lambda: missing, "Start")
    assert warnings() == [f"rank 1 has waited 0 s in Start for {whom}"]


def test_a_watch_asks_for_the_ranks_only_to_warn():
    Watch(STALL, 1, lambda: 0.0).look(lambda: pytest.fail("asked"), "Start")


def test_waiting_ends_with_the_condition(board, warnings):
    looks = iter([False] * 24 + [True])
    board.wait(lambda: next(looks), lambda: [3], "Allreduce")
    assert warnings() == [f"rank 0 has waited {seconds} s in Allreduce for rank 3" for seconds in (10, 20)]
    assert next(looks, None) is None


def test_waiting_for_nothing_reads_no_clock(board, monkeypatch):
    monkeypatch.setattr(board, "clock", lambda: pytest.fail("read"))
    board.wait(lambda: True, list, "Allreduce")


def test_an_event_waits_for_its_rank(board, warnings):
    call, phase = 1, 2
    event = board.phase(call, phase, "Iallreduce")
    assert not event.Test()

    def missing():
        ranks = board.missing(call, phase)
        board.reach(call, phase)
        return ranks

    Event(board, lambda wait: board.reached(call, phase, wait=wait), missing, "Iallreduce").Wait()
    assert event.Test()
    event.Wait()
    assert warnings() == ["rank 0 has waited 10 s in Iallreduce for rank 7"]


class Release(logging.Handler):
    """Sends a message to a late rank as soon as a warning names it."""

    def __init__(self, world, late):
        super().__init__()
        self._world = world
        self._late = late
        self.text = ""

    def emit(self, record):
        text = record.getMessage()
        names = re.search("for ranks? (.*)$", text)
        if not self.text and names and str(self._late) in names[1].split(", "):
            self.text = text
            self._world.send(None, self._late)


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", ["auto", "node", "dense", "broadcast"])
@pytest.mark.parametrize("fixture", ["comm", "lone_comm"])
def test_a_rank_that_is_late_is_named(request, world, monkeypatch, warnings, fixture, algorithm):
    """The late rank comes once every other has named it in a warning."""
    late = 1
    if world.size == 1:
        pytest.skip("needs ranks to wait for")
    comm = request.getfixturevalue(fixture)
    if comm.node.size not in (1, world.size):
        pytest.skip("ranks of other nodes wait for their leaders")
    now = itertools.repeat(0)
    monkeypatch.setattr(comm._team.board, "clock", lambda: next(now))
    monkeypatch.setattr(comm._team.failures, "timeout", np.inf)
    factors, g = sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.empty((4, 3))
    for _ in range(2):
        comm.Allreduce(factors, g, algorithm=algorithm)
    assert not warnings()
    handler = Release(world, late)
    if world.rank == late:
        for _ in range(world.size - 1):
            world.recv()
        comm.Allreduce(factors, g, algorithm=algorithm)
        assert not warnings()
    else:
        now = itertools.count(step=1000)
        logger = logging.getLogger("sfb")
        logger.addHandler(handler)
        comm.Allreduce(factors, g, algorithm=algorithm)
        logger.removeHandler(handler)
        # Earlier warnings may have named ranks that came a moment later.
        assert re.match(rf"rank {world.rank} has waited \d+000 s in Allreduce for ranks? ", handler.text)
        if world.size == 2:
            assert handler.text.endswith(" has waited 1000 s in Allreduce for rank 1")
    np.testing.assert_array_equal(g, 2 * world.size)


@pytest.mark.mpi
@pytest.mark.parametrize("algorithm", ["auto", "node", "dense"])
def test_messages_of_the_user_arrive_while_ranks_wait(world, algorithm):
    """A rank that waits for others lets MPI progress: one of them may wait for its message first."""
    if world.size == 1:
        pytest.skip("needs another rank")
    large = np.ones(1 << 20)
    factors, g = sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.empty((4, 3))
    with sfb.Comm(world) as comm:
        for _ in range(2):
            comm.Allreduce(factors, g, algorithm=algorithm)
        request = world.Isend(large, (world.rank + 1) % world.size) if world.rank == 0 else None
        if world.rank == 1:
            received = np.empty_like(large)
            world.Recv(received, 0)
        comm.Allreduce(factors, g, algorithm=algorithm)
        if request is not None:
            request.Wait()
    np.testing.assert_array_equal(g, 2 * world.size)


@pytest.mark.mpi
def test_mpi_progresses_beside_a_message_that_waits_to_be_received(world, comm, monkeypatch):
    """A rank may be ahead, and have sent a message of a later step."""
    if world.size == 1:
        pytest.skip("needs another rank")
    monkeypatch.setattr(Inquiry, "listen", lambda *arguments: None)  # its thread lets MPI progress once a second
    team, found = comm._team, np.zeros(1)
    if world.rank == 0:
        expected = world.Irecv(found, 1)
        while not team.world.Iprobe(1, tag(0)):
            pass
        world.send(None, 1)
        for _ in range(1_000_000):
            team.board.progress()
            if found[0]:
                break
        assert found[0] == 1.0
        expected.Wait()
        team.world.Recv(found, 1, tag(0))
    elif world.rank == 1:
        early = team.world.Isend(np.ones(1), 0, tag(0))
        world.recv(source=0)
        world.Send(np.ones(1), 0)
        early.Wait()
