import pytest

from sfb.doctor import Level, memory

MIB = 1 << 20


def folder(size, free=None, **others):
    free = size if free is None else free
    return {"memory": 64 << 30, "size": size, "free": free, "files": 3, "writable": True, **others}


def judge(seen, ranks=2):
    (finding,) = memory.judge([seen] * ranks, ["node0"] * ranks)
    return finding


def test_enough():
    finding = judge(folder(32 << 30))
    assert finding.level is Level.OK
    assert finding.found == "node0: 32.0 GiB left of 32.0 GiB"
    assert judge(folder(0)).level is Level.OK  # no limit
    assert judge({**folder(512 * MIB), "memory": 1 << 30}).level is Level.OK  # a small machine


def test_a_container():
    finding = judge(folder(64 * MIB))
    assert finding.level is Level.ERROR
    assert "64 MiB left of 64 MiB, what a container gets" in finding.found
    assert "--shm-size" in finding.advice
    assert judge(folder(64 * MIB), ranks=1).level is Level.WARNING  # a lone rank shares nothing


def test_little():
    assert judge(folder(512 * MIB)).level is Level.WARNING


def test_files_of_ended_jobs():
    finding = judge(folder(32 << 30, 100 * MIB))
    assert finding.level is Level.ERROR
    assert "3 files take the rest" in finding.found
    assert "ls -l /dev/shm" in finding.advice


def test_files_of_killed_jobs():
    left = {f"/dev/shm/mpich_shm_{i}_0": 2 * MIB for i in range(5)}
    enough, killed = memory.judge([folder(32 << 30, left=left)] * 2, ["node0"] * 2)
    assert enough.level is Level.OK
    assert killed.level is Level.WARNING
    assert killed.found == "node0: 5 files of jobs that were killed take 10 MiB"
    assert killed.advice.endswith(f"rm {' '.join(left)}")


@pytest.mark.parametrize("seen", [{"memory": 1, "problem": "No such file"}, folder(32 << 30, writable=False)])
def test_no_folder(seen):
    assert judge(seen).level is Level.ERROR
    assert judge(seen, ranks=1).level is Level.WARNING


def test_nodes_that_are_alike_are_said_once():
    seen, other = folder(32 << 30), folder(64 * MIB)
    found = memory.judge([seen, seen, other, other], ["a", "b", "c", "c"])
    assert [finding.level for finding in found] == [Level.OK, Level.ERROR]
    assert found[0].found.startswith("a, b: ")
    assert found[1].found.startswith("c: ")


def test_facts(tmp_path):
    facts = memory.facts(str(tmp_path))
    assert 0 <= facts["free"] <= facts["size"]
    assert facts["memory"] > 0
    assert "problem" in memory.facts(str(tmp_path / "missing"))
