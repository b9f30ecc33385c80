"""Whole jobs under mpirun, with hard time-outs."""

import os
import shutil
import signal
import subprocess

import pytest

__all__ = ["MPIRUN", "mpirun", "needs_mpirun"]

MPIRUN = os.environ.get("SFB_TEST_MPIRUN") or shutil.which("mpirun")
needs_mpirun = pytest.mark.skipif(MPIRUN is None, reason="no mpirun on PATH; set SFB_TEST_MPIRUN")


def mpirun(ranks, *command, seconds=90):
    """Run a job, and return its exit code and its output; kill its process group if it hangs."""
    job = subprocess.Popen(
        [MPIRUN, "-n", str(ranks), *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        out, _ = job.communicate()
        pytest.fail(f"no end after {seconds} s\n{out}")
    return job.returncode, out
