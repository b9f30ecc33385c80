"""sfb train --restarts: start a launcher, and start it again after a rank has failed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import click

from sfb.cli.common import Failure
from sfb.training.checkpoint import Folder

__all__ = ["LAUNCHER", "failed", "run_again"]

LAUNCHER = "mpirun -n {ranks}"

# The exit code of a command one of whose ranks has failed (`sfb.runtime.ending.FAILED`).
_FAILED = 76
# Signals by which a rank ends that was killed or has crashed. Launchers exit with their numbers, or with 128 more.
_CRASHES = frozenset(
    {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGKILL, signal.SIGSEGV, signal.SIGSYS}
)
# Signals that end a run for good; the launcher gets those that reach this process alone.
_STOPS = (signal.SIGTERM, signal.SIGUSR1)
# Variables that launchers give the ranks they start.
_RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")


def failed(code: int) -> bool:
    """Return whether a launcher's exit code says that a rank has failed, rather than that the run has an error.

    >>> from sfb.cli.restart import failed
    >>> [code for code in (0, 1, 2, 9, 75, 76, 130, 137, 139) if failed(code)]
    [9, 76, 137, 139]
    """
    return code == _FAILED or code in _CRASHES or code - 128 in _CRASHES


def run_again(
    arguments: Sequence[str], folder: str | None, restarts: int, ranks: int | None, launcher: str, *, shrink: bool
) -> int:
    """Run ``sfb train`` by a launcher, again from the last checkpoint while ranks fail; return the last exit code.

    Args:
        arguments: The command line after ``sfb train``.
        folder: The folder of the checkpoints.
        restarts: Most restarts.
        ranks: The number of ranks.
        launcher: The launcher and its options, with "{ranks}" for the number of ranks.
        shrink: Whether each restart has a rank less.
    """
    context = click.get_current_context()
    if any(name in os.environ for name in _RANKS):
        raise click.UsageError(
            "--restarts starts mpirun itself, once for each attempt: run sfb train without mpirun",
            context,
        )
    if folder is None:
        raise click.UsageError("--restarts needs --checkpoint DIR, the folder to go on from", context)
    if ranks is None:
        raise click.UsageError("--restarts needs --ranks, the number of ranks to start", context)
    command = _command(launcher, context)
    for attempt in range(restarts + 1):
        steps = Folder(Path(folder), 1).steps()
        more = ["--resume"] if attempt and steps else []
        parts = [part.replace("{ranks}", str(ranks)) for part in command]
        code, stopped = _run([*parts, sys.executable, "-m", "sfb", "train", *arguments, *more, "--restarts", "0"])
        if stopped or not failed(code) or attempt == restarts:
            break
        ranks = max(1, ranks - 1) if shrink else ranks
        steps = Folder(Path(folder), 1).steps()
        where = f"from the checkpoint of step {steps[-1]}" if steps else "from the beginning"
        click.echo(
            f"sfb: a rank has failed ({command[0]} ended with {code}); restart {attempt + 1} of {restarts} {where}, "
            f"on {ranks} rank{'s' * (ranks > 1)}",
            err=True,
        )
    if failed(code) and not stopped and restarts:
        click.echo(f"sfb: error: a rank has failed again after {restarts} restart{'s' * (restarts > 1)}", err=True)
    return code


def _command(launcher: str, context: click.Context) -> list[str]:
    """Return the words of the launcher, whose program is that beside Python or on PATH."""
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise click.UsageError(f"--launcher: {error}: {launcher!r}", context) from error
    if not any("{ranks}" in word for word in words):
        raise click.UsageError(f"--launcher needs {{ranks}} where the number of ranks goes, got {launcher!r}", context)
    beside = Path(sys.executable).parent / words[0]
    program = str(beside) if beside.is_file() and beside.name == words[0] else shutil.which(words[0])
    if program is None:
        raise Failure(f"no program {words[0]} beside {sys.executable} or on PATH; give --launcher")
    return [program, *words[1:]]


def _run(command: Sequence[str]) -> tuple[int, bool]:
    """Run a command; return its exit code, and whether a signal was to end the run."""
    stopped = False
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if process is not None and number in _STOPS:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    # Ctrl-C reaches the launcher, too: a terminal sends it to both.
    before = {number: signal.signal(number, stop) for number in (*_STOPS, signal.SIGINT)}
    try:
        process = subprocess.Popen(command)
        return process.wait(), stopped
    except OSError as error:
        raise Failure(f"cannot start {command[0]}: {error.strerror}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
