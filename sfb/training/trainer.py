"""The loop of a training run: epochs of steps, checkpoints between them, reasons to end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.elastic.keeper import Keeper
from sfb.models.model import Model
from sfb.runtime.agreement import on_all_ranks
from sfb.runtime.compile import warmup
from sfb.trace.spans import span
from sfb.training.batches import Epochs, Samples
from sfb.training.bulk import Bulk
from sfb.training.config import Config, TrainingError, consistency_of
from sfb.training.rates import Schedule
from sfb.training.saving import Saver
from sfb.training.stale import Stale
from sfb.training.stopping import Watch
from sfb.training.sync import Stretch, Synchronisation, Tick, Totals, no_tick

__all__ = ["REACHED", "Epoch", "Position", "Trainer"]

# Samples from which a model may draw its parameters.
_SAMPLES = 10_000
# What a copy holds beside arrays.
_PROGRESS = "progress"
# Why a run stops that needs no other epoch.
REACHED = "the target loss"


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Attributes:
        epoch: Number of the epoch, from 1.
        loss: Mean loss of the examples, each before its step.
        score: The model's measure on the samples to test on.
        seconds: Time of training, without evaluation and checkpoints; largest of all ranks.
        exchange_seconds: Time in communication and waiting, including the rebuild during a wait; largest of all ranks.
        overlap: Part of the time with pending exchanges in which the rank did something else, 0 to 1; least of all
            ranks.
        wire_bytes: Bytes that a rank receives from others; largest of all ranks.
        examples: Examples of all ranks.
    """

    epoch: int
    loss: float
    score: float
    seconds: float
    exchange_seconds: float
    overlap: float
    wire_bytes: int
    examples: int


@dataclass
class Position:
    """Where a run is, and what the epoch under way has cost so far; a checkpoint holds it.

    Attributes:
        epoch: The epoch under way, from 1.
        step: Steps of it that are done.
        taken: Steps of the whole run that are done.
        loss: Summed loss of the epoch's examples so far, of all ranks.
        examples: Examples of the epoch so far.
        seconds: Time of the epoch so far.
        totals: Exchanges of the epoch so far.
    """

    epoch: int = 1
    step: int = 0
    taken: int = 0
    loss: float = 0.0
    examples: int = 0
    seconds: float = 0.0
    totals: Totals | None = None

    def begin(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.step, self.loss, self.examples, self.seconds, self.totals = 0, 0.0, 0, 0.0, None


class Trainer:
    """Trains a model on the samples of all ranks; making one is collective.

    Rank 0 draws the parameters. The batches do not depend on the number of ranks, so runs on any number agree within
    rounding under "bsp".

    Args:
        comm: The ranks.
        world: The communicator from which ``comm`` was made.
        config: How to train.
        model: The model, whose parameters this object places.
        samples: The samples of this rank to learn from.
        test: The samples of this rank to test on, N×D, and their targets.
        keeper: Keeps copies in memory, for the case that a rank dies; None for none.

    Attributes:
        model: The model.
        rank: This rank.
        position: Where the run is.
        epochs: The epochs that are done.
        stopped: What ended the run before its last epoch; None for nothing.
        steps: Number of steps of an epoch.
        total: Number of steps of the run.
        sync: How the ranks take steps.

    Raises:
        TrainingError: Options do not go together with the model; on every rank.
    """

    def __init__(
        self,
        comm: sfb.Comm,
        world: MPI.Intracomm,
        config: Config,
        model: Model,
        samples: Samples,
        test: tuple[Any, np.ndarray],
        keeper: Keeper | None = None,
    ) -> None:
        self._world, self._config, self.model = world, config, model
        self._keeper, self.rank = keeper, world.rank
        self._samples, self._test = samples, test
        warmup(comm.node)
        self.sync: Synchronisation
        if consistency_of(config.sync) is None:
            size = world.allreduce(len(samples.rows)) // (world.size if samples.whole else 1)
            self.sync = Bulk(comm, world, config, model, min(config.batch_size, size) // world.size)
        else:
            self.sync = Stale(world, config, model)
        with on_all_ranks(world, "sfb train"):
            if world.rank == 0:
                rows = np.random.default_rng(config.seed).permutation(samples.rows)[:_SAMPLES]
                model.initialise(samples.x[rows], samples.y[rows])
        self.sync.spread()
        self._epochs = Epochs(world, model, samples, config.batch_size, config.seed)
        self._batches = self._epochs.batches(1)
        self.steps = self._batches.steps
        self.total = self.steps * config.epochs
        self._schedule = Schedule(
            config.schedule, config.rate, self.total, config.warmup_steps, config.drop, config.drop_every * self.steps
        )
        self.position = Position()
        self.epochs: list[Epoch] = []
        self.stopped: str | None = None

    def run(self, watch: Watch, saver: Saver, report: Callable[[Epoch], None], tick: Tick = no_tick) -> None:
        """Train until the last epoch ends, or there is a reason to stop; collective.

        Args:
            watch: Reasons to stop.
            saver: Writes checkpoints.
            report: Function to call on every rank after every epoch.
            tick: Function to call on every rank after every step.

        Raises:
            TrainingError: The loss or a parameter is no longer finite, or the last checkpoint cannot be written.
            RankFailedError: A rank has failed; the first of those that are left has then written a checkpoint, if the
                step under way had changed nothing.
        """
        position = self.position
        self._look_at_target()
        self._keep()
        while self.stopped is None and position.epoch <= self._config.epochs:
            self._batches = self._epochs.batches(position.epoch)
            while self.stopped is None and position.step < self._batches.steps:
                stop = saver.until(position.step, position.taken, self._batches.steps)
                if self._keeper is not None and self.sync.longest is not None:
                    stop = min(stop, position.step + self.sync.longest)
                try:
                    self._stretch(stop, watch, tick)
                except sfb.RankFailedError as error:
                    self._rescue(saver, error)
                    raise
                self._keep()
                if position.step < self._batches.steps and (self.stopped or saver.due(position.taken)):
                    self.save(saver, watch, last=self.stopped is not None)
            if position.step < self._batches.steps:
                return
            self._end_epoch(report)
            self._keep()
            ended = position.epoch > self._config.epochs
            if ended:
                self.stopped = None
            else:
                self._look_at_target()
            if saver.due(position.taken, epoch=True) or self.stopped or ended:
                self.save(saver, watch, last=bool(self.stopped) or ended)

    def save(self, saver: Saver, watch: Watch, *, last: bool) -> None:
        """Let a checkpoint be written of now; collective; see `Saver.save`."""
        with span("checkpoint", "phase"):
            watch.writing = max(watch.writing, saver.save(self.position.taken, *self._state(), last=last))

    def _rescue(self, saver: Saver, error: sfb.RankFailedError) -> None:
        """Let the first rank that is left write a checkpoint, if the step under way has changed nothing on its node."""
        left = {*range(self._world.size)} - {*error.ranks}
        if self._world.rank == min(left, default=0) and self.sync.partial is not None and not error.changed:
            saver.rescue(self.position.taken, *self._state())

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return what a run needs to go on from here: the arrays in use, after the rest."""
        arrays, steps = self.sync.state()
        epochs = [asdict(epoch) for epoch in self.epochs]
        return {"position": asdict(self.position), "epochs": epochs, "steps": steps}, arrays

    def _keep(self) -> None:
        """Keep a copy in memory, if a rank may die."""
        if self._keeper is not None:
            progress, arrays = self._state()
            self._keeper.keep(self._keeper.number + 1, {**arrays, _PROGRESS: progress})

    def go_back(self, copy: dict[str, Any]) -> None:
        """Go on from a copy that all ranks have; collective."""
        self.restore(deepcopy(copy[_PROGRESS]), {name: part for name, part in copy.items() if name != _PROGRESS})

    def _look_at_target(self) -> None:
        """Stop if the loss of the last epoch is low enough."""
        target = self._config.target_loss
        if target is not None and self.epochs and self.epochs[-1].loss <= target:
            self.stopped = REACHED

    def _stretch(self, stop: int, watch: Watch, tick: Tick) -> None:
        """Take steps of the epoch under way until ``stop``, or a reason to stop; collective."""
        position, before = self.position, self.sync.totals
        first, offset = position.step, position.taken - position.step
        self._world.Barrier()
        began = perf_counter()
        try:
            stretch = self.sync.run(
                self._samples.x,
                self._samples.y,
                self._batches,
                first,
                stop,
                lambda step: self._schedule(offset + step),
                watch,
                tick,
            )
        except sfb.RankFailedError:
            if self.sync.partial is not None:
                self._note(self.sync.partial, offset, perf_counter() - began, before)
            raise
        self._note(stretch, offset, perf_counter() - began, before)
        if not np.isfinite(stretch.loss):
            raise TrainingError(
                f"the loss is {stretch.loss} in epoch {position.epoch}, step {position.step}; try a smaller learning "
                "rate (--lr), --warmup-steps, or scale the features"
            )
        if stretch.reasons:
            self.stopped = " and ".join(stretch.reasons)

    def _note(self, stretch: Stretch, offset: int, seconds: float, before: Totals) -> None:
        """Note steps of the epoch under way that are done.

        Args:
            stretch: The steps.
            offset: Steps of the run before this epoch.
            seconds: Time that they took.
            before: What exchanges had cost before them.
        """
        position = self.position
        position.seconds += seconds
        position.totals = (position.totals or Totals()) + (self.sync.totals - before)
        position.step, position.taken = stretch.stop, offset + stretch.stop
        position.loss += stretch.loss
        position.examples = min(stretch.stop * self._config.batch_size, self._batches.examples)

    def _end_epoch(self, report: Callable[[Epoch], None]) -> None:
        """Evaluate the epoch that is done, report it, and begin the next; collective."""
        position = self.position
        own = position.totals or Totals()
        hidden = 1 - own.exchange_seconds / own.under_way if self._config.overlap and own.under_way > 0 else 0.0
        most = own.largest(self._world)
        with span("evaluation", "phase"):
            score = self.score()
        epoch = Epoch(
            epoch=position.epoch,
            loss=position.loss / max(1, position.examples),
            score=score,
            seconds=self._world.allreduce(position.seconds, MPI.MAX),
            exchange_seconds=most.exchange_seconds,
            overlap=max(0.0, self._world.allreduce(hidden, MPI.MIN)),
            wire_bytes=most.wire_bytes,
            examples=position.examples,
        )
        self.epochs.append(epoch)
        position.begin()
        report(epoch)

    def score(self) -> float:
        """Return the model's measure on the samples to test on, of all ranks; NaN without any; collective."""
        x, y = self._test
        parts = self._world.allgather(self.model.references(x, y))
        references = tuple(map(np.concatenate, zip(*parts, strict=True)))
        first = sum(len(part[0]) for part in parts[: self._world.rank]) if references else 0
        sums = np.array(self.model.score(x, y, references, first) if len(y) else (0.0, 0.0))
        self._world.Allreduce(MPI.IN_PLACE, sums)
        return float(sums[0] / sums[1]) if sums[1] else float("nan")

    def objective(self) -> float:
        """Return the mean loss of the examples of the first epoch with the present parameters; collective."""
        rows = self._epochs.examples(1)
        if self._samples.whole:
            rows = rows[self._world.rank :: self._world.size]
        sums = np.array([self.model.objective(self._samples.x, self._samples.y, rows), len(rows)])
        self._world.Allreduce(MPI.IN_PLACE, sums)
        return float(sums[0] / sums[1])

    def restore(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Go on from a checkpoint, which rank 0 has read; collective.

        Args:
            header: The header of the checkpoint, the same on all ranks.
            arrays: The arrays of the checkpoint, on rank 0.

        Raises:
            TrainingError: The arrays are not those of this model and rule; on every rank.
        """
        own, _ = self.sync.state()
        problem = ""
        if self._world.rank == 0:
            shapes, found = ({n: (a.shape, a.dtype) for n, a in side.items()} for side in (own, arrays))
            wrong = sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name))
            if wrong:
                problem = f"the checkpoint holds other arrays than this model and rule have: {', '.join(wrong)}"
            else:
                for name, array in own.items():
                    np.copyto(array, arrays[name])
                for name, steps in header["steps"].items():
                    self.sync.rules[name].steps = steps
        problem = self._world.bcast(problem)
        if problem:
            raise TrainingError(problem)
        self.sync.spread()
        totals = header["position"].pop("totals")
        self.position = Position(**header["position"], totals=totals and Totals(**totals))
        self.epochs = [Epoch(**epoch) for epoch in header["epochs"]]

    def replicas_identical(self) -> bool:
        """Return whether all ranks hold the same bits in every parameter; collective."""
        digest = hashlib.blake2b()
        for parameter in self.model.parameters:
            digest.update(memoryview(parameter.array))
        return len(set(self._world.allgather(digest.digest()))) == 1
