"""How the ranks of a training run take steps together: each step at once, or through a store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI

import sfb
from sfb.models.model import Model
from sfb.training.batches import Batches
from sfb.training.stopping import REASONS, Watch

__all__ = ["Rate", "Stretch", "Synchronisation", "Tick", "Totals", "no_tick"]

# Takes the number of a step of the whole run, from 0, and returns its learning rate.
Rate = Callable[[int], float]


class Tick(Protocol):
    """Function that is told of each step."""

    def __call__(self, loss: float, examples: int, wire_bytes: int) -> None:
        """Note a step.

        Args:
            loss: Mean loss of the batch, or of this rank's part of it.
            examples: Examples of the batch, of all ranks.
            wire_bytes: Bytes that this rank has received so far.
        """


def no_tick(loss: float, examples: int, wire_bytes: int) -> None:
    """Take no note of a step; a `Tick`."""


@dataclass
class Totals:
    """What exchanges have cost this rank.

    Attributes:
        exchange_seconds: Time in exchanges and waiting for them, including the rebuild during a wait.
        under_way: Time during which exchanges were pending.
        wire_bytes: Bytes received.
    """

    exchange_seconds: float = 0.0
    under_way: float = 0.0
    wire_bytes: int = 0

    def __sub__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def largest(self, world: MPI.Intracomm) -> Totals:
        """Return the largest of each over ranks; collective."""
        values = np.array(list(asdict(self).values()), np.float64)
        world.Allreduce(MPI.IN_PLACE, values, MPI.MAX)
        return Totals(float(values[0]), float(values[1]), int(values[2]))


@dataclass
class Stretch:
    """Steps that the ranks have taken one after the other.

    Attributes:
        stop: The step of the epoch at which they stopped, the same on all ranks.
        loss: The summed loss of the examples of all ranks; not finite if a step's was not.
        reasons: What of `REASONS` made them stop early.
    """

    stop: int
    loss: float = 0.0
    reasons: list[str] = field(default_factory=list)

    def note(self, flags: np.ndarray) -> None:
        """Note the sums of the flags of all ranks (`Watch.flags`)."""
        self.reasons = [reason for reason, flag in zip(REASONS, flags, strict=True) if flag]


class Synchronisation(ABC):
    """Takes the steps of a model's training on all ranks.

    Attributes:
        totals: What exchanges have cost this rank so far.
        partial: The steps of the stretch under way that are done; None if only its end is a state of all ranks.
        staleness: The most clocks that a read of the last step was behind this rank.
        longest: Steps that `run` takes at once at most, where the ranks are to meet often; None for any number.
    """

    longest: int | None = None

    def __init__(self, model: Model) -> None:
        self._model = model
        self.totals = Totals()
        self.partial: Stretch | None = None
        self.staleness = 0

    @abstractmethod
    def spread(self) -> None:
        """Set the parameters, and the state of the rules, to those of rank 0; collective."""

    @abstractmethod
    def run(
        self, x: Any, y: np.ndarray, batches: Batches, first: int, stop: int, rate: Rate, watch: Watch, tick: Tick
    ) -> Stretch:
        """Take steps of an epoch until ``stop``, a reason to stop, or a loss that is not finite; collective.

        The ranks hold the same parameters afterwards, bit for bit.

        Args:
            x: Samples of this rank.
            y: Their targets.
            batches: The batches of the epoch.
            first: The first step.
            stop: The step before which to stop.
            rate: Function that returns the learning rate of a step of the epoch.
            watch: Reasons to stop.
            tick: Function to call after each step.
        """

    @property
    @abstractmethod
    def rules(self) -> dict[str, sfb.optim.Optimizer]:
        """The update rule of each parameter, with its state."""

    @abstractmethod
    def layers(self) -> list[dict[str, Any]]:
        """Return each parameter's shape, its most frequent algorithm, and the bytes of a step; collective."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Return all arrays, parameters and the state of rules, by name, and the steps that each rule has taken.

        The arrays are those in use, so a rank may write them to a file or set them.
        """
        arrays, steps = {}, {}
        for parameter in self._model.parameters:
            rule = self.rules[parameter.name]
            arrays[f"parameter/{parameter.name}"] = parameter.array
            for name, array in zip(rule.states, rule.state, strict=False):
                assert array is not None
                arrays[f"{name}/{parameter.name}"] = array
            steps[parameter.name] = rule.steps
        return arrays, steps
