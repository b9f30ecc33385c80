"""Options that several commands take, and how a command starts and fails."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sfb.launch import LaunchError, check_launcher, foreign_launcher
from sfb.units import parse_size

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = [
    "Failure",
    "Finite",
    "Names",
    "Output",
    "Shapes",
    "Sizes",
    "comm_world",
    "json_option",
    "plot_option",
    "start",
    "world_size",
]


class Failure(click.ClickException):
    """A failure on every rank: one message, from rank 0, and exit code 1 on all."""

    def show(self, file: Any = None) -> None:
        """Print the message."""
        if "mpi4py.MPI" in sys.modules and comm_world().rank != 0:
            return
        click.echo(f"sfb: error: {self.format_message()}", file=file, err=True)


def world_size() -> int:
    """Return the number of ranks; 1 before MPI is loaded."""
    return comm_world().size if "mpi4py.MPI" in sys.modules else 1


def comm_world() -> MPI.Intracomm:
    """Load MPI, and return its communicator of all ranks."""
    from mpi4py import MPI

    return MPI.COMM_WORLD


def start() -> MPI.Intracomm:
    """Initialise MPI and return all ranks; fail if the launcher belongs to another MPI library."""
    problem = foreign_launcher()
    if problem:
        raise Failure(problem)
    try:
        ranks = comm_world()
    except (ImportError, RuntimeError) as error:
        raise Failure(f"{error}\nNo MPI library found; install one with pip install 'sfb-mpi[mpich]'") from error
    try:
        check_launcher(ranks.size)
    except LaunchError as error:
        raise Failure(str(error)) from error
    return ranks


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
        if not shapes or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
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


class Output(click.Path):
    """A file to write; its folder is checked before hours of work go into the results."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value that the text gives."""
        path = super().convert(value, param, ctx)
        folder = Path(str(path)).absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            self.fail(f"the folder of {str(path)!r} does not exist or cannot be written", param, ctx)
        return path


class Finite(click.FloatRange):
    """A number in a range; neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the value that the text gives."""
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


json_option = click.option("-J", "--json", "json_file", type=Output(), help="Write the results to FILE as JSON.")
plot_option = click.option("--plot", type=Output(), callback=_check_plot, help="Draw the results: .png, .pdf or .svg.")
