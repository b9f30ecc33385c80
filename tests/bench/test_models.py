"""The benchmark of models, on small problems."""

import json
import sys

import numpy as np
import pytest

from sfb import cli
from sfb.bench import models as module
from sfb.models import MODELS

SMALL = {"samples": 300, "batch": 32, "epochs": 4, "repeats": 1}


@pytest.mark.mpi
def test_every_exchange_reaches_the_objective(world, capsys):
    names = [name for name in module.CASES if name in MODELS]
    config = module.Config(models=names, shapes=[(20, 30)] * len(names), comms=("mpi", "auto", "broadcast"), **SMALL)
    rows = module.run(world, config)
    assert [(row["model"], row["comm"]) for row in rows] == [
        (name, comm) for name in names for comm in ("mpi", "auto", "broadcast")
    ]
    for row in rows:
        assert row["seconds"] > 0
        assert row["loss"] <= row["target"] < row["curve"][0][1]
        assert row["speedup"] > 0
        assert row["wire_bytes"] > 0 or world.size == 1
    for mpi, auto in zip(rows[::3], rows[1::3], strict=True):
        assert mpi["steps"] == auto["steps"]
    assert ("reached(s)" in capsys.readouterr().out) == (world.rank == 0)


@pytest.mark.mpi
def test_made_samples_do_not_depend_on_the_number_of_ranks(world):
    from mpi4py import MPI

    config = module.Config(**SMALL)
    own, whole = (module._made(comm, config, 7, 5) for comm in (world, MPI.COMM_SELF))
    np.testing.assert_array_equal(np.concatenate(world.allgather(own.x)), whole.x)
    np.testing.assert_array_equal(np.concatenate(world.allgather(own.y)), whole.y)
    assert whole.x.shape == (300, 7)
    assert len({*whole.y}) > 2


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sfb", "bench", "models", *map(str, arguments)])
    return cli.run()


def test_table_json_and_plot(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    code = command(
        monkeypatch, "-m", "mlr,mlp", "--shapes", "20x30,16x12", "--samples", 200, "--epochs", 1, "-r", 1,
        "-J", tmp_path / "m.json", "--plot", tmp_path / "m.png",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0, out
    lines = [line.split() for line in out.splitlines() if line[0] != "#"]
    assert [line[:4] for line in lines] == [
        [*case, comm] for case in (["mlr", "20", "30"], ["mlp", "16", "12"]) for comm in ("mpi", "auto")
    ]
    rows = json.loads((tmp_path / "m.json").read_text())["results"]
    assert [row["comm"] for row in rows] == ["mpi", "auto"] * 2
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("-m", "cnn"), "expected models of mlr"), (("-m", "mlr,mlp", "--shapes", "3x4"), "one shape for each of 2")],
)
def test_wrong_usage(monkeypatch, capsys, arguments, message):
    assert command(monkeypatch, *arguments) == 1
    assert message in capsys.readouterr().err
