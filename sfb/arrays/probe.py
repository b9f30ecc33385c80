"""This library's allreduce of plain arrays between nodes, which a profile times beside MPI's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.arrays.dispatch import Arrays
from sfb.runtime.team import Team

__all__ = ["own_allreduce"]


def own_allreduce(team: Team) -> Callable[[int], Callable[[], Any]] | None:
    """Return what makes an allreduce of so many bytes, None if this library leaves those of the team to MPI."""
    arrays = Arrays(team, lambda: None)

    def make(nbytes: int) -> Callable[[], Any]:
        array = np.zeros(nbytes // 4, np.float32)
        return lambda: arrays.allreduce_everywhere(MPI.IN_PLACE, array, MPI.SUM, _nothing, always=True)

    return make if arrays.far else None


def _nothing(*arguments: Any) -> None:
    pass
