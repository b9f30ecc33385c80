"""The parts of the store, without MPI."""

import numpy as np
import pytest

from sfb.store import priority
from sfb.store.consistency import ASP, BSP, SSP
from sfb.store.entry import CLOCK, UPDATE, Entry, pack, unpack
from sfb.store.throttle import Bucket


def test_bounds():
    assert [SSP(2).bound(clock) for clock in range(5)] == [-3, -2, -1, 0, 1]
    assert [BSP().bound(clock) for clock in range(3)] == [-1, 0, 1]
    assert [ASP().bound(clock) for clock in range(3)] == [-1, -1, -1]
    assert SSP(0) == BSP()
    assert SSP(1) != SSP(2)
    assert len({SSP(0), BSP(), ASP()}) == 2
    assert (SSP(0).ordered, SSP(1).ordered, ASP().ordered) == (True, False, False)


@pytest.mark.parametrize(("wrong", "kind"), [(-1, ValueError), (1.5, TypeError), ("3", TypeError)])
def test_staleness_is_a_number_of_clocks(wrong, kind):
    with pytest.raises(kind, match="staleness"):
        SSP(wrong)


def test_a_bucket_keeps_any_second_to_its_rate():
    rng = np.random.default_rng(0)
    now = [0.0]
    bucket = Bucket(1000, lambda: now[0])
    sent = []
    while now[0] < 10:
        if 4 < now[0] < 6:  # silence
            now[0] = 6.0
        if bucket.ready():
            nbytes = int(rng.integers(1, bucket.size + 1))
            bucket.take(nbytes)
            sent.append((now[0], nbytes))
        now[0] += 0.001
    times, sizes = np.array(sent).T
    for begin in np.arange(0, 9, 0.01):
        assert sizes[(times >= begin) & (times < begin + 1)].sum() <= 1100
    assert sizes[times < 4].sum() >= 3900


def test_a_message_keeps_its_entries():
    rng = np.random.default_rng(0)
    entries = [
        Entry(UPDATE, 3, 2**40, 1, 2, 7, size, 0.5, rng.integers(0, 256, length).astype(np.uint8))
        for size, length in [(3, 24), (-1, 5), (0, 0)]
    ]
    entries.append(Entry(CLOCK, 1, 5, size=9))
    message = pack(entries, 7)
    assert message.nbytes == 40 + sum(entry.nbytes for entry in entries)
    for before, after in zip(entries, unpack(message, 4, 7, ranks=5, hops=3), strict=True):
        for name in ("kind", "origin", "clock", "table", "number", "size", "magnitude"):
            assert getattr(before, name) == getattr(after, name)
        assert (after.hop, after.source) == (before.hop + 1, 4)
        np.testing.assert_array_equal(before.payload, after.payload)


def updates(*pairs):
    """Return an entry for each (table, magnitude)."""
    return [Entry(UPDATE, 0, 0, table, number=i, magnitude=size) for i, (table, size) in enumerate(pairs)]


def order(name, entries):
    return [entry.number for entry in priority.create(name, 0).order(entries)]


def test_orders():
    entries = updates((0, 1.0), (0, 3.0), (1, 2.0), (2, 0.5), (0, 4.0))
    assert order("fifo", entries) == [0, 1, 2, 3, 4]
    assert order("absolute", entries) == [4, 1, 2, 0, 3]
    assert sorted(order("random", entries)) == [0, 1, 2, 3, 4]
    assert order("random", updates(*[(0, 0.0)] * 50)) != list(range(50))
    assert order("round-robin", entries) == [0, 2, 3, 1, 4]
    robin = priority.create("round-robin", 0)
    robin.sent(entries[0])
    assert [entry.number for entry in robin.order(entries)] == [2, 3, 0, 1, 4]


def test_an_unknown_order():
    with pytest.raises(ValueError, match="fifo, random"):
        priority.create("best", 0)
