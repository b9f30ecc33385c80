"""The commands sfb info and sfb doctor."""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import click

from sfb._version import __version__
from sfb.cli.common import Finite, examples, json_option, start
from sfb.doctor.finding import Level
from sfb.doctor.launcher import first_process
from sfb.doctor.report import Report
from sfb.doctor.watchdog import Watchdog
from sfb.files import write
from sfb.launch import abort, foreign_launcher, lone_rank

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["doctor", "info"]

# Times of the option --seconds, and seconds at least, after which a process is killed.
_HARD, _AT_LEAST = 3.0, 60.0


@click.command(epilog=examples("mpirun -n 4 sfb info", "mpirun -n 4 sfb info -J info.json"))
@json_option
def info(json_file: Path | None) -> int:
    """Show what is installed, and how the ranks lie on nodes and cores.

    Exits with 1 if each rank is alone though the launcher started several. sfb doctor shows this, and looks further.
    """
    world = start(alone=True)
    from sfb.environment import apart, slow_blas

    environment, lines = _environment(world)
    if world.rank == 0:
        if json_file is not None:
            write(json_file, json.dumps(environment, indent=1) + "\n")
        for line in lines:
            click.echo(line)
        for problem in (lone_rank(world.size), apart(environment), slow_blas(environment)):
            if problem:
                click.echo(f"warning: {problem}", err=True)
    return int(lone_rank(world.size) is not None)


def _environment(world: MPI.Intracomm) -> tuple[dict[str, Any], list[str]]:
    """Return what describes these ranks, and the lines that show it; collective."""
    from sfb.environment import describe, header
    from sfb.runtime.threads import limit_process

    threads = limit_process(world)
    environment = describe(world)
    return environment, [*header(environment), f"threads per rank that the commands use: {threads}"]


@click.command(epilog=examples("mpirun -n 4 sfb doctor", "srun -N 2 -n 16 sfb doctor -t 60 -J doctor.json"))
@click.option("-t", "--seconds", type=Finite(5), default=20.0,
              help="Time to take, roughly; most of it for the links between nodes and for Allreduce.")  # fmt: skip
@json_option
def doctor(seconds: float, json_file: Path | None) -> int:
    """Look whether this cluster is ready for sfb, and say what to do where it is not.

    Start it as your programs, on the nodes that they will use: mpirun -n 4 sfb doctor. Each line is OK, a warning, or
    an error. Exits with 1 if there are errors. A process that does not end after three times --seconds, or a minute,
    is killed.
    """
    end = monotonic() + seconds
    first = first_process()
    with Watchdog(max(_AT_LEAST, _HARD * seconds), "sfb doctor", speaks=first) as watchdog:
        return _doctor(seconds, end, json_file, first, watchdog)


def _doctor(seconds: float, end: float, json_file: Path | None, first: bool, watchdog: Watchdog) -> int:
    from sfb.doctor import launcher, local

    launch = launcher.facts() if first else None
    facts = local.facts()
    problem = foreign_launcher()
    by = f" under the launcher of {launch['parent']}" if launch and launch["parent"] else ""
    watchdog.phase(f"loading MPI{by}", "start with the mpirun of this MPI; under srun give it its --mpi=, pmix or pmi2")
    try:
        if problem is None:
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        problem = str(error)
    if problem is not None:
        if launch is None:  # the first process speaks for all
            return 1
        report = Report(click.echo, json_file)
        report.say(f"sfb {__version__}, without MPI: one process looks at this node alone")
        report.add([*launcher.judge_alone(launch, problem), *local.judge(facts)])
        report.end()
        return 1

    from sfb.doctor.examine import examine
    from sfb.doctor.reach import judge, reach

    world = MPI.COMM_WORLD
    if world.size == 1 and not first:  # all ranks are alone, and the first one speaks for all
        return 1
    report = Report(click.echo if world.rank == 0 else None, json_file)
    watchdog.phase("messages between all ranks and rank 0, and between nodes")
    patience = seconds / 2
    reached = reach(world, patience)
    if not reached.whole:
        try:
            if world.rank == 0:
                report.add(judge(reached, patience))
                report.end()
            elif reached.silent == [0]:
                click.echo(f"rank {world.rank} has heard nothing from rank 0 in {2 * patience:g} s", err=True)
            else:
                sleep(patience)  # rank 0 speaks, and ends the job
        finally:
            abort(1)
    start(alone=True)
    environment, lines = _environment(world)
    report.environment = environment
    report.add([])
    for line in lines:
        report.say(line)
    report.say("")
    if world.size > 1:
        report.add(judge(reached, patience) if world.rank == 0 else [])
    examine(world, report, facts, launch, end, watchdog.phase)
    level = report.end() if world.rank == 0 else None
    return int(world.bcast(level) is Level.ERROR)
