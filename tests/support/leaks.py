"""What a process holds while communicators and shared arrays come and go.

    mpirun -n 2 python -m mpi4py tests/support/leaks.py 10000

makes and frees so many of each, and prints what the ranks held after a tenth of them, and at the end; then by how many
bytes ranks grow with each call of some kinds, of which it makes as many. Under MPICH set UCX_RCACHE_MAX_UNRELEASED=1M:
otherwise UCX keeps 144 bytes of each buffer that is gone until these were 512 MiB together.
"""

import os
import sys
import threading
from functools import partial
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


def kinds(comm, far):
    """Return calls by name, among the ranks of ``comm``, of a node, and of ``far``, on nodes of one rank each."""
    x, y, total = np.ones(8), np.ones(1 << 14), np.empty(1 << 14)
    small, part = np.empty(8), (1 << 14) // comm.size
    gradient, large = np.zeros((4, 3)), np.ones(1 << 18)
    rule = sfb.optim.SGD(np.zeros((4, 3)), lr=0.1)
    plans = [each.Allreduce_init(FACTORS, gradient) for each in (comm, far)]
    result = np.empty_like(large)

    def again(plan):
        plan.Start()
        plan.Wait()

    def wrong():
        try:
            comm.Allreduce(FACTORS, np.zeros((5 + comm.rank, 3)))
        except ValueError:
            return
        raise AssertionError("no error")

    found = {
        "Allreduce of 64 B": lambda: comm.Allreduce(x, small),
        "Allreduce of 128 KiB": lambda: comm.Allreduce(y, total),
        "Iallreduce of 128 KiB": lambda: comm.Iallreduce(y, total).Wait(),
        "Allgather": lambda: comm.Allgather(y[:part], total[: part * comm.size]),
        "Reduce_scatter_block": lambda: comm.Reduce_scatter_block(y[: part * comm.size], total[:part]),
        "factors into a rule": lambda: comm.Allreduce(FACTORS, rule),
        "factors of other ranks' shape": wrong,
        "2 MiB between nodes": lambda: far.Allreduce(large, result),
    }
    for place, each, plan in (("on a node", comm, plans[0]), ("between nodes", far, plans[1])):
        for algorithm in ("auto", "dense", "broadcast", "pipelined", "sharded"):
            found[f"factors {place}, {algorithm}"] = partial(each.Allreduce, FACTORS, gradient, algorithm=algorithm)
        found[f"factors {place}, Iallreduce"] = lambda each=each: each.Iallreduce(FACTORS, gradient).Wait()
        found[f"factors {place}, persistent"] = partial(again, plan)
    return found


def calls(world, count):
    """Print by how much ranks grow."""
    with sfb.Comm(world) as comm, sfb.Comm(world, node=MPI.COMM_SELF) as far:
        for name, call in kinds(comm, far).items():
            sizes = []
            for _ in range(2):
                for _ in range(count):
                    call()
                sizes.append(usage(handles=False).memory)
            growth = world.allreduce((sizes[1] - sizes[0]) / count, MPI.MAX)
            if world.rank == 0:
                print(f"{name}: {growth:.2f} bytes a call", flush=True)


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
    calls(world, count)


if __name__ == "__main__":
    main(int(sys.argv[1]))
