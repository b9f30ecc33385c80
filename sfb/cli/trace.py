"""The commands sfb trace …: timelines of traces."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sfb.cli.common import Failure, Output, Single, examples, json_option, plot_option
from sfb.files import write
from sfb.trace.files import TraceError, load
from sfb.trace.merge import chrome
from sfb.trace.plot import draw
from sfb.trace.report import analyse, lines
from sfb.trace.timeline import Timeline, align

__all__ = ["trace"]


@click.group(epilog=examples("sfb trace report timeline", "sfb trace merge timeline"))
def trace() -> None:
    """Timelines: what each rank did, and whom it waited for.

    With SFB_TRACE=DIR in its environment a program writes one into DIR. `merge` makes a file for ui.perfetto.dev of it.
    """


def _timeline(folder: Path) -> Timeline:
    try:
        return align(load(folder))
    except TraceError as error:
        raise Failure(str(error)) from error


@trace.command(cls=Single, epilog=examples("sfb trace merge timeline -o timeline.json"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=Output(), help="The file to write.  [default: DIR/trace.json]")
def merge(folder: Path, output: Path | None) -> None:
    """Write the timelines of all ranks on one clock, for Perfetto or chrome://tracing; needs no MPI."""
    timeline = _timeline(folder)
    path = output or folder / "trace.json"
    count = chrome(timeline, path)
    for note in timeline.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"written: {path}, {count} events of {len(timeline.run.ranks)} ranks; open it in ui.perfetto.dev")


@trace.command(cls=Single, epilog=examples("sfb trace report timeline --plot trace.png"))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@plot_option
def report(folder: Path, json_file: Path | None, plot: Path | None) -> None:
    """Show where the time of each rank goes, which ranks hold up the others, and what calls cost; needs no MPI."""
    timeline = _timeline(folder)
    found = analyse(timeline)
    if json_file is not None:
        write(json_file, json.dumps(found, indent=1) + "\n")
    for line in lines(found):
        click.echo(line)
    if plot is not None:
        draw(timeline, found, plot)
