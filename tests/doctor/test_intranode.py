import ctypes
import errno
import os

import numpy as np
import pytest
from nodes import split_hosts

from sfb.doctor import Level, intranode

NOTHING = {"xpmem": False, "knem": False, "ptrace_scope": None}


def judge(seen=NOTHING, results=(None, 0), built=("cma",), sharing=(2, 2), hosts=("a", "a")):
    (finding,) = intranode.judge([seen] * len(hosts), hosts, results, built, sharing)
    return finding


def test_ways():
    assert "by CMA; MPI was built with cma" in judge().found
    finding = judge({**NOTHING, "xpmem": True}, results=(None, errno.EPERM), built=None)
    assert finding.level is Level.OK
    assert "by xpmem; MPI does not say" in finding.found
    assert judge(hosts=("a", "b"), results=(None, None), sharing=(1, 1)).found == "one rank a node"


def test_no_way():
    finding = judge({**NOTHING, "ptrace_scope": 1}, results=(None, errno.EPERM), built=())
    assert finding.level is Level.WARNING
    assert "a: ranks cannot read each other's memory" in finding.found
    assert "ptrace_scope is 1" in finding.found
    assert "kernel.yama.ptrace_scope=0" in finding.advice
    assert "SYS_PTRACE" in judge(results=(None, errno.EPERM)).advice


def test_ranks_that_mpi_keeps_apart():
    finding = judge(sharing=(1, 1), results=(None, None))
    assert finding.level is Level.ERROR
    assert "a: MPI keeps ranks of a host apart" in finding.found


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("MPICH Version: 4\nMPICH configure: --with-xpmem=/opt --with-knem=no --enable-cma\n", ["xpmem", "cma"]),
        ("MPICH Version: 4\nMPICH configure: --with-device=ch4\n", []),
        ("Cray MPI", None),
    ],
)
def test_what_mpich_was_built_with(version, expected):
    assert intranode.built_with(version, None) == expected


def test_what_open_mpi_was_built_with(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ompi_info"
    program.write_text(
        "#!/bin/sh\necho mca:btl:sm:version:5\necho mca:smsc:cma:version:5\necho mca:smsc:xpmem:version:5\n"
    )
    program.chmod(0o755)
    assert intranode.built_with("Open MPI v5", str(tmp_path / "lib" / "libmpi.so")) == ["xpmem", "cma"]
    program.write_text("#!/bin/sh\nexit 1\n")
    assert intranode.built_with("Open MPI v5", str(tmp_path / "lib" / "libmpi.so")) is None


def test_facts(tmp_path):
    assert intranode.facts(tmp_path) == NOTHING
    (tmp_path / "proc/sys/kernel/yama").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/yama/ptrace_scope").write_text("1\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/knem").touch()
    assert intranode.facts(tmp_path) == {"xpmem": False, "knem": True, "ptrace_scope": 1}


def test_reading_oneself():
    word = np.array([intranode._WORD], np.uint64)
    code = intranode.read(os.getpid(), word.ctypes.data)
    if code in (errno.EPERM, errno.ENOSYS):
        pytest.skip("this system does not let a process read itself")
    assert code == 0
    word[0] += 1
    assert intranode.read(os.getpid(), word.ctypes.data) == -1
    assert intranode.read(os.getpid(), 8) == errno.EFAULT
    assert ctypes.sizeof(ctypes.c_void_p) == 8


@pytest.mark.mpi
def test_reading_each_other(world):
    node = split_hosts(world, lambda rank: 0)
    result = intranode.measure(node)
    assert (result is None) == (node.rank == 0)
    if result is not None:
        assert result == 0 or os.strerror(result)
    node.Free()
