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
    _, _, end = command.get_help(context).partition("Example")
    lines = [line.split("  #")[0] for line in end.splitlines() if re.match(r"  \S.* ?sfb ", f"{line} ")]
    return [words[words.index("sfb") :] for words in map(shlex.split, lines)]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_ends_with_examples_that_parse(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("n2.json", "n4.json", "mpi.json", "auto.json", "model.npz"):  # files that examples read
        (tmp_path / name).touch()
    found = examples(path, COMMANDS[path])
    assert found
    for words in found:
        assert tuple(words[: len(path)]) == path
        command, context = cli, None
        rest = words[1:]
        while True:  # as click does it, but the command is not called
            context = command.make_context(command.name, list(rest), parent=context)
            if not isinstance(context.command, click.Group):
                break
            rest = [*context._protected_args, *context.args]
            command, rest = context.command.commands[rest[0]], rest[1:]
