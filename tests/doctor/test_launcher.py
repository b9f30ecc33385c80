import os
import sys

import pytest

from sfb.doctor import Level, launcher

MPICH = "MPICH Version:      5.0.2\nMPICH Release date: …\n"
OPEN_MPI = "Open MPI v5.0.11, package: …\0"


def seen(**others):
    return {
        "parent": None,
        "variable": "",
        "started": 1,
        "mpirun": "/usr/bin/mpirun",
        "mpirun_family": "MPICH",
        "beside_python": "/venv/bin/mpirun",
        "has_one_beside": True,
        "foreign": None,
        **others,
    }


def judge(size=1, version=MPICH, **others):
    """Return the finding on the launcher."""
    mpi, finding = launcher.judge(seen(**others), version, "/lib/libmpi.so", size)
    assert mpi.level is Level.OK
    assert "/lib/libmpi.so" in mpi.found
    return finding


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MPICH, "MPICH"),
        (OPEN_MPI, "Open MPI"),
        ("Intel(R) MPI Library 2021.10 for Linux* OS", "Intel MPI"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.10 ... HYDRA", "Intel MPI"),
        ("mpirun (Open MPI) 5.0.11", "Open MPI"),
        ("", None),
    ],
)
def test_family(text, expected):
    assert launcher.family(text) == expected


def test_ranks_that_found_each_other():
    finding = judge(size=4, parent="MPICH", variable="PMI_SIZE", started=4)
    assert finding.level is Level.OK
    assert "MPICH started 4 ranks" in finding.found


def test_ranks_that_are_alone():
    finding = judge(version=OPEN_MPI, parent="MPICH", variable="PMI_SIZE", started=4)
    assert finding.level is Level.ERROR
    assert "the launcher, of MPICH, does not fit Open MPI" in finding.found
    assert "4 processes (PMI_SIZE=4)" in finding.found
    assert finding.advice == "use /venv/bin/mpirun"


def test_srun_without_its_option():
    finding = judge(parent="srun", variable="SLURM_STEP_NUM_TASKS", started=4, has_one_beside=False)
    assert finding.level is Level.ERROR
    assert "--mpi=" in finding.advice


def test_one_rank_under_another_launcher():
    assert judge(parent="Open MPI").level is Level.ERROR
    assert judge(parent="MPICH").level is Level.OK
    assert judge(parent="srun").level is Level.OK
    assert judge(parent="MPICH", version="Intel(R) MPI Library").level is Level.OK


def test_mpirun_on_path():
    assert judge().level is Level.OK
    assert "no mpirun" in judge(mpirun=None, mpirun_family=None).found
    finding = judge(mpirun_family="Open MPI")
    assert finding.level is Level.WARNING
    assert "/usr/bin/mpirun, first on PATH, is of Open MPI, the library of MPICH" in finding.found
    assert judge(mpirun_family="Intel MPI").level is Level.OK
    assert judge(mpirun_family=None).level is Level.OK


def test_without_mpi():
    (finding,) = launcher.judge_alone(seen(), "cannot load MPI library")
    assert finding.level is Level.ERROR
    assert "cannot load MPI library" in finding.found
    assert "sfb-mpi[mpich]" in finding.advice
    (finding,) = launcher.judge_alone(seen(foreign="mpirun of A; use B"), "…")
    assert (finding.found, finding.advice) == ("mpirun of A", "use B")


def test_first_process():
    assert launcher.first_process({})
    assert launcher.first_process({"PMI_RANK": "0"})
    assert not launcher.first_process({"PMI_RANK": "1"})
    assert not launcher.first_process({"SLURM_PROCID": "3"})
    assert launcher.first_process({"OMPI_COMM_WORLD_RANK": "0", "SLURM_PROCID": "3"})  # mpirun inside a step


def test_facts(tmp_path, monkeypatch):
    program = tmp_path / "mpirun"
    program.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 4.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    facts = launcher.facts()
    assert facts["mpirun"] == str(program)
    assert facts["mpirun_family"] == "Open MPI"
    assert facts["beside_python"].startswith(sys.exec_prefix)
    program.write_text("not a program")
    assert launcher.facts()["mpirun_family"] is None
