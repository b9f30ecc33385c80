"""Time that models take to a fixed objective: gradients as factors, beside MPI's Allreduce of dense ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Benchmark, Column, Heading, Row, columns
from sfb.models import MODELS
from sfb.training.batches import Samples
from sfb.training.config import Config as Training
from sfb.training.saving import Saver
from sfb.training.stopping import Watch
from sfb.training.trainer import Trainer
from sfb.units import format_bytes, milliseconds

__all__ = ["CASES", "COLUMNS", "Case", "Config", "draw", "run"]

_LATENT = 32  # dimensions of what made samples are drawn from
_BLOCK = 64  # samples that have a seed of their own
# The target is missed after so many times the epochs in which the first run reached it.
_PATIENCE = 2


@dataclass(frozen=True)
class Case:
    """What a model learns by default.

    Attributes:
        shape: K×D of its largest parameter: classes or hidden units or components, and features.
        classes: Classes of the samples; 0 for K.
        lr: Learning rate.
        optimizer: Update rule.
        option: Option of the model that takes K; "" for none.
    """

    shape: tuple[int, int]
    classes: int
    lr: float
    optimizer: str
    option: str = ""


CASES = {
    "mlr": Case((1000, 20000), 0, 0.5, "momentum"),
    "dml": Case((512, 4096), 10, 0.001, "sgd", "components"),
    "dictionary": Case((512, 8192), 10, 1.0, "sgd", "components"),
    "mlp": Case((2048, 784), 10, 0.05, "momentum", "hidden"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure.

    Attributes:
        models: Names in `CASES`.
        shapes: K×D for each model; those of `CASES` by default. A perceptron has two hidden layers of K units.
        comms: What `sfb train --comm` takes, "mpi" among them.
        samples: Made samples to learn from, of all ranks.
        batch: Examples of a step, of all ranks.
        epochs: Epochs after which the loss is the target.
        repeats: Times that each run is repeated, in turn; the median counts.
        seed: Seed of samples and parameters.
    """

    models: Sequence[str] = tuple(CASES)
    shapes: Sequence[tuple[int, int]] | None = None
    comms: Sequence[str] = ("mpi", "auto")
    samples: int = 768
    batch: int = 64
    epochs: int = 3
    repeats: int = 1
    seed: int = 0


COLUMNS = [
    Column("model", "model", width=12),
    Column("K", "K", width=7),
    Column("D", "D", width=7),
    Column("comm", "comm", width=11),
    Column("steps", "steps", width=7),
    *columns(milliseconds, 14, step="step(ms)", exchange="exchange(ms)"),
    Column("wire_bytes", "received", format_bytes, 11),
    Column("loss", "loss", "{:.4f}".format, 11),
    Column("seconds", "reached(s)", lambda seconds: "-" if seconds is None else f"{seconds:.2f}", 12),
    Column("speedup", "over mpi", lambda ratio: "-" if ratio is None else f"{ratio:.2f}", 10),
]


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    """Yield a row for each model and exchange."""
    there = [name for name in config.models if name in MODELS]
    missing = [name for name in config.models if name not in MODELS]
    heading(
        f"sfb bench models: time to a fixed objective; {config.samples} made samples, {config.batch} of them in a step",
        f"the objective is the mean loss of epoch {config.epochs} of a first run, which is not timed",
        "received: bytes of a rank in a step; reached: seconds of training, without evaluation",
        *([f"not in this version: {', '.join(missing)}"] if missing else []),
    )
    with sfb.Comm(world) as comm:
        for name in there:
            yield from _compare(world, comm, config, name)


def _compare(world: MPI.Intracomm, comm: sfb.Comm, config: Config, name: str) -> Iterator[Row]:
    """Yield a row for each exchange of one model; collective."""
    case = CASES[name]
    shape = case.shape if config.shapes is None else config.shapes[config.models.index(name)]
    samples = _made(world, config, shape[1], case.classes or shape[0])
    first = _train(world, comm, config, name, shape, samples, "auto", None)
    target = first["loss"] * (1 + 1e-3)
    runs: dict[str, list[Row]] = {kind: [] for kind in config.comms}
    for repeat in range(config.repeats):
        for kind in config.comms if repeat % 2 == 0 else config.comms[::-1]:
            runs[kind].append(_train(world, comm, config, name, shape, samples, kind, target))
    rows = []
    for kind, repeats in runs.items():
        row = sorted(repeats, key=lambda one: one["seconds"])[len(repeats) // 2]
        if row["loss"] > target:
            row["seconds"] = None
        rows.append({"model": name, "K": shape[0], "D": shape[1], "comm": kind, "target": target, **row})
    base = next((row["seconds"] for row in rows if row["comm"] == "mpi"), None)
    for row in rows:
        row["speedup"] = base / row["seconds"] if base and row["seconds"] else None
        yield row


def _train(
    world: MPI.Intracomm,
    comm: sfb.Comm,
    config: Config,
    name: str,
    shape: tuple[int, int],
    samples: Samples,
    kind: str,
    target: float | None,
) -> Row:
    """Train once, for a number of epochs or until the loss of one reaches a target; collective."""
    case = CASES[name]
    sizes: Any = (shape[0], shape[0]) if case.option == "hidden" else shape[0]
    options = {case.option: sizes} if case.option else {}
    training = Training(
        model=name,
        options=options,
        data="made",
        comm=kind,
        epochs=config.epochs if target is None else _PATIENCE * config.epochs,
        batch_size=config.batch,
        lr=case.lr,
        optimizer=case.optimizer,
        weight_decay=0.0,
        seed=config.seed,
        target_loss=target,
    )
    model = MODELS.build(name, shape[1], case.classes or shape[0], seed=config.seed, **options)
    none = samples.x[:0], samples.y[:0]
    trainer = Trainer(comm, world, training, model, samples, none)
    trainer.run(Watch(), Saver(world, training), lambda epoch: None)
    steps = trainer.position.taken
    seconds = np.cumsum([epoch.seconds for epoch in trainer.epochs]).tolist()
    return {
        "steps": steps,
        "seconds": seconds[-1],
        "step": seconds[-1] / steps,
        "exchange": sum(epoch.exchange_seconds for epoch in trainer.epochs) / steps,
        "wire_bytes": sum(epoch.wire_bytes for epoch in trainer.epochs) / steps,
        "loss": trainer.epochs[-1].loss,
        "algorithms": sorted({layer["algorithm"] for layer in trainer.sync.layers()}),
        "curve": [[at, epoch.loss] for at, epoch in zip(seconds, trainer.epochs, strict=True)],
    }


def _made(world: MPI.Intracomm, config: Config, features: int, classes: int) -> Samples:
    """Return this rank's shard of made samples, which do not depend on the number of ranks."""
    low, high = (config.samples * i // world.size for i in (world.rank, world.rank + 1))
    fixed = np.random.default_rng(config.seed)
    spread = fixed.standard_normal((_LATENT, features), np.float32) / np.float32(np.sqrt(_LATENT))
    centres = fixed.standard_normal((_LATENT, classes), np.float32)
    parts, labels = [], []
    for block in range(low // _BLOCK, -(-high // _BLOCK)):
        rng = np.random.default_rng([config.seed, block])
        latent = rng.standard_normal((_BLOCK, _LATENT), np.float32)
        x = latent @ spread
        x += np.float32(0.1) * rng.standard_normal(x.shape, np.float32)
        x *= np.float32(4 / np.sqrt(features))  # for rates that do not depend on D
        own = slice(max(0, low - block * _BLOCK), high - block * _BLOCK)
        parts.append(x[own])
        labels.append((latent @ centres).argmax(axis=1)[own])
    x = np.concatenate(parts) if parts else np.empty((0, features), np.float32)
    y = np.concatenate(labels) if labels else np.empty(0, np.int64)
    return Samples(x, y, np.arange(len(y)), whole=False)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the loss of each epoch against seconds, a panel for each model."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        own = [row for row in rows if row["model"] == name]
        for row in own:
            panel.plot(*zip(*row["curve"], strict=True), "o-", label=f"--comm {row['comm']}")
        panel.axhline(own[0]["target"], color="grey", linestyle=":")
        panel.set_title(f"{name}, {own[0]['K']}×{own[0]['D']}")
        panel.set_xlabel("seconds of training")
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
        panel.legend()
    panels[0].set_ylabel("mean loss of an epoch")
    figure.savefig(path, dpi=120)


run = Benchmark(COLUMNS, _rows, draw)
