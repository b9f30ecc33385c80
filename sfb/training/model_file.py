"""The model file that a run on many ranks writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

from sfb.models.saved.files import save
from sfb.training.config import TrainingError

__all__ = ["save_model"]


def save_model(world: MPI.Intracomm, path: Path, model: Any, scaler: Any = None, *, classes: Any = None) -> None:
    """Let rank 0 write a model file; collective.

    Args:
        world: The ranks.
        path: The file.
        model: The model of rank 0, as `sfb.models.save` takes it.
        scaler: As in `sfb.models.save`.
        classes: As in `sfb.models.save`.

    Raises:
        TrainingError: The file cannot be written; on every rank.
    """
    problem = ""
    if world.rank == 0:
        try:
            save(path, model, scaler, classes=classes)
        except (OSError, ValueError) as error:
            problem = f"{path}: cannot write the model: {error}"
    problem = world.bcast(problem)
    if problem:
        raise TrainingError(problem)
