"""Options that several commands take, and how a command starts and fails."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sfb.launch import LaunchError, check_launcher, foreign_launcher, meet_at_end
from sfb.units import parse_size

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = [
    "Failure",
    "Finite",
    "Names",
    "Output",
    "Shapes",
    "Single",
    "Sizes",
    "check_names",
    "examples",
    "json_option",
    "load_mpi",
    "output_options",
    "plot_option",
    "start",
    "timing_options",
]


def examples(*lines: str) -> str:
    """Return the end of a command's help: lines to type, as they stand.

    >>> from sfb.cli.common import examples
    >>> examples("sfb topology ring 8").splitlines()[1:]
    ['Example:', '  sfb topology ring 8']
    """
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


class Failure(click.ClickException):
    """A command cannot do its work; exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.echo(f"sfb: error: {self.format_message()}", file=file, err=True)


class Single(click.Command):
    """A command that needs no MPI: a rank that runs it leaves the others alone."""


def load_mpi() -> MPI.Intracomm:
    """Load MPI and return all ranks; fail if the launcher belongs to another MPI library."""
    problem = foreign_launcher()
    if problem:
        raise Failure(problem)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise Failure(f"{error}\nNo MPI library found; install one with pip install 'sfb-mpi[mpich]'") from error
    meet_at_end(MPI.COMM_WORLD)
    return MPI.COMM_WORLD


def start(*, alone: bool = False) -> MPI.Intracomm:
    """Load MPI and return all ranks, once rank 0 has checked the files that the command is to write; collective.

    Args:
        alone: Whether each rank may be alone though the launcher started several.
    """
    ranks = load_mpi()
    try:
        if not alone:
            check_launcher(ranks.size)
    except LaunchError as error:
        raise Failure(str(error)) from error
    context = click.get_current_context()
    problem: str | None = None
    if ranks.rank == 0:
        try:
            for parameter in context.command.params:
                path = context.params.get(parameter.name or "")
                if isinstance(parameter.type, Output) and path is not None:
                    parameter.type.check(path, parameter, context)
        except click.UsageError as error:
            problem = error.format_message()
    problem = ranks.bcast(problem)
    if problem is not None:
        raise click.UsageError(problem, context)
    return ranks


_MOST = (1 << 63) - 1  # of a size


class Sizes(click.ParamType):
    """Sizes: a number, a list "1,10,100", or a range "1:100", whose sizes double; its last size is its end."""

    name = "sizes"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the value that the text gives."""
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
        if max(sizes) > _MOST:
            self.fail(f"sizes must be at most {_MOST}", param, ctx)
        return sizes


class Bytes(click.ParamType):
    """A number of bytes: 8, 64K, 128M, 1G."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the value that the text gives."""
        try:
            return parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Shapes(click.ParamType):
    """Shapes of matrices, as KxD,KxD."""

    name = "KxD,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the value that the text gives."""
        try:
            shapes = tuple(tuple(int(n) for n in shape.split("x")) for shape in value.split(","))
        except ValueError:
            shapes = ()
        if not shapes or any(len(shape) != 2 or not 1 <= min(shape) <= max(shape) <= _MOST for shape in shapes):
            self.fail(f"{value!r} is not a list of shapes such as 10x784,4096x4096", param, ctx)
        return shapes


class Names(click.ParamType):
    """Names, as NAME,NAME."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the value that the text gives."""
        names = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        if not all(names):
            self.fail(f"{value!r} is not a list of names", param, ctx)
        return names


def check_names(kind: str, names: Collection[str], known: Collection[str]) -> None:
    """Fail if one of some names is none of those known; ``kind`` says what they name, in the plural."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Failure(f"expected {kind} of {', '.join(known)}, got {', '.join(unknown)}")


class Output(click.Path):
    """A file that rank 0 writes; `start` lets it check the folder before hours of work go into the results.

    Args:
        plot: Whether the file is a plot.
    """

    def __init__(self, *, plot: bool = False) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)
        self._plot = plot

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, unchecked if other ranks may not have its folder."""
        path = Path(value)
        if ctx is not None and isinstance(ctx.command, Single):
            self.check(path, param, ctx)
        return path

    def check(self, path: Path, param: click.Parameter | None, ctx: click.Context | None) -> None:
        """Fail if the file cannot be written."""
        super().convert(path, param, ctx)
        folder = path.absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            self.fail(f"the folder of {str(path)!r} does not exist or cannot be written", param, ctx)
        if self._plot and path.suffix not in (".png", ".pdf", ".svg"):
            self.fail(f"must end in .png, .pdf or .svg, got {path.name!r}", param, ctx)
        if self._plot and importlib.util.find_spec("matplotlib") is None:
            self.fail("needs matplotlib: pip install 'sfb-mpi[plot]'", param, ctx)


class Finite(click.FloatRange):
    """A number in a range; neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the value that the text gives."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


json_option = click.option("-J", "--json", "json_file", type=Output(), help="Write the results to FILE as JSON.")
plot_option = click.option("--plot", type=Output(plot=True), help="Draw the results: .png, .pdf or .svg.")


def output_options(*, plot: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds --csv, -J and --plot, and passes them on as one dictionary, ``output``."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def gathered(**options: Any) -> Any:
            output = {name: options.pop(name, None) for name in ("json_file", "plot", "as_csv")}
            return command(output=output, **options)

        options = click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")(json_option(gathered))
        return plot_option(options) if plot else options

    return decorate


def timing_options(
    iterations: int = 20, warmups: int = 2, seconds: float = 20.0, *, calls: str = "calls"
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options of `sfb.bench.engine.Timing`, with these defaults."""
    options = [
        click.option(
            "-n", "--iterations", type=click.IntRange(1), default=iterations, help=f"Timed {calls} of each candidate."
        ),
        click.option(
            "-w", "--warmups", type=click.IntRange(1), default=warmups, help=f"Further {calls}, before the timed ones."
        ),
        click.option("-t", "--seconds", type=Finite(0, min_open=True), default=seconds, help="Most time for one size."),
        click.option(
            "-p", "--pause", type=Finite(0), default=0.0, help="Seconds without messages before what is timed."
        ),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
