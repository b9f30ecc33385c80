"""mpi4py's own tests, with an `sfb.Comm` in the place of COMM_WORLD and COMM_SELF; run by mpirun.

    pip download --no-deps --no-binary :all: --no-build-isolation mpi4py==VERSION  # the one installed
    tar xf mpi4py-*.tar.gz
    mpirun -n 2 python -m mpi4py tests/conformity/mpi4py_suite.py mpi4py-*/test > with
    mpirun -n 2 python -m mpi4py tests/conformity/mpi4py_suite.py mpi4py-*/test --plain > without
    diff with without

Prints a line for each test that does not pass, then how many were run, were skipped, are known to differ, and failed;
the exit code is 1 if any failed. `--plain` leaves COMM_WORLD as it is, `--node 1` makes a node of every rank, and
patterns after `--only` and `--except` name tests, such as "test_cco_*". `--log FOLDER` writes into a file for each rank
what it begins and what fails, for runs that do not come to an end.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

# GPUs, of which there are none: mpi4py's tests ask for these modules, and Numba would look for a driver.
sys.modules["cupy"] = sys.modules["numba.cuda"] = None  # type: ignore[assignment]

from mpi4py import MPI  # noqa: E402

# pickle finds them here by their names, once mpi4py has others in their place.
COMM_WORLD, COMM_SELF = MPI.COMM_WORLD, MPI.COMM_SELF
world = COMM_WORLD

# What a Comm does otherwise, as docs/compatibility.md says.
DIFFERENT = {
    "test_ctypes.TestCTYPES.testHandleAdress": "Comm() is an error, not a null communicator",
    "test_comm.TestCommSelf.testPickle": "a pickled Comm comes back as another object",
    "test_comm.TestCommWorld.testPickle": "a pickled Comm comes back as another object",
    "test_objmodel.TestObjModel.testCAPI": "a handle gives an MPI.Intracomm",
    "test_objmodel.TestObjModel.testHandle": "a handle gives an MPI.Intracomm",
    "test_objmodel.TestObjModel.testSafeFreeConstant": "free() leaves the communicator that was passed to Comm",
}


class Result(unittest.TestResult):
    """What became of the tests on this rank.

    Attributes:
        failed: The tests that failed, each with the last line of its traceback.
    """

    def __init__(self, log: TextIO | None) -> None:
        super().__init__()
        self._log = log
        self.failed: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        if self._log is not None:
            print(test.id(), file=self._log, flush=True)

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._add(test, err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._add(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._add(test, err, str(subtest).removeprefix(str(test)).strip())

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.failed.setdefault(test.id(), "unexpected success")

    def _add(self, test: unittest.TestCase, err: Any, which: str = "") -> None:
        self.failed.setdefault(test.id(), f"{which} {err[0].__name__}: {err[1]}".splitlines()[0].strip())
        if self._log is not None:
            print(f"    failed: {self.failed[test.id()]}", file=self._log, flush=True)


def flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite."""
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


def replace(ranks_of_a_node: int | None) -> None:
    """Put an `sfb.Comm` in the place of COMM_WORLD and COMM_SELF."""
    import sfb

    node = None
    if ranks_of_a_node is not None:
        node = world.Split(world.rank // ranks_of_a_node, world.rank)
    MPI.COMM_WORLD = sfb.Comm(world, node=node)  # type: ignore[misc]
    MPI.COMM_SELF = sfb.Comm(COMM_SELF)  # type: ignore[misc]


def main(arguments: list[str]) -> int:
    """Run the tests; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder test/ of mpi4py's source distribution")
    parser.add_argument("--plain", action="store_true", help="leave COMM_WORLD as it is")
    parser.add_argument("--node", type=int, help="ranks of a node")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--except", nargs="+", default=[], metavar="PATTERN", dest="excluded")
    parser.add_argument("--log", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    if not (options.folder / "mpiunittest.py").exists():
        parser.error(f"{options.folder} does not hold mpi4py's tests")
    if not options.plain:
        replace(options.node)
    sys.dont_write_bytecode = True
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(options.folder))
    chosen = unittest.TestSuite(
        test
        for test in flatten(unittest.defaultTestLoader.discover(str(options.folder)))
        if any(fnmatch.fnmatch(test.id(), f"{pattern}*") for pattern in options.only)
        and not any(fnmatch.fnmatch(test.id(), f"{pattern}*") for pattern in options.excluded)
    )
    if options.log:
        options.log.mkdir(parents=True, exist_ok=True)
    log = open(options.log / f"rank{world.rank}", "w") if options.log else None  # noqa: SIM115
    result = Result(log)
    chosen.run(result)
    everywhere = world.gather(result.failed)
    ran = world.gather((result.testsRun, len(result.skipped)))
    failed: dict[str, str] = {}
    if world.rank == 0:
        for rank, tests in enumerate(everywhere or ()):
            for name, why in tests.items():
                failed.setdefault(name, f"rank {rank}: {why}")
        different = {} if options.plain else {name: failed.pop(name) for name in DIFFERENT if name in failed}
        for name in different:
            print(f"{name}  differs: {DIFFERENT[name]}")
        for name, why in sorted(failed.items()):
            print(f"{name}  {why}")
        tests, skipped = max(ran or ())
        print(f"{tests} tests, {skipped} skipped, {len(different)} different, {len(failed)} failed")
    return 1 if world.bcast(len(failed)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
