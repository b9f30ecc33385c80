"""The kernels beside the best that NumPy, SciPy and PyTorch do for the same, and beside the machine's limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.linalg import get_blas_funcs
from threadpoolctl import threadpool_limits

import sfb.kernels as kernels
from sfb.bench.engine import Column, Printer, Times, measure, microseconds, write_json
from sfb.environment import describe, header
from sfb.runtime.compile import warmup

__all__ = ["COLUMNS", "KERNELS", "Config", "draw", "run"]

KERNELS = ("rebuild", "accumulate", "momentum", "adam")
# Arrays that each reads and writes.
_ARRAYS = {"rebuild": 1, "accumulate": 1, "momentum": 2, "adam": 3}
_SIDE = 1536
_LR, _MOMENTUM, _BETAS, _EPS = 1e-3, 0.9, (0.9, 0.999), 1e-8

Call = Callable[..., object]


@dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        shapes: (K, D) pairs.
        depths: Samples m.
        kernels: Names of `KERNELS`.
        dtype: Of everything.
        threads: Of the kernels, BLAS and PyTorch.
        iterations: Timed calls.
        warmups: Calls before.
        seconds: Most time for the calls of one row.
    """

    shapes: Sequence[tuple[int, int]]
    depths: Sequence[int]
    kernels: Sequence[str] = KERNELS
    dtype: str = "float32"
    threads: int = 1
    iterations: int = 21
    warmups: int = 1
    seconds: float = 2.0


COLUMNS = [
    Column("kernel", "kernel", width=11),
    Column("K", "K", width=7),
    Column("D", "D", width=7),
    Column("m", "m", width=6),
    Column("seconds", "time(us)", microseconds, 12),
    Column("other", "best other", width=11),
    Column("other_seconds", "time(us)", microseconds, 12),
    Column("ratio", "ratio", "{:.2f}".format, 8),
    Column("gflops", "Gflop/s", "{:.1f}".format, 9),
    Column("bandwidth", "GB/s", "{:.1f}".format, 8),
    Column("limit", "limit%", "{:.0f}".format, 8),
]
# With several threads: the time of one by theirs.
_SCALING = Column("scaling", "scaling", "{:.2f}".format, 9)
# Seconds after which idle threads of BLAS and PyTorch no longer spin on the cores.
_SPIN = 0.5


def run(
    world: MPI.Intracomm, config: Config, *, json_file: Path | None = None, as_csv: bool = False
) -> list[dict[str, Any]]:
    """Measure on all ranks at once, print on rank 0, and return the rows; collective."""
    node = MPI.Intracomm(world.Split_type(MPI.COMM_TYPE_SHARED))
    warmup(node)
    node.Free()
    torch = _torch(config.threads)
    printer = Printer(world, [*COLUMNS, _SCALING] if config.threads > 1 else COLUMNS, as_csv=as_csv)
    results = []
    with threadpool_limits(config.threads):
        environment = describe(world) | {"kernel_threads": config.threads}
        peak = _peak(world, config)
        printer.comment(
            [
                "sfb bench kernels: one pass over K×D from m samples",
                *header(environment),
                f"dtype {config.dtype}, {config.threads} thread{'s' * (config.threads > 1)}; "
                f"{'with' if torch else 'without'} PyTorch; matmul of side {_SIDE}: {peak / 1e9:.1f} Gflop/s",
                "time: median; best other: fastest of matmul, gemm, NumPy and PyTorch ways; ratio: other/ours",
                "GB/s: of the arrays read and written; limit: reading and writing each array once, at the rate of an",
                "addition in place that takes its turn, or 2mKD flop at that rate of matmul, whichever takes longer",
            ]
        )
        printer.heading()
        for shape in config.shapes:
            for name in config.kernels:
                for depth in config.depths:
                    row = _row(world, config, name, shape, depth, torch)
                    arrays, elements = _ARRAYS[name], shape[0] * shape[1]
                    flop, nbytes = 2 * depth * elements, 2 * arrays * elements * np.dtype(config.dtype).itemsize
                    sweep = row.pop("sweep")
                    row |= {
                        "ratio": row["other_seconds"] / row["seconds"],
                        "gflops": flop / row["seconds"] / 1e9,
                        "bandwidth": nbytes / row["seconds"] / 1e9,
                        "limit": 100 * max(arrays * sweep, flop / peak) / row["seconds"],
                        "memory_rate": nbytes / arrays / sweep,
                        "peak": peak,
                    }
                    printer.row(row)
                    results.append(row)
    if json_file is not None and world.rank == 0:
        write_json(json_file, asdict(config), environment, results)
    return results


def _row(
    world: MPI.Intracomm, config: Config, name: str, shape: tuple[int, int], depth: int, torch: Any
) -> dict[str, Any]:
    candidates = dict(_candidates(config, name, shape, depth, torch))

    def timed_all(calls: dict[str, Call]) -> dict[str, Times]:
        return measure(
            world,
            calls,
            iterations=config.iterations,
            warmups=config.warmups,
            seconds=config.seconds,
        )

    scaling = 1.0
    if config.threads > 1:
        sleep(_SPIN)
        mine = candidates["ours"]
        pair = timed_all({"ours": mine, "alone": partial(mine, threads=1)})
        scaling = pair["alone"].median / pair["ours"].median
    times = timed_all(candidates)
    ours, sweep = times.pop("ours"), times.pop("sweep")
    best = min(times, key=lambda label: times[label].median)
    return {
        "kernel": name,
        "K": shape[0],
        "D": shape[1],
        "m": depth,
        "seconds": ours.median,
        "other": best,
        "other_seconds": times[best].median,
        "others": {label: taken.median for label, taken in times.items()},
        "scaling": scaling,
        "sweep": sweep.median,
        "min": ours.min,
        "iterations": ours.iterations,
    }


def _candidates(
    config: Config, name: str, shape: tuple[int, int], depth: int, torch: Any
) -> Iterator[tuple[str, Call]]:
    """Yield ways to do the same with arrays of their own."""
    rng, dtype = np.random.default_rng(0), np.dtype(config.dtype)
    number = dtype.type
    u, v = (1e-3 * rng.standard_normal((depth, n)).astype(dtype) for n in shape)
    gemm = get_blas_funcs("gemm", dtype=dtype)

    def new(count: int) -> list[np.ndarray]:
        # Each apart: arrays that lie a power of two apart fall into the same places of the caches.
        return [np.zeros(shape, dtype) for _ in range(count)]

    def product(c: np.ndarray) -> None:
        np.matmul(u.T, v, out=c)

    def into(beta: float, c: np.ndarray) -> None:
        # Fortran's view: cᵀ = vᵀ u, in place.
        gemm(1.0, v.T, u.T, beta=beta, c=c.T, trans_b=1, overwrite_c=1)

    def add_product(w: np.ndarray, g: np.ndarray) -> None:
        product(g)
        np.add(w, g, out=w)

    def descend(w: np.ndarray, velocity: np.ndarray, spare: np.ndarray) -> None:
        np.multiply(velocity, number(_LR), out=spare)
        np.subtract(w, spare, out=w)

    def numpy_momentum(w: np.ndarray, velocity: np.ndarray, g: np.ndarray) -> None:
        product(g)
        np.multiply(velocity, number(_MOMENTUM), out=velocity)
        np.add(velocity, g, out=velocity)
        descend(w, velocity, g)

    def gemm_momentum(w: np.ndarray, velocity: np.ndarray, spare: np.ndarray) -> None:
        into(_MOMENTUM, velocity)
        descend(w, velocity, spare)

    def numpy_adam(w: np.ndarray, m: np.ndarray, q: np.ndarray, g: np.ndarray, spare: np.ndarray) -> None:
        product(g)
        _adam(w, g, m, q, spare)

    if name == "rebuild":
        yield "ours", partial(kernels.rebuild, u, v, *new(1), threads=config.threads)
        yield "matmul", partial(product, *new(1))
        yield "gemm", partial(into, 0.0, *new(1))
    elif name == "accumulate":
        yield "ours", partial(kernels.accumulate, u, v, *new(1), threads=config.threads)
        yield "gemm", partial(into, 1.0, *new(1))
        yield "matmul", partial(add_product, *new(2))
    elif name == "momentum":
        rule = kernels.sgd(_LR, _MOMENTUM)
        yield "ours", partial(kernels.update, rule, u, v, *new(1), new(1), threads=config.threads)
        yield "numpy", partial(numpy_momentum, *new(3))
        yield "gemm", partial(gemm_momentum, *new(3))
    else:
        rule = kernels.adam(_LR, 10, _BETAS, _EPS)
        yield "ours", partial(kernels.update, rule, u, v, *new(1), new(2), threads=config.threads)
        yield "numpy", partial(numpy_adam, *new(5))
    if torch and name in ("momentum", "adam"):
        yield "torch", _torch_step(torch, name, new(1)[0], u, v)
    # What reads and writes an array once, with as many threads; no rival, but the limit.
    (w,) = new(1)
    if config.threads == 1:
        yield "sweep", partial(np.add, w, number(1), out=w)
    else:
        nothing = (np.zeros((0, n), dtype) for n in shape)
        yield "sweep", partial(kernels.update, kernels.sgd(1e-9), *nothing, w, threads=config.threads)


def _adam(w: np.ndarray, g: np.ndarray, m: np.ndarray, q: np.ndarray, spare: np.ndarray) -> None:
    """Do a step of Adam with as few passes and as little memory as NumPy allows."""
    number = w.dtype.type
    m *= number(_BETAS[0])
    np.multiply(g, number(1 - _BETAS[0]), out=spare)
    m += spare
    q *= number(_BETAS[1])
    np.multiply(g, g, out=g)
    g *= number(1 - _BETAS[1])
    q += g
    np.sqrt(q, out=g)
    g += number(_EPS)
    np.divide(m, g, out=g)
    g *= number(_LR)
    w -= g


def _torch(threads: int) -> Any:
    """Return PyTorch, held to a number of threads, if it is installed."""
    if find_spec("torch") is None:
        return None
    import torch  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(threads)
    return torch


def _torch_step(torch: Any, name: str, w: np.ndarray, u: np.ndarray, v: np.ndarray) -> Call:
    """Return a product into the gradient and a fused step of PyTorch's optimizer."""
    parameter = torch.nn.Parameter(torch.from_numpy(w))
    parameter.grad = torch.zeros_like(parameter)
    left, right = torch.from_numpy(u).T, torch.from_numpy(v)
    if name == "momentum":
        optimizer = torch.optim.SGD([parameter], lr=_LR, momentum=_MOMENTUM, fused=True)
    else:
        optimizer = torch.optim.Adam([parameter], lr=_LR, betas=_BETAS, eps=_EPS, fused=True)

    def step() -> None:
        torch.mm(left, right, out=parameter.grad)
        optimizer.step()

    return step


def _peak(world: MPI.Intracomm, config: Config) -> float:
    """Return the flop per second of a square matmul, all ranks at once."""
    a, b, out = np.ones((3, _SIDE, _SIDE), config.dtype)
    return 2 * _SIDE**3 / _median(world, partial(np.matmul, a, b, out=out), 7)


def _median(world: MPI.Intracomm, call: Call, repetitions: int) -> float:
    call()
    taken = np.empty(repetitions)
    for i in range(repetitions):
        world.Barrier()
        began = perf_counter()
        call()
        taken[i] = perf_counter() - began
    world.Allreduce(MPI.IN_PLACE, taken, MPI.MAX)
    return float(np.median(taken))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a roofline (Williams, Waterman and Patterson, CACM 52(4), 2009): flop per second against flop per byte."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys((row["K"], row["D"]) for row in rows))
    figure = Figure(figsize=(1 + 4.5 * len(shapes), 4.8), layout="constrained")
    panels = figure.subplots(1, len(shapes), squeeze=False, sharey=True)[0]
    for panel, shape in zip(panels, shapes, strict=True):
        its = [row for row in rows if (row["K"], row["D"]) == shape]
        for i, name in enumerate(dict.fromkeys(row["kernel"] for row in its)):
            line = [row for row in its if row["kernel"] == name]
            intensity = [row["gflops"] / row["bandwidth"] for row in line]
            panel.plot(intensity, [row["gflops"] for row in line], "o-", color=f"C{i}", markersize=4, label=name)
            others = [row["gflops"] * row["seconds"] / row["other_seconds"] for row in line]
            panel.plot(intensity, others, "x:", color=f"C{i}", markersize=5, label=f"{name}, best other")
        every = [row["gflops"] / row["bandwidth"] for row in its]
        points = np.geomspace(min(every), max(every), 50)
        roof = np.minimum(its[0]["peak"], points * np.median([row["memory_rate"] for row in its])) / 1e9
        panel.plot(points, roof, "k--", linewidth=1, label="limit")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(f"K={shape[0]}, D={shape[1]}")
        panel.set_xlabel("flop per byte read or written")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("Gflop/s")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
