"""Training through the store: each rank reads its replica, which lags behind by a bounded number of steps."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.models.model import Model
from sfb.trace.spans import record
from sfb.training.batches import Batches
from sfb.training.config import Config, consistency_of
from sfb.training.stopping import REASONS, Watch
from sfb.training.sync import Rate, Stretch, Synchronisation, Tick, Totals

__all__ = ["Stale"]

# The table by which a rank tells the others that it stops.
_STOP = "/stop"


class Stale(Synchronisation):
    """Takes steps whose gradients travel through an `sfb.Store`, one clock a step.

    A store lives for the steps between two points at which the ranks meet: ends of epochs, and checkpoints. A rank that
    wants to stop says so in a small table of the store; each rank stops as soon as it reads that, and those that are
    behind then take the steps that they lack.

    Args:
        world: The ranks.
        config: How to exchange.
        model: The model.
    """

    def __init__(self, world: MPI.Intracomm, config: Config, model: Model) -> None:
        super().__init__(model)
        self._world, self._config = world, config
        consistency = consistency_of(config.sync)
        assert consistency is not None
        self._consistency = consistency
        name = config.rule_name(model)
        # A store that orders updates takes one step for the sum of all ranks'; another takes one for each.
        parts = 1 if consistency.ordered else world.size
        self._unbound = {p.name: config.rule(name, p, parts) for p in model.parameters}
        # What the ranks hold where they meet. The rules are those of no store: they keep the state.
        self._held = {p.name: p.array for p in model.parameters}
        self._rules = {p.name: self._unbound[p.name].bind(p.array) for p in model.parameters}
        for rule in self._rules.values():
            rule.prepare(np.zeros)
        self._progress = "thread" if MPI.Query_thread() == MPI.THREAD_MULTIPLE else "poll"
        self._steps = 0

    @property
    def rules(self) -> dict[str, sfb.optim.Optimizer]:
        """The update rule of each parameter, with its state."""
        return self._rules

    def spread(self) -> None:
        """Set the parameters, and the state of the rules, to those of rank 0; collective."""
        arrays, steps = self.state()
        for array in arrays.values():
            self._world.Bcast(array)
        for name, count in self._world.bcast(steps).items():
            self._rules[name].steps = count

    def run(
        self, x: Any, y: np.ndarray, batches: Batches, first: int, stop: int, rate: Rate, watch: Watch, tick: Tick
    ) -> Stretch:
        """Take steps of an epoch; see `Synchronisation.run`."""
        loss, done, flags = self._session(x, y, batches, first, stop, rate, watch, tick)
        sums = np.array([loss, *flags])
        self._world.Allreduce(MPI.IN_PLACE, sums)
        stretch = Stretch(self._world.allreduce(done, MPI.MAX), float(sums[0]))
        stretch.note(sums[1:])
        if np.isfinite(stretch.loss) and self._world.allreduce(done < stretch.stop, MPI.LOR):
            # Ranks of a store need the same rate in the same clock, whichever steps they lack.
            shift = self._world.allreduce(done, MPI.MIN) - done
            rest, _, _ = self._session(x, y, batches, done, stretch.stop, lambda step: rate(step + shift), None, tick)
            stretch.loss += self._world.allreduce(rest)
        return stretch

    def _session(
        self,
        x: Any,
        y: np.ndarray,
        batches: Batches,
        first: int,
        stop: int,
        rate: Rate,
        watch: Watch | None,
        tick: Tick,
    ) -> tuple[float, int, np.ndarray]:
        """Take steps with a store, and let all ranks hold what rank 0 does in the end; collective.

        Returns:
            The loss of this rank's examples, the step before which it stopped, and its flags.
        """
        model, total = self._model, 0.0
        flags = np.zeros(len(REASONS))
        reads: dict[int, int] = {}
        with self._store() as store:
            for parameter in model.parameters:  # the first read may already apply updates of faster ranks
                store.optimizer(parameter.name).lr = rate(first)
            for step in range(first, stop):
                began = start = perf_counter()
                for parameter in model.parameters:
                    parameter.array = store[parameter.name]
                told = watch is not None and store[_STOP].any()
                waited = perf_counter() - began
                if told:
                    stop = step
                    break
                rows, size = batches.part(step)
                loss, gradients = model.gradients(x, y, rows, size)
                # A push may change the replica, which the rest of the backward pass still reads.
                found = list(gradients)
                total += loss
                if watch is not None:
                    # Another rank's clock may differ, so that of rank 0 counts.
                    flags = watch.flags() if self._world.rank == 0 else watch.flags() * (1, 0)
                began = perf_counter()
                lr = rate(step)
                for parameter, gradient in found:
                    store.optimizer(parameter.name).lr = lr
                    store.push(parameter.name, gradient)
                ends = watch is not None and (flags.any() or not np.isfinite(loss))
                if ends:
                    store.push(_STOP, np.full((1, 1), -1.0))
                store.clock()
                waited += perf_counter() - began
                stats = store.stats()
                received = stats.received_bytes
                read = [behind for behind, count in stats.staleness.items() if count > reads.get(behind, 0)]
                self.staleness, reads = max(read, default=0), stats.staleness
                self.totals += Totals(waited, waited, 0)
                self._steps += 1
                record("step", "step", start, perf_counter(), number=step)
                tick(loss / max(1, len(rows)), size, self.totals.wire_bytes + received)
                if ends:
                    stop = step + 1
                    break
        self.totals += Totals(0.0, 0.0, store.stats().received_bytes)
        self._keep(store)
        return total, stop, flags

    def _store(self) -> sfb.Store:
        """Return a store that holds parameters and state; collective."""
        tables = {**self._held, _STOP: np.zeros((1, 1))}
        store = sfb.Store(
            self._world,
            tables,
            {**self._unbound, _STOP: sfb.optim.SGD(lr=1.0)},
            topology=self._config.topology,
            consistency=self._consistency,
            bandwidth=self._config.bandwidth,
            progress=self._progress,
        )
        for name, rule in self._rules.items():
            own = store.optimizer(name)
            own.prepare(np.zeros)
            _copy_state(rule, own)
        return store

    def _keep(self, store: sfb.Store) -> None:
        """Take over what rank 0 holds: the order of updates, and so rounding, differ from rank to rank; collective."""
        for parameter in self._model.parameters:
            rule, own = self._rules[parameter.name], store.optimizer(parameter.name)
            parameter.array = self._held[parameter.name]
            if self._world.rank == 0:
                np.copyto(parameter.array, store[parameter.name])
                _copy_state(own, rule)
        self.spread()

    def layers(self) -> list[dict[str, Any]]:
        """Return each parameter's shape, "store" for its algorithm, and its share of a step's bytes; collective."""
        nbytes = self._world.allreduce(self.totals.wire_bytes, MPI.MAX) / max(1, self._steps)
        matrices = [p for p in self._model.parameters if len(p.array) > 1] or self._model.parameters
        sizes = [sum(p.array.shape) for p in matrices]
        return [
            {
                "name": parameter.name,
                "K": parameter.array.shape[0],
                "D": parameter.array.shape[1],
                "algorithm": "store",
                "wire_bytes_per_step": nbytes * size / sum(sizes),
            }
            for parameter, size in zip(matrices, sizes, strict=True)
        ]


def _copy_state(source: sfb.optim.Optimizer, target: sfb.optim.Optimizer) -> None:
    for own, other in zip(target.state, source.state, strict=True):
        assert own is not None
        assert other is not None
        np.copyto(own, other)
