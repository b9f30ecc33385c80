"""Schedules of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["SCHEDULES", "Schedule"]

SCHEDULES = ("constant", "step", "cosine", "linear", "invscaling")


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each step, a function of the number of the step alone.

    The rate rises linearly during the warm-up. After it, in step t of T:

    - "constant": lr
    - "step": lr · drop^⌊t / drop_every⌋
    - "cosine": lr · ½(1 + cos(π t / T)) (Loshchilov and Hutter, "SGDR", ICLR 2017, section 3, without restarts)
    - "linear": lr · (1 − t / T)
    - "invscaling": lr / √(1 + t) (Ho et al., NIPS 2013, theorem 1, has such rates)

    Args:
        name: Name of the schedule.
        lr: Largest learning rate.
        steps: Steps of the whole run.
        warmup: Steps of the warm-up.
        drop: Factor of each drop of "step".
        drop_every: Steps between two drops of "step".

    >>> from sfb.training.rates import Schedule
    >>> rate = Schedule("linear", 1.0, steps=6, warmup=2)
    >>> [rate(step) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    name: str
    lr: float
    steps: int
    warmup: int = 0
    drop: float = 0.1
    drop_every: int = 1

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        t, total = step - self.warmup, max(1, self.steps - self.warmup)
        if self.name == "step":
            return self.lr * self.drop ** (t // self.drop_every)
        if self.name == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(1, t / total)))
        if self.name == "linear":
            return self.lr * max(0.0, 1 - t / total)
        return self.lr / math.sqrt(1 + t) if self.name == "invscaling" else self.lr
