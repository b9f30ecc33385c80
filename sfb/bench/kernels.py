"""The kernels beside NumPy, SciPy and PyTorch at the same work, and beside the machine's limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.linalg import get_blas_funcs
from threadpoolctl import threadpool_limits

import sfb.kernels as kernels
from sfb.bench.engine import Benchmark, Column, Heading, Row, Timing, columns, measure
from sfb.environment import describe
from sfb.runtime.compile import warmup
from sfb.units import microseconds

__all__ = ["COLUMNS", "KERNELS", "Config", "draw", "run"]

KERNELS = ("rebuild", "accumulate", "momentum", "adam")
# Arrays that each kernel reads and writes.
_ARRAYS = {"rebuild": 1, "accumulate": 1, "momentum": 2, "adam": 3}
_SIDE = 1536
_LR, _MOMENTUM, _BETAS, _EPS = 1e-3, 0.9, (0.9, 0.999), 1e-8
# Seconds after which idle threads of BLAS and PyTorch no longer spin on the cores.
_SPIN = 0.5

Call = Callable[..., object]


@dataclass(frozen=True, kw_only=True)
class Config(Timing):
    """What to measure.

    Attributes:
        shapes: (K, D) of each matrix.
        depths: Each number of samples, m.
        kernels: Names in `KERNELS`.
        dtype: "float32" or "float64".
        threads: Threads of the kernels, BLAS and PyTorch.
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
    *columns(str, 7, K="K", D="D", m="m"),
    Column("seconds", "time(us)", microseconds, 12),
    Column("other", "best other", width=11),
    Column("other_seconds", "time(us)", microseconds, 12),
    Column("ratio", "ratio", "{:.2f}".format, 8),
    *columns("{:.1f}".format, 9, gflops="Gflop/s", bandwidth="GB/s"),
    Column("limit", "limit%", "{:.0f}".format, 8),
    Column("scaling", "scaling", "{:.2f}".format, 9, when=lambda config: config.threads > 1),
]


def _rows(world: MPI.Intracomm, config: Config, heading: Heading) -> Iterator[Row]:
    """Yield a row for each shape, kernel and depth; all ranks measure at once."""
    node = MPI.Intracomm(world.Split_type(MPI.COMM_TYPE_SHARED))
    warmup(node)
    node.Free()
    torch = _torch(config.threads)
    with threadpool_limits(config.threads):
        peak = _peak(world, config)
        heading(
            "sfb bench kernels: one pass over K×D from m samples",
            f"dtype {config.dtype}, {config.threads} thread{'s' * (config.threads > 1)}; "
            f"{'with' if torch else 'without'} PyTorch; matmul of side {_SIDE}: {peak / 1e9:.1f} Gflop/s",
            "time: median; best other: fastest of matmul, gemm, NumPy and PyTorch; ratio: other/ours",
            "GB/s: of the arrays read and written; limit: reading and writing each array once, at the rate of an",
            "addition in place that is timed in turn, or 2mKD flop at that rate of matmul, whichever takes longer",
            *["scaling: time with one thread over time with all"] * (config.threads > 1),
            kernel_threads=config.threads,
            **describe(world),  # the threads of BLAS have changed
        )
        for shape in config.shapes:
            for name in config.kernels:
                for depth in config.depths:
                    yield _measure(world, config, name, shape, depth, torch, peak)


def _measure(
    world: MPI.Intracomm, config: Config, name: str, shape: tuple[int, int], depth: int, torch: Any, peak: float
) -> Row:
    candidates = dict(_candidates(config, name, shape, depth, torch))
    scaling = 1.0
    if config.threads > 1:
        sleep(_SPIN)
        mine = candidates["ours"]
        pair = measure(world, {"ours": mine, "alone": partial(mine, threads=1)}, config)
        scaling = pair["alone"].median / pair["ours"].median
    times = measure(world, candidates, config)
    ours, sweep = times.pop("ours"), times.pop("sweep").median
    best = min(times, key=lambda label: times[label].median)
    arrays, elements = _ARRAYS[name], shape[0] * shape[1]
    flop, nbytes = 2 * depth * elements, 2 * arrays * elements * np.dtype(config.dtype).itemsize
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
        "min": ours.min,
        "iterations": ours.iterations,
        "ratio": times[best].median / ours.median,
        "gflops": flop / ours.median / 1e9,
        "bandwidth": nbytes / ours.median / 1e9,
        "limit": 100 * max(arrays * sweep, flop / peak) / ours.median,
        "memory_rate": nbytes / arrays / sweep,
        "peak": peak,
    }


def _candidates(
    config: Config, name: str, shape: tuple[int, int], depth: int, torch: Any
) -> Iterator[tuple[str, Call]]:
    """Yield functions that do the same work, by name, each with arrays of its own; and "sweep", for the limit."""
    rng, dtype = np.random.default_rng(0), np.dtype(config.dtype)
    number = dtype.type
    u, v = (1e-3 * rng.standard_normal((depth, n)).astype(dtype) for n in shape)
    gemm = get_blas_funcs("gemm", dtype=dtype)

    def new(count: int) -> list[np.ndarray]:
        # Allocated one by one: arrays that lie a power of two apart share the same sets of the caches.
        return [np.zeros(shape, dtype) for _ in range(count)]

    def product(c: np.ndarray) -> None:
        np.matmul(u.T, v, out=c)

    def into(beta: float, c: np.ndarray) -> None:
        # BLAS is column-major, so it computes cᵀ = vᵀ u, in place.
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
    # The limit is a function that reads and writes an array once, with as many threads.
    (w,) = new(1)
    if config.threads == 1:
        yield "sweep", partial(np.add, w, number(1), out=w)
    else:
        nothing = (np.zeros((0, n), dtype) for n in shape)
        yield "sweep", partial(kernels.update, kernels.sgd(1e-9), *nothing, w, threads=config.threads)


def _adam(w: np.ndarray, g: np.ndarray, m: np.ndarray, q: np.ndarray, spare: np.ndarray) -> None:
    """Take a step of Adam with as few passes and as little memory as NumPy allows."""
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
    """Return PyTorch, held to a number of threads, or None where it is not installed."""
    if find_spec("torch") is None:
        return None
    import torch  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(threads)
    return torch


def _torch_step(torch: Any, name: str, w: np.ndarray, u: np.ndarray, v: np.ndarray) -> Call:
    """Return a function that forms the gradient and takes a fused step of PyTorch's optimizer."""
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
    """Return the flop per second of a square matmul, all ranks at once; collective."""
    a, b, out = np.ones((3, _SIDE, _SIDE), config.dtype)
    timing = Timing(iterations=7, warmups=1, seconds=30.0)
    return 2 * _SIDE**3 / measure(world, {"matmul": partial(np.matmul, a, b, out=out)}, timing)["matmul"].median


def draw(rows: list[Row], path: Path) -> None:
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


run = Benchmark(COLUMNS, _rows, draw)
