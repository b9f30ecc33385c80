"""Blocks that rotate past a slow rank
===================================

Blocks of a model visit all ranks in turn while rank 0 takes four times as long. With extra passes the others work on
instead of waiting::

    mpirun -n 3 python -m mpi4py rotation.py

`--plot FILE` draws what each rank did.
"""

import argparse
from time import sleep

import numpy as np
from mpi4py import MPI

from sfb.schedule import BlockProgram, Rotation, Trace

PASS = 0.01  # seconds of a pass over a block


class Mean(BlockProgram):
    """Moves each block towards the mean of all data; a rank has some of them."""

    def __init__(self, rank):
        self.slow = 4 if rank == 0 else 1
        self.data = np.random.default_rng(rank).normal(rank, 1, 100)

    def push(self, block):
        """Do a pass, which takes rank 0 four times as long."""
        (value,) = block.arrays
        value += 0.1 * (self.data.mean() - value)
        sleep(self.slow * PASS)


def main():
    """Do two sweeps of each kind, and draw what the ranks did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plot")
    options = parser.parse_args()
    world = MPI.COMM_WORLD
    trace = Trace(world)
    for passes in (0, 4):
        with Rotation(world, {world.rank: [np.zeros(5)]}, passes=passes, trace=trace) as rotation:
            sweeps = [rotation.sweep(Mean(world.rank)) for _ in range(2)]
        extra = world.gather(sum(sweep.extra for sweep in sweeps))
        if world.rank == 0:
            print(f"up to {passes} extra passes: {extra} were made by the ranks")
    trace.gather(world)
    if world.rank == 0 and options.plot:
        trace.plot(options.plot, title="rank 0 is four times as slow; first half without extra passes")


if __name__ == "__main__":
    main()

# sphinx_gallery_thumbnail_path = "examples/output/rotation.png"
