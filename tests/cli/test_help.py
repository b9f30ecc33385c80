"""What every command says of itself."""

import re
import shlex

import click
import pytest

from sfb.cli import cli
from sfb.cli.fit import FITS


def commands(command, path=("sfb",)):
    """Yield a command and those below it, each with the words that start it."""
    yield path, command
    if isinstance(command, click.Group):
        for name, below in sorted(command.commands.items()):
            yield from commands(below, (*path, name))


COMMANDS = dict(commands(cli)) | {("sfb", "train", name): command for name, command in FITS.items()}


def examples(path, command):
    """Return the words of each example at the end of a command's help, from "sfb" on."""
    context = click.Context(command, info_name=" ".join(path), max_content_width=100)
    end = re.split(r"^ *Examples?:$", command.get_help(context), flags=re.MULTILINE)[-1]
    lines = [shlex.split(line, comments=True) for line in end.splitlines()]
    return [words[words.index("sfb") :] for words in lines if "sfb" in words]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_ends_with_examples_that_parse(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("n2.json", "n4.json", "mpi.json", "auto.json", "model.npz"):  # files that examples read
        (tmp_path / name).touch()
    assert examples(path, COMMANDS[path])
    for words in examples(path, COMMANDS[path]):
        assert tuple(words[: len(path)]) == path
        command, rest = cli, words[1:]
        while isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(command.name, rest)  # raises if an option does not exist
