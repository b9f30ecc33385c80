"""Exchanges of a training run: each layer's gradient, as factors or dense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb import Factors
from sfb.trace.calls import by_mpi
from sfb.trace.now import NOW
from sfb.trace.spans import span

__all__ = ["FactorExchange", "GradientExchange", "MpiExchange", "Tally", "ring_bytes"]


@dataclass
class Tally:
    """Algorithms and bytes of one layer's exchanges on this rank."""

    algorithms: Counter[str] = field(default_factory=Counter)
    wire_bytes: int = 0

    def add(self, algorithm: str, wire_bytes: int) -> None:
        """Count one exchange."""
        self.algorithms[algorithm] += 1
        self.wire_bytes += wire_bytes


class GradientExchange(ABC):
    """Exchanges the gradients of a step: at once, or wait-free, during the backward pass.

    Wait-free backpropagation starts the exchange of a layer as soon as the backward pass has left it (Zhang et
    al., Poseidon, ATC 2017, section 3).

    Args:
        overlap: Whether `begin` returns before the exchange is complete.

    Attributes:
        tallies: Tally of each layer.
        seconds: Time of this rank in exchanges and waiting for them, including the rebuild during a wait.
        under_way: Time during which exchanges were pending.
    """

    def __init__(self, overlap: bool) -> None:
        self.tallies: dict[str, Tally] = {}
        self.seconds = 0.0
        self.under_way = 0.0
        self._overlap = overlap
        self._open: list[tuple[str, Any, Any]] = []
        self._began = 0.0

    def begin(self, layer: str, factors: Factors, optimizer: sfb.optim.Optimizer) -> None:
        """Exchange the gradient of a layer, or start its exchange."""
        tally = self.tallies.setdefault(layer, Tally())
        if not self._overlap:
            seconds = self._at_once(layer, factors, optimizer, tally)
            self.seconds += seconds
            self.under_way += seconds
            return
        began = perf_counter()
        if not self._open:
            self._began = began
        self._open.append((layer, optimizer, self._start(layer, factors, optimizer)))
        self.seconds += perf_counter() - began

    def finish(self) -> None:
        """Wait until the weights of all layers are up to date."""
        if not self._open:
            return
        began = perf_counter()
        for layer, optimizer, request in self._open:
            request.Wait()
            self._end(layer, optimizer, request, self.tallies[layer])
        self._open.clear()
        now = perf_counter()
        self.seconds += now - began
        self.under_way += now - self._began

    @abstractmethod
    def _at_once(self, layer: str, factors: Factors, optimizer: sfb.optim.Optimizer, tally: Tally) -> float:
        """Exchange and apply a gradient; return the seconds of communication."""

    @abstractmethod
    def _start(self, layer: str, factors: Factors, optimizer: sfb.optim.Optimizer) -> Any:
        """Return the request of an exchange."""

    @abstractmethod
    def _end(self, layer: str, optimizer: sfb.optim.Optimizer, request: Any, tally: Tally) -> None:
        """Apply and tally an exchange whose request is complete."""


class FactorExchange(GradientExchange):
    """Exchange of factors through `sfb.Comm`; the optimizer applies them without forming the K×D gradient."""

    def __init__(self, comm: sfb.Comm, algorithm: str, overlap: bool) -> None:
        super().__init__(overlap)
        self._comm = comm
        self._algorithm = algorithm

    def _at_once(self, layer: str, factors: Factors, optimizer: sfb.optim.Optimizer, tally: Tally) -> float:
        self._comm.Allreduce(factors, optimizer, algorithm=self._algorithm)
        last = self._comm.last_exchange
        assert last is not None
        tally.add(last.algorithm, last.wire_bytes)
        return last.exchange_seconds

    def _start(self, layer: str, factors: Factors, optimizer: sfb.optim.Optimizer) -> Any:
        return self._comm.Iallreduce(factors, optimizer, algorithm=self._algorithm)

    def _end(self, layer: str, optimizer: sfb.optim.Optimizer, request: Any, tally: Tally) -> None:
        tally.add(request.exchange.algorithm, request.exchange.wire_bytes)


class MpiExchange(GradientExchange):
    """Exchange of the dense gradient through MPI's Allreduce, as mpi4py users write it today."""

    def __init__(self, comm: MPI.Intracomm, overlap: bool) -> None:
        super().__init__(overlap)
        self._comm = comm
        self._gradients: dict[str, np.ndarray] = {}

    def _gradient(self, layer: str, factors: Factors) -> np.ndarray:
        if layer not in self._gradients:
            self._gradients[layer] = np.empty(factors.shape, factors.dtype)
        return factors.dense(out=self._gradients[layer])

    def _at_once(self, layer: str, factors: Factors, optimizer: sfb.optim.Optimizer, tally: Tally) -> float:
        gradient = self._gradient(layer, factors)
        began = perf_counter()
        self._comm.Allreduce(MPI.IN_PLACE, gradient)
        ended = perf_counter()
        if NOW.on:
            by_mpi("Allreduce", gradient, began, ended)
        with span("update", "phase"):
            optimizer.step(gradient)
        tally.add("mpi", ring_bytes(gradient.nbytes, self._comm.size))
        return ended - began

    def _start(self, layer: str, factors: Factors, optimizer: sfb.optim.Optimizer) -> Any:
        return self._comm.Iallreduce(MPI.IN_PLACE, self._gradient(layer, factors))

    def _end(self, layer: str, optimizer: sfb.optim.Optimizer, request: Any, tally: Tally) -> None:
        gradient = self._gradients[layer]
        optimizer.step(gradient)
        tally.add("mpi", ring_bytes(gradient.nbytes, self._comm.size))


def ring_bytes(nbytes: int, ranks: int) -> int:
    """Return the bytes that a rank receives in a ring allreduce of ``nbytes``."""
    return 2 * nbytes * (ranks - 1) // ranks
