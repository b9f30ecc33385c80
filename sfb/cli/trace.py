"""The commands sfb trace …: timelines of traces."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sfb.cli.common import Failure, Output, Single, json_option, plot_option
from sfb.files import write
from sfb.trace.files import TraceError, load
from sfb.trace.merge import chrome
from sfb.trace.plot import draw
from sfb.trace.report import analyse, lines
from sfb.trace.timeline import Timeline, align

__all__ = ["trace"]


@click.group()
def trace() -> None:
    """Timelines: what each rank did, and whom it waited for.

    \b
    SFB_TRACE=DIR mpirun -n 4 sfb train mlp --data mnist
    sfb trace report DIR
    sfb trace merge DIR        # then open DIR/trace.json in ui.perfetto.dev
    """


def _timeline(folder: Path) -> Timeline:
    try:
        return align(load(folder))
    except TraceError as error:
        raise Failure(str(error)) from error


@trace.command(cls=Single)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=Output(), help="The file to write.  [default: DIR/trace.json]")
def merge(folder: Path, output: Path | None) -> None:
    """Write the timelines of all ranks on one clock, for Perfetto or chrome://tracing; needs no MPI.

    Example: sfb trace merge DIR
    """
    timeline = _timeline(folder)
    path = output or folder / "trace.json"
    count = chrome(timeline, path)
    for note in timeline.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"written: {path}, {count} events of {len(timeline.run.ranks)} ranks; open it in ui.perfetto.dev")


@trace.command(cls=Single)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@plot_option
def report(folder: Path, json_file: Path | None, plot: Path | None) -> None:
    """Show where the time of each rank goes, which ranks hold up the others, and what calls cost; needs no MPI.

    Example: sfb trace report DIR --plot trace.png
    """
    timeline = _timeline(folder)
    found = analyse(timeline)
    if json_file is not None:
        write(json_file, json.dumps(found, indent=1) + "\n")
    for line in lines(found):
        click.echo(line)
    if plot is not None:
        draw(timeline, found, plot)
