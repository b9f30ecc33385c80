"""Work of ranks that others kill, and what one process finds for the same ranks in the same steps.

    mpirun --with-ft ulfm -n 4 python -m mpi4py tests/support/survivors.py WORK FOLDER STEPS

The state holds whole numbers, so that sums are exact in any order. The file steps in FOLDER, zeros at first, gets what
each rank has done, and result-N.npz its result. A file named stop in FOLDER makes the next step the last.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

__all__ = ["BEGUN", "COLUMNS", "PROCESS", "TAKEN", "WORK", "expected"]

# Columns of FOLDER/steps: steps taken, calls of setup, and the number of the process.
TAKEN, BEGUN, PROCESS = range(3)
COLUMNS = 3
_ROWS, _COLUMNS, _MODULUS = 40, 56, 1021
_BATCH = 60  # of samples: 1 to 6 ranks have as many each
_ALGORITHMS = ("auto", "node", "broadcast", "dense", "sharded", "pipelined")
_STORES = ("bsp", "ssp", "asp")


def draw(number, rank, rows, columns=None):
    """Return whole numbers of a rank in a step."""
    shape = (rows,) if columns is None else (rows, columns)
    return np.random.default_rng([number, rank, rows]).integers(-2, 3, shape).astype(np.float64)


def factors(number, rank):
    """Return the factors of a rank in a step; S differs."""
    samples = 1 + (number + rank) % 3
    return draw(number, rank, samples, _ROWS), draw(number, rank, samples + 100, _COLUMNS)[:samples]


class Collectives:
    """Collectives of factors and of plain arrays, blocking and not, and of mpi4py.

    Attributes:
        size: Elements of the plain arrays.
        nodes: Ranks of a node that are said to share memory; None for those that do.
    """

    size, nodes = 30_000, None

    def setup(self, comm):
        from mpi4py import MPI

        import sfb

        self.comm = comm
        if self.nodes is not None:
            node = MPI.Intracomm(comm).Split(comm.rank // self.nodes, comm.rank)
            self.comm = sfb.Comm(comm, node=MPI.Intracomm(node), reproducible=True)
        self.w = sfb.optim.SGD(self.comm.shared((_ROWS, _COLUMNS), np.float64), lr=1.0, momentum=0.0)
        self.x = np.zeros(self.size)
        return {"w": self.w, "x": self.x}

    def step(self, number):
        from mpi4py import MPI

        import sfb

        comm, rank, size = self.comm, self.comm.rank, self.comm.size
        u, v = factors(number, rank)
        request = comm.Iallreduce(sfb.Factors(u, v), self.w) if number % 2 else None
        if request is None:
            comm.Allreduce(sfb.Factors(u, v), self.w, algorithm=_ALGORITHMS[number // 2 % len(_ALGORITHMS)])
        total = draw(number, rank, self.size)
        comm.Allreduce(MPI.IN_PLACE, total)
        if request is not None:
            request.Wait()
        part = np.empty(self.size // 100)
        comm.Reduce_scatter_block(np.full(size * len(part), 1.0 + rank), part)
        parts = np.empty((size, len(part)))
        comm.Allgather(part, parts)
        assert (parts == size * (size + 1) // 2).all()
        assert comm.allgather(number) == [number] * size
        self.x += total
        self.x %= _MODULUS

    @classmethod
    def replay(cls, sizes):
        w, x = np.zeros((_ROWS, _COLUMNS)), np.zeros(cls.size)
        for number, size in enumerate(sizes):
            for rank in range(size):
                u, v = factors(number, rank)
                w -= u.T @ v
            x = (x + sum(draw(number, rank, cls.size) for rank in range(size))) % _MODULUS
        return {"w": w, "x": x}

    def result(self):
        return {"w": self.w.array, "x": self.x}


class Nodes(Collectives):
    """The same between nodes of two ranks."""

    nodes = 2


class Alone(Collectives):
    """The same between nodes of one rank; large arrays go round a ring."""

    size, nodes = 200_000, 1


class Store:
    """A session of a store in each step."""

    clocks = 6

    def setup(self, comm):
        self.comm = comm
        self.w = np.zeros((_ROWS, _COLUMNS))
        return {"w": self.w}

    def step(self, number):
        import sfb

        consistency = {"bsp": sfb.BSP(), "ssp": sfb.SSP(2), "asp": sfb.ASP()}[_STORES[number % len(_STORES)]]
        progress = "thread" if number % 2 else "poll"
        rule = sfb.optim.SGD(lr=1.0)
        with sfb.Store(self.comm, {"w": self.w}, rule, consistency=consistency, progress=progress) as store:
            for clock in range(self.clocks):
                assert np.isfinite(store["w"]).all()
                store.push("w", sfb.Factors(*factors(number * self.clocks + clock, self.comm.rank)))
                store.clock()
        self.w[:] = store["w"]

    @classmethod
    def replay(cls, sizes):
        w = np.zeros((_ROWS, _COLUMNS))
        for number, size in enumerate(sizes):
            for clock in range(cls.clocks):
                for rank in range(size):
                    u, v = factors(number * cls.clocks + clock, rank)
                    w -= u.T @ v
        return {"w": w}

    def result(self):
        return {"w": self.w}


class Torch:
    """A model of PyTorch whose first layer sends factors; the mean over ranks is that over the batch."""

    tolerance = 1e-9

    def setup(self, comm):
        import sfb.torch

        self.comm = comm
        self.model, self.optimizer = self.make()
        sfb.torch.attach(self.model, self.optimizer, comm)
        return {"model": self.model, "optimizer": self.optimizer}

    def step(self, number):
        self.learn(self.model, self.optimizer, number, self.comm.rank, self.comm.size)

    @staticmethod
    def make():
        import torch

        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(300, 256), torch.nn.Tanh(), torch.nn.Linear(256, 4)).double()
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)

    @staticmethod
    def learn(model, optimizer, number, rank, size):
        import torch

        x = torch.from_numpy(draw(number, 0, _BATCH, 300))[rank * _BATCH // size : (rank + 1) * _BATCH // size]
        optimizer.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        optimizer.step()

    @classmethod
    def replay(cls, sizes):
        model, optimizer = cls.make()
        for number in range(len(sizes)):
            cls.learn(model, optimizer, number, 0, 1)
        return {name: value.numpy() for name, value in model.state_dict().items()}

    def result(self):
        return {name: value.numpy() for name, value in self.model.state_dict().items()}


WORK = {"collectives": Collectives, "nodes": Nodes, "alone": Alone, "store": Store, "torch": Torch}


def expected(work, ranks, losses, steps):
    """Return the result of so many steps, with these deaths on the way."""
    sizes = [ranks] * steps
    for loss in losses:
        sizes[max(0, loss["step"]) :] = [loss["left"]] * (steps - max(0, loss["step"]))
    return WORK[work].replay(sizes)


def main():
    from mpi4py import MPI

    import sfb.elastic

    name, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    faulthandler.register(signal.SIGUSR1)
    world, work = MPI.COMM_WORLD, WORK[name]()
    seen = np.memmap(folder / "steps", np.int64, "r+", shape=(world.size, COLUMNS))
    mine = seen[world.rank]
    mine[PROCESS] = os.getpid()
    ranks, taken = [], 0

    def setup(comm):
        state = work.setup(comm)
        ranks[:] = [comm]
        mine[BEGUN] += 1
        return state

    def step(number):
        nonlocal taken
        work.step(number)
        mine[TAKEN] += 1
        taken = number + 1
        stop = np.array([(folder / "stop").exists()], np.int64)
        ranks[0].Allreduce(MPI.IN_PLACE, stop)
        return stop[0] > 0

    outcome = sfb.elastic.run(step, setup, steps, reproducible=True)
    losses = [{"ranks": loss.ranks, "left": loss.left, "step": loss.step, "seconds": loss.seconds}
              for loss in outcome.losses]  # fmt: skip
    result = {name: np.array(value) for name, value in work.result().items()}
    text = json.dumps({"losses": losses, "steps": taken, "size": outcome.comm.size})
    np.savez(folder / f"result-{world.rank}.npz", json=np.array(text), **result)


if __name__ == "__main__":
    main()
