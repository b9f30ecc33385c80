"""Bulk synchronous training: each step sums the gradients of all ranks before the next begins."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb import Factors, RankFailedError
from sfb.models.model import Model, Parameter
from sfb.runtime.ulfm import private
from sfb.trace.calls import by_mpi
from sfb.trace.now import NOW
from sfb.trace.spans import each, span
from sfb.training.batches import Batches
from sfb.training.config import Config
from sfb.training.exchange import FactorExchange, GradientExchange, MpiExchange, Tally, ring_bytes
from sfb.training.stopping import Watch
from sfb.training.sync import Rate, Stretch, Synchronisation, Tick, Totals

__all__ = ["Bulk"]

# Exchanges that update one copy of the weights per node.
_SHARED = ("auto", "node")
# Gradients that are arrays of at most so many bytes are summed in one Allreduce, with the loss and the flags.
_SMALL = 64 << 10


class Bulk(Synchronisation):
    """Takes steps whose gradients are summed over all ranks, as factors or dense.

    The last Allreduce of a step sums small gradients, such as those of biases, the loss, and the flags by which a rank
    says that it wants to stop. So all ranks see the loss of each step, and stop after the same.

    Args:
        comm: The ranks.
        world: The communicator that the user passed, whose Allreduce is MPI's.
        config: How to exchange.
        model: The model.
        examples: Examples of this rank in a step, by which algorithms are chosen before the first.
    """

    longest = 16  # steps that are taken again when a rank has died, at most; a copy of the state takes about one

    def __init__(self, comm: sfb.Comm, world: MPI.Intracomm, config: Config, model: Model, examples: int) -> None:
        super().__init__(model)
        self._world, self._config = world, config
        self._first_of_node = comm.node.rank == 0
        self._node = comm.node
        self._rules: dict[str, sfb.optim.Optimizer] = {}
        self._shared: set[str] = set()
        rule = config.rule_name(model)
        for parameter in model.parameters:
            # A row is a bias, whose gradient is too small for factors.
            shared = config.comm in _SHARED and len(parameter.array) > 1
            if shared:
                parameter.array = comm.shared(parameter.array.shape, parameter.array.dtype)
                self._shared.add(parameter.name)
            optimizer = config.rule(rule, parameter).bind(parameter.array)
            optimizer.prepare(comm.shared if shared else np.zeros)
            self._rules[parameter.name] = optimizer
        self._exchange: GradientExchange
        if config.comm == "mpi":
            self._exchange = MpiExchange(world, config.overlap)
        else:
            self._exchange = FactorExchange(comm, config.comm, config.overlap)
            self._plan(comm, examples * model.terms)
        self._arrays = Tally()  # of gradients that are no factors
        self._array_seconds = 0.0
        self._steps = 0

    @property
    def rules(self) -> dict[str, sfb.optim.Optimizer]:
        """The update rule of each parameter, with its state."""
        return self._rules

    def _plan(self, comm: sfb.Comm, samples: int) -> None:
        """Choose algorithms and allocate buffers for factors of so many rows before the first step; collective."""
        for parameter in self._model.parameters:
            (rows, columns), dtype = parameter.array.shape, parameter.array.dtype
            if rows > 1:
                factors = Factors(np.zeros((samples, rows), dtype), np.zeros((samples, columns), dtype))
                comm.plan(factors, self._rules[parameter.name], algorithm=self._config.comm)

    def spread(self) -> None:
        """Set the parameters, and the state of the rules, to those of rank 0; collective."""
        arrays, steps = self.state()
        leaders = private(
            MPI.Intracomm(self._world.Split(0 if self._first_of_node else MPI.UNDEFINED, self._world.rank))
        )
        for name, array in arrays.items():
            if name.partition("/")[2] not in self._shared:
                self._world.Bcast(array)
            elif self._first_of_node:
                leaders.Bcast(array)
        if self._first_of_node:
            leaders.Free()
        for name, count in self._world.bcast(steps).items():
            self._rules[name].steps = count
        self._world.Barrier()

    def run(
        self, x: Any, y: np.ndarray, batches: Batches, first: int, stop: int, rate: Rate, watch: Watch, tick: Tick
    ) -> Stretch:
        """Take steps of an epoch; see `Synchronisation.run`."""
        stretch = self.partial = Stretch(first)
        for step in range(first, stop):
            with span("step", "step", number=step):
                rows, size = batches.part(step)
                lr = rate(step)
                for rule in self._rules.values():
                    rule.lr = lr
                # Another rank's clock may differ, so that of rank 0 counts.
                flags = watch.flags() if self._world.rank == 0 else watch.flags() * (1, 0)
                before = sum(rule.steps for rule in self._rules.values())
                try:
                    loss, flags = self._step(x, y, rows, size, flags)
                except RankFailedError as error:
                    stepped = sum(rule.steps for rule in self._rules.values()) != before
                    error.changed = error.changed or stepped or self._config.overlap
                    raise
            stretch.stop = step + 1
            stretch.loss += loss
            stretch.note(flags)
            tick(loss / size, size, self.totals.wire_bytes)
            if stretch.reasons or not np.isfinite(loss):
                break
        return stretch

    def _step(self, x: Any, y: np.ndarray, rows: np.ndarray, size: int, flags: np.ndarray) -> tuple[float, np.ndarray]:
        """Take one step; return the loss and the flags of all ranks."""
        with span("forward", "phase"):
            loss, gradients = self._model.gradients(x, y, rows, size)
        small: list[tuple[Parameter, np.ndarray]] = []
        for parameter, gradient in each("backward", gradients):
            if isinstance(gradient, Factors):
                self._exchange.begin(parameter.name, gradient, self._rules[parameter.name])
            elif gradient.nbytes <= _SMALL:
                small.append((parameter, gradient))
            else:
                self._apply(parameter, self._sum(np.ascontiguousarray(gradient)))
        # In float64, in which the loss of many samples and the flags keep their digits.
        packed = np.concatenate([[loss], flags, *(gradient.ravel() for _, gradient in small)], dtype=np.float64)
        self._sum(packed)
        low = 1 + len(flags)
        for parameter, gradient in small:
            total = packed[low : low + gradient.size].astype(gradient.dtype).reshape(gradient.shape)
            self._apply(parameter, total)
            low += gradient.size
        self._exchange.finish()
        self._steps += 1
        tallies = [*self._exchange.tallies.values(), self._arrays]
        self.totals = Totals(
            self._exchange.seconds + self._array_seconds,
            self._exchange.under_way + self._array_seconds,
            sum(tally.wire_bytes for tally in tallies),
        )
        return float(packed[0]), packed[1 : 1 + len(flags)]

    def _sum(self, array: np.ndarray) -> np.ndarray:
        """Sum an array over ranks, in place."""
        began = perf_counter()
        self._world.Allreduce(MPI.IN_PLACE, array)
        ended = perf_counter()
        self._array_seconds += ended - began
        if NOW.on:
            by_mpi("Allreduce", array, began, ended)
        self._arrays.add("mpi", ring_bytes(array.nbytes, self._world.size))
        return array

    def _apply(self, parameter: Parameter, gradient: np.ndarray) -> None:
        """Let the rule take a summed gradient; one rank of a node does where it shares the parameter."""
        rule = self._rules[parameter.name]
        with span("update", "phase"):
            if parameter.name not in self._shared:
                rule.step(gradient)
                return
            self._node.Barrier()  # others may still read the parameter
            if self._first_of_node:
                rule.step(gradient)
            else:
                rule.end()
            self._node.Barrier()

    def layers(self) -> list[dict[str, Any]]:
        """Return each parameter's shape, its most frequent algorithm, and the bytes of a step; collective."""
        found = []
        for parameter in self._model.parameters:
            tally = self._exchange.tallies.get(parameter.name)
            if len(parameter.array) == 1 and tally is None:
                continue
            taken = tally.algorithms.most_common(1)[0][0] if tally and tally.algorithms else self._config.comm
            nbytes = self._world.allreduce(tally.wire_bytes if tally else 0, MPI.MAX)
            rows, columns = parameter.array.shape
            found.append(
                {
                    "name": parameter.name,
                    "K": rows,
                    "D": columns,
                    "algorithm": taken,
                    "wire_bytes_per_step": nbytes / max(1, self._steps),
                }
            )
        return found
