import dataclasses

import numpy as np
import pytest

from sfb.models.train import COMMS, Config, TrainingError, train

pytestmark = pytest.mark.mpi
pytest.importorskip("sklearn")

MLP = Config(model="mlp", data="digits", epochs=4, hidden=(48, 40), batch_size=50, lr=0.1)
MLR = dataclasses.replace(MLP, model="mlr")


def run(world, config):
    epochs = []
    result = train(world, config, epochs.append)
    assert [dataclasses.asdict(e) for e in epochs] == result["epochs"]
    return result


@pytest.mark.parametrize("config", [MLP, MLR], ids=lambda c: c.model)
def test_every_exchange_learns_the_same(world, config):
    runs = {comm: run(world, dataclasses.replace(config, comm=comm)) for comm in COMMS}
    for comm, result in runs.items():
        assert result["format"] == 1
        assert result["replicas_identical"], comm
        assert result["epochs"][-1]["accuracy"] > 0.9
        assert result["epochs"][-1]["loss"] < result["epochs"][0]["loss"]
        for ours, theirs in zip(result["epochs"], runs["mpi"]["epochs"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
            assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=0.02)
        for layer in result["layers"]:
            assert set(layer) == {"name", "K", "D", "algorithm", "wire_bytes_per_step"}
            if comm != "auto":
                assert layer["algorithm"] == comm


@pytest.mark.parametrize("comm", ["auto", "broadcast", "mpi"])
def test_wait_free_backpropagation_learns_the_same(world, comm):
    blocking, overlapped = (run(world, dataclasses.replace(MLP, comm=comm, overlap=on)) for on in (False, True))
    assert overlapped["replicas_identical"]
    for ours, theirs in zip(overlapped["epochs"], blocking["epochs"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        assert 0 <= ours["overlap"] <= 1
        assert theirs["overlap"] == 0
    for layer in overlapped["layers"]:
        assert layer["wire_bytes_per_step"] > 0 or world.size == 1


def test_result_does_not_depend_on_the_number_of_ranks(world):
    together, alone = run(world, MLP), None
    self_comm = world.Split(world.rank)
    alone = run(self_comm, MLP)
    self_comm.Free()
    assert together["epochs"][-1]["loss"] == pytest.approx(alone["epochs"][-1]["loss"], rel=0.02)


def test_a_seed_fixes_the_run(world):
    first, same, other = (
        run(world, dataclasses.replace(MLP, epochs=1, seed=seed, reproducible=True)) for seed in (1, 1, 2)
    )
    assert first["epochs"][0]["loss"] == same["epochs"][0]["loss"]
    assert first["epochs"][0]["loss"] != other["epochs"][0]["loss"]


def test_batches_smaller_than_the_ranks_leave_some_without_samples(world):
    result = run(world, dataclasses.replace(MLR, batch_size=max(1, world.size - 1), epochs=1))
    assert result["replicas_identical"]
    assert np.isfinite(result["epochs"][0]["loss"])


def test_divergence_is_an_error_on_every_rank(world):
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match="--lr"):
        run(world, dataclasses.replace(MLP, lr=1e6, epochs=1))
