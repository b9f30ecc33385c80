import time

import pytest

from sfb.doctor import Level, clocks


def test_judge():
    (finding,) = clocks.judge(["a"], [(0.0, 0.0)], 4)
    assert finding.found == "the ranks of a node share its clock"
    (finding,) = clocks.judge(["a", "b", "c"], [(0.0, 0.0), (2e-5, 1e-6), (-4e-3, 1e-5)], 3)
    assert finding.level is Level.OK
    assert "c is -4 ms from a" in finding.found
    (finding,) = clocks.judge(["a", "b", "c"], [(0.0, 0.0), (2.5, 1e-6), (0.3, 0.5)], 3)
    assert finding.level is Level.WARNING
    assert finding.found == "clocks differ from that of a: b by 2.5 s"
    assert "chrony" in finding.advice


@pytest.mark.mpi
def test_measuring(world, monkeypatch):
    """Clocks that are set wrong by a second a rank."""
    monkeypatch.setattr(clocks, "time", lambda: time.time() + world.rank)
    found = clocks.measure(world, 5.0)
    if world.rank > 0:
        assert found == []
        return
    assert len(found) == world.size
    for rank, (offset, unsure) in enumerate(found):
        assert offset == pytest.approx(rank, abs=unsure + 1e-6)


@pytest.mark.mpi
def test_no_time(world):
    assert clocks.measure(world, 0.0) == ([(0.0, 0.0)] if world.rank == 0 else [])
