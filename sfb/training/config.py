"""What `sfb train` is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sfb
from sfb.models.model import Model, Parameter
from sfb.models.registry import MODELS
from sfb.training.rates import SCHEDULES

__all__ = ["COMMS", "OPTIMIZERS", "Config", "TrainingError", "consistency_of"]

COMMS = ("auto", "dense", "broadcast", "node", "pipelined", "sharded", "mpi")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "adagrad")
# Rules of which a rank may take steps with its own part of a gradient.
_ADDITIVE = ("sgd", "momentum", "nesterov")
# Options that must be those of the checkpoint for a run to go on as it would have.
_KEPT = (
    "model", "batch_size", "seed", "lr", "momentum", "weight_decay", "l1", "optimizer", "schedule", "warmup_steps",
    "drop", "drop_every", "sync",
)  # fmt: skip


class TrainingError(Exception):
    """Training cannot begin or go on; raised on every rank."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train, on what, and how; the options of `sfb train`.

    Attributes:
        model: Name of a model of `sfb.models.MODELS`.
        options: Options of the model, by name.
        data: What `sfb.data.read` takes.
        reading: Further arguments of `sfb.training.data.load`.
        epochs: Passes over the training data.
        batch_size: Examples of one step, of all ranks together.
        lr: Learning rate; None for that of the model (`sfb.models.registry.Entry`).
        optimizer: Update rule; None for that of the model, or "sgd" where rows are to stay within a ball or ``l1`` is
            set.
        momentum: Momentum of "momentum" and "nesterov".
        weight_decay: Weight decay, for parameters that decay.
        l1: Factor of the sum of magnitudes, for parameters that decay.
        schedule: Name of a schedule of the learning rate.
        warmup_steps: Steps in which the learning rate rises.
        drop: Factor of each drop of the schedule "step".
        drop_every: Epochs between two drops of the schedule "step".
        seed: Seed of parameters, split and order.
        sync: "bsp", "ssp:N" or "asp".
        comm: "mpi" for plain mpi4py, else the algorithm of `sfb.Comm`, under "bsp".
        overlap: Exchange a layer's gradient during the backward pass of the others, under "bsp".
        reproducible: Choose algorithms without measuring; a checkpoint implies it.
        topology: Graph of the ranks, under "ssp:N" and "asp".
        bandwidth: Most that a rank sends, under "ssp:N" and "asp"; None for no limit.
        target_loss: Mean loss of an epoch at which to end; None for no such end.
        time_limit: Seconds after which to end; None for no limit.
        checkpoint: Folder for checkpoints; None for none.
        checkpoint_every: Steps between two checkpoints; None for one after each epoch.
        keep: Number of checkpoints to keep.
        resume: Whether to go on from the newest checkpoint.
        elastic: Whether the ranks that are left go on when one dies.
    """

    model: str = "mlp"
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = "mnist"
    reading: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 5
    batch_size: int = 64
    lr: float | None = None
    optimizer: str | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    l1: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    drop: float = 0.1
    drop_every: int = 10
    seed: int = 0
    sync: str = "bsp"
    comm: str = "auto"
    overlap: bool = False
    reproducible: bool = False
    topology: str = "halton"
    bandwidth: str | None = None
    target_loss: float | None = None
    time_limit: float | None = None
    checkpoint: str | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    resume: bool = False
    elastic: bool = False

    @property
    def title(self) -> str:
        """What the run trains, in a line."""
        how = f"--comm {self.comm}" if self.sync == "bsp" else f"--sync {self.sync}"
        return f"training {self.model} on {self.data}, {how}, {self.epochs} epochs"

    @property
    def rate(self) -> float:
        """The learning rate, that of the model if none is given."""
        return MODELS[self.model].lr if self.lr is None else self.lr

    def check(self) -> None:
        """Raise TrainingError if options do not go together."""
        for value, names, what in (
            (self.model, MODELS, "model"),
            (self.comm, COMMS, "--comm"),
            (self.schedule, SCHEDULES, "--schedule"),
            (self.optimizer, (None, *OPTIMIZERS), "--optimizer"),
        ):
            if value not in names:
                raise TrainingError(f"{what} must be one of {', '.join(filter(None, names))}, got {value!r}")
        consistency = consistency_of(self.sync)
        if self.l1 and self.optimizer not in (None, "sgd"):
            raise TrainingError(f"--l1 takes proximal steps, which need --optimizer sgd, got {self.optimizer}")
        if self.optimizer == "nesterov" and not self.momentum:
            raise TrainingError("--optimizer nesterov needs a --momentum above 0")
        if self.resume and self.checkpoint is None:
            raise TrainingError("--resume needs --checkpoint DIR, the folder of the checkpoints to go on from")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise TrainingError("--checkpoint-every needs --checkpoint DIR, the folder to write to")
        unknown = set(self.options) - {name for entry in MODELS.values() for name in entry.options}
        foreign = [name for name in self.options if name not in MODELS[self.model].options]
        if unknown or foreign:
            name = min([*unknown, *foreign])
            raise TrainingError(f"--{name.replace('_', '-')} is no option of the model {self.model}")
        if consistency is None:
            if self.bandwidth is not None or self.topology != Config.topology:
                raise TrainingError("--topology and --bandwidth are of the store: they need --sync ssp:N or asp")
            return
        if self.comm != "auto" or self.overlap:
            raise TrainingError(f"--comm and --overlap are of --sync bsp; --sync {self.sync} trains through the store")
        if self.optimizer not in (None, *_ADDITIVE):
            raise TrainingError(
                f"--sync {self.sync} applies the update of each rank as a step of its own, which changes what "
                f"{self.optimizer} does; take --optimizer {', '.join(_ADDITIVE[:-1])} or {_ADDITIVE[-1]}"
            )

    def rule_name(self, model: Model) -> str:
        """Return the name of the update rule for a model.

        Raises:
            TrainingError: The model needs another rule than the one asked for.
        """
        bound = any(parameter.radius is not None for parameter in model.parameters)
        if bound and self.optimizer not in (None, "sgd"):
            raise TrainingError(
                f"{self.model} keeps rows within a ball by projected steps, which need --optimizer sgd, "
                f"got {self.optimizer}"
            )
        return self.optimizer or ("sgd" if bound or self.l1 else MODELS[self.model].optimizer)

    def rule(self, name: str, parameter: Parameter, parts: int = 1) -> sfb.optim.Optimizer:
        """Return the update rule of a parameter, not yet bound to it.

        Args:
            name: Result of `rule_name`.
            parameter: The parameter.
            parts: Steps of the rule in which the gradient of a batch comes.
        """
        decay, l1 = (value / parts if parameter.decays else 0.0 for value in (self.weight_decay, self.l1))
        if parameter.radius is not None:
            bound: dict[str, Any] = {"radius": parameter.radius}
            return sfb.optim.Proximal(lr=self.rate, l1=l1, l2=decay, **bound)
        if l1:
            return sfb.optim.Proximal(lr=self.rate, l1=l1, l2=decay)
        if name in ("momentum", "nesterov"):
            return sfb.optim.SGD(lr=self.rate, momentum=self.momentum, weight_decay=decay, nesterov=name == "nesterov")
        rules: dict[str, Callable[..., sfb.optim.Optimizer]] = {
            "sgd": sfb.optim.SGD,
            "adam": sfb.optim.Adam,
            "adamw": sfb.optim.AdamW,
            "adagrad": sfb.optim.Adagrad,
        }
        return rules[name](lr=self.rate, weight_decay=decay)

    def fingerprint(self) -> dict[str, Any]:
        """Return the options that a run which goes on from a checkpoint must share with the one that wrote it."""
        kept: dict[str, Any] = {name: getattr(self, name) for name in _KEPT} | {"lr": self.rate}
        kept["options"] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in sorted(self.options.items())
        }
        if self.schedule in ("cosine", "linear"):  # which depend on the end
            kept["epochs"] = self.epochs
        return kept


def consistency_of(sync: str) -> sfb.SSP | sfb.ASP | None:
    """Return the consistency of the store that "ssp:N" or "asp" names; None for "bsp", which needs no store.

    Raises:
        TrainingError: The text names none.
    """
    name, _, staleness = sync.partition(":")
    if name == "ssp" and staleness.isdecimal() and len(staleness) < 10:
        return sfb.SSP(int(staleness))
    if sync == "asp":
        return sfb.ASP()
    if sync == "bsp":
        return None
    raise TrainingError(f"--sync must be bsp, ssp:N with a number of clocks N, or asp, got {sync!r}")
