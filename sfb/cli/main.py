"""The command sfb: its subcommands but for bench, doctor, info and topology, and how a run on many ranks ends."""

from __future__ import annotations

import io
import json
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from sfb._version import __version__
from sfb.cli.bench import bench
from sfb.cli.common import Failure, Finite, Output, Single, Sizes, json_option, load_mpi, plot_option, start
from sfb.cli.doctor import doctor, info
from sfb.cli.topology import topology
from sfb.files import write
from sfb.kernels import KernelError
from sfb.launch import INTERRUPTED, abort, end, launched
from sfb.tuning.profile import ProfileError

__all__ = ["cli", "run"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


def run() -> int:
    """Run the command line, and return the exit code; what ends one rank of a job ends all."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not every encoding has × and λ
    try:
        return _run()
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except SystemExit as error:  # click exits where nobody reads the output any more
        code = error.code if isinstance(error.code, int) else 1
    abort(code)
    return code


def _run() -> int:
    try:
        result = cli.main(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        _join(error)
        return end(error.exit_code, error.show)
    except click.Abort:
        raise
    except (ProfileError, KernelError, MemoryError, OSError) as error:
        return end(1, Failure(str(error) or "out of memory").show)
    except Exception:
        return end(1, traceback.print_exc)


def _join(error: click.ClickException) -> None:
    """Load MPI if a rank finds its command line wrong: in MPI the others may wait for it."""
    context = getattr(error, "ctx", None)
    if context is not None and not isinstance(context.command, (Single, click.Group)) and launched()[1] > 1:
        with suppress(Failure):
            load_mpi()


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="sfb")
def cli() -> None:
    """MPI collectives over sufficient factors.

    Start it with mpirun: mpirun -n 4 sfb train mlp
    """


@cli.command()
def warmup() -> None:
    """Compile all kernels into Numba's cache; the ranks of a node share the work."""
    world = start()
    from sfb import Comm
    from sfb.runtime.compile import warmup as compile_kernels

    with Comm(world) as comm:
        compile_kernels(comm.node, half=True)
    if world.rank == 0:
        click.echo("kernels are compiled and cached")


@cli.command()
@click.option("-o", "--output", type=Output(), help="Write the profile to FILE, too; SFB_PROFILE=FILE selects it.")
@click.option("-t", "--seconds", type=Finite(0, min_open=True), default=10.0, help="Time to measure for, roughly.")
def tune(output: Path | None, seconds: float) -> None:
    """Measure a profile of these ranks, by which sfb chooses algorithms.

    sfb keeps the profile in the user's cache, by hosts, ranks per node, MPI and threads. Later programs that start the
    same ranks find it there.
    """
    world = start()
    from sfb import Comm
    from sfb.runtime.threads import limit_process
    from sfb.tuning.lookup import keep

    limit_process(world)
    with Comm(world) as comm:
        profile = comm.tune(seconds)
    problem: str | None = None
    if world.rank == 0:
        if output is not None:
            write(output, profile.to_json())
            click.echo(f"written: {output}")
        try:
            click.echo(f"written: {keep(profile)}")
        except OSError as error:
            problem = f"the user's cache does not hold the profile: {error}"
        for line in profile.describe():
            click.echo(line)
        if problem and output is not None:
            click.echo(f"warning: {problem}; SFB_PROFILE={output} selects the file", err=True)
    if world.bcast(problem) and output is None:
        raise Failure(f"{problem}; -o FILE writes it elsewhere")


@cli.command(cls=Single)
@click.option("-K", "rows", type=click.IntRange(1), default=4096, help="Rows of the gradient.")
@click.option("-D", "columns", type=click.IntRange(1), default=4096, help="Columns of the gradient.")
@click.option("-S", "samples", type=click.IntRange(0), default=32, help="Samples of each rank.")
@click.option("--ranks", type=click.IntRange(1), default=4, help="Number of ranks.")
@click.option("--nodes", type=click.IntRange(1), default=1, help="Number of nodes that the ranks fill.")
@click.option(
    "-d", "--dtype", type=click.Choice(["float32", "float64"]), default="float32", help="Type of factors and sum."
)
@click.option("-r", "--receiver", type=click.Choice(["array", "sgd", "momentum"]), default="array",
              help="What takes the sum.")  # fmt: skip
@click.option("-m", "--memory", type=click.Choice(["shared", "private"]), default="shared",
              help="Receivers with one copy per node or per rank.")  # fmt: skip
@click.option("--profile", type=click.Path(exists=True, dir_okay=False), envvar="SFB_PROFILE",
              help="File that sfb tune wrote; stated rates without one.")  # fmt: skip
def explain(**options: Any) -> None:
    """Show which algorithm "auto" would take for an exchange, and why; needs no MPI.

    The cost model scales times that were measured on other numbers of ranks and nodes.
    """
    from sfb.collectives import what_if
    from sfb.tuning.profile import Profile

    path = options.pop("profile")
    profile = Profile.load(path) if path else Profile()
    if options["nodes"] > options["ranks"]:
        raise Failure(f"{options['ranks']} ranks cannot fill {options['nodes']} nodes")
    click.echo(what_if(profile=profile, **options).explain())


@cli.command()
@click.argument("model", type=click.Choice(["mlp", "mlr"]))
@click.option("--data", default="mnist",
              help="mnist, digits, or a file: .npz (arrays x and y) or LIBSVM, maybe .gz, .bz2 or .xz.")  # fmt: skip
@click.option("--zero-based", is_flag=True, help="Indices of the LIBSVM file count from 0.")
@click.option("--comm", default="auto",
              type=click.Choice(["auto", "dense", "broadcast", "node", "pipelined", "sharded", "mpi"]),
              help="How ranks exchange gradients; mpi is plain mpi4py Allreduce.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=5, help="Passes over the training data.")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Samples of a step on all ranks together.")
@click.option("--lr", type=Finite(0, min_open=True), default=0.05, help="Learning rate.")
@click.option("--momentum", type=Finite(0, 1, max_open=True), default=0.9, help="Momentum of SGD.")
@click.option("--weight-decay", type=Finite(0), default=1e-4, help="Weight decay of SGD.")
@click.option("--hidden", type=Sizes(1), default="4096,4096", help="Units of the hidden layers of mlp.")
@click.option("--test-fraction", type=Finite(0, 1, min_open=True, max_open=True), default=0.2,
              help="Part of the data to hold out for testing.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of weights, split and order.")
@click.option("--overlap/--no-overlap", default=False,
              help="Exchange a layer's gradient during the backward pass of the others.")  # fmt: skip
@click.option(
    "--reproducible", is_flag=True, help="Choose algorithms without measuring, for the same bits in every run."
)
@json_option
def train(json_file: Path | None, **options: Any) -> None:
    """Train a ready-made model, data-parallel.

    mlp is a multilayer perceptron with ReLU, mlr multiclass logistic regression. The ranks exchange each layer's
    gradient by the algorithm that suits its shape.
    """
    world = start()
    from sfb.models.data import DataError
    from sfb.models.report import Progress
    from sfb.models.train import Config, TrainingError
    from sfb.models.train import train as run_training
    from sfb.runtime.threads import limit_process

    config = Config(**{**options, "hidden": tuple(options["hidden"])})
    limit_process(world)
    try:
        with Progress(config, world) as progress:
            result = run_training(world, config, progress.report, progress.tick)
    except (DataError, TrainingError) as error:
        raise Failure(str(error)) from error
    if world.rank == 0:
        if json_file is not None:
            write(json_file, json.dumps(result, indent=1) + "\n")
        progress.finish(result)


@cli.command(cls=Single)
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
@plot_option
def compare(runs: tuple[Path, ...], json_file: Path | None, plot: Path | None) -> None:
    """Compare training runs, the JSON files of sfb train -J; of two runs, show ratios to the first."""
    from sfb.models.report import ReportError, compare_runs

    try:
        compare_runs(runs, json_file, plot)
    except ReportError as error:
        raise Failure(str(error)) from error


cli.add_command(bench)
cli.add_command(doctor)
cli.add_command(info)
cli.add_command(topology)
