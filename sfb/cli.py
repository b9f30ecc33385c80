"""The command line: what is printed, and how a run on many ranks ends."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sfb._version import __version__
from sfb.launch import LaunchError, abort, check_launcher, foreign_launcher, lone_rank
from sfb.profile import ProfileError

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["cli", "run"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


class Failure(click.ClickException):
    """A failure that every rank has come to: one message, from rank 0, and exit code 1 on all."""

    def show(self, file: Any = None) -> None:
        if "mpi4py.MPI" in sys.modules and _world().rank != 0:
            return
        click.echo(f"sfb: error: {self.format_message()}", file=file, err=True)


def run() -> int:
    """Run the command line; return the exit code."""
    try:
        result = cli.main(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except ProfileError as error:  # every rank has come to it
        Failure(str(error)).show()
        return 1
    except OSError as error:
        if _world_size() > 1:
            abort(error)
        print(f"sfb: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if _world_size() > 1:
            abort(error)
        raise


def _world_size() -> int:
    """Return the number of ranks; 1 before MPI is loaded."""
    return _world().size if "mpi4py.MPI" in sys.modules else 1


def _world() -> MPI.Intracomm:
    from mpi4py import MPI

    return MPI.COMM_WORLD


def _start() -> MPI.Intracomm:
    """Initialise MPI, and fail if the launcher is not that of the MPI library."""
    problem = foreign_launcher()
    if problem:
        raise Failure(problem)
    try:
        world = _world()
    except (ImportError, RuntimeError) as error:
        raise Failure(f"{error}\nNo MPI library found; install one with pip install 'sfb-mpi[mpich]'") from error
    try:
        check_launcher(world.size)
    except LaunchError as error:
        raise Failure(str(error)) from error
    return world


class Sizes(click.ParamType):
    """Sizes: a number, a list "1,10,100", or a range "1:100" that doubles and ends with its end."""

    name = "sizes"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        sizes: list[int] = []
        try:
            for part in str(value).split(","):
                first, colon, last = part.partition(":")
                begin, end = int(first), int(last if colon else first)
                if end < begin:
                    self.fail(f"{part!r} ends before it begins", param, ctx)
                while begin < end:
                    sizes.append(begin)
                    begin = max(1, 2 * begin)
                sizes.append(end)
        except ValueError:
            self.fail(f"{value!r} is not a number, a list 1,10,100 or a range 1:100", param, ctx)
        if min(sizes) < self._least:
            self.fail(f"{min(sizes)} is less than {self._least}", param, ctx)
        return sizes


class Shapes(click.ParamType):
    """Matrices, as KxD,KxD."""

    name = "KxD,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        try:
            shapes = tuple(tuple(int(n) for n in shape.split("x")) for shape in value.split(","))
        except ValueError:
            shapes = ()
        if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
            self.fail(f"{value!r} is not a list of shapes such as 10x784,4096x4096", param, ctx)
        return shapes


class Output(click.Path):
    """A file to write, in a folder that can be written before hours of work go into it."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        folder = Path(str(path)).absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            self.fail(f"the folder of {str(path)!r} does not exist or cannot be written", param, ctx)
        return path


class Finite(click.FloatRange):
    """A number in a range; neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def _check_plot(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in (".png", ".pdf", ".svg"):
        raise click.BadParameter(f"must end in .png, .pdf or .svg, got {value.name!r}")
    if value is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.BadParameter("needs matplotlib: pip install 'sfb-mpi[plot]'")
    return value


_json_option = click.option("-J", "--json", "json_file", type=Output(), help="Write the results to FILE as JSON.")
_plot_option = click.option("--plot", type=Output(), callback=_check_plot, help="Draw the results: .png, .pdf or .svg.")


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="sfb")
def cli() -> None:
    """MPI collectives over sufficient factors.

    Start it with mpirun: mpirun -n 4 sfb train mlp
    """


@cli.command()
@_json_option
def info(json_file: Path | None) -> None:
    """Say what is installed, and how the ranks lie on nodes and cores."""
    problem = foreign_launcher()
    if problem:
        raise Failure(problem)
    from sfb.environment import describe, header, slow_blas
    from sfb.threads import limit_process

    world = _world()
    warning = lone_rank(world.size)
    threads = limit_process(world)
    environment = describe(world)
    if world.rank == 0:
        for line in header(environment):
            click.echo(line)
        click.echo(f"threads per rank that the commands use: {threads}")
        if json_file is not None:
            json_file.write_text(json.dumps(environment, indent=1) + "\n")
        for problem in (warning, slow_blas(environment)):
            if problem:
                click.echo(f"warning: {problem}", err=True)


@cli.command()
def warmup() -> None:
    """Compile all kernels into Numba's cache, on one rank of each node first."""
    world = _start()
    from sfb import Comm
    from sfb.warmup import warmup as compile_kernels

    with Comm(world) as comm:
        compile_kernels(comm.node)
    if world.rank == 0:
        click.echo("kernels are compiled and cached")


@cli.command()
@click.option("-o", "--output", type=Output(), help="Write the profile to FILE, too; SFB_PROFILE=FILE uses it.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=10.0, help="Time to measure for, about.")
def tune(output: Path | None, seconds: float) -> None:
    """Measure what these ranks can do, once, for the choice of algorithms.

    The profile is kept in the user's cache, by hosts, ranks per node, MPI and threads, and found there by every
    later program that starts the same ranks.
    """
    world = _start()
    from sfb import Comm
    from sfb.calibrate import cache_file, describe
    from sfb.calibrate import tune as measure
    from sfb.threads import limit_process

    limit_process(world)
    with Comm(world) as comm:
        profile = measure(comm, seconds)
    if world.rank == 0:
        kept = cache_file(profile.identity)
        kept.parent.mkdir(parents=True, exist_ok=True)
        for path in (kept, output):
            if path is not None:
                path.write_text(profile.to_json())
                click.echo(f"written: {path}")
        for line in describe(profile):
            click.echo(line)


@cli.command()
@click.option("-K", "rows", type=click.IntRange(1), default=4096, help="Rows of the gradient.")
@click.option("-D", "columns", type=click.IntRange(1), default=4096, help="Columns of the gradient.")
@click.option("-S", "samples", type=click.IntRange(0), default=32, help="Samples of each rank.")
@click.option("--ranks", type=click.IntRange(1), default=4, help="Ranks in all.")
@click.option("--nodes", type=click.IntRange(1), default=1, help="Nodes that they fill.")
@click.option("-d", "--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Of factors and sum.")
@click.option("-r", "--receiver", type=click.Choice(["array", "sgd", "momentum"]), default="array",
              help="What takes the sum.")  # fmt: skip
@click.option("-m", "--memory", type=click.Choice(["shared", "private"]), default="shared",
              help="Receivers with one copy per node or per rank.")  # fmt: skip
@click.option("--profile", type=click.Path(exists=True, dir_okay=False), envvar="SFB_PROFILE",
              help="File that sfb tune wrote; stated rates without one.")  # fmt: skip
def explain(**options: Any) -> None:
    """Say which algorithm "auto" would take for an exchange, and why; needs no MPI.

    Times measured on other numbers of ranks and nodes are scaled by the cost model.
    """
    from sfb.plan import what_if
    from sfb.profile import Profile

    path = options.pop("profile")
    profile = Profile.load(path) if path else Profile()
    if options["nodes"] > options["ranks"]:
        raise Failure(f"{options['ranks']} ranks cannot fill {options['nodes']} nodes")
    click.echo(what_if(profile=profile, **options).explain())


@cli.command()
@click.argument("model", type=click.Choice(["mlp", "mlr"]))
@click.option("--data", default="mnist", help="mnist, digits, FILE.npz (arrays x and y) or FILE.svm (LIBSVM).")
@click.option("--comm", type=click.Choice(["auto", "dense", "broadcast", "node", "sharded", "mpi"]), default="auto",
              help="How gradients are exchanged; mpi is plain mpi4py Allreduce.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=5, help="Passes over the training data.")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Samples of a step, of all ranks together.")
@click.option("--lr", type=Finite(0, min_open=True), default=0.05, help="Learning rate.")
@click.option("--momentum", type=Finite(0, 1, max_open=True), default=0.9, help="Of SGD.")
@click.option("--weight-decay", type=Finite(0), default=1e-4, help="Of SGD.")
@click.option("--hidden", type=Sizes(1), default="4096,4096", help="Units of the hidden layers of mlp.")
@click.option("--test-fraction", type=Finite(0, 1, min_open=True, max_open=True), default=0.2,
              help="Part of the data held out.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Of weights, split and order.")
@click.option("--overlap/--no-overlap", default=False,
              help="Exchange a layer's gradient while backward goes on.")  # fmt: skip
@click.option("--reproducible", is_flag=True, help="Choose algorithms without measuring: the same bits in every run.")
@_json_option
def train(json_file: Path | None, **options: Any) -> None:
    """Train a ready-made model, data-parallel.

    mlp is a multilayer perceptron with ReLU, mlr multiclass logistic regression. Each layer's
    gradient is exchanged on its own, with the algorithm that suits its shape.
    """
    world = _start()
    from sfb.models.data import DataError
    from sfb.models.report import Progress
    from sfb.models.train import Config, TrainingError
    from sfb.models.train import train as run_training
    from sfb.threads import limit_process

    config = Config(**{**options, "hidden": tuple(options["hidden"])})
    limit_process(world)
    try:
        with Progress(config, world) as progress:
            result = run_training(world, config, progress.report, progress.tick)
    except (DataError, TrainingError) as error:
        raise Failure(str(error)) from error
    if world.rank == 0:
        progress.finish(result)
        if json_file is not None:
            json_file.write_text(json.dumps(result, indent=1) + "\n")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_json_option
@_plot_option
def compare(runs: tuple[Path, ...], json_file: Path | None, plot: Path | None) -> None:
    """Compare training runs, the JSON files of `sfb train -J`; ratios are to the first."""
    from sfb.models.report import ReportError, compare_runs

    try:
        compare_runs(runs, json_file, plot)
    except ReportError as error:
        raise Failure(str(error)) from error


@cli.group()
def bench() -> None:
    """Microbenchmarks, by the conventions of OSU and nccl-tests."""


@bench.command("allreduce")
@click.option("-K", "rows", type=Sizes(1), default="4096", help="Rows of the gradient.")
@click.option("-D", "columns", type=Sizes(1), default="4096", help="Columns of the gradient.")
@click.option("--shapes", type=Shapes(), help="Rows and columns together, in place of -K and -D: 10x784,4096x4096.")
@click.option("-S", "samples", type=Sizes(0), default="1,10,32,100", help="Samples of each rank.")
@click.option("-d", "--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Of factors and sum.")
@click.option(
    "-r", "--receiver", type=click.Choice(["array", "sgd", "momentum"]), default="array", help="What takes the sum."
)
@click.option("-m", "--memory", type=click.Choice(["shared", "private"]), default="shared",
              help="Receivers with one copy per node or per rank; mpi always has one per rank.")  # fmt: skip
@click.option("-a", "--algorithm", "algorithms", multiple=True,
              type=click.Choice(["dense", "broadcast", "node", "sharded", "auto"]),
              help="Only these beside mpi; may be repeated.  [default: all]")  # fmt: skip
@click.option("-n", "--iterations", type=click.IntRange(1), default=20, help="Timed calls.")
@click.option("-w", "--warmups", type=click.IntRange(1), default=2, help="Calls before.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=20.0,
              help="Most time for the rows of one size.")  # fmt: skip
@click.option("-p", "--pause", type=Finite(0), default=0.0, help="Seconds without messages before each timed call.")
@click.option("-c", "--check", type=bool, default=True, help="Compare with an oracle.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@_json_option
@_plot_option
def bench_allreduce(json_file: Path | None, plot: Path | None, as_csv: bool, **options: Any) -> int:
    """Allreduce of factors, every algorithm beside MPI's own Allreduce of the dense gradient.

    Sizes are numbers, lists 1,10,100 or ranges 1:100. Exits with 1 if a result is wrong.
    """
    world = _start()
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


@bench.command("overhead")
@click.option("-b", "--begin", type=click.IntRange(8), default=8, help="Bytes of the smallest array.")
@click.option("-e", "--end", type=click.IntRange(8), default=1 << 20, help="Bytes of the largest.")
@click.option("-f", "--factor", type=click.IntRange(2), default=8, help="From one size to the next.")
@click.option("-n", "--iterations", type=click.IntRange(1), default=50, help="Timed samples, of 100 calls each.")
@click.option("-w", "--warmups", type=click.IntRange(1), default=2, help="Samples before.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=5.0, help="Most time for one size.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@_json_option
def bench_overhead(json_file: Path | None, as_csv: bool, begin: int, end: int, factor: int, **options: Any) -> None:
    """Allreduce of plain arrays through sfb.Comm beside mpi4py itself."""
    world = _start()
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
@_json_option
def bench_overlap(
    json_file: Path | None, as_csv: bool, rows: Sequence[int], columns: Sequence[int], **options: Any
) -> None:
    """Part of an Iallreduce that computation hides, as OMB reports it."""
    world = _start()
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
@_json_option
@_plot_option
def bench_kernels(json_file: Path | None, plot: Path | None, as_csv: bool, **options: Any) -> None:
    """The kernels beside BLAS, NumPy and PyTorch, and beside the machine's limit; needs no mpirun."""
    world = _start()
    from sfb.bench import kernels

    options["kernels"] = options["kernels"] or kernels.KERNELS
    rows = kernels.run(world, kernels.Config(**options), json_file=json_file, as_csv=as_csv)
    if plot is not None and world.rank == 0:
        kernels.draw(rows, plot)


@bench.command("choice")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_plot_option
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
