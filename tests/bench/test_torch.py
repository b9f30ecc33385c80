import json
import os

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from sfb.bench import gloo, training  # noqa: E402
from sfb.bench import torch as benchmark  # noqa: E402

pytestmark = pytest.mark.mpi

SMALL = {"layers": (20, 300, 300, 4), "iterations": 2, "warmups": 1, "seconds": 30.0}


@pytest.fixture(autouse=True)
def threads():
    """Benchmarks set the threads of their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rows(world, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(training, "_VOCABULARY", 2000)  # rows enough for a table that travels by rows
    config = benchmark.Config(**SMALL, samples=(3, 5))
    rows = benchmark.run(world, config, json_file=tmp_path / "t.json", plot=tmp_path / "t.png")
    cases = [(model, samples) for model in training.MODELS for samples in (3, 5)]
    assert [(row["model"], row["samples"], row["candidate"]) for row in rows] == [
        (*case, name) for case in cases for name in training.CANDIDATES
    ]
    for case in cases:
        times = {row["candidate"]: row["seconds"] for row in rows if (row["model"], row["samples"]) == case}
        for row in rows:
            if (row["model"], row["samples"]) == case:
                assert row["min"] <= row["seconds"] <= row["p99"]
                assert row["over_gloo"] == times["ddp-gloo"] / row["seconds"]
                assert row["over_ddp"] == min(times[name] for name in training.DDP) / row["seconds"]
                assert row["rate"] == world.size * case[1] / row["seconds"]
    for row in rows:
        assert row["wrong"] == 0
        if row["candidate"] in training.EXACT:
            assert row["differ"] <= 1e-5
        elif row["candidate"] == "local" and world.size > 1:
            assert row["differ"] > 1e-4  # other gradients: the comparison can tell
    out = capsys.readouterr().out
    if world.rank == 0:
        assert all(line.startswith("#") or len(line.split()) == len(benchmark.COLUMNS) for line in out.splitlines())
        content = json.loads((tmp_path / "t.json").read_text())
        assert content["results"] == rows
        assert content["environment"]["torch"] == torch.__version__
        assert (tmp_path / "t.png").stat().st_size > 5000
    else:
        assert out == ""


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_every_optimizer(world, capsys, optimizer):
    config = benchmark.Config(**SMALL, models=("mlp",), optimizer=optimizer, dtype="float64", candidates=("attach",))
    rows = benchmark.run(world, config)
    assert [(row["candidate"], row["wrong"]) for row in rows] == [("ddp-gloo", 0), ("attach", 0)]
    assert rows[1]["differ"] <= 1e-12


def test_weights_that_nobody_checked_are_not_called_right(world, capsys):
    config = benchmark.Config(**SMALL, models=("mlp",), candidates=("local",), check=False)
    assert [row["wrong"] for row in benchmark.run(world, config)] == [None, None]
    assert world.rank > 0 or capsys.readouterr().out.endswith("# not checked\n")


@pytest.fixture
def trainers():
    """Two trainers of one model that exchange nothing."""
    task = training.problem("mlp", (5, 6, 3), "float32")
    batches = task.batches(4, rank=0)
    return [training.Trainer("local", task, "momentum", batches, None) for _ in range(2)]


def test_wrong_weights_are_counted(trainers):
    one, other = trainers
    one.step()
    other.step()
    assert one.difference(other, 0.0) == (0.0, 0)
    weight = one.model[0].weight.data
    largest = other.model[0].weight.abs().max()
    weight[0, 0] += 2e-3 * largest
    weight[1, 2] += 2e-5 * largest
    assert one.difference(other, 1e-3) == (pytest.approx(2e-3, rel=1e-2), 1)
    assert one.difference(other, 1e-6)[1] == 2
    weight[1, 2] = float("nan")
    assert one.difference(other, 1e-3)[1] == 2


def test_ranks_with_other_bits_are_noticed(world, trainers):
    assert trainers[0].same_bits(world)
    if world.rank == world.size - 1:
        trainers[0].model[2].bias.data[1] += 1e-6
    assert trainers[0].same_bits(world) == (world.size == 1)


def test_problems_are_the_same_on_all_ranks_and_their_batches_are_not(world):
    generator = torch.get_rng_state()
    task = training.problem("embedding", (), "float32")
    assert torch.equal(torch.get_rng_state(), generator)
    sums = world.allgather(float(task.model[0].weight.detach().double().sum()))
    assert len(set(sums)) == 1
    x, y = task.batches(7, world.rank)[0]
    assert len(x) == len(y) == 7
    assert len({tuple(each) for each in world.allgather(x[0].tolist())}) == world.size


def test_gloo_finds_its_interface(world, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with gloo.gloo_group(world) as interface:
        assert interface in gloo.interfaces()
        assert os.environ["GLOO_SOCKET_IFNAME"] == interface
        x = torch.full((3,), float(world.rank))
        dist.all_reduce(x)
        assert x.tolist() == [sum(range(world.size))] * 3
        world.Barrier()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert not dist.is_initialized()


def test_an_interface_that_rank_0_has_not(world, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    with pytest.raises(gloo.GlooError, match="set GLOO_SOCKET_IFNAME"), gloo.gloo_group(world):
        pass
    assert os.environ["GLOO_SOCKET_IFNAME"] == "none0"
