import os
import time
from pathlib import Path

import pytest

from sfb.doctor import Level, caches
from sfb.tuning.profile import Profile


def node(**others):
    return {
        "numba": "/home/me/cache",
        "problem": None,
        "type": "ext4",
        "compiled": True,
        "variable": None,
        "user": "/home/me/.cache/sfb",
        "user_problem": None,
        **others,
    }


def judge(*seen, shared=None):
    names = [f"node{i}" for i in range(len(seen))]
    return caches.judge(names, seen, shared or [True] * len(seen))


def test_caches_that_can_be_used():
    numba, user = judge(node(), node())
    assert numba.level is user.level is Level.OK
    assert "/home/me/cache (ext4), shared by all nodes" in numba.found
    assert "another one on each node" in judge(node(), node(), shared=[True, False])[0].found
    assert "not the one of node2" in judge(node(), node(), node(), shared=[True, True, False])[0].found


def test_kernels_that_are_not_compiled():
    numba, _ = judge(node(), node(compiled=False))
    assert numba.level is Level.WARNING
    assert numba.found.startswith("node1: ")
    assert "sfb warmup" in numba.advice


def test_a_cache_that_cannot_be_written():
    assert judge(node(problem="/home/me: Read-only file system"))[0].level is Level.WARNING
    numba, _ = judge(node(problem="/home/me: Read-only file system", compiled=False))
    assert numba.level is Level.ERROR
    assert "/home/me: Read-only file system" in numba.found
    assert "NUMBA_CACHE_DIR" in numba.advice
    numba, _ = judge(node(numba=None, problem="no folder for compiled kernels"))
    assert numba.level is Level.ERROR


def test_a_folder_that_numba_does_not_take():
    assert judge(node(variable="/home/me"))[0].level is Level.OK
    numba, _ = judge(node(variable="/nowhere"))
    assert numba.level is Level.WARNING
    assert "the folder of NUMBA_CACHE_DIR, /nowhere" in numba.found


def test_many_nodes_that_read_one_server():
    numba, _ = judge(*[node(type="nfs4")] * 40)
    assert numba.level is Level.WARNING
    assert "40 nodes" in numba.found
    assert judge(*[node(type="nfs4")] * 4)[0].level is Level.OK
    assert judge(*[node()] * 40)[0].level is Level.OK


def test_a_home_that_cannot_be_written():
    _, user = judge(node(user_problem="/home/me: Read-only file system"))
    assert user.level is Level.WARNING
    assert "/home/me/.cache/sfb cannot be written, /home/me: Read-only file system" in user.found
    assert "XDG_CACHE_HOME" in user.advice


def test_problems_of_folders(tmp_path):
    assert caches.problem_of(tmp_path / "a" / "b") is None
    (tmp_path / "file").touch()
    assert caches.problem_of(tmp_path / "file" / "b").startswith(f"{tmp_path / 'file'}: ")
    assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_kinds_of_file_systems(tmp_path):
    mounts = tmp_path / "mounts"
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/a rw",
        "2 1 0:9 / {} rw - nfs4 server:/home rw",
        "3 1 0:8 / {}x rw - tmpfs t rw",
    ]
    mounts.write_text("\n".join(lines).format(tmp_path / "home", tmp_path / "home") + "\n")
    assert caches.kind_of(tmp_path / "home" / "me", str(mounts)) == "nfs4"
    assert caches.kind_of(tmp_path / "homely", str(mounts)) == "ext4"
    assert caches.kind_of(tmp_path, str(tmp_path / "missing")) == ""
    assert caches.kind_of(Path("/"))


def test_a_token(tmp_path):
    file = caches.token(str(tmp_path))
    name = file.name.rpartition("/")[2]
    assert caches.sees(str(tmp_path), name)
    assert not caches.sees(str(tmp_path / "other"), name)
    assert not caches.sees(None, name)
    file.close()
    assert not list(tmp_path.iterdir())
    assert caches.token(None) is None
    assert caches.token(str(tmp_path / "missing")) is None


def test_facts(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    facts = caches.facts()
    assert facts["numba"]
    assert facts["user_problem"].startswith(f"{tmp_path / 'file'}: ")


WHO = {"hosts": ["a"], "mpi": "MPICH 5", "threads": 1}


def profile(path, age=0.0, **identity):
    """Write a profile, and return what is said of it."""
    path.write_text(Profile(identity={**WHO, **identity}).to_json())
    made = time.time() - age * 86400
    os.utime(path, (made, made))
    return caches.judge_profile(caches.profile_facts(WHO, str(path)))


def test_a_profile_by_name(tmp_path):
    path = tmp_path / "p.json"
    finding = profile(path, 2.5)
    assert finding.level is Level.OK
    assert f"SFB_PROFILE={path}, of these ranks, 2 days old" in finding.found
    assert profile(path, 400).level is Level.WARNING
    finding = profile(path, mpi="Open MPI 5")
    assert finding.level is Level.WARNING
    assert "mpi Open MPI 5, here MPICH 5" in finding.found
    path.write_text("{")
    finding = caches.judge_profile(caches.profile_facts(WHO, str(path)))
    assert finding.level is Level.ERROR
    assert "not JSON" in finding.found


def test_a_profile_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    finding = caches.judge_profile(caches.profile_facts(WHO, ""))
    assert finding.level is Level.WARNING
    assert "none of these ranks" in finding.found
    assert "sfb tune" in finding.advice
    (tmp_path / "sfb").mkdir()
    (tmp_path / "sfb" / "profile-0.json").touch()
    assert "; 1 of other ranks" in caches.judge_profile(caches.profile_facts(WHO, "")).found
    path = caches.cache_file(WHO)
    path.write_text(Profile(identity=WHO).to_json())
    assert caches.judge_profile(caches.profile_facts(WHO, "")).level is Level.OK
    path.write_text("{")
    assert caches.judge_profile(caches.profile_facts(WHO, "")).level is Level.WARNING


def test_no_folder_for_a_profile(monkeypatch):
    def nowhere(who):
        raise OSError("no folder for a cache")

    monkeypatch.setattr(caches, "cache_file", nowhere)
    assert caches.judge_profile(caches.profile_facts(WHO, "")).level is Level.WARNING
    assert caches.facts()["user_problem"] == "no folder for a cache"


@pytest.mark.parametrize("variable", ["NUMBA_CACHE_DIR"])
def test_the_folder_of_kernels(tmp_path, monkeypatch, variable):
    from numba import config

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "kernels"))
    facts = caches.facts()
    assert facts["numba"].startswith(str(tmp_path / "kernels"))
    assert not facts["compiled"]
