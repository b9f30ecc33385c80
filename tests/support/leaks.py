"""What a process holds while communicators and shared arrays come and go.

    mpirun -n 2 python -m mpi4py tests/support/leaks.py 10000

makes and frees so many of each, and prints what the ranks held after a tenth of them, and at the end.
"""

import os
import sys
import threading
from time import perf_counter

import numpy as np
from mpi4py import MPI

import sfb
from sfb.runtime import windows
from sfb.soak.usage import usage

FACTORS = sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))


def communicators(world, count):
    """Make, use and free communicators and their duplicates."""
    for i in range(count):
        with sfb.Comm(world) as comm:
            comm.Allreduce(FACTORS, np.zeros((4, 3)))
            comm.Allreduce(np.ones(100), np.zeros(100))
            if i % 4 == 0:
                comm.Iallreduce(FACTORS, np.zeros((4, 3))).Wait()
                with comm.Dup() as copy, copy.Allreduce_init(FACTORS, np.zeros((4, 3))) as plan:
                    plan.Start()
                    plan.Wait()
            if i % 4 == 1:
                wrong = comm.Iallreduce(FACTORS, np.zeros((3, 3)))
                try:
                    wrong.Wait()
                except ValueError:
                    pass
                else:
                    raise AssertionError("no error")


def arrays(comm, count):
    """Make, use and drop shared arrays, a few of which live at once."""
    living = []
    for _ in range(count):
        w = comm.shared((50, 40))
        comm.Allreduce(sfb.Factors(np.ones((1, 50), np.float32), np.ones((1, 40), np.float32)), w)
        living = [*living[-3:], w]


def held():
    """Return what this process holds, by name; communicators and windows plus a constant.

    Requests are no matter of one process: MPI makes one for each message that arrives before anybody waits for it.
    """
    found = usage()
    return {
        "descriptors": found.descriptors,
        "mappings of shared memory": found.mapped,
        "communicators": found.communicators,
        "windows": found.windows,
        "threads": threading.active_count(),
        "blocks": len(windows._blocks) + len(windows._orphans),
        "MiB": found.memory / 2**20,
    }


def main(count):
    """Print what ranks hold."""
    world = MPI.COMM_WORLD
    for name, run in (("communicators", communicators), ("shared arrays", arrays)):
        with sfb.Comm(world) as comm:
            subject = world if run is communicators else comm
            for part in (count // 10, count - count // 10):
                began = perf_counter()
                run(subject, part)
                seconds = perf_counter() - began
                every = world.gather(held())
                if world.rank == 0:
                    worst = {key: max(each[key] for each in every) for key in every[0]}
                    files = len(os.listdir("/dev/shm"))
                    said = ", ".join(f"{value:.0f} {key}" for key, value in worst.items())
                    print(f"{part} {name} in {seconds:.1f} s: {said}, {files} files in /dev/shm", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
