"""The batches of an epoch, which do not depend on the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.models.model import Model

__all__ = ["Batches", "Epochs", "Samples"]


@dataclass(frozen=True)
class Samples:
    """The samples that one rank holds to learn from.

    Attributes:
        x: N×D features, dense or CSR.
        y: N targets.
        rows: The samples to learn from, indices of x and y.
        whole: Whether every rank holds all samples; else each holds a shard of them, in the order of ranks.
    """

    x: Any
    y: np.ndarray
    rows: np.ndarray
    whole: bool = True


class Batches:
    """The batches of one epoch.

    Args:
        order: The examples of all ranks, in the order in which steps take them.
        rows: The samples of each example of this rank, N×M.
        first: The number of this rank's first example among those of all ranks; None if every rank has all.
        batch_size: Examples of a step, of all ranks together.
        rank: This rank.
        ranks: The number of ranks.

    Attributes:
        steps: The number of batches.
        examples: The number of examples of all ranks.
    """

    def __init__(
        self, order: np.ndarray, rows: np.ndarray, first: int | None, batch_size: int, rank: int, ranks: int
    ) -> None:
        self._order, self._rows, self._first = order, rows, first
        self._size, self._rank, self._ranks = batch_size, rank, ranks
        self.examples = len(order)
        self.steps = -(-len(order) // batch_size)

    def part(self, step: int) -> tuple[np.ndarray, int]:
        """Return the samples of this rank's examples in a batch, S×M, and the number of examples of all ranks in it."""
        batch = self._order[step * self._size : (step + 1) * self._size]
        if self._first is None:
            low, high = (len(batch) * i // self._ranks for i in (self._rank, self._rank + 1))
            return self._rows[batch[low:high]], len(batch)
        own = batch - self._first
        return self._rows[own[(own >= 0) & (own < len(self._rows))]], len(batch)


class Epochs:
    """Makes the batches of each epoch, from a seeded order of the examples of all ranks.

    Where each rank holds a shard of the samples, examples of several samples are made within a shard.

    Args:
        world: The ranks.
        model: The model, which makes examples of samples.
        samples: The samples of this rank.
        batch_size: Examples of a step, of all ranks together.
        seed: Seed of the order.
    """

    def __init__(self, world: MPI.Intracomm, model: Model, samples: Samples, batch_size: int, seed: int) -> None:
        self._world, self._model, self._samples = world, model, samples
        self._size, self._seed = batch_size, seed

    def examples(self, number: int) -> np.ndarray:
        """Return the samples of which each example of an epoch consists, N×M; of this rank's shard if it has one."""
        samples = self._samples
        seed = (self._seed, number, 1) if samples.whole else (self._seed, number, 1, self._world.rank)
        found = self._model.examples(samples.y[samples.rows], np.random.default_rng(seed))
        return np.where(found < 0, found, samples.rows[found])

    def batches(self, number: int) -> Batches:
        """Return the batches of an epoch, from 1; collective."""
        rows, first, total = self.examples(number), None, 0
        if self._samples.whole:
            total = len(rows)
        else:
            counts = self._world.allgather(len(rows))
            first, total = sum(counts[: self._world.rank]), sum(counts)
        order = np.random.default_rng((self._seed, number)).permutation(total)
        return Batches(order, rows, first, self._size, self._world.rank, self._world.size)
