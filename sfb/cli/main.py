"""The command sfb: its subcommands but for bench, doctor, info and topology, and how a run on many ranks ends."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from sfb._version import __version__
from sfb.cli.bench import bench
from sfb.cli.common import Failure, Finite, Output, Single, examples, load_mpi, start
from sfb.cli.doctor import doctor, info
from sfb.cli.letters import spell
from sfb.cli.predict import export, predict
from sfb.cli.soak import soak
from sfb.cli.topology import topology
from sfb.cli.trace import trace
from sfb.cli.train import compare, train
from sfb.cli.watch import watch
from sfb.files import write
from sfb.kernels import KernelError
from sfb.launch import INTERRUPTED, abort, end, launched
from sfb.runtime.errors import RankFailedError
from sfb.tuning.profile import ProfileError

__all__ = ["cli", "run"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


def run() -> int:
    """Run the command line, and return the exit code; what ends one rank of a job ends all."""
    for stream in (sys.stdout, sys.stderr):
        spell(stream)  # not every encoding has × and λ
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
    except RankFailedError as error:
        return _end_after_failure(error)
    except (ProfileError, KernelError, MemoryError, OSError) as error:
        return end(1, Failure(str(error) or "out of memory").show)
    except Exception:
        return end(1, traceback.print_exc)


def _end_after_failure(error: RankFailedError) -> int:
    """Say which ranks have failed, on the first that is left, and end the job once all are about to end."""
    from mpi4py import MPI

    from sfb.runtime.ending import FAILED
    from sfb.runtime.guard import leave

    if MPI.COMM_WORLD.rank == min({*range(MPI.COMM_WORLD.size)} - {*error.ranks}, default=0):
        Failure(str(error)).show()
    leave(FAILED)
    return FAILED


def _join(error: click.ClickException) -> None:
    """Load MPI if a rank finds its command line wrong: in MPI the others may wait for it."""
    context = getattr(error, "ctx", None)
    if context is not None and not isinstance(context.command, (Single, click.Group)) and launched()[1] > 1:
        with suppress(Failure):
            load_mpi()


@click.group(
    context_settings=_CONTEXT,
    epilog=examples(
        "mpirun -n 4 sfb doctor",
        "mpirun -n 4 sfb train mlp --data mnist",
        "mpirun -n 4 sfb bench allreduce -K 4096 -D 4096 -S 1:100",
    ),
)
@click.version_option(__version__, prog_name="sfb")
def cli() -> None:
    """MPI collectives over sufficient factors; start commands that use ranks with mpirun or srun."""


@cli.command(epilog=examples("mpirun -n 4 sfb warmup"))
def warmup() -> None:
    """Compile all kernels into Numba's cache; the ranks of a node share the work."""
    world = start()
    from sfb import Comm
    from sfb.runtime.compile import warmup as compile_kernels

    with Comm(world) as comm:
        compile_kernels(comm.node, half=True, sparse=True)
    if world.rank == 0:
        click.echo("kernels are compiled and cached")


@cli.command(epilog=examples("mpirun -n 4 sfb tune", "mpirun -n 16 sfb tune -o 2x8.json -t 20"))
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


@cli.command(
    cls=Single,
    epilog=examples(
        "sfb explain -K 4096 -D 4096 -S 100 --ranks 64 --nodes 8",
        "sfb explain -K 50 -D 47000 -S 64 --filled 0.002 -r sgd --ranks 4",
    ),
)
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
@click.option("--filled", type=Finite(0, 1), help="Part of v's elements that are not 0, for CSR v.  [dense v]")
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


cli.add_command(train)
cli.add_command(compare)
cli.add_command(bench)
cli.add_command(doctor)
cli.add_command(export)
cli.add_command(info)
cli.add_command(predict)
cli.add_command(soak)
cli.add_command(topology)
cli.add_command(trace)
cli.add_command(watch)
