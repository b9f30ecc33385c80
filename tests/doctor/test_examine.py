from time import monotonic

import pytest

from sfb.doctor import launcher, local
from sfb.doctor.examine import Nodes, examine
from sfb.doctor.report import Report


@pytest.mark.mpi
def test_nodes(world):
    nodes = Nodes(world)
    assert len(nodes.node_of) == world.size
    assert len(nodes.names) == len(set(nodes.names)) == max(nodes.node_of) + 1
    assert nodes.node_of.count(nodes.node_of[world.rank]) == nodes.node.size
    nodes.free()


@pytest.mark.mpi
def test_all_checks(world):
    lines, phases = [], []
    report = Report(lines.append if world.rank == 0 else None)
    report.environment = {"blas": []}
    examine(world, report, local.facts(), launcher.facts(), monotonic() + 5, phases.append)
    assert phases[-1] == "Allreduce"
    if world.rank > 0:
        assert not lines
        return
    topics = {finding.topic for finding in report.findings}
    assert {
        "MPI",
        "launcher",
        "placement",
        "/dev/shm",
        "within nodes",
        "Numba cache",
        "user's cache",
        "profile",
    } <= topics
    assert {"clocks", "Allreduce"} <= topics or world.size == 1
