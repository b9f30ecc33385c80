"""The command sfb watch."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from sfb.cli.common import Failure, Finite, Single
from sfb.training.status import RUNNING, Status, StatusError, console, line, load, table

__all__ = ["watch"]

# Seconds without news of a run after which it may have been killed.
_PATIENCE = 60.0
# Seconds between two lines where there is no terminal.
_LINE = 60.0


@click.command(cls=Single, epilog="\b\nExample:\n  sfb watch run1")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Show the status of now, and end.")
@click.option("-n", "--seconds", type=Finite(0.1), default=1.0, help="Time between two looks.")
def watch(folder: Path, once: bool, seconds: float) -> int:
    """Watch a run of sfb train, rank by rank; needs no MPI.

    DIR is the folder of its --checkpoint or --status. On a terminal a table shows, for each rank, the steps that it has
    taken (clock), the time of a step, the share of its time in exchanges and waiting for others, the bytes that it
    receives, the clocks that its reads are behind (stale), and its memory; elsewhere a line sums that up every minute.
    The command ends with the run. Exit codes: 0, the run is complete or has stopped; 1, it has failed, has no news, or
    is not there.
    """
    status = _look(folder)
    if once or (sys.stdout.isatty() and console().is_interactive):
        status = _watch_table(folder, status, seconds, once=once)
    else:
        status = _watch_lines(folder, status, seconds)
    trouble = _trouble(status)
    if trouble:
        raise Failure(f"{folder}: {trouble}")
    return int(status.state.startswith("failed"))


def _watch_table(folder: Path, status: Status, seconds: float, *, once: bool) -> Status:
    """Show a table until the run ends, or ``once``; return the last status."""
    from rich.console import Group
    from rich.live import Live

    screen = console()

    def show() -> Group:
        lines = [status.title, line(status)]
        if status.state != RUNNING:
            lines.append(_end(status))
        most = screen.height - len(lines) - 2 if screen.is_terminal else len(status.rows)
        return Group(*lines, table(status, max(4, most)))

    if once:
        screen.print(show())
        return status
    with Live(show(), console=screen, auto_refresh=False) as live:
        while _goes_on(status):
            time.sleep(seconds)
            status = _look(folder)
            live.update(show(), refresh=True)
    return status


def _watch_lines(folder: Path, status: Status, seconds: float) -> Status:
    """Print a line a minute until the run ends; return the last status."""
    click.echo(status.title)
    due = time.monotonic()
    while _goes_on(status):
        if time.monotonic() >= due:
            due += _LINE
            click.echo(line(status))
            sys.stdout.flush()
        time.sleep(seconds)
        status = _look(folder)
    click.echo(line(status))
    if status.state != RUNNING:
        click.echo(_end(status))
    return status


def _look(folder: Path) -> Status:
    try:
        return load(folder)
    except StatusError as error:
        raise Failure(str(error)) from error


def _trouble(status: Status) -> str | None:
    return status.trouble(time.time(), _PATIENCE)


def _goes_on(status: Status) -> bool:
    """Return whether there may be news of a run."""
    return status.state == RUNNING and _trouble(status) is None


def _end(status: Status) -> str:
    """Return how a run has ended, and when."""
    return f"{status.state}, {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.written))}"
