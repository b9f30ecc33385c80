"""Kill a training run at a random moment, let another go on from its checkpoints, and compare the final models.

    python tests/support/kill_and_resume.py --times 50 --ranks 2

SIGKILL reaches one rank, drawn at random, in one run of two; in the others every process of the job. Exits with 1 if a
final model differs by a bit from that of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from random import Random

import numpy as np

from sfb.training.checkpoint import Folder, read

__all__ = ["Trials"]

_OPTIONS = {
    "mlp": ("mlp", "--hidden", "48,24", "--optimizer", "adam", "--lr", "0.003", "--schedule", "cosine"),
    "mlr": ("mlr", "--optimizer", "momentum"),
}


class Trials:
    """Runs that are killed, and one that is not.

    Args:
        folder: Folder for checkpoints.
        ranks: Number of ranks; without mpirun for one.
        mpirun: The launcher.
        model: "mlp" or "mlr".
        epochs: Length of a run.
        seconds: Most time for one job.

    Attributes:
        expected: The arrays of the last checkpoint of the run that nobody kills.
        duration: Its seconds after the first checkpoint.
    """

    def __init__(self, folder, ranks=1, mpirun=None, model="mlp", epochs=12, seconds=120):
        self._folder, self._ranks, self._mpirun, self._seconds = Path(folder), ranks, mpirun, seconds
        self._command = [
            sys.executable, "-m", "sfb", "train", *_OPTIONS[model], "--data", "digits", "--epochs", str(epochs),
            "--checkpoint-every", "4", "--keep", "3",
        ]  # fmt: skip
        whole = self._folder / "whole"
        job = self._start(whole)
        began = self._first_step(job, whole)
        self._end(job)
        self.duration = time.monotonic() - began
        self.expected = self._final(whole)

    def trial(self, number, rng):
        """Kill a run, let another go on; return the step of the checkpoint that it began with, and what differs."""
        folder = self._folder / f"trial{number}"
        job = self._start(folder)
        self._first_step(job, folder)
        time.sleep(rng.uniform(0, 0.9 * self.duration))
        self._kill(job, rng)
        steps = Folder(folder, 1).steps()
        self._end(self._start(folder, "--resume"))
        found = self._final(folder)
        shutil.rmtree(folder)
        return steps[-1], [name for name, array in self.expected.items() if found[name].tobytes() != array.tobytes()]

    def _start(self, folder, *options):
        launcher = [self._mpirun, "-n", str(self._ranks)] if self._ranks > 1 else []
        return subprocess.Popen(
            [*map(str, launcher), *self._command, "--checkpoint", str(folder), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "NUMBA")}},
        )

    def _first_step(self, job, folder):
        """Wait until a run has written a checkpoint after a step, and return the time."""
        end = time.monotonic() + self._seconds
        while not any(Folder(folder, 1).steps()):
            if job.poll() is not None or time.monotonic() > end:
                os.killpg(job.pid, signal.SIGKILL)
                raise RuntimeError(f"the run has not begun:\n{job.communicate()[0]}")
            time.sleep(0.005)
        return time.monotonic()

    def _kill(self, job, rng):
        processes = {pid: command_line(pid) for pid in descendants(job.pid)}
        ranks = [pid for pid, line in processes.items() if b"\0train\0" in line and b"mpirun" not in line]
        victims = [rng.choice(ranks)] if ranks and rng.random() < 0.5 else [*processes]
        for pid in victims:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
        try:
            job.communicate(timeout=self._seconds)
        finally:
            for pid, line in processes.items():
                if line and command_line(pid) == line:
                    os.kill(pid, signal.SIGKILL)

    def _end(self, job):
        try:
            output, _ = job.communicate(timeout=self._seconds)
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            raise
        if job.returncode:
            raise RuntimeError(f"the run ended with {job.returncode}:\n{output}")

    @staticmethod
    def _final(folder):
        own = Folder(folder, 1)
        _, arrays = read(own.file(own.steps()[-1]))
        assert all(np.isfinite(array).all() for array in arrays.values())
        return arrays


def descendants(pid):
    """Return a process and all that it has started, directly or not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found


def command_line(pid):
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mpirun", default=shutil.which("mpirun"))
    parser.add_argument("--model", choices=sorted(_OPTIONS), default="mlp")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, wrong = Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(folder, options.ranks, options.mpirun, options.model, options.epochs)
        print(f"a run takes {trials.duration:.1f} s after its first checkpoint", flush=True)
        for number in range(1, options.times + 1):
            step, different = trials.trial(number, rng)
            wrong += bool(different)
            result = f"DIFFERENT: {', '.join(different)}" if different else "equal bits"
            print(f"{number:3d}  went on from step {step}: {result}", flush=True)
    print(f"{options.times - wrong} of {options.times} final models are equal")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
