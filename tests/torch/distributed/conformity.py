"""PyTorch's own tests of process groups, over the backend "sfb"; run by mpirun.

    mpirun -n 3 python -m mpi4py tests/torch/distributed/conformity.py [TEST...]

They are those of `torch.testing._internal.distributed.distributed_test`, which start processes; here MPI has started
them. Prints what does not pass, and how many tests pass, are skipped and fail; the exit code is 1 if any fail.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import shutil
import sys
import tempfile
import traceback
import unittest
import warnings
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

from mpi4py import MPI

# Tests that do not apply, as patterns, each with the reason.
NOT_OURS: dict[str, str] = {
    "test_monitored_barrier_*": "torch.distributed.monitored_barrier refuses every backend but gloo",
    "test_SyncBatchNorm_process_group": "needs torchvision",
}
# Reasons of skips that hold here. Others name the backends that PyTorch knows, and are not obeyed.
OBEYED = re.compile("CUDA|only.* nccl|nccl.* only|{'nccl'}|GPU|torchvision|github|priority|sparse", re.IGNORECASE)
NOT_OBEYED = re.compile("DistributedDataParallel|GLOO Batch|get_future", re.IGNORECASE)
# Tests that do something only if the backend is called so.
AS_GLOO = ("test_accumulate_gradients_no_sync*",)

SECONDS = 30  # the time-out of process groups

world = MPI.COMM_WORLD


def load() -> tuple[type, dict[str, Any]]:
    """Return the class of the tests, with processes that exist, and the exit codes by which tests are skipped."""
    os.environ.update(BACKEND="sfb", WORLD_SIZE=str(world.size), RANK=str(world.rank), TEMP_DIR="")
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_distributed as common

    import sfb.torch  # noqa: F401

    common.DistTestCases.backend_feature["ddp"].add("sfb")
    from torch.testing._internal.distributed import distributed_test as theirs

    class Tests(theirs.TestDistBackend, theirs.DistributedTest._DistTestBase):  # type: ignore[misc,name-defined]
        """The tests, each a method that runs on every rank."""

    return Tests, {skip.exit_code: skip.message for skip in common.TEST_SKIPS.values()}


def run(tests: type, skips: dict[str, Any], name: str) -> str:
    """Run one test on this rank; return "" if it passes, "skip: …" or the traceback."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed import distributed_test as theirs

    method = getattr(tests, name)
    why = getattr(method, "__unittest_skip_why__", "")
    if OBEYED.search(why) and not NOT_OBEYED.search(why):
        return f"skip: {why}"
    theirs.Barrier.barrier_id = 0
    theirs.BACKEND = "gloo" if any(fnmatch.fnmatch(name, pattern) for pattern in AS_GLOO) else "sfb"
    torch.manual_seed(0)
    dist.init_process_group("sfb", timeout=timedelta(seconds=SECONDS))
    test = tests(name)
    test.rank, test.file_name = world.rank, str(Path(os.environ["TEMP_DIR"]) / "store")
    try:
        getattr(test, name)()
    except unittest.SkipTest as skipped:
        return f"skip: {skipped}"
    except SystemExit as left:
        if left.code in skips:
            return f"skip: {skips[left.code]}"
        return "" if not left.code else f"exit code {left.code}"
    except BaseException:
        return traceback.format_exc()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return ""


def folder() -> str:
    """Return an empty folder that all ranks use for a test, of the layout that the tests expect."""
    path = world.bcast(tempfile.mkdtemp() if world.rank == 0 else None)
    if world.rank == 0:
        for name in ("barrier", "test_dir", "init_dir"):
            (Path(path) / name).mkdir()
    world.barrier()
    return path


def main(patterns: list[str]) -> int:
    """Run the tests whose names fit a pattern, all without patterns; return the exit code."""
    logging.disable(logging.CRITICAL)
    tests, skips = load()
    names = sorted(name for name in dir(tests) if name.startswith("test_"))
    names = [name for name in names if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    counts = {"passed": 0, "skipped": 0, "failed": 0, "not ours": 0}
    for name in names:
        reason = next((why for pattern, why in NOT_OURS.items() if fnmatch.fnmatch(name, pattern)), "")
        if reason and not patterns:
            counts["not ours"] += 1
            continue
        os.environ["TEMP_DIR"] = folder()
        began = perf_counter()
        mine = run(tests, skips, name)
        seconds = perf_counter() - began
        outcomes = world.allgather(mine)
        if world.rank == 0:
            shutil.rmtree(os.environ["TEMP_DIR"])
        errors = [(rank, text) for rank, text in enumerate(outcomes) if text and not text.startswith("skip: ")]
        state = "failed" if errors else "skipped" if any(outcomes) else "passed"
        counts[state] += 1
        if world.rank == 0 and (state != "passed" or seconds > 3 or patterns):
            print(f"{state} {name} ({seconds:.1f} s)", max(outcomes) if state == "skipped" else "", flush=True)
            for rank, text in errors:
                print(f"  rank {rank}:\n{text}", flush=True)
    if world.rank == 0:
        print(", ".join(f"{number} {state}" for state, number in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
