"""Training with stragglers under BSP, SSP and ASP: objective against seconds and bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
from mpi4py import MPI

import sfb
from sfb.bench.engine import Benchmark, Column, Heading, Row, columns
from sfb.models import Network, mlr
from sfb.training.data import Dataset, load

__all__ = ["COLUMNS", "Config", "consistency_of", "draw", "run"]

_POINTS = 60  # of a run's curve


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure.

    Attributes:
        data: What `sfb.data.read` takes.
        modes: "bsp", "ssp:S" and "asp".
        priorities: What `sfb.Store` takes.
        stragglers: "none"; "transient", where a tenth of all steps takes five times as long; or "permanent", where
            rank 0 takes twice as long.
        compute: Milliseconds that a step sleeps in place of computing, because ranks may share cores.
        steps: Steps of each rank.
        batch: Samples of a rank in a step.
        lr: Learning rate, of the mean over a step's samples of all ranks.
        bandwidth: What `sfb.Store` takes; None for no limit.
        topology: What `sfb.Store` takes.
        target: Objective to be reached.
        repeats: Times that each case runs, the cases in turn; medians are reported.
        seed: Seed of stragglers and batches.
    """

    data: str = "mnist"
    modes: Sequence[str] = ("bsp", "ssp:1", "ssp:3", "ssp:10", "asp")
    priorities: Sequence[str] = ("fifo",)
    stragglers: str = "transient"
    compute: float = 10.0
    steps: int = 200
    batch: int = 16
    lr: float = 0.5
    bandwidth: str | None = None
    topology: str = "halton"
    target: float = 0.5
    repeats: int = 3
    seed: int = 0


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


COLUMNS = [
    Column("mode", "mode", width=8),
    Column("priority", "priority", width=12),
    Column("seconds", "time(s)", _number, 10),
    Column("steps_per_second", "steps/s", "{:.1f}".format, 10),
    Column("speedup", "over first", "{:.2f}".format, 11),
    *columns(_number, 12, objective="objective", reached="reached(s)", reached_mb="reached(MB)"),
    Column("wait", "waited(%)", "{:.0f}".format, 10),
    Column("staleness", "stale", "{:.2f}".format, 7),
    Column("differ", "differ", "{:.1e}".format, 9),
]


def consistency_of(mode: str) -> sfb.SSP | sfb.ASP:
    """Return the consistency that "bsp", "ssp:3" or "asp" names.

    Raises:
        ValueError: The text names none.
    """
    name, _, staleness = mode.partition(":")
    if name == "ssp" and staleness.isdecimal():
        return sfb.SSP(int(staleness))
    if mode in ("bsp", "asp"):
        return sfb.BSP() if mode == "bsp" else sfb.ASP()
    raise ValueError(f"expected bsp, ssp:S or asp, got {mode!r}")


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    """Yield a row for each mode and priority, when all have run.

    Raises:
        DataError: The data cannot be trained on.
    """
    data = load(world, config.data, dense=True)
    heading(
        f"sfb bench consistency: multiclass logistic regression on {config.data}, plain SGD",
        f"stragglers: {config.stragglers}; a step computes {config.compute} ms (slept), {config.steps} a rank",
        f"bandwidth of a rank: {config.bandwidth or 'not limited'}; topology: {config.topology}",
        f"reached: when, and with how many MB sent by all ranks, rank 0 has an objective of {config.target}; "
        "stale: mean clocks that reads were behind",
        "differ: largest difference between the replicas of two ranks in the end",
    )
    cases = [(mode, priority) for mode in config.modes for priority in config.priorities]
    runs: dict[tuple[str, str], list[Row]] = {case: [] for case in cases}
    for repeat in range(config.repeats):
        for case in cases if repeat % 2 == 0 else cases[::-1]:
            runs[case].append(_train(world, data, config, *case, seed=config.seed + repeat))
    first: Row | None = None
    for (mode, priority), repeats in runs.items():
        row: Row = {"mode": mode, "priority": priority}
        for key in ("seconds", "steps_per_second", "objective", "reached", "reached_mb", "wait", "staleness", "differ"):
            values = [one[key] for one in repeats]
            row[key] = None if None in values else float(np.median(values))
        first = first or row
        row["speedup"] = row["steps_per_second"] / first["steps_per_second"]
        row["curve"] = sorted(repeats, key=lambda one: one["seconds"])[len(repeats) // 2]["curve"]
        yield row


def _train(world: MPI.Intracomm, data: Dataset, config: Config, mode: str, priority: str, *, seed: int) -> Row:
    """Train once, and return times and the curve of the objective; collective."""
    network = mlr(data.x.shape[1], len(data.classes))
    weights, bias = network.parameters
    rule = sfb.optim.SGD(lr=config.lr)
    batches = np.random.default_rng([seed, world.rank])
    delays = _delays(config, world.rank, np.random.default_rng([seed, world.rank, 1]))
    shots: list[tuple[float, int, np.ndarray, np.ndarray]] = []
    every = max(1, config.steps // _POINTS)
    own = data.train[world.rank :: world.size]
    store = sfb.Store(
        world,
        {parameter.name: parameter.array for parameter in network.parameters},
        rule,
        topology=config.topology,
        consistency=consistency_of(mode),
        bandwidth=config.bandwidth,
        priority=priority,
        seed=seed,
        progress="thread" if MPI.Query_thread() == MPI.THREAD_MULTIPLE else "poll",
    )
    world.Barrier()
    begin = perf_counter()
    with store:
        for step in range(config.steps):
            weights.array, bias.array = store[weights.name], store[bias.name]
            if step % every == 0 and world.rank == 0:
                shots.append(
                    (perf_counter() - begin, store.stats().sent_bytes, weights.array.copy(), bias.array.copy())
                )
            chosen = batches.choice(own, config.batch)
            _, gradients = network.gradients(data.x, data.y, chosen[:, np.newaxis], config.batch * world.size)
            sleep(delays[step])
            for parameter, gradient in gradients:
                store.push(parameter.name, gradient)
            store.clock()
    seconds = world.allreduce(perf_counter() - begin, MPI.MAX)
    stats = store.stats()
    weights.array, bias.array = store[weights.name], store[bias.name]
    shots.append((perf_counter() - begin, stats.sent_bytes, weights.array, bias.array))
    curve = [(at, sent * world.size / 1e6, _objective(network, data, *values)) for at, sent, *values in shots]
    first = next((point for point in curve if point[2] <= config.target), None)
    lowest, highest = (np.empty_like(weights.array) for _ in range(2))
    world.Allreduce(shots[-1][2], lowest, MPI.MIN)
    world.Allreduce(shots[-1][2], highest, MPI.MAX)
    reads = sum(stats.staleness.values())
    behind = sum(clocks * count for clocks, count in stats.staleness.items()) / reads
    return world.bcast(
        {
            "seconds": seconds,
            "steps_per_second": world.size * config.steps / seconds,
            "objective": curve[-1][2],
            "reached": None if first is None else first[0],
            "reached_mb": None if first is None else first[1],
            "wait": 100 * stats.wait_seconds / seconds,
            "staleness": behind,
            "differ": float((highest - lowest).max()),
            "curve": curve,
        }
    )


def _delays(config: Config, rank: int, rng: np.random.Generator) -> np.ndarray:
    """Return the seconds that each step of a rank takes."""
    seconds = np.full(config.steps, config.compute * 1e-3)
    if config.stragglers == "transient":
        seconds[rng.random(config.steps) < 0.1] *= 5
    elif config.stragglers == "permanent" and rank == 0:
        seconds *= 2
    return seconds


def _objective(network: Network, data: Dataset, weights: np.ndarray, bias: np.ndarray) -> float:
    """Return the mean cross-entropy over the training data."""
    for parameter, array in zip(network.parameters, (weights, bias), strict=True):
        parameter.array = array
    return network.objective(data.x, data.y, data.train[:, np.newaxis]) / len(data.train)


def draw(rows: list[Row], path: Path) -> None:
    """Draw the objective against seconds and against megabytes sent, one line a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    several = len({row["priority"] for row in rows}) > 1
    for panel, column, label in zip(panels, (0, 1), ("seconds", "MB sent by all ranks"), strict=True):
        for row in rows:
            name = f"{row['mode']}, {row['priority']}" if several else row["mode"]
            panel.plot([p[column] for p in row["curve"]], [p[2] for p in row["curve"]], label=name)
        panel.set_yscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("mean cross-entropy on the training data")
    panels[0].legend()
    figure.savefig(path, dpi=120)


run = Benchmark(COLUMNS, _rows, draw)
