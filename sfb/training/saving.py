"""When a training run writes checkpoints, what identifies it in them, and how it goes on from one."""

from __future__ import annotations

import logging
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI

from sfb.runtime.guard import at_work
from sfb.training.checkpoint import CheckpointError, Folder
from sfb.training.config import Config, TrainingError
from sfb.training.stopping import requeued

__all__ = ["Saver"]

_log = logging.getLogger("sfb")

# Options by the name of their entry in a fingerprint, where these differ.
_NAMED = {"options": "options of the model", "model": "MODEL"}


class Saver:
    """Writes the checkpoints of a run on rank 0, and reads the one to go on from; making one is collective.

    Args:
        world: The ranks.
        config: The run.
        again: Whether this very run has had a saver before, on ranks one of which has died.

    Attributes:
        enabled: Whether the run writes checkpoints.
        resume: Whether the run goes on from a checkpoint: it is asked to, or Slurm has started its job again.
        written: The step of the last one written or read; None for none.

    Raises:
        TrainingError: The folder cannot be written to, or does not hold what the run is to go on from; on every rank.
    """

    def __init__(self, world: MPI.Intracomm, config: Config, *, again: bool = False) -> None:
        self._world, self._config = world, config
        self.enabled = config.checkpoint is not None
        self.resume = False
        self.written: int | None = None
        self._identity: dict[str, Any] = {}
        self._folder: Folder | None = None
        if config.checkpoint is not None:
            self._folder = Folder(Path(config.checkpoint), config.keep)
            self.resume = self._on_rank_0(lambda folder: self._prepare(folder, again))

    def _prepare(self, folder: Folder, again: bool) -> bool:
        resume = self._config.resume or (requeued() and bool(folder.steps()))
        folder.prepare(resume=None if again else resume)
        return resume

    def identify(self, **identity: Any) -> None:
        """Note what identifies the run beside its options: ``data``, and ``bits``, which may change within rounding."""
        self._identity = {"config": self._config.fingerprint(), **identity}

    def until(self, step: int, taken: int, steps: int) -> int:
        """Return the step of an epoch of ``steps`` before which the next checkpoint is due.

        Args:
            step: Steps of the epoch that are done.
            taken: Steps of the run that are done.
            steps: Steps of the epoch.
        """
        every = self._config.checkpoint_every
        if not self.enabled or every is None:
            return steps
        return min(steps, step + every - taken % every)

    def due(self, taken: int, *, epoch: bool = False) -> bool:
        """Return whether a checkpoint is due after ``taken`` steps of the run, or at the end of an epoch."""
        every = self._config.checkpoint_every
        return self.enabled and (epoch if every is None else taken % every == 0)

    def save(self, taken: int, progress: dict[str, Any], arrays: dict[str, np.ndarray], *, last: bool = False) -> float:
        """Write a checkpoint, if the run writes any and has not written this one; collective.

        Where the disk is full the run goes on, and says so; all older checkpoints stay.

        Args:
            taken: Steps of the run that are done.
            progress: What the header holds beside what identifies the run.
            arrays: The arrays; those of rank 0 count.
            last: Whether there is to be no other.

        Returns:
            The seconds that it took.

        Raises:
            TrainingError: A parameter is not finite; or ``last``, and the checkpoint cannot be written.
        """
        if self._folder is None or self.written == taken:
            return 0.0
        began = perf_counter()
        self._world.Barrier()  # others may still work on what the ranks of a node share
        bad = ""
        if self._world.rank == 0:
            bad = ", ".join(name for name, array in arrays.items() if not np.isfinite(array).all())
        bad = self._world.bcast(bad)
        if bad:
            raise TrainingError(
                f"{bad} holds NaN or infinity after step {taken}; try a smaller learning rate (--lr), or scale the "
                f"features{self._stays()}"
            )
        try:
            self._on_rank_0(lambda folder: folder.save(taken, self._identity | progress, arrays))
        except TrainingError as error:
            if last or self.written is None:
                raise TrainingError(f"{error}{self._stays()}") from None
            if self._world.rank == 0:
                _log.warning("%s; training goes on%s", error, self._stays())
            return 0.0
        self.written = taken
        return perf_counter() - began

    def rescue(self, taken: int, progress: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Write a checkpoint on this rank alone, since another has failed; see `save`."""
        finite = all(np.isfinite(array).all() for array in arrays.values())
        if self._folder is None or self.written == taken or not finite:
            return
        try:
            with at_work():
                self._folder.save(taken, self._identity | progress, arrays)
        except CheckpointError as error:
            _log.warning("%s%s", error, self._stays())
        else:
            _log.warning("the checkpoint of step %d has been written; --resume goes on from there", taken)

    def newest(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return header and arrays of the newest checkpoint that is whole, the arrays on rank 0 alone; collective.

        Raises:
            TrainingError: There is none, or it is of another run; on every rank.
        """
        header, arrays, damaged = self._on_rank_0(self._newest)
        self.written = header["position"]["taken"]
        if self._world.rank == 0:
            for text in damaged:
                _log.warning("%s; the one before takes its place", text)
            if header["bits"] != self._identity["bits"]:
                _log.warning(
                    "the checkpoint was written by %s; this run has %s, so results agree within rounding",
                    header["bits"],
                    self._identity["bits"],
                )
        return header, arrays

    def _newest(self, folder: Folder) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        (header, arrays), damaged = folder.newest()
        lacking = [key for key in ("config", "data", "bits", "position", "epochs") if key not in header]
        if lacking:
            raise CheckpointError(
                f"{folder.path}: the newest checkpoint lacks {', '.join(lacking)}; sfb train did not write it"
            )
        for key, what in (("config", ""), ("data", "the data to train on")):
            problem = _difference(header[key], self._identity[key], what)
            if problem:
                raise CheckpointError(f"{folder.path} holds checkpoints of another run: {problem}")
        return header, arrays, damaged

    def _stays(self) -> str:
        """Return what is left to go on from, for messages."""
        if self._folder is None or self.written is None:
            return ""
        return f"; the checkpoint of step {self.written} stays"

    def _on_rank_0(self, act: Any) -> Any:
        """Let rank 0 do something with the folder; return its result, the arrays of a checkpoint on rank 0 alone.

        Raises:
            TrainingError: It fails; on every rank.
        """
        problem: str = ""
        result: Any = None
        if self._world.rank == 0:
            try:
                with at_work():
                    result = act(self._folder)
            except CheckpointError as error:
                problem = str(error)
        arrays: Any = None
        if isinstance(result, tuple):
            arrays = result[1]
            result = (result[0], None, *result[2:])
        problem, result = self._world.bcast((problem, result))
        if problem:
            raise TrainingError(problem)
        return (result[0], arrays, *result[2:]) if isinstance(result, tuple) else result


def _difference(saved: Any, own: Any, what: str) -> str:
    """Return how what a checkpoint was written with differs from what is asked for now; "" for not at all."""
    if not (isinstance(saved, dict) and isinstance(own, dict)):
        return "" if saved == own else f"{what} is {own}, the checkpoint has {saved}"
    texts = []
    for name in sorted({*saved, *own}):
        if saved.get(name) != own.get(name):
            label = f"{what}'s {name}" if what else _NAMED.get(name, f"--{name.replace('_', '-')}")
            texts.append(f"{label} is {own.get(name)}, the checkpoint has {saved.get(name)}")
    return "; ".join(texts)
