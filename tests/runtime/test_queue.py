"""The queue of exchanges under way, with steps that need no MPI."""

import pytest

from sfb.runtime.queue import Queue
from sfb.runtime.steps import ALONE, POSTED


class Message:
    """A request that ends when the test says so."""

    def __init__(self):
        self.come = False

    def Test(self):
        return self.come

    def Wait(self):
        self.come = True


def exchange(name, log, *steps):
    """Yield None, then the steps, and log each step as it ends."""
    yield None
    for number, step in enumerate(steps):
        yield step
        log.append((name, number))
    return name


def begin(queue, name, log, *steps):
    return queue.begin(lambda alone: exchange(name, log, *steps))


def test_an_exchange_advances_when_the_older_ones_have_posted():
    queue, log, first, last = Queue(), [], Message(), Message()
    older = begin(queue, "older", log, first, POSTED, last)
    newer = begin(queue, "newer", log, POSTED)
    queue.advance()
    assert log == []
    first.come = True
    queue.advance()
    assert log == [("older", 0), ("older", 1), ("newer", 0)]
    assert (older.done, newer.done, newer.result) == (False, True, "newer")
    queue.finish(older)
    assert older.result == "older"
    assert not queue.busy


def test_an_exchange_that_has_to_be_alone_waits_for_the_older_ones():
    queue, log, message = Queue(), [], Message()
    begin(queue, "older", log, POSTED, message)
    newer = begin(queue, "newer", log, ALONE)
    queue.advance()
    assert log == [("older", 0)]
    message.come = True
    queue.finish(newer)
    assert log == [("older", 0), ("older", 1), ("newer", 0)]


def test_the_queue_says_whether_an_exchange_is_alone():
    queue, log, message, told = Queue(), [], Message(), []

    def propose(alone):
        told.append(alone)
        return exchange("one", log, message)

    queue.begin(propose)
    queue.begin(propose)
    queue.drain()
    queue.begin(propose)
    assert told == [True, False, True]


def test_an_error_ends_one_exchange():
    def failing():
        yield None
        raise ValueError("a step")

    queue, log = Queue(), []
    wrong = queue.begin(lambda alone: failing())
    right = begin(queue, "right", log, POSTED)
    queue.drain()
    assert str(wrong.error) == "a step"
    assert (right.error, right.result) == (None, "right")


def test_an_interrupt_within_a_step_ends_the_exchange_with_an_error():
    def interrupted():
        yield None
        raise KeyboardInterrupt

    queue, log, told = Queue(), [], []
    queued = begin(queue, "older", log, message := Message())
    wrong = queue.begin(lambda alone: interrupted())
    wrong.on_end = lambda: told.append("ended")
    message.come = True
    with pytest.raises(KeyboardInterrupt):
        queue.drain()
    assert queued.result == "older"
    assert isinstance(wrong.error, RuntimeError)
    assert told == ["ended"]
    queue.drain()
    assert not queue.busy


def test_waiting_goes_on_after_an_interrupt():
    class Interrupted(Message):
        def Wait(self):
            if not self.come:
                self.come = True
                raise KeyboardInterrupt

    queue, log = Queue(), []
    queued = begin(queue, "one", log, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        queue.finish(queued)
    assert not queued.done
    queue.finish(queued)
    assert queued.result == "one"
