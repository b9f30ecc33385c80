"""mpi4py's own tests of collectives and requests, over an `sfb.Comm`; `mpi4py_suite.py` says how to run all of them."""

import os
import sys
from pathlib import Path

import pytest
from jobs import mpirun, needs_mpirun

FOLDER = os.environ.get("SFB_MPI4PY_TESTS")


@needs_mpirun
@pytest.mark.skipif(FOLDER is None, reason="SFB_MPI4PY_TESTS does not name the folder test/ of mpi4py's source")
def test_collectives_and_requests():
    script = Path(__file__).with_name("mpi4py_suite.py")
    only = ["test_cco_*", "test_comm*", "test_request*", "test_attributes*", "test_errhandler*", "test_pickle*"]
    code, out = mpirun(2, sys.executable, "-m", "mpi4py", script, FOLDER, "--only", *only, seconds=180)
    assert code == 0, out
