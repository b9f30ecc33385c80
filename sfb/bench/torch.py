"""Steps of PyTorch training: sfb.torch.attach beside DistributedDataParallel over gloo and over sfb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

import sfb
from sfb.bench.engine import Benchmark, Column, Heading, Row, Times, Timing, columns, measure
from sfb.bench.gloo import gloo_group
from sfb.bench.training import CANDIDATES, DDP, EXACT, MODELS, REFERENCE, Links, Problem, Trainer, make_groups, problem
from sfb.runtime.threads import limit_process
from sfb.units import milliseconds

__all__ = ["COLUMNS", "Config", "draw", "run"]

# PowerSGD compresses from the third step on.
_CHECKED_STEPS = 5
# Training takes steps in a row: caches hold the model, and the network does not rest between them.
_IN_A_ROW = 4
_TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True, kw_only=True)
class Config(Timing):
    """What to measure.

    Attributes:
        models: Names of `sfb.bench.training.MODELS`.
        layers: Widths of the perceptron.
        samples: Each number of samples of a rank's batch.
        optimizer: Name of `sfb.bench.training.OPTIMIZERS`.
        dtype: "float32" or "float64".
        candidates: Names of `sfb.bench.training.CANDIDATES`; DDP over gloo is always measured.
        check: Compare weights with those of DDP over gloo.
    """

    models: Sequence[str] = tuple(MODELS)
    layers: Sequence[int] = (784, 4096, 4096, 10)
    samples: Sequence[int] = (16,)
    optimizer: str = "momentum"
    dtype: str = "float32"
    candidates: Sequence[str] = CANDIDATES
    check: bool = True


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


COLUMNS = [
    Column("model", "model"),
    Column("samples", "S", width=6),
    Column("candidate", "candidate", width=16),
    *columns(milliseconds, 11, seconds="step(ms)", min="min", p99="p99"),
    Column("rate", "samples/s", "{:.0f}".format, 11),
    *columns("{:.2f}".format, 11, over_gloo="gloo/this", over_ddp="DDP/this"),
    Column("differ", "differ", _number, 9),
    Column("wrong", "#wrong", width=8),
]


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    threads = limit_process(world)
    torch.set_num_threads(threads)
    names = [name for name in CANDIDATES if name == REFERENCE or name in config.candidates]
    with gloo_group(world) as interface, sfb.Comm(world) as comm:
        links = Links(comm, make_groups(names))
        heading(
            f"sfb bench torch: training, {config.optimizer}, {config.dtype}",
            f"PyTorch {torch.__version__}, {threads} thread{'s' * (threads != 1)} a rank; gloo over {interface}",
            "step: zero_grad, forward, loss, backward, optimizer.step; S: samples a rank",
            f"a candidate takes {_IN_A_ROW} steps in a row; their mean on the slowest rank, median of such means",
            "ddp-…: DistributedDataParallel; attach: sfb.torch.attach, fused and not; local: no exchange at all",
            "DDP/this: fastest ddp-… over this; differ: largest relative difference to the weights of "
            f"{REFERENCE} after {_CHECKED_STEPS} steps; #wrong: weights beyond {_TOLERANCES[config.dtype]:.0e}, "
            "and 0 for ddp-powersgd and local, which promise no equality",
            torch=torch.__version__,
            torch_threads=threads,
            gloo_interface=interface,
        )
        for name in config.models:
            task = problem(name, config.layers, config.dtype)
            for samples in config.samples:
                yield from _measure(world, config, name, task, samples, names, links)


def _measure(
    world: MPI.Intracomm,
    config: Config,
    name: str,
    task: Problem,
    samples: int,
    names: Sequence[str],
    links: Links,
) -> list[Row]:
    """Return a row for each candidate; collective."""
    batches = task.batches(samples, world.rank)
    with ExitStack() as stack:
        trainers = {one: stack.enter_context(Trainer(one, task, config.optimizer, batches, links)) for one in names}
        checked = _check(world, trainers, _TOLERANCES[config.dtype]) if config.check else {}
        taken = measure(world, {one: partial(trainer.steps, _IN_A_ROW) for one, trainer in trainers.items()}, config)
    times = {one: total.each_of(_IN_A_ROW) for one, total in taken.items()}
    ddp = min(times[one].median for one in names if one in DDP)
    size = {"model": name, "parameters": task.parameters, "samples": samples}
    return [size | _row(world, one, samples, times, ddp) | checked.get(one, _UNCHECKED) for one in names]


_UNCHECKED: Row = {"differ": None, "wrong": None}


def _check(world: MPI.Intracomm, trainers: dict[str, Trainer], tolerance: float) -> dict[str, Row]:
    """Train all candidates for some steps, and compare their weights; collective."""
    for trainer in trainers.values():
        trainer.steps(_CHECKED_STEPS)
    world.Barrier()  # weights may lie in memory that the ranks of a node share
    checked = {}
    for name, trainer in trainers.items():
        differ, wrong = trainer.difference(trainers[REFERENCE], tolerance)
        if name not in EXACT:
            wrong = 0
        elif not trainer.same_bits(world):
            wrong = sum(p.numel() for p in trainer.model.parameters())
        most = float(np.max(world.allgather(differ)))  # NaN wins
        checked[name] = {"differ": most, "wrong": world.allreduce(wrong, MPI.MAX)}
    return checked


def _row(world: MPI.Intracomm, name: str, samples: int, times: dict[str, Times], ddp: float) -> Row:
    """Return the part of a row that is timed."""
    taken = times[name]
    return {
        "candidate": name,
        "seconds": taken.median,
        "min": taken.min,
        "avg": taken.avg,
        "p99": taken.p99,
        "iterations": taken.iterations,
        "rate": world.size * samples / taken.median,
        "over_gloo": times[REFERENCE].median / taken.median,
        "over_ddp": ddp / taken.median,
    }


def draw(rows: list[Row], path: Path) -> None:
    """Draw the milliseconds of a step as bars, one panel a model and number of samples; lines: minimum to p99."""
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys((row["model"], row["samples"]) for row in rows))
    figure = Figure(figsize=(1 + 3.6 * len(cases), 3.6), layout="constrained")
    panels = figure.subplots(1, len(cases), squeeze=False)[0]
    for panel, (model, samples) in zip(panels, cases, strict=True):
        shown = [row for row in rows if (row["model"], row["samples"]) == (model, samples)]
        for i, row in enumerate(shown):
            median, low, high = (1e3 * row[key] for key in ("seconds", "min", "p99"))
            colour = f"C{CANDIDATES.index(row['candidate'])}"
            panel.barh(i, median, color=colour, xerr=[[median - low], [high - median]], ecolor="0.4")
        panel.set_yticks(range(len(shown)), [f"{row['candidate']}  {milliseconds(row['seconds'], 1)}" for row in shown])
        panel.invert_yaxis()
        panel.set_title(f"{model}, {samples} samples a rank", fontsize=10)
        panel.set_xlabel("time of a step (ms)")
        panel.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=120)


run = Benchmark(COLUMNS, _rows, draw)
