"""Commands whose help shows options in groups, and options from a TOML file."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["Grouped", "config_option", "group"]


class Grouped(click.Command):
    """A command whose help shows options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group of options; see `click.Command.format_options`."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", "Other options"), []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def group(heading: str, *options: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options under a heading."""

    def decorate(command: Any) -> Any:
        others = list(getattr(command, "__click_params__", []))
        for option in reversed(options):
            command = option(command)
        for parameter in command.__click_params__:
            if parameter not in others:
                parameter.group = heading
        return command

    return decorate


def _read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Take what the command line does not give from a TOML file."""
    if value is None:
        return
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        content = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no file, no text, no TOML
        raise click.BadParameter(f"{value}: {error}", ctx, param) from error
    known: dict[str, click.Parameter] = {}
    # Arguments last: "model" is the model, not the file.
    for parameter in sorted(ctx.command.params, key=lambda each: isinstance(each, click.Argument)):
        for name in (*parameter.opts, *parameter.secondary_opts):
            if parameter is not param and (name.startswith("--") or isinstance(parameter, click.Argument)):
                known[name.lstrip("-").lower().replace("-", "_")] = parameter
    defaults: dict[str, Any] = {}
    for key, given in content.items():
        found = known.get(key.lower().replace("-", "_"))
        if found is None:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=3)
            hint = f"; did you mean {' or '.join(name.replace('_', '-') for name in near)}?" if near else ""
            raise click.BadParameter(f"{value}: no option is called {key!r}{hint}", ctx, param)
        if isinstance(given, dict) or (isinstance(given, list) and any(isinstance(x, (dict, list)) for x in given)):
            raise click.BadParameter(f"{value}: {key} must be a number, a text, a list or true or false", ctx, param)
        # As on the command line: 5.5 is no number of epochs.
        flag = isinstance(found, click.Option) and found.is_flag
        if flag and not isinstance(given, bool):
            raise click.BadParameter(f"{value}: {key} must be true or false, got {given!r}", ctx, param)
        if isinstance(given, bool) and not flag:
            raise click.BadParameter(f"{value}: {key} must not be true or false", ctx, param)
        text = (" " if found.nargs > 1 else ",").join(map(str, given)) if isinstance(given, list) else str(given)
        assert found.name is not None
        defaults[found.name] = given if flag else text
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    metavar="FILE.toml",
    help="Take options from a file, lr = 0.1; the command line wins.",
)
