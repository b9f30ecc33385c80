"""The command sfb, in this process."""

import sys

import pytest


@pytest.fixture
def sfb(monkeypatch, capsys):
    """Return a function that runs the command in this process, and returns its output and its error output."""
    pytest.importorskip("mpi4py.MPI")
    from sfb import cli

    def sfb(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["sfb", *map(str, arguments)])
        found = cli.run()
        out, err = capsys.readouterr()
        assert found == code, out + err
        return out, err

    return sfb
