"""The options of reading data, and what they become."""

from inspect import signature

import click
import pytest
from click.testing import CliRunner

from sfb.cli.data import data_options, reading
from sfb.data import read


def run(*arguments, learn=True):
    """Return the options that a command gets."""
    found = {}

    @click.command()
    @data_options(learn=learn)
    def command(**options):
        found.update(options)

    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return found


def test_options_fit_what_they_are_passed_to():
    from sfb.training.data import load

    options = run()
    assert options.pop("data") == "mnist"
    assert set(reading(options)) <= {*signature(load).parameters}
    assert not options
    options = run(learn=False)
    del options["data"]
    assert set(reading(options)) <= {*signature(read).parameters}
    assert not options


def test_values():
    options = reading(run("--features", "a,b", "--labels", "y", "--cache", "maps", "--no-shard", "--scale", "maxabs"))
    assert options["features"] == ("a", "b")
    assert options["labels"] == "y"
    assert options["cache"] == "maps"
    assert options["shard"] is False
    assert options["scale"] == "maxabs"
    assert reading(run())["shard"] is None
    assert reading(run("--shard"))["shard"] is True


@pytest.mark.parametrize("arguments", [("--scale", "robust"), ("--targets", "y"), ("--test-fraction", "1")])
def test_refuses(arguments):
    command = click.command()(data_options(learn=True)(lambda **options: None))
    assert CliRunner().invoke(command, arguments).exit_code == 2
