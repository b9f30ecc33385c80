"""The commands sfb info and sfb doctor, as users run them."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from jobs import MPIRUN, mpirun, needs_mpirun

SFB = (sys.executable, "-m", "sfb")


def alone(*command, code=0, **environment):
    """Run a command in a process of its own, outside any job; return its output and its error output."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "HYDRA", "PMIX"))}
    done = subprocess.run(
        [*map(str, command)], env={**kept, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def levels(out):
    """Return the level of each topic in the output, the gravest where there are several."""
    order = ["OK", "warning", "error"]
    found = {}
    for line in out.splitlines():
        level = line[:7].strip()
        if level in order:
            topic = line[9:21].strip()
            found[topic] = max(found.get(topic, "OK"), level, key=order.index)
    return found


def test_info(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")  # nothing to warn of
    out, err = alone(*SFB, "info")
    for word in ("sfb", "mpi4py", "numba", "MPI", "1 rank, up to 1 per node", "BLAS", "threads per rank"):
        assert word in out
    assert not err


def test_info_as_json(tmp_path):
    alone(*SFB, "info", "-J", tmp_path / "info.json")
    assert json.loads((tmp_path / "info.json").read_text())["ranks"] == 1


def test_info_warns_of_ranks_that_are_alone():
    out, err = alone(*SFB, "info", code=1, MPI_LOCALNRANKS="4")
    assert "threads per rank" in out
    assert "believes it is alone" in err


def test_one_rank(tmp_path):
    out, _ = alone(*SFB, "doctor", "-J", tmp_path / "d.json")
    info, _ = alone(*SFB, "info")
    assert out.startswith(info)
    found = levels(out)
    assert found["placement"] == "OK"
    assert "error" not in found.values()
    assert "0 errors, " in out or "no errors" in out
    written = json.loads((tmp_path / "d.json").read_text())
    assert written["complete"]
    assert written["environment"]["ranks"] == 1
    assert {finding["topic"] for finding in written["findings"]} >= set(found)


def test_ranks_that_are_alone():
    out, _ = alone(*SFB, "doctor", code=1, PMI_SIZE="4", PMI_RANK="0")
    assert levels(out)["launcher"] == "error"
    assert "4 processes (PMI_SIZE=4), each of which is rank 0 of 1" in out
    assert alone(*SFB, "doctor", code=1, PMI_SIZE="4", PMI_RANK="1") == ("", "")  # one speaks for all


def test_the_mpirun_of_another_mpi():
    """Open MPI's variables, in an environment with the wheel of MPICH: MPI is not loaded at all."""
    script = """
        import sys
        from sfb import cli, launch
        launch._installed = lambda name: name == "mpich"
        sys.argv = ["sfb", "doctor"]
        code = cli.run()
        assert "mpi4py.MPI" not in sys.modules
        sys.exit(code)
    """
    command = (sys.executable, "-c", textwrap.dedent(script))
    out, _ = alone(*command, code=1, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="0")
    assert levels(out)["launcher"] == "error"
    assert "mpirun of Open MPI started 2 processes" in out
    assert levels(out)["placement"] == "OK"
    assert alone(*command, code=1, OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK="1") == ("", "")


def test_no_mpi_library(tmp_path):
    script = f"""
        import sys
        sys.modules["mpi4py.MPI"] = None
        from sfb import cli
        sys.argv = ["sfb", "doctor", "-J", {str(tmp_path / "d.json")!r}]
        sys.exit(cli.run())
    """
    out, err = alone(sys.executable, "-c", textwrap.dedent(script), code=1)
    assert levels(out)["MPI"] == "error"
    assert "sfb-mpi[mpich]" in out
    assert "/dev/shm" in levels(out)
    assert "Traceback" not in err
    assert json.loads((tmp_path / "d.json").read_text())["level"] == "error"


def test_mpi_that_never_answers():
    """As MPI_Init may wait for a launcher that is not there, holding the interpreter's lock."""
    script = """
        import ctypes, sys
        from sfb import cli
        from sfb.cli import doctor
        doctor._AT_LEAST = doctor._HARD = 0.2
        class Stuck:
            def __getattr__(self, name):
                ctypes.PyDLL(None).pause()
        sys.modules["mpi4py.MPI"] = Stuck()
        import mpi4py
        mpi4py.MPI = sys.modules["mpi4py.MPI"]
        sys.argv = ["sfb", "doctor", "-t", "5"]
        cli.run()
    """
    _, err = alone(sys.executable, "-c", textwrap.dedent(script), code=-9)
    assert "no end after 1 s; it was at: loading MPI" in err


@pytest.mark.parametrize("arguments", [("-t", "1"), ("-t", "nan"), ("-J", "no/such/folder/d.json")])
def test_wrong_usage(arguments):
    _, err = alone(*SFB, "doctor", *arguments, code=2)
    assert "Error" in err
    assert "Traceback" not in err


@needs_mpirun
def test_ranks_of_a_node(tmp_path):
    code, out = mpirun(3, *SFB, "doctor", "-t", 5, "-J", tmp_path / "d.json")
    found = levels(out)
    assert found["messages"] == found["launcher"] == found["placement"] == "OK", out
    assert "3 ranks, which found each other" in out
    assert code == int("error" in found.values())
    measured = json.loads((tmp_path / "d.json").read_text())["measured"]
    assert measured["allreduce"]["memory"] > 0


@needs_mpirun
@pytest.mark.skipif(shutil.which("taskset") is None or os.cpu_count() == 1, reason="needs taskset and two cores")
def test_ranks_pinned_to_one_core():
    core = min(os.sched_getaffinity(0))
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # mpirun and its ranks inherit it
    try:
        code, out = mpirun(4, *SFB, "doctor", "-t", 5)
    finally:
        os.sched_setaffinity(0, allowed)
    assert code == 1, out
    assert levels(out)["cores"] == "error"
    assert f"ranks 0-3 share core {core} of {os.cpu_count()}" in out


def in_a_mount_namespace(script, *arguments):
    """Run a shell script as root of a mount namespace of its own, or skip the test."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounting needs root and unshare")
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        pytest.skip("this system does not let root mount file systems")
    command = ["unshare", "-m", "sh", "-ec", script, "sh", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@needs_mpirun
def test_a_small_folder_of_shared_memory():
    code, out = in_a_mount_namespace(
        'mount -t tmpfs -o size=64m tmpfs /dev/shm; exec "$@"', MPIRUN, "-n", 2, *SFB, "doctor", "-t", 5
    )
    assert code == 1, out
    assert levels(out)["/dev/shm"] == "error"
    assert "of 64 MiB, what a container gets unless told otherwise" in out
    assert "--shm-size" in out


@needs_mpirun
def test_a_read_only_home(tmp_path):
    script = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; export HOME="$1"; shift; exec "$@"'
    code, out = in_a_mount_namespace(script, tmp_path, "env", "-u", "XDG_CACHE_HOME", *SFB, "doctor", "-t", 5)
    assert code == 0, out
    assert levels(out)["user's cache"] == "warning"
    assert f"{tmp_path}: Read-only file system" in out
