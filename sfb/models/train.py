"""Data-parallel training; the ranks exchange gradients as factors or by MPI's own Allreduce."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb import Factors
from sfb.environment import describe
from sfb.models import MODELS, Network
from sfb.models.data import Dataset, load
from sfb.models.exchange import FactorExchange, GradientExchange, MpiExchange, Tally, ring_bytes
from sfb.runtime.compile import warmup

__all__ = ["COMMS", "Config", "Epoch", "TrainingError", "train"]

COMMS = ("auto", "dense", "broadcast", "node", "pipelined", "sharded", "mpi")
# Exchanges that update one copy of the weights per node.
_SHARED = ("auto", "node")


class TrainingError(Exception):
    """Training cannot go on; raised on every rank."""


@dataclass(frozen=True)
class Config:
    """What to train, on what, and how.

    Attributes:
        model: "mlp" or "mlr".
        data: What `sfb.data.read` takes.
        comm: "mpi" for plain mpi4py, else the algorithm of `sfb.Comm`.
        epochs: Passes over the training data.
        batch_size: Samples of one step, of all ranks together.
        lr: Learning rate.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD.
        hidden: Units of the hidden layers of "mlp".
        test_fraction: Part of the data held out.
        zero_based: Whether indices of a LIBSVM file count from 0.
        seed: Seed of weights, split and order.
        overlap: Exchange a layer's gradient during the backward pass of the others.
        reproducible: Choose algorithms without measuring, so that every run gives the same bits.
    """

    model: str = "mlp"
    data: str = "mnist"
    comm: str = "auto"
    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    hidden: tuple[int, ...] = (4096, 4096)
    test_fraction: float = 0.2
    seed: int = 0
    overlap: bool = False
    reproducible: bool = False
    zero_based: bool = False


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean cross-entropy of the training samples, each before its step.
        accuracy: Accuracy on the held-out samples, 0 to 1.
        seconds: Time of training, without the evaluation; largest of all ranks.
        exchange_seconds: Time in communication and waiting, including the rebuild during a wait; largest of all ranks.
        overlap: Part of the time with pending exchanges in which the rank did something else, 0 to 1; least of all
            ranks.
        wire_bytes: Bytes that a rank receives from others; largest of all ranks.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    exchange_seconds: float
    overlap: float
    wire_bytes: int


def train(
    world: MPI.Intracomm,
    config: Config,
    report: Callable[[Epoch], None],
    tick: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Train a model, and return the run as a JSON object; collective.

    Args:
        world: The ranks to train on.
        config: What to train, and how; equal on all ranks.
        report: Function to call on every rank after every epoch.
        tick: Function to call on every rank after every step, with the number of steps of the whole run.

    Returns:
        {"format": 1, "config", "environment", "steps_per_epoch", "epochs": [`Epoch`], "layers":
        [{"name", "K", "D", "algorithm", "wire_bytes_per_step"}], "replicas_identical"}.

    Raises:
        DataError: The data cannot be trained on.
        TrainingError: The loss is no longer finite.
    """
    dataset = load(
        world,
        config.data,
        test_fraction=config.test_fraction,
        seed=config.seed,
        zero_based=config.zero_based,
        dense=True,
    )
    with sfb.Comm(world, reproducible=config.reproducible) as comm:
        trainer = _Trainer(comm, world, config, dataset)
        epochs = []
        for number in range(1, config.epochs + 1):
            epochs.append(trainer.epoch(number, tick))
            report(epochs[-1])
        return {
            "format": 1,
            "config": asdict(config),
            "environment": describe(world),
            "steps_per_epoch": trainer.steps,
            "epochs": [asdict(epoch) for epoch in epochs],
            "layers": trainer.layers(),
            "replicas_identical": trainer.replicas_identical(),
        }


class _Trainer:
    def __init__(self, comm: sfb.Comm, world: MPI.Intracomm, config: Config, dataset: Dataset) -> None:
        self._world = world
        self._config = config
        self._data = dataset
        shared = config.comm in _SHARED
        self._network = _build(config, dataset, comm.shared if shared else np.zeros)
        if not shared or comm.node.rank == 0:
            self._network.initialise()
        world.Barrier()
        rule: dict[str, Any] = {
            "lr": config.lr,
            "momentum": config.momentum,
            "weight_decay": config.weight_decay,
        }
        self._optimizers = {layer.name: sfb.optim.SGD(layer.weights, **rule) for layer in self._network.layers}
        self._biases = {layer.name: sfb.optim.SGD(layer.bias.reshape(1, -1), **rule) for layer in self._network.layers}
        self._exchange: GradientExchange
        if config.comm == "mpi":
            self._exchange = MpiExchange(world, config.overlap)
        else:
            self._exchange = FactorExchange(comm, config.comm, config.overlap)
        self._bias_tally = Tally()
        self._bias_seconds = 0.0
        self._taken = 0
        warmup(comm.node)
        if config.comm != "mpi":
            self._plan(comm)

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        return -(-len(self._data.train) // self._config.batch_size)

    def _plan(self, comm: sfb.Comm) -> None:
        """Choose algorithms and allocate buffers before the first step; collective."""
        for layer in self._network.layers:
            rows, columns = layer.weights.shape
            samples = min(self._config.batch_size, len(self._data.train)) // comm.size
            factors = Factors(np.zeros((samples, rows), np.float32), np.zeros((samples, columns), np.float32))
            comm.plan(factors, self._optimizers[layer.name], algorithm=self._config.comm)

    def epoch(self, number: int, tick: Callable[[int], None]) -> Epoch:
        before = self._totals()
        loss = 0.0
        self._world.Barrier()
        began = perf_counter()
        for samples, size in self._batches(number):
            loss += self._step(samples, size)
            tick(self.steps * self._config.epochs)
        seconds = perf_counter() - began
        after = self._totals()
        exchange, under_way, wire_bytes = (now - then for now, then in zip(after, before, strict=True))
        hidden = 1 - exchange / under_way if self._config.overlap and under_way > 0 else 0.0
        slowest = self._world.allreduce(np.array([seconds, exchange, wire_bytes, -hidden]), _maximum)
        loss = self._world.allreduce(loss) / len(self._data.train)
        if not np.isfinite(loss):
            raise TrainingError(f"the loss is {loss} after epoch {number}; try a smaller learning rate (--lr)")
        return Epoch(
            number,
            loss,
            self._accuracy(),
            float(slowest[0]),
            float(slowest[1]),
            max(0.0, float(-slowest[3])),
            int(slowest[2]),
        )

    def _batches(self, number: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yield this rank's part of each batch, which may be empty, and the size of the whole batch."""
        train, size, ranks = self._data.train, self._config.batch_size, self._world.size
        order = np.random.default_rng((self._config.seed, number)).permutation(train)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            low, high = (len(batch) * i // ranks for i in (self._world.rank, self._world.rank + 1))
            yield batch[low:high], len(batch)

    def _step(self, samples: np.ndarray, size: int) -> float:
        activations = self._network.forward(self._data.x[samples])
        loss, error = self._network.loss(activations[-1], self._data.y[samples])
        error /= size
        gradients = {}
        for layer, factors in self._network.backward(activations, error):
            gradients[layer.name] = factors.u.sum(axis=0)
            self._exchange.begin(layer.name, factors, self._optimizers[layer.name])
        self._exchange_biases(gradients)
        self._exchange.finish()
        self._taken += 1
        return loss

    def _exchange_biases(self, gradients: dict[str, np.ndarray]) -> None:
        """Reduce the biases of all layers as one array, because they are too small for factors."""
        packed = np.concatenate(list(gradients.values()))
        began = perf_counter()
        self._world.Allreduce(MPI.IN_PLACE, packed)
        self._bias_seconds += perf_counter() - began
        self._bias_tally.add("mpi", ring_bytes(packed.nbytes, self._world.size))
        start = 0
        for name, gradient in gradients.items():
            self._biases[name].step(packed[start : start + gradient.size].reshape(1, -1))
            start += gradient.size

    def _totals(self) -> tuple[float, float, int]:
        """Return the seconds in exchanges, the seconds with pending exchanges, and the bytes received."""
        tallies = [*self._exchange.tallies.values(), self._bias_tally]
        biases = self._bias_seconds
        exchange = self._exchange
        return exchange.seconds + biases, exchange.under_way + biases, sum(t.wire_bytes for t in tallies)

    def _accuracy(self) -> float:
        """Return the accuracy on the held-out samples, each rank predicting its share."""
        mine = self._data.test[self._world.rank :: self._world.size]
        right = 0
        for start in range(0, len(mine), 1024):
            part = mine[start : start + 1024]
            right += int(np.sum(self._network.predict(self._data.x[part]) == self._data.y[part]))
        return self._world.allreduce(right) / len(self._data.test)

    def layers(self) -> list[dict[str, Any]]:
        """Return each layer's shape, its most frequent algorithm, and the bytes of a step; collective."""
        rows = []
        for layer in self._network.layers:
            tally = self._exchange.tallies.get(layer.name, Tally())
            rows.append(
                {
                    "name": layer.name,
                    "K": layer.weights.shape[0],
                    "D": layer.weights.shape[1],
                    "algorithm": tally.algorithms.most_common(1)[0][0] if tally.algorithms else self._config.comm,
                    "wire_bytes_per_step": self._world.allreduce(tally.wire_bytes, MPI.MAX) / max(1, self._taken),
                }
            )
        return rows

    def replicas_identical(self) -> bool:
        """Return whether all ranks hold the same bits in every weight and bias; collective."""
        digest = hashlib.blake2b()
        for layer in self._network.layers:
            digest.update(memoryview(layer.weights))
            digest.update(memoryview(layer.bias))
        return len(set(self._world.allgather(digest.digest()))) == 1


def _build(config: Config, dataset: Dataset, allocate: Callable[..., np.ndarray]) -> Network:
    options: dict[str, Any] = {"hidden": config.hidden} if config.model == "mlp" else {}
    return MODELS[config.model](dataset.x.shape[1], len(dataset.classes), allocate, seed=config.seed, **options)


def _maximum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum(a, b)
