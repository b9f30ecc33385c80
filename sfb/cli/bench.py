"""The commands sfb bench …: microbenchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click

from sfb.cli.common import Bytes, Failure, Finite, Names, Shapes, Sizes, json_option, plot_option, start
from sfb.units import parse_rate

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Microbenchmarks, by the conventions of OSU and nccl-tests."""


@bench.command("allreduce")
@click.option("-K", "rows", type=Sizes(1), default="4096", help="Rows of the gradient.")
@click.option("-D", "columns", type=Sizes(1), default="4096", help="Columns of the gradient.")
@click.option("--shapes", type=Shapes(), help="Rows and columns together, in place of -K and -D: 10x784,4096x4096.")
@click.option("-S", "samples", type=Sizes(0), default="1,10,32,100", help="Samples of each rank.")
@click.option("-d", "--dtype", type=click.Choice(["float32", "float64", "int32", "int64"]), default="float32",
              help="Of everything; plain arrays take integers, too.")  # fmt: skip
@click.option(
    "-r", "--receiver", type=click.Choice(["array", "sgd", "momentum"]), default="array", help="What takes the sum."
)
@click.option("-m", "--memory", type=click.Choice(["shared", "private"]),
              help="Receivers with one copy per node or per rank; mpi always has one per rank.  "
              "[default: shared; private for plain arrays]")  # fmt: skip
@click.option("-a", "--algorithm", "algorithms", multiple=True,
              type=click.Choice(["dense", "broadcast", "node", "pipelined", "sharded", "auto"]),
              help="Only these beside mpi; may be repeated.  [default: all]")  # fmt: skip
@click.option("-b", "--begin", type=Bytes(), help="Plain arrays from so many bytes on: 8, 64K, 128M.")
@click.option("-e", "--end", type=Bytes(), help="To so many.")
@click.option("-f", "--factor", type=click.IntRange(2), default=2, help="From one size of plain arrays to the next.")
@click.option("--collective", type=click.Choice(["allreduce", "reduce_scatter_block", "allgather"]),
              default="allreduce", help="Of plain arrays; -b and -e are bytes of the larger one.")  # fmt: skip
@click.option("-o", "--op", type=click.Choice(["sum", "prod", "max", "min"]), default="sum", help="Of plain arrays.")
@click.option("--link", help="Rate of a node's link, such as 1Gbit/s, for the limit of plain arrays.  [measured]")
@click.option("-n", "--iterations", type=click.IntRange(1), default=20, help="Timed calls.")
@click.option("-w", "--warmups", type=click.IntRange(1), default=2, help="Calls before.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=20.0,
              help="Most time for the rows of one size.")  # fmt: skip
@click.option("-p", "--pause", type=Finite(0), default=0.0, help="Seconds without messages before each timed call.")
@click.option("-c", "--check", type=bool, default=True, help="Compare with an oracle.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@plot_option
def bench_allreduce(json_file: Path | None, plot: Path | None, as_csv: bool, **options: Any) -> int:
    """Allreduce of factors, every algorithm beside MPI's own Allreduce of the dense gradient.

    Sizes are numbers, lists 1,10,100 or ranges 1:100. With -b or -e, Allreduce of plain arrays through sfb.Comm beside
    MPI's. Exits with 1 if a result is wrong.
    """
    plain = {name: options.pop(name) for name in ("begin", "end", "factor", "collective", "op", "link")}
    if plain["begin"] is not None or plain["end"] is not None:
        return _bench_arrays(json_file, plot, as_csv, options, **plain)
    if options["dtype"] not in ("float32", "float64"):
        raise Failure(f"factors are float32 or float64, not {options['dtype']}; -b and -e measure plain arrays")
    options["memory"] = options["memory"] or "shared"
    world = start()
    from sfb.bench import allreduce

    rows, columns, shapes = (options.pop(name) for name in ("rows", "columns", "shapes"))
    options["shapes"] = shapes or tuple(product(rows, columns))
    options["algorithms"] = options["algorithms"] or allreduce.CANDIDATES
    config = allreduce.Config(**options)
    rows = allreduce.run(world, config, json_file=json_file, as_csv=as_csv)
    if plot is not None and world.rank == 0:
        from sfb.bench.plot import draw

        draw(rows, plot)
    return int(any(row["wrong"] for row in rows))


def _bench_arrays(
    json_file: Path | None,
    plot: Path | None,
    as_csv: bool,
    options: dict[str, Any],
    *,
    begin: int | None,
    end: int | None,
    factor: int,
    collective: str,
    op: str,
    link: str | None,
) -> int:
    begin = begin or min(8, end or 8)
    end = end or max(begin, 128 << 20)
    if begin > end:
        raise Failure("-b must not be above -e")
    sizes = [begin]
    while sizes[-1] * factor <= end:
        sizes.append(sizes[-1] * factor)
    try:
        rate = None if link is None else parse_rate(link, "--link")
    except ValueError as error:
        raise Failure(str(error)) from error
    world = start()
    from sfb.bench import arrays

    taken = {name: options[name] for name in ("dtype", "iterations", "warmups", "seconds", "pause", "check")}
    memory = options["memory"] or "private"
    config = arrays.Config(sizes=sizes, collective=collective, op=op, link=rate, memory=memory, **taken)
    rows = arrays.run(world, config, json_file=json_file, as_csv=as_csv)
    if plot is not None and world.rank == 0:
        arrays.draw(rows, plot)
    return int(any(row["wrong"] for row in rows))


@bench.command("overhead")
@click.option("-b", "--begin", type=click.IntRange(8), default=8, help="Bytes of the smallest array.")
@click.option("-e", "--end", type=click.IntRange(8), default=1 << 20, help="Bytes of the largest.")
@click.option("-f", "--factor", type=click.IntRange(2), default=8, help="From one size to the next.")
@click.option("-n", "--iterations", type=click.IntRange(1), default=50, help="Timed samples, of 100 calls each.")
@click.option("-w", "--warmups", type=click.IntRange(1), default=2, help="Samples before.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=5.0, help="Most time for one size.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
def bench_overhead(json_file: Path | None, as_csv: bool, begin: int, end: int, factor: int, **options: Any) -> None:
    """Allreduce of plain arrays through sfb.Comm beside mpi4py itself."""
    world = start()
    from sfb.bench import overhead

    sizes = []
    while begin <= end:
        sizes.append(begin)
        begin *= factor
    if not sizes:
        raise Failure("-b must not be above -e")
    overhead.run(world, overhead.Config(sizes=sizes, **options), json_file=json_file, as_csv=as_csv)


@bench.command("overlap")
@click.option("-K", "rows", type=Sizes(1), default="4096", help="Rows of the gradient.")
@click.option("-D", "columns", type=Sizes(1), default="4096", help="Columns of the gradient.")
@click.option("-S", "samples", type=Sizes(0), default="1,10,100", help="Samples of each rank.")
@click.option("-n", "--iterations", type=click.IntRange(1), default=20, help="Timed calls.")
@click.option("-w", "--warmups", type=click.IntRange(1), default=2, help="Calls before.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=20.0,
              help="Most time for the rows of one size.")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
def bench_overlap(
    json_file: Path | None, as_csv: bool, rows: Sequence[int], columns: Sequence[int], **options: Any
) -> None:
    """Part of an Iallreduce that computation hides, as OMB reports it."""
    world = start()
    from sfb.bench import overlap

    config = overlap.Config(shapes=tuple(product(rows, columns)), **options)
    overlap.run(world, config, json_file=json_file, as_csv=as_csv)


@bench.command("kernels")
@click.option("--shapes", type=Shapes(), default="4096x4096,1000x21504,4096x784,10x784,777x1333",
              help="Rows and columns of the gradient.")  # fmt: skip
@click.option("-m", "--depths", type=Sizes(0), default="1,2,4,8,10,16,20,40,64,128,400,1000",
              help="Samples of all ranks together.")  # fmt: skip
@click.option("-k", "--kernel", "kernels", multiple=True,
              type=click.Choice(["rebuild", "accumulate", "momentum", "adam"]),
              help="Only these; may be repeated.  [default: all]")  # fmt: skip
@click.option("-d", "--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Of everything.")
@click.option("-T", "--threads", type=click.IntRange(1), default=1, help="Of the kernels, BLAS and PyTorch.")
@click.option("-n", "--iterations", type=click.IntRange(1), default=21, help="Timed calls.")
@click.option("-w", "--warmups", type=click.IntRange(1), default=1, help="Calls before.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=2.0, help="Most time for one row.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@plot_option
def bench_kernels(json_file: Path | None, plot: Path | None, as_csv: bool, **options: Any) -> None:
    """The kernels beside BLAS, NumPy and PyTorch, and beside the machine's limit; needs no mpirun."""
    world = start()
    from sfb.bench import kernels

    options["kernels"] = options["kernels"] or kernels.KERNELS
    rows = kernels.run(world, kernels.Config(**options), json_file=json_file, as_csv=as_csv)
    if plot is not None and world.rank == 0:
        kernels.draw(rows, plot)


@bench.command("choice")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@plot_option
def bench_choice(files: tuple[Path, ...], plot: Path | None) -> None:
    """How good the choice of "auto" was in FILES, which bench allreduce -J wrote; needs no mpirun."""
    from sfb.bench.choice import ChoiceError, draw, read, report

    try:
        cells = read(files)
    except ChoiceError as error:
        raise Failure(str(error)) from error
    click.echo(report(cells))
    if plot is not None:
        draw(cells, plot)


@bench.command("store")
@click.option("-K", "rows", type=click.IntRange(1), default=4096, help="Rows of the table.")
@click.option("-D", "columns", type=click.IntRange(1), default=4096, help="Columns of the table.")
@click.option("-S", "samples", type=Sizes(0), default="1,10", help="Samples of each rank's update.")
@click.option("--topology", "topologies", type=Names(), default="halton,ring,complete", help="Graphs of the ranks.")
@click.option("-n", "--iterations", type=click.IntRange(1), default=20, help="Timed clocks.")
@click.option("-w", "--warmups", type=click.IntRange(1), default=2, help="Clocks before.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=20.0,
              help="Most time for the rows of one S.")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
def bench_store(json_file: Path | None, as_csv: bool, rows: int, columns: int, **options: Any) -> None:
    """Clocks of the decentralised store beside an Allreduce of the same factors."""
    world = start()
    from sfb.bench import store

    store.run(world, store.Config(shape=(rows, columns), **options), json_file=json_file, as_csv=as_csv)


@bench.command("transport")
@click.option("-n", "--iterations", type=click.IntRange(1), default=50, help="Timed samples, of 20 round trips each.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=10.0, help="Most time for one size.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
def bench_transport(json_file: Path | None, as_csv: bool, **options: Any) -> None:
    """Messages inside a node, two-sided and one-sided; for 2 ranks."""
    world = start()
    from sfb.bench import transport

    try:
        transport.run(world, transport.Config(**options), json_file=json_file, as_csv=as_csv)
    except ValueError as error:
        raise Failure(str(error)) from error


@bench.command("consistency")
@click.option("--data", default="mnist", help="As of sfb train.")
@click.option("--modes", type=Names(), default="bsp,ssp:1,ssp:3,ssp:10,asp", help="Of bsp, ssp:S and asp.")
@click.option("--priority", "priorities", type=Names(), default="fifo",
              help="Of fifo, random, round-robin, absolute and relative.")  # fmt: skip
@click.option("--stragglers", type=click.Choice(["transient", "permanent", "none"]), default="transient",
              help="A tenth of all steps takes five times as long, or rank 0 twice as long.")  # fmt: skip
@click.option("--compute", type=Finite(0), default=10.0, help="Milliseconds of a step's computation, slept.")
@click.option("--steps", type=click.IntRange(1), default=200, help="Of each rank.")
@click.option("--batch", type=click.IntRange(1), default=16, help="Samples of a rank and step.")
@click.option("--lr", type=Finite(0, min_open=True), default=0.5, help="Learning rate.")
@click.option("--bandwidth", help="Of each rank, such as 1Mbit/s; not limited by default.")
@click.option("--topology", default="halton", help="Graph of the ranks.")
@click.option("--target", type=Finite(0, min_open=True), default=0.5, help="Objective to be reached.")
@click.option("-r", "--repeats", type=click.IntRange(1), default=3, help="Of each run.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of stragglers and batches.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@plot_option
def bench_consistency(json_file: Path | None, plot: Path | None, as_csv: bool, **options: Any) -> None:
    """Training with stragglers under BSP, SSP and ASP."""
    world = start()
    from sfb.bench import consistency
    from sfb.models.data import DataError

    try:
        for mode in options["modes"]:
            consistency.consistency_of(mode)
        rows = consistency.run(world, consistency.Config(**options), json_file=json_file, as_csv=as_csv)
    except (DataError, ValueError) as error:
        raise Failure(str(error)) from error
    if plot is not None and world.rank == 0:
        consistency.draw(rows, plot)
