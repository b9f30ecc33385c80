"""The smallest exchanges of each algorithm, which a profile times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.collectives import ALGORITHMS, Problem
from sfb.collectives.engine import Engine
from sfb.collectives.options import Options
from sfb.factors import Factors
from sfb.runtime.team import Team
from sfb.tuning.lookup import Profiles
from sfb.tuning.profile import Profile, Use

__all__ = ["empty_exchanges"]


def empty_exchanges(team: Team) -> dict[str, tuple[Callable[[], Any], Sequence[Use]]]:
    """Return, for each algorithm, an exchange of one small sample from each rank, and its cost."""
    factors, g = Factors(np.ones((1, 8), np.float32), np.ones((1, 8), np.float32)), np.empty((8, 8), np.float32)
    problem = Problem(g.shape, g.dtype, np.ones(team.size, np.int64), team.node_of, passes=1, sharing=team.sharing)
    allreduce = Engine(team, Options(reproducible=True), Profiles(Profile())).allreduce
    return {
        name: (partial(allreduce, "Allreduce", factors, g, MPI.SUM, name), module.cost(problem))
        for name, module in ALGORITHMS.items()
    }
