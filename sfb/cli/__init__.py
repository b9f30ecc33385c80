"""The command sfb."""

from sfb.cli.main import cli, run

__all__ = ["cli", "run"]
