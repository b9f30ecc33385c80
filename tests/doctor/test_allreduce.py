import pytest
from nodes import split_hosts

from sfb.doctor import Level, allreduce


def judge(rows, size=4, nodes=1, why_not=""):
    return allreduce.judge({"memory": 10e9, "link": 1e8, "nodes": nodes, "rows": rows}, size, why_not)


def row(mpi, **others):
    return {"bytes": 1 << 20, "limit": 1e-3, "mpi": mpi, **others}


def test_limits():
    assert allreduce.limit(1000, 2, 1, 4e6, 0.0) == 1e-3
    assert allreduce.limit(1000, 2, 4, 4e6, 1.5e6) == 1e-3


def test_near_the_limit():
    (finding,) = judge([row(2e-3, sfb=1e-3)])
    assert finding.level is Level.OK
    assert "1M: MPI 2.00 ms (50 %), sfb 1.00 ms (100 %); the limit, memory of 10 GB/s, is 1.00 ms" in finding.found
    (finding,) = judge([row(2e-3)], nodes=2)
    assert "a link of 100 MB/s" in finding.found


def test_far_from_the_limit():
    (finding,) = judge([row(0.1, sfb=0.05)])
    assert finding.level is Level.WARNING
    assert "sfb bench allreduce" in finding.advice


def test_mpi_is_faster():
    (finding,) = judge([row(1e-3, sfb=5e-3)])
    assert finding.level is Level.WARNING
    assert "sfb tune" in finding.advice


def test_what_is_not_timed():
    (finding,) = judge([])
    assert finding.level is Level.WARNING
    (finding,) = judge([], size=1)
    assert finding.level is Level.OK
    assert judge([row(2e-3)], why_not="no kernels")[-1].found.endswith("no kernels")


@pytest.mark.mpi
def test_measuring(world):
    node = split_hosts(world, lambda rank: 0)
    for own in (False, True):
        measured = allreduce.measure(world, node, 1, 0.0, 3.0, own=own)
        assert measured["memory"] > 0
        assert measured["rows"], measured
        assert all(row["mpi"] > 0 and ("sfb" in row) == own for row in measured["rows"])
        assert len(set(world.allgather(len(measured["rows"])))) == 1
    assert allreduce.measure(world, node, 1, 0.0, 0.0, own=False)["rows"] == []
    node.Free()
