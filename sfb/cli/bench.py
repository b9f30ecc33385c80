"""The commands sfb bench …: microbenchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import click

from sfb.cli.bench_models import COMMANDS
from sfb.cli.common import (
    Bytes,
    Failure,
    Finite,
    Names,
    Shapes,
    Single,
    Sizes,
    check_names,
    examples,
    output_options,
    plot_option,
    start,
    timing_options,
)
from sfb.units import parse_rate

__all__ = ["bench"]


@click.group(
    epilog=examples(
        "mpirun -n 4 sfb bench allreduce -K 4096 -D 4096 -S 1:100",
        "mpirun -n 4 sfb bench torch",
        "sfb bench kernels",
    )
)
def bench() -> None:
    """Microbenchmarks, by the conventions of OSU and nccl-tests."""


_rows_option = click.option("-K", "rows", type=Sizes(1), default="4096", help="Rows of the gradient.")
_columns_option = click.option("-D", "columns", type=Sizes(1), default="4096", help="Columns of the gradient.")


@bench.command(
    "allreduce",
    epilog=examples(
        "mpirun -n 4 sfb bench allreduce -K 4096 -D 4096 -S 1:100 --plot allreduce.png",
        "mpirun -n 4 sfb bench allreduce -K 50 -D 47000 -S 64 --filled 0.002 -r sgd",
        "mpirun -n 4 sfb bench allreduce -b 8 -e 128M",
    ),
)
@_rows_option
@_columns_option
@click.option("--shapes", type=Shapes(), help="Rows and columns together, in place of -K and -D: 10x784,4096x4096.")
@click.option("-S", "samples", type=Sizes(0), default="1,10,32,100", help="Samples of each rank.")
@click.option("-d", "--dtype", type=click.Choice(["float32", "float64", "int32", "int64"]), default="float32",
              help="Type of the elements; integers for plain arrays only.")  # fmt: skip
@click.option(
    "-r", "--receiver", type=click.Choice(["array", "sgd", "momentum"]), default="array", help="What takes the sum."
)
@click.option("-m", "--memory", type=click.Choice(["shared", "private"]),
              help="Receivers with one copy per node or per rank; mpi always has one per rank.  "
              "[default: shared; private for plain arrays]")  # fmt: skip
@click.option("-a", "--algorithm", "algorithms", multiple=True,
              type=click.Choice(["dense", "broadcast", "node", "pipelined", "sharded", "auto"]),
              help="Time only this beside mpi; repeat it for several.  [default: all]")  # fmt: skip
@click.option("--filled", type=Finite(0, 1, min_open=True),
              help="Part of v's elements that are not 0: time CSR v, beside v.toarray() and mpi.")  # fmt: skip
@click.option("-b", "--begin", type=Bytes(), help="Smallest plain array, in bytes: 8, 64K, 128M.")
@click.option("-e", "--end", type=Bytes(), help="Largest plain array, in bytes.")
@click.option("-f", "--factor", type=click.IntRange(2), default=2, help="Ratio of two sizes of plain arrays.")
@click.option("--collective", type=click.Choice(["allreduce", "reduce_scatter_block", "allgather"]),
              default="allreduce", help="Call for plain arrays; -b and -e are bytes of the larger one.")  # fmt: skip
@click.option("-o", "--op", type=click.Choice(["sum", "prod", "max", "min"]), default="sum",
              help="Operation on plain arrays.")  # fmt: skip
@click.option("--link", help="Rate of a node's link, such as 1Gbit/s, for the limit of plain arrays.  [measured]")
@timing_options()
@click.option("-c", "--check", type=bool, default=True, help="Compare with an oracle.")
@output_options(plot=True)
def bench_allreduce(
    output: dict[str, Any],
    rows: Sequence[int],
    columns: Sequence[int],
    shapes: Sequence[tuple[int, int]] | None,
    samples: Sequence[int],
    receiver: str,
    algorithms: Sequence[str],
    filled: float | None,
    begin: int | None,
    end: int | None,
    factor: int,
    collective: str,
    op: str,
    link: str | None,
    memory: str | None,
    **common: Any,
) -> int:
    """Time Allreduce of factors, every algorithm beside MPI's own Allreduce of the dense gradient.

    Sizes are numbers, lists 1,10,100 or ranges 1:100. With -b or -e, time Allreduce of plain arrays through sfb.Comm
    beside MPI's; added(us) is the time of sfb.Comm minus that of MPI. Exits with 1 if a result is wrong.
    """
    if begin is not None or end is not None:
        world = start()
        sizes = _sizes(begin, end, factor)
        try:
            rate = None if link is None else parse_rate(link, "--link")
        except ValueError as error:
            raise Failure(str(error)) from error
        from sfb.bench import arrays

        plain: dict[str, Any] = {
            "sizes": sizes,
            "collective": collective,
            "op": op,
            "link": rate,
            "memory": memory or "private",
        }
        results = arrays.run(world, arrays.Config(**plain, **common), **output)
    else:
        world = start()
        if common["dtype"] not in ("float32", "float64"):
            raise Failure(f"factors are float32 or float64, not {common['dtype']}; -b and -e measure plain arrays")
        from sfb.bench import allreduce

        refused = set(algorithms) - set(allreduce.SPARSE_CANDIDATES)
        if filled is not None and refused:
            raise Failure(f"{', '.join(sorted(refused))} do not take CSR v, which --filled asks for")
        exchanges = allreduce.Config(
            shapes=shapes or tuple(product(rows, columns)),
            samples=samples,
            receiver=receiver,
            memory=memory or "shared",
            algorithms=algorithms or (allreduce.CANDIDATES if filled is None else allreduce.SPARSE_CANDIDATES),
            filled=filled,
            **common,
        )
        results = allreduce.run(world, exchanges, **output)
    return int(any(row["wrong"] for row in results))


def _sizes(begin: int | None, end: int | None, factor: int) -> list[int]:
    """Return the bytes of plain arrays, from ``begin`` to ``end``."""
    begin = begin or min(8, end or 8)
    end = end or max(begin, 128 << 20)
    if begin > end:
        raise Failure("-b must not be above -e")
    sizes = [begin]
    while sizes[-1] * factor <= end:
        sizes.append(sizes[-1] * factor)
    return sizes


@bench.command("overlap", epilog=examples("mpirun -n 4 sfb bench overlap -K 4096 -D 4096 -S 1,10,100"))
@_rows_option
@_columns_option
@click.option("-S", "samples", type=Sizes(0), default="1,10,100", help="Samples of each rank.")
@timing_options()
@output_options(plot=False)
def bench_overlap(output: dict[str, Any], rows: Sequence[int], columns: Sequence[int], **options: Any) -> None:
    """Measure the part of an Iallreduce that computation hides, as OMB does."""
    world = start()
    from sfb.bench import overlap

    overlap.run(world, overlap.Config(shapes=tuple(product(rows, columns)), **options), **output)


@bench.command(
    "kernels",
    epilog=examples(
        "sfb bench kernels -t 0.7 --plot roofline.png", "sfb bench kernels -k accumulate --shapes 4096x784 -m 1,10,100"
    ),
)
@click.option("--shapes", type=Shapes(), default="4096x4096,1000x21504,4096x784,10x784,777x1333",
              help="Rows and columns of the gradient.")  # fmt: skip
@click.option("-m", "--depths", type=Sizes(0), default="1,2,4,8,10,16,20,40,64,128,400,1000",
              help="Samples of all ranks together.")  # fmt: skip
@click.option("-k", "--kernel", "kernels", multiple=True,
              type=click.Choice(["rebuild", "accumulate", "momentum", "adam"]),
              help="Time only this; repeat it for several.  [default: all]")  # fmt: skip
@click.option("-d", "--dtype", type=click.Choice(["float32", "float64"]), default="float32",
              help="Type of the elements.")  # fmt: skip
@click.option("-T", "--threads", type=click.IntRange(1), default=1, help="Threads of the kernels, BLAS and PyTorch.")
@timing_options(21, 1, 2.0)
@output_options(plot=True)
def bench_kernels(output: dict[str, Any], **options: Any) -> None:
    """Time the kernels beside BLAS, NumPy and PyTorch, and beside the machine's limit; needs no mpirun."""
    world = start()
    from sfb.bench import kernels

    options["kernels"] = options["kernels"] or kernels.KERNELS
    kernels.run(world, kernels.Config(**options), **output)


@bench.command(
    "torch",
    epilog=examples(
        "mpirun -n 4 sfb bench torch --plot torch.png", "mpirun -n 4 sfb bench torch -m mlp -l 784,1024,10 -a attach"
    ),
)
@click.option("-m", "--models", type=Names(), default="mlp,embedding,conv",
              help="Any of mlp, a perceptron; embedding, a text classifier; conv, a convolutional net.")  # fmt: skip
@click.option("-l", "--layers", type=Sizes(1), default="784,4096,4096,10", help="Widths of the perceptron.")
@click.option("-S", "samples", type=Sizes(1), default="16", help="Samples of each rank.")
@click.option("--optimizer", type=click.Choice(["sgd", "momentum", "nesterov", "adam", "adamw", "adagrad"]),
              default="momentum", help="Optimizer of torch.optim; momentum: SGD with 0.9.")  # fmt: skip
@click.option("-d", "--dtype", type=click.Choice(["float32", "float64"]), default="float32",
              help="Type of the elements.")  # fmt: skip
@click.option("-a", "--candidate", "candidates", multiple=True,
              type=click.Choice(["attach", "attach-unfused", "ddp-sfb", "ddp-gloo", "ddp-powersgd", "local"]),
              help="Time only this beside ddp-gloo; repeat it for several.  [default: all]")  # fmt: skip
@timing_options(30, 10, 60.0, calls="steps")
@click.option("-c", "--check", type=bool, default=True, help="Compare weights with those of DDP over gloo.")
@output_options(plot=True)
def bench_torch(output: dict[str, Any], **options: Any) -> int:
    """Time PyTorch's training steps: sfb.torch.attach beside DistributedDataParallel over gloo and over sfb.

    Candidates take steps in turn, each with a copy of the model and an optimizer of its own. Exits with 1 if the
    weights of a candidate that promises those of DDP differ from them. GLOO_SOCKET_IFNAME names gloo's interface; by
    default it is the one by which a rank reaches rank 0.
    """
    world = start()
    if find_spec("torch") is None:
        raise Failure("PyTorch is not installed; install it with pip install 'sfb-mpi[torch]'")
    from sfb.bench import gloo, torch, training

    check_names("models", options["models"], training.MODELS)
    if len(options["layers"]) < 2:
        raise Failure(f"-l takes at least two widths, inputs and classes, got {options['layers'][0]}")
    options["candidates"] = options["candidates"] or training.CANDIDATES
    try:
        results = torch.run(world, torch.Config(**options), **output)
    except gloo.GlooError as error:
        raise Failure(str(error)) from error
    return int(any(row["wrong"] for row in results))


@bench.command("choice", cls=Single, epilog=examples("sfb bench choice n2.json n4.json --plot choice.png"))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@plot_option
def bench_choice(files: tuple[Path, ...], plot: Path | None) -> None:
    """Show how good the choice of "auto" was in FILES that bench allreduce -J wrote; needs no mpirun."""
    from sfb.bench.choice import ChoiceError, draw, read, report

    try:
        cells = read(files)
    except ChoiceError as error:
        raise Failure(str(error)) from error
    if plot is not None:
        draw(cells, plot)
    click.echo(report(cells))


@bench.command("store", epilog=examples("mpirun -n 4 sfb bench store -S 1,10 --topology halton,ring"))
@click.option("-K", "rows", type=click.IntRange(1), default=4096, help="Rows of the table.")
@click.option("-D", "columns", type=click.IntRange(1), default=4096, help="Columns of the table.")
@click.option("-S", "samples", type=Sizes(0), default="1,10", help="Samples of each rank's update.")
@click.option("--topology", "topologies", type=Names(), default="halton,ring,complete", help="Graphs of the ranks.")
@timing_options(calls="clocks")
@output_options(plot=False)
def bench_store(output: dict[str, Any], rows: int, columns: int, **options: Any) -> None:
    """Time clocks of the decentralised store beside an Allreduce of the same factors."""
    world = start()
    from sfb import StoreError
    from sfb.bench import store

    try:
        store.run(world, store.Config(shape=(rows, columns), **options), **output)
    except StoreError as error:
        raise Failure(str(error)) from error


@bench.command("consistency", epilog=examples("mpirun -n 4 sfb bench consistency --steps 300 --plot consistency.png"))
@click.option("--data", default="mnist", help="What to learn, as in sfb train.")
@click.option("--modes", type=Names(), default="bsp,ssp:1,ssp:3,ssp:10,asp", help="Any of bsp, ssp:S and asp.")
@click.option("--priority", "priorities", type=Names(), default="fifo",
              help="Any of fifo, random, round-robin, absolute and relative.")  # fmt: skip
@click.option("--stragglers", type=click.Choice(["transient", "permanent", "none"]), default="transient",
              help="A tenth of all steps takes five times as long, or rank 0 twice as long.")  # fmt: skip
@click.option("--compute", type=Finite(0), default=10.0,
              help="Milliseconds that a step sleeps in place of computing.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=200, help="Steps of each rank.")
@click.option("--batch", type=click.IntRange(1), default=16, help="Samples of a rank in a step.")
@click.option("--lr", type=Finite(0, min_open=True), default=0.5, help="Learning rate.")
@click.option("--bandwidth", help="Most that a rank sends, such as 1Mbit/s; not limited by default.")
@click.option("--topology", default="halton", help="Graph of the ranks.")
@click.option("--target", type=Finite(0, min_open=True), default=0.5, help="Objective to be reached.")
@click.option("-r", "--repeats", type=click.IntRange(1), default=3, help="Times that each case runs.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of stragglers and batches.")
@output_options(plot=True)
def bench_consistency(output: dict[str, Any], **options: Any) -> None:
    """Train with stragglers under BSP, SSP and ASP."""
    world = start()
    from sfb import StoreError
    from sfb.bench import consistency
    from sfb.training.data import DataError

    try:
        for mode in options["modes"]:
            consistency.consistency_of(mode)
        consistency.run(world, consistency.Config(**options), **output)
    except (DataError, StoreError, ValueError) as error:
        raise Failure(str(error)) from error


@bench.command("trace", epilog=examples("mpirun -n 4 sfb bench trace"))
@click.option("--data", default="mnist", help='What to train on for the time of a step; "" for none.')
@click.option("--epochs", type=click.IntRange(1), default=2, help="Passes over it.")
@timing_options(30, 2, 5.0, calls="loops")
@output_options(plot=False)
def bench_trace(output: dict[str, Any], **options: Any) -> None:
    """Time calls, and steps of a training, with a trace and without (docs/trace.md)."""
    world = start()
    if options["data"] and find_spec("sklearn") is None:
        raise Failure("scikit-learn is not installed; install it with pip install 'sfb-mpi[models]', or pass --data ''")
    from sfb.bench import trace

    trace.run(world, trace.Config(**options), **output)


for _command in COMMANDS:
    bench.add_command(_command)
