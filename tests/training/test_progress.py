"""What a run shows, on a terminal and elsewhere."""

import sys
from types import SimpleNamespace

import pytest

from sfb.environment import describe
from sfb.training.config import Config
from sfb.training.progress import Progress, show_measure
from sfb.training.status import Row, Status, table
from sfb.training.trainer import Epoch

EPOCH = Epoch(epoch=2, loss=0.5, score=0.875, seconds=2.0, exchange_seconds=0.5, overlap=0.25, wire_bytes=4_000_000,
              examples=1000)  # fmt: skip


def trainer(taken=0, rank=0):
    model = SimpleNamespace(measure="accuracy")
    position = SimpleNamespace(taken=taken, epoch=1 + taken // 10)
    return SimpleNamespace(model=model, rank=rank, position=position, total=40, steps=10)


def test_a_line_for_each_epoch(capsys):
    with Progress(Config(epochs=4, overlap=True)) as progress:
        tick = progress.begin(trainer(taken=10))
        tick(0.5, 100, 1000)
        progress.report(EPOCH)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "training mlp on mnist, --comm auto, 4 epochs"
    assert out[1] == "going on from the checkpoint of step 10, in epoch 2"
    for word in ("epoch 2/4", "loss 0.5000", "test accuracy 87.50%", "exchange 0.50 s", "4 MB", "overlap 25%",
                 "500 samples/s", "2 MB/s", "left"):  # fmt: skip
        assert word in out[2]
    assert len(out) == 3


def test_lines_on_a_terminal_that_cannot_move_its_cursor(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    for stream in (sys.stdout, sys.stdin):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with Progress(Config(epochs=4)) as progress:
        progress.begin(trainer())(0.25, 100, 1000)
        progress.report(EPOCH)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "training mlp on mnist, --comm auto, 4 epochs",
        "epoch 2/4",
    ]


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stdin):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with Progress(Config(epochs=4, sync="ssp:2")) as progress:
        tick = progress.begin(trainer())
        for _ in range(3):
            tick(0.25, 100, 1000)
        task = progress._bar.tasks[0]
        assert (task.completed, task.total) == (3, 40)
        for word in ("loss 0.2500", "samples/s", "B/s", "left"):
            assert word in task.fields["text"]
        progress.report(EPOCH)
    out = capsys.readouterr().out
    assert "--sync ssp:2" in out
    assert "epoch 2/4  loss 0.5000" in out


def test_the_table_of_ranks_goes_when_the_run_is_complete(capsys, monkeypatch):
    MPI = pytest.importorskip("mpi4py.MPI")
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stdin):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    result = {"layers": [], "replicas_identical": True, "stopped": None, "environment": describe(MPI.COMM_SELF)}
    with Progress(Config(epochs=4)) as progress:
        progress.begin(trainer())
        progress._bar.ranks = table(Status("x", rows=[Row(0, "n1", 39, 0.01, 0.5, 2e6, 0, 10**8)]), 4)
        progress._bar.refresh()
        assert "ms/step" in capsys.readouterr().out
        progress.finish(result)
    out = capsys.readouterr().out
    assert "replicas identical: yes" in out
    assert "ms/step" not in out.rpartition("\x1b[2K")[2]


def test_other_ranks_show_nothing(capsys):
    with Progress(Config()) as progress:
        progress.begin(trainer(rank=1))(0.5, 1, 1)
        progress.report(EPOCH)
    assert not capsys.readouterr().out


def test_another_rank_reports_when_rank_0_has_died(capsys):
    with Progress(Config(epochs=4)) as progress:
        progress.begin(trainer(rank=1))
        progress.begin(trainer(taken=10, rank=0))
        progress.report(EPOCH)
    assert progress.active
    assert capsys.readouterr().out.startswith("epoch 2/4")


def test_measures():
    assert show_measure("accuracy", 0.5) == "50.00%"
    assert show_measure("mean squared error", 123.456) == "123.5"
