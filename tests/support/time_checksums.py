"""Time exchanges between nodes with checksums and without, call by call alternately, and print what checksums cost.

./mpirun_scripts/emulate_cluster.sh -N 4 python -m mpi4py tests/support/time_checksums.py
"""

from __future__ import annotations

import argparse
import os
from time import perf_counter

import numpy as np
from mpi4py import MPI

import sfb


def comms(world):
    """Return a Comm with checksums and one without."""
    made = []
    for value in ("1", "0"):
        os.environ["SFB_CHECKSUMS"] = value
        comm = sfb.Comm(world, profile=sfb.Profile())
        comm.node  # noqa: B018 (makes the library's communicators, which read the variable)
        made.append(comm)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-K", type=int, default=4096)
    parser.add_argument("-D", type=int, default=4096)
    parser.add_argument("-S", default="1,10,100")
    parser.add_argument("-b", default="1,8", help="MiB of plain arrays")
    parser.add_argument("-t", type=float, default=8.0, help="seconds of each row")
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    both = comms(world)
    w = np.zeros((options.K, options.D), np.float32)
    rules = [sfb.optim.SGD(w, lr=1e-6) for _ in both]
    rows = []
    for samples in map(int, options.S.split(",")):
        factors = sfb.Factors(*(np.ones((samples, n), np.float32) for n in w.shape))
        rows.append(
            (f"factors, S={samples}", lambda i, f=factors: both[i].Allreduce(f, rules[i], algorithm="broadcast"))
        )
    for size in map(int, options.b.split(",")):
        x = np.ones((size << 20) // 4, np.float32)
        y = np.empty_like(x)
        for comm in both:
            comm.Allreduce(x, y)
            comm._plain.arrays._choices[y.nbytes] = True
        rows.append((f"array of {size} MiB", lambda i, x=x, y=y: both[i].Allreduce(x, y)))
    if world.rank == 0:
        print(f"# {world.size} ranks; medians of the slowest rank, ms; the cost is the median of differences of pairs")
        print(f"# {'what':20} {'with':>9} {'without':>9} {'cost':>8} {'pairs':>6}")
    for name, call in rows:
        times = [[], []]
        for i in (0, 1, 0, 1):
            call(i)
        began, more = perf_counter(), True
        while more:
            for i in (0, 1) if len(times[0]) % 2 else (1, 0):
                world.Barrier()
                start = perf_counter()
                call(i)
                times[i].append(perf_counter() - start)
            more = world.bcast(perf_counter() - began < options.t)
        slowest = np.empty((2, len(times[0])))
        world.Allreduce(np.array(times), slowest, MPI.MAX)
        if world.rank == 0:
            on, off = np.median(slowest, axis=1)
            cost = np.median(slowest[0] - slowest[1]) / off
            print(f"  {name:20} {1e3 * on:9.3f} {1e3 * off:9.3f} {100 * cost:+7.2f}% {len(times[0]):6}", flush=True)
    for comm in both:
        comm.free()


if __name__ == "__main__":
    main()
