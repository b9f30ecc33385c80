"""Options of the commands that read data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from sfb.cli.common import Finite, Names

__all__ = ["data_options", "reading"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_FILES = "a file: LIBSVM, CSV, Parquet, .npz or .npy; LIBSVM and CSV maybe .gz, .bz2 or .xz."
_DATA = click.option("--data", default="mnist", metavar="FILE", help=f"mnist, digits, or {_FILES}")
_REGRESSION_DATA = click.option("--data", required=True, metavar="FILE", help=f"{_FILES[0].upper()}{_FILES[1:]}")
_TARGETS = click.option(
    "--targets",
    type=click.Choice(["classes", "numbers"]),
    default="classes",
    help="What the labels are; numbers are targets of a regression.",
)
_NUMBERS = click.option(
    "--targets", type=click.Choice(["numbers"]), default="numbers", help="What the labels are: targets of a regression."
)
_READ = (
    click.option(
        "--features",
        type=Names(),
        metavar="NAME,...",
        help="Columns of a table, the array of a .npz file, or the number of features of a LIBSVM file.",
    ),
    click.option(
        "--labels", metavar="NAME", help="Column or array of the labels; beside a .npy file, another .npy file."
    ),
    click.option("--zero-based", is_flag=True, help="Indices of the LIBSVM file count from 0."),
)
_LEARN = (
    click.option("--test", metavar="FILE", help="File of the samples to test on; else a part of the data is held out."),
    click.option(
        "--test-fraction",
        type=Finite(0, 1, min_open=True, max_open=True),
        default=0.2,
        help="Part of the data to hold out for testing.",
    ),
    click.option(
        "--scale",
        type=click.Choice(["standard", "minmax", "maxabs"]),
        help="Scale each feature by the samples to train on; the model keeps the scale.",
    ),
    click.option(
        "--shard/--no-shard",
        default=None,
        help="Each rank reads its own part of the file; by default if the data takes more than 1 GiB.",
    ),
    click.option(
        "--cache",
        type=click.Path(file_okay=False),
        metavar="DIR",
        help="Folder for memory maps of the parts, for data larger than memory; later runs use them again.",
    ),
)

# The arguments of sfb.training.data.load that options give, beside the communicator and the data.
_ARGUMENTS = ("test", "test_fraction", "features", "labels", "targets", "zero_based", "scale", "cache", "shard")


def data_options(*, learn: bool, regression: bool = False) -> Callable[[_Command], _Command]:
    """Return a decorator that adds the options of reading data to a command.

    Args:
        learn: Whether the command learns from the data. It then takes ``--test``, ``--test-fraction``, ``--targets``,
            ``--scale``, ``--shard`` and ``--cache``, too.
        regression: Whether it learns numbers alone.
    """
    data, targets = (_REGRESSION_DATA, _NUMBERS) if regression else (_DATA, _TARGETS)
    options = (data, *_READ, *((*_LEARN, targets) if learn else ()))

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def reading(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of reading, all but ``data``, out of a command's options, and return them as keyword arguments.

    They fit `sfb.training.data.load`; those of a command that does not learn fit `sfb.data.read`.

    >>> from sfb.cli.data import reading
    >>> options = {"data": "mnist", "labels": "y", "zero_based": False, "epochs": 5}
    >>> reading(options), options
    ({'labels': 'y', 'zero_based': False}, {'data': 'mnist', 'epochs': 5})
    """
    return {name: options.pop(name) for name in _ARGUMENTS if name in options}
