"""Kill a rank of a job at a random moment, and see that the job ends and that the rank is named.

    python tests/support/kill_ranks.py --times 100 --ranks 3

Jobs do collectives of factors and of arrays, use a store or average models, train, or train with PyTorch. SIGKILL
reaches one rank, drawn at random, after a random time. mpirun may end the others first, and names the rank. With --stay
it does not notice, as under srun: the library has to name the rank, and to end each of the others. Exits with 1 if a
job hangs, ends with 0 after its rank was killed, or does not name the rank.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

from forked import ended, preload, start

__all__ = ["KINDS", "STAY", "Outcome", "trial"]

# Starts a rank, and stays if it is killed, so that the launcher does not notice.
STAY = ("sh", "-c", '"$@"; code=$?; [ $code -lt 128 ] && exit $code; exec sleep 100', "sh")
# Variables that hold the number of a rank.
_RANK = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")

_HEAD = """
import os, sys, time
import numpy as np
from mpi4py import MPI
import sfb
world = MPI.COMM_WORLD
rank = world.rank
end = time.monotonic() + 120
marks = sys.argv[1]
def ready():
    open(os.path.join(marks, f"{rank}.{os.getpid()}"), "x").close()
"""

_COLLECTIVES = """
comm = sfb.Comm(world, reproducible=True)
rng = np.random.default_rng(rank)
g = sfb.Factors(rng.random((4, 300), np.float32), rng.random((4, 200), np.float32))
G = np.empty((300, 200), np.float32)
W = comm.shared((300, 200))
opt = sfb.optim.SGD(W, lr=1e-3, momentum=0.9)
small, large = np.ones(100), np.ones(1 << 19)
comm.Allreduce(g, opt)
ready()
while time.monotonic() < end:
    comm.Allreduce(g, G)
    comm.Allreduce(g, opt)
    comm.Allreduce(MPI.IN_PLACE, small)
    small[:] = 1
    comm.Iallreduce(g, G).Wait()
    comm.Allreduce(g, G, algorithm="dense")
    comm.Allreduce(MPI.IN_PLACE, large)
    large[:] = 1
"""

_STORE = """
rng = np.random.default_rng(rank)
store = sfb.Store(world, {"w": np.zeros((100, 80), np.float32)}, sfb.optim.SGD(lr=1e-3), consistency=sfb.SSP(2))
ready()
while time.monotonic() < end:
    store["w"]
    store.push("w", sfb.Factors(rng.random((2, 100), np.float32), rng.random((2, 80), np.float32)))
    store.clock()
"""

_AVERAGING = """
rng = np.random.default_rng(rank)
store = sfb.AveragingStore(world, {"w": np.zeros((100, 80), np.float32)}, sfb.optim.SGD(lr=1e-3))
store.consensus_error()
ready()
while time.monotonic() < end:
    for _ in range(50):
        store.push("w", sfb.Factors(rng.random((2, 100), np.float32), rng.random((2, 80), np.float32)))
        store.clock()
    store.consensus_error()
"""

_TORCH = """
import torch
import sfb.torch
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
sfb.torch.attach(model, optimizer)
x, y = torch.randn(16, 64), torch.randint(10, (16,))
def step():
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
step()
ready()
while time.monotonic() < end:
    step()
"""

_TRAIN = """
from sfb import cli
from sfb.training import bulk, stale
for kind in (bulk.Bulk, stale.Stale):
    def run(self, *args, before=kind.run, seen=[]):
        if not seen:
            seen.append(1)
            ready()
        return before(self, *args)
    kind.run = run
folder = os.path.join(marks, "run")
sys.argv = ["sfb", "train", "mlr", "--data", "digits", "--epochs", "100000", *MORE]
sys.exit(cli.run())
"""

KINDS = {
    "collectives": _COLLECTIVES,
    "store": _STORE,
    "averaging": _AVERAGING,
    "training": _TRAIN.replace("*MORE", '"--checkpoint", folder, "--checkpoint-every", "50"'),
    "stale training": _TRAIN.replace("*MORE", '"--sync", "ssp:2"'),
    "torch": _TORCH,
}


class Outcome:
    """How a job ended whose rank was killed.

    Attributes:
        kind: What the job did.
        code: Its exit code; None if it had to be killed.
        seconds: Time from the kill to its end.
        named: Who named the rank: "sfb", "mpirun" or "".
        output: What it printed.
    """

    def __init__(self, kind, code, seconds, named, output):
        self.kind, self.code, self.seconds, self.named, self.output = kind, code, seconds, named, output

    @property
    def good(self):
        """Whether the job ended, with an error, and the rank was named."""
        return self.code not in (None, 0) and bool(self.named)


def trial(kind, ranks, mpirun, rng, *, stay=False, seconds=60, longest=1.0):
    """Start a job, kill a rank, and return the outcome.

    Args:
        kind: A key of `KINDS`.
        ranks: The number of ranks.
        mpirun: The launcher.
        rng: Draws the rank and the moment.
        stay: Whether mpirun is not to notice; `preload` has to be called before.
        seconds: Time after the kill in which all ranks have to end.
        longest: Most seconds from the moment at which all ranks are at work to the kill.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks = folder / "ranks"
        marks.mkdir()
        script = _HEAD + KINDS[kind]
        forked = {}
        if stay:
            job = start(mpirun, ranks, folder, script, [str(marks)], _RANK)
            forked, job = job.ranks, job.mpirun
        else:
            (folder / "job.py").write_text(script)
            job = subprocess.Popen(
                [mpirun, "-n", str(ranks), sys.executable, str(folder / "job.py"), str(marks)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
        pids, begun = {}, time.monotonic()
        while len(pids) < ranks and job.poll() is None and time.monotonic() < begun + 120:
            time.sleep(0.01)
            pids = {int(rank): int(pid) for rank, pid in (path.name.split(".") for path in marks.glob("*.*"))}
        if len(pids) < ranks:
            raise RuntimeError(f"the job has not begun:\n{_end(job, forked.values())}")
        time.sleep(rng.uniform(0, longest))
        victim = rng.randrange(ranks)
        began = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)
        # Forked ranks are to end by themselves.
        late = [pid for pid in forked.values() if not ended(pid, began + seconds)]
        try:
            output, _ = job.communicate(timeout=max(1.0, began + seconds - time.monotonic()))
            code = None if late else job.returncode
        except subprocess.TimeoutExpired:
            code, output = None, ""
        took = time.monotonic() - began
        if code is None:
            output += _end(job, late)
    return Outcome(kind, code, took, _named(output, victim, pids[victim]), output)


def _end(job, forked):
    """Kill a job and its ranks, and return the output."""
    for pid in forked:
        os.kill(pid, signal.SIGKILL)  # a child that nobody has waited for
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    try:
        return job.communicate(timeout=10)[0] or ""
    except subprocess.TimeoutExpired:  # ranks that have left their launcher hold the pipe
        return "(a rank has outlived its launcher)"


def _named(output, rank, pid):
    if re.search(rf"rank {rank} \(host \S+, pid {pid}\) is gone", output):
        return "sfb"
    # MPICH: "PID 123 RUNNING AT host"; Open MPI: "process rank 1 with PID 123 on node host exited on signal 9".
    return "mpirun" if re.search(rf"\bPID {pid}\b", output) else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--mpirun", default=shutil.which("mpirun"))
    parser.add_argument("--stay", action="store_true", help="let the other ranks go on without the one that is killed")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what jobs do, as NAME,NAME")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in ("OMP", "OPENBLAS", "NUMBA", "MKL"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    kinds = [kind for kind in options.kinds.split(",") if kind]
    if options.stay:
        preload(torch="torch" in kinds)
    rng, outcomes = Random(options.seed), []
    for number in range(1, options.times + 1):
        kind = kinds[number % len(kinds)]
        outcome = trial(kind, options.ranks, options.mpirun, rng, stay=options.stay)
        outcomes.append(outcome)
        how = "HANGS" if outcome.code is None else f"ended with {outcome.code} after {outcome.seconds:.1f} s"
        print(f"{number:3d}  {kind:14s}  {how}, named by {outcome.named or 'NOBODY'}", flush=True)
        if not outcome.good:
            print(outcome.output, flush=True)
    good = sum(outcome.good for outcome in outcomes)
    hangs = sum(outcome.code is None for outcome in outcomes)
    by = Counter(outcome.named or "nobody" for outcome in outcomes)
    median = statistics.median(outcome.seconds for outcome in outcomes)
    longest = max(outcome.seconds for outcome in outcomes)
    print(f"{good} of {len(outcomes)} good, {hangs} hangs; named by {dict(by)}")
    print(f"time from the kill to the end: median {median:.1f} s, longest {longest:.1f} s")
    return int(good < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
