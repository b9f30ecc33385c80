import os

import pytest

from sfb.doctor import Level, placement


def rank(cores=(0, 1, 2, 3), **others):
    return {
        "cores": list(cores),
        "host_cores": 4,
        "quota": None,
        "load": 0.0,
        "numa": 1,
        "physical": len(cores),
        "blas": {"libblas": 1},
        "variables": {},
        **others,
    }


def judge(seen, hosts=None):
    """Return the findings by topic."""
    found = placement.judge(seen, hosts or ["node0"] * len(seen))
    return {finding.topic: finding for finding in found}


def test_ranks_that_fit():
    found = judge([rank([core]) for core in range(4)])
    assert {finding.level for finding in found.values()} == {Level.OK}
    assert found["placement"].found == "4 ranks on node0"
    assert "enough" in found["cores"].found


def test_ranks_pinned_to_one_core():
    found = judge([rank([0])] * 4)["cores"]
    assert found.level is Level.ERROR
    assert "node0: ranks 0-3 share core 0 of 4" in found.found
    assert "-bind-to none" in found.advice


def test_two_of_the_ranks_pinned_to_one_core():
    found = judge([rank([0, 1, 2, 3]), rank([2]), rank([2]), rank([3])])["cores"]
    assert found.level is Level.ERROR
    assert "ranks 1, 2 share core 2 of 4" in found.found


def test_more_ranks_than_cores():
    found = judge([rank()] * 5)["cores"]
    assert found.level is Level.WARNING
    assert "ranks 0-4 share cores 0-3" in found.found
    assert "at most 4 ranks a node" in found.advice


def test_unequal_nodes():
    found = judge([rank()] * 3, ["a", "a", "b"])["placement"]
    assert found.level is Level.WARNING
    assert "1 on 1 node, 2 on 1 node; b has the fewest" in found.found
    assert judge([rank()] * 4, ["a", "a", "b", "b"])["placement"].level is Level.OK


def test_what_is_the_same_on_many_nodes_is_said_once():
    hosts = [f"node{i // 2}" for i in range(12)]
    found = placement.judge([rank([0])] * 12, hosts)
    (cores,) = (finding for finding in found if finding.topic == "cores")
    assert cores.level is Level.ERROR
    assert "node0: ranks 0, 1 share core 0" in cores.found
    assert "likewise on 5 other nodes: node1, " in cores.found


def test_blas_threads():
    found = judge([rank(blas={"a": 1, "b": 4})] * 2)["BLAS threads"]
    assert found.level is Level.WARNING
    assert "2 ranks of 4 BLAS threads have 4 cores" in found.found
    assert "OPENBLAS_NUM_THREADS=2" in found.advice
    assert judge([rank(blas={"a": 2})] * 2)["BLAS threads"].level is Level.OK
    assert judge([rank(blas={})])["BLAS threads"].level is Level.OK


def test_a_quota():
    found = judge([rank(quota=1.5)] * 2)["CPU quota"]
    assert found.level is Level.WARNING
    assert "1.5 of 4 cores" in found.found
    assert "CPU quota" not in judge([rank(quota=4.0)] * 2)


def test_ranks_that_may_move_between_domains():
    found = judge([rank(numa=2), rank([0])])["binding"]
    assert found.level is Level.WARNING
    assert "rank 0 may move between 2 NUMA domains" in found.found
    assert "binding" not in judge([rank(numa=2)])  # a lone rank may use the whole node


def test_other_processes():
    assert "load" not in judge([rank(load=2.0)] * 2)
    found = judge([rank(load=3.5)] * 2)["load"]
    assert found.level is Level.WARNING
    assert "3.5 other processes" in found.found


def test_facts(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    facts = placement.facts()
    assert set(facts["cores"]) == os.sched_getaffinity(0)
    assert 1 <= facts["physical"] <= len(facts["cores"])
    assert facts["numa"] >= 1
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("groups", "file", "expected"),
    [
        ("0::/job/step\n", "sys/fs/cgroup/job/step/cpu.max", "200000 100000"),
        ("0::/job/step\n", "sys/fs/cgroup/job/cpu.max", "200000 100000"),
        ("0::/docker/x\n", "sys/fs/cgroup/cpu.max", "200000 100000"),
        ("3:cpu,cpuacct:/job\n", "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "200000"),
        ("3:memory:/job\n", "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", None),
    ],
)
def test_values_of_control_groups(tmp_path, groups, file, expected):
    for name, text in (("proc/self/cgroup", groups), (file, f"{expected}\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert placement.cgroup_value("cpu.max", "cpu", "cpu.cfs_quota_us", tmp_path) == expected
