"""A training run: data, model, trainer, checkpoints, model file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.elastic.keeper import Keeper
from sfb.elastic.membership import Membership
from sfb.environment import describe
from sfb.launch import meet_without
from sfb.models.model import Model
from sfb.models.nets.network import Network
from sfb.models.ranks import Ranks
from sfb.models.registry import MODELS
from sfb.runtime.agreement import compare
from sfb.runtime.ulfm import missing
from sfb.trace.spans import span
from sfb.training.batches import Samples
from sfb.training.config import COMMS, Config, TrainingError
from sfb.training.data import Dataset, load
from sfb.training.fingerprint import fingerprint
from sfb.training.model_file import save_model
from sfb.training.saving import Saver
from sfb.training.stopping import Watch
from sfb.training.sync import Tick, no_tick
from sfb.training.trainer import REACHED, Epoch, Trainer

__all__ = ["COMMS", "Config", "Epoch", "TrainingError", "train"]


def train(
    world: MPI.Intracomm,
    config: Config,
    report: Callable[[Epoch], None] = lambda epoch: None,
    begin: Callable[[Trainer], Tick] = lambda trainer: no_tick,
    *,
    model_file: Path | None = None,
) -> dict[str, Any]:
    """Train a model, and return the run as a JSON object; collective.

    Args:
        world: The ranks to train on.
        config: What to train, and how; equal on all ranks.
        report: Function to call on every rank after every epoch.
        begin: Function to call on every rank before the first step; it returns one to call after every step
            (`sfb.training.sync.Tick`).
        model_file: File for the trained model, which rank 0 writes.

    Returns:
        {"format": 1, "config", "environment", "measure", "steps_per_epoch", "epochs": [`Epoch`], "layers": [{"name",
        "K", "D", "algorithm", "wire_bytes_per_step"}], "replicas_identical", "stopped", "resumable", "losses"}.
        "stopped" says what ended the run before its last epoch, or is None; "resumable" whether a checkpoint has what
        is left; "losses" has a `sfb.elastic.Loss` for ranks that have died.

    Raises:
        DataError: The data cannot be trained on.
        TrainingError: Options do not go together, the loss is no longer finite, or checkpoints cannot be written or
            read.
        MismatchError: The ranks were given different options.
    """
    with Watch(config.time_limit, signals=config.checkpoint is not None) as watch:
        _compare(world, config)
        config.check()
        if not config.elastic:
            return _Run(config, watch, None, report, begin, model_file).on(world)
        problem = missing()
        if problem is not None:
            raise TrainingError(f"--elastic needs ULFM: {problem}")
        ranks = Membership(world, "sfb train")
        run = _Run(config, watch, ranks, report, begin, model_file)
        return ranks.survive(lambda: run.on(ranks.comm))


class _Run:
    """A run, begun again on the ranks that are left when one dies.

    Args:
        config: What to train, and how.
        watch: Reasons to stop.
        ranks: The ranks that are left, if these go on when one dies; else None.
        report: The user's argument of `train`, like the following.
        begin: The user's argument.
        model_file: The user's argument.

    Attributes:
        ranks: The same.
    """

    def __init__(
        self,
        config: Config,
        watch: Watch,
        ranks: Membership | None,
        report: Callable[[Epoch], None],
        begin: Callable[[Trainer], Tick],
        model_file: Path | None,
    ) -> None:
        self._config, self._watch = config, watch
        self._report, self._begin, self._model_file = report, begin, model_file
        self._dataset: Dataset | None = None
        self._keeper = None if ranks is None else Keeper(ranks.check)
        self._begun = False
        self.ranks = ranks

    def on(self, world: MPI.Intracomm) -> dict[str, Any]:
        """Train on these ranks, from where those before them were; collective."""
        config, again, self._begun = self._config, self._begun, True
        if again:
            meet_without(world)
        saver = Saver(world, config, again=again)
        dataset = self._data(world)
        profile = _profile(world) if saver.enabled else None
        reproducible = config.reproducible or saver.enabled
        with sfb.Comm(world, reproducible=reproducible, profile=profile) as comm:
            samples, test = _samples(world, dataset)
            model = _model(config, dataset)
            if isinstance(model, Network):
                model.sparse = Ranks(world).sparse(dataset.x)
            if saver.enabled:
                saver.identify(data=fingerprint(world, samples), bits=_bits(world, comm, config, profile))
            trainer = Trainer(comm, world, config, model, samples, test, self._keeper)
            if self._keeper is not None and self._keeper.share(world):
                trainer.go_back(self._keeper.copy)
            elif saver.resume:
                trainer.restore(*saver.newest())
            else:
                # Found now: a disk without room for checkpoints.
                trainer.save(saver, self._watch, last=True)
            if self.ranks is not None:
                self.ranks.note(trainer.position.taken)
            trainer.run(self._watch, saver, self._report, self._begin(trainer))
            if self._model_file is not None:
                _save(world, self._model_file, model, dataset)
            return {
                "format": 1,
                "config": asdict(config) | {"lr": config.rate},
                "environment": describe(world),
                "measure": model.measure,
                "steps_per_epoch": trainer.steps,
                "epochs": [asdict(epoch) for epoch in trainer.epochs],
                "layers": trainer.sync.layers(),
                "replicas_identical": trainer.replicas_identical(),
                "stopped": trainer.stopped,
                "resumable": saver.enabled and trainer.stopped not in (None, REACHED),
                "losses": [asdict(loss) for loss in self.ranks.losses] if self.ranks is not None else [],
            }

    def _data(self, world: MPI.Intracomm) -> Dataset:
        """Return the data: that of before if every rank holds all of it; collective."""
        if self._keeper is not None:
            own = self._dataset is not None and not self._dataset.sharded
            if not world.allreduce(own, MPI.LAND):
                self._dataset = None
        if self._dataset is None:
            with span("data", "phase"):
                self._dataset = load(world, self._config.data, seed=self._config.seed, **self._config.reading)
        return self._dataset


def _compare(world: MPI.Intracomm, config: Config) -> None:
    """Raise `sfb.MismatchError` on every rank if the ranks were given different options; collective."""
    own = {name: repr(value) for name, value in vars(config).items()}
    others = world.allgather(own)
    differ = [name for name in own if len({other[name] for other in others}) > 1]
    compare(world, "sfb train", ", ".join(f"{name}={own[name]}" for name in differ))


def _samples(world: MPI.Intracomm, dataset: Dataset) -> tuple[Samples, tuple[Any, np.ndarray]]:
    """Return the samples of this rank to learn from, and those to test on."""
    mine = dataset.test
    if not dataset.sharded:
        mine = np.array_split(mine, world.size)[world.rank]
    y, test_y = dataset.y, dataset.test_y
    if not len(dataset.classes):  # targets of the precision of the features
        y, test_y = (targets.astype(np.float32, copy=False) for targets in (y, test_y))
    return Samples(dataset.x, y, dataset.train, whole=not dataset.sharded), (dataset.test_x[mine], test_y[mine])


def _model(config: Config, dataset: Dataset) -> Model:
    """Return the model for the data.

    Raises:
        TrainingError: The model learns classes, and the data has numbers.
    """
    entry = MODELS[config.model]
    options, outputs = dict(config.options), len(dataset.classes)
    if entry.supervised and not outputs:
        if "regression" not in entry.options:
            able = ", ".join(name for name, other in MODELS.items() if "regression" in other.options)
            raise TrainingError(f"{config.model} learns classes, and the labels are numbers to predict; train {able}")
        options["regression"] = True
        outputs = dataset.y.shape[1] if dataset.y.ndim > 1 else 1
    return MODELS.build(config.model, dataset.x.shape[1], outputs, seed=config.seed, **options)


def _profile(world: MPI.Intracomm) -> sfb.Profile | None:
    """Return the profile of the file that SFB_PROFILE names on rank 0, so that a run that goes on has the same.

    Raises:
        TrainingError: It cannot be read; on every rank.
    """
    problem, profile = "", None
    path = os.environ.get("SFB_PROFILE")
    if world.rank == 0 and path:
        try:
            profile = sfb.Profile.load(path)
        except sfb.ProfileError as error:
            problem = str(error)
    problem, profile = world.bcast((problem, profile))
    if problem:
        raise TrainingError(problem)
    return profile


def _bits(world: MPI.Intracomm, comm: sfb.Comm, config: Config, profile: sfb.Profile | None) -> str:
    """Return a text of what decides in which order gradients are summed; collective."""
    sizes = [size for size in world.allgather(comm.node.size if comm.node.rank == 0 else 0) if size]
    text = f"{world.size} rank{'s' * (world.size > 1)} on nodes of {', '.join(map(str, sizes))}, --comm {config.comm}"
    if profile is not None:
        text += f", profile {blake2b(profile.to_json().encode(), digest_size=4).hexdigest()}"
    return text


def _save(world: MPI.Intracomm, path: Path, model: Model, dataset: Dataset) -> None:
    """Let rank 0 write the model file; collective."""
    classes = dataset.classes if model.measure == "accuracy" else None
    scaler = dataset.scaler and (dataset.scaler.offset, dataset.scaler.factor)
    save_model(world, path, model, scaler, classes=classes)
