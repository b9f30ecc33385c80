"""Training: the same steps on any number of ranks, through exchanges and through the store."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import sfb
from sfb.models import MODELS
from sfb.training.batches import Epochs, Samples
from sfb.training.config import Config, TrainingError
from sfb.training.saving import Saver
from sfb.training.stopping import Watch
from sfb.training.trainer import Trainer

pytestmark = pytest.mark.mpi

FEATURES, CLASSES, COUNT = 12, 4, 150


def problem(model):
    """Return made samples for a model, and the number of its outputs."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((COUNT, FEATURES)).astype(np.float32)
    scores = x @ rng.standard_normal((FEATURES, CLASSES)) + 0.5 * rng.standard_normal((COUNT, CLASSES))
    if model == "regression":
        return x, np.tanh(scores[:, :2]).astype(np.float32), 2
    return x, scores.argmax(axis=1), CLASSES


def config_of(model, **options):
    own = {"mlp": {"hidden": (9, 7)}, "regression": {"hidden": (9,), "activation": "tanh", "regression": True}}
    settings = {"epochs": 2, "batch_size": 20, "lr": 0.05, **options}
    return Config(model="mlp" if model == "regression" else model, options=own.get(model, {}), **settings)


def samples_of(world, x, y, sharded):
    if not sharded:
        return Samples(x, y, np.arange(len(y)))
    low, high = (len(y) * i // world.size for i in (world.rank, world.rank + 1))
    return Samples(x[low:high], y[low:high], np.arange(high - low), whole=False)


def fit(world, model, *, sharded=False, stop=lambda step: False, **options):
    """Train, and return the trainer, the loss of each step, and the parameters."""
    config = config_of(model, **options)
    config.check()
    x, y, outputs = problem(model)
    losses = []
    watch = Watch()
    watch.flags = lambda: np.array([stop(len(losses)), 0.0])
    with sfb.Comm(world, reproducible=True) as comm:
        built = MODELS.build(config.model, FEATURES, outputs, seed=config.seed, **config.options)
        trainer = Trainer(comm, world, config, built, samples_of(world, x, y, sharded), (x[:10], y[:10]))
        trainer.run(watch, Saver(world, config), lambda epoch: None, lambda loss, size, nbytes: losses.append(loss))
        assert trainer.replicas_identical()
        return trainer, losses, [parameter.array.copy() for parameter in built.parameters]


def alone(model, **options):
    from mpi4py import MPI

    return fit(MPI.COMM_SELF, model, **options)


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("model", ["mlp", "mlr", "svm", "regression"])
@pytest.mark.parametrize("comm", ["auto", "mpi", "broadcast"])
def test_each_step_is_that_of_one_process(world, model, comm):
    _, losses, found = fit(world, model, comm=comm)
    _, expected, theirs = alone(model)
    assert len(losses) == 2 * 8
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(found, theirs)


@pytest.mark.parametrize("model", ["mlp", "mlr"])
def test_each_step_is_that_of_one_process_where_ranks_hold_shards(world, model):
    _, losses, found = fit(world, model, sharded=True)
    _, expected, theirs = alone(model)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(found, theirs)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw", "adagrad", "l1"],
)  # fmt: skip
def test_rules_are_those_of_one_process(world, optimizer, overlap):
    rule = {"optimizer": "sgd", "l1": 1e-3} if optimizer == "l1" else {"optimizer": optimizer}
    _, losses, found = fit(world, "mlp", schedule="cosine", warmup_steps=3, overlap=overlap, **rule)
    _, expected, theirs = alone("mlp", schedule="cosine", warmup_steps=3, **rule)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    for ours, other in zip(found, theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=2e-3)


def test_steps_are_those_of_numpy(world):
    """Momentum, decay of weights but not of biases, the schedule and the mean over a batch, by hand in float64."""
    from mpi4py import MPI

    decay, lr = 0.02, 0.1
    _, losses, (weights, bias) = fit(world, "mlr", weight_decay=decay, lr=lr, schedule="linear", epochs=3)
    x, y, _ = problem("mlr")
    w, b = np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES)
    velocity, push = np.zeros_like(w), np.zeros_like(b)
    epochs = Epochs(MPI.COMM_SELF, MODELS.build("mlr", FEATURES, CLASSES), samples_of(None, x, y, False), 20, 0)
    expected, total = [], 3 * 8
    for number in (1, 2, 3):
        batches = epochs.batches(number)
        for step in range(batches.steps):
            rows = batches.part(step)[0][:, 0]
            scores = x[rows] @ w.T + b
            scores = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            expected.append(-scores[np.arange(len(rows)), y[rows]].mean())
            error = (np.exp(scores) - np.eye(CLASSES)[y[rows]]) / len(rows)
            velocity = 0.9 * velocity + error.T @ x[rows] + decay * w
            push = 0.9 * push + error.sum(axis=0)
            rate = lr * (1 - (len(expected) - 1) / total)
            w, b = w - rate * velocity, b - rate * push
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close([weights, bias[0]], [w, b])


def test_batches_smaller_than_the_ranks_leave_some_without_samples(world):
    _, losses, found = fit(world, "mlp", batch_size=max(1, world.size - 1), epochs=1, lr=0.01)
    _, expected, theirs = alone("mlp", batch_size=max(1, world.size - 1), epochs=1, lr=0.01)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert_close(found, theirs)


@pytest.mark.parametrize("sync", ["ssp:3", "asp"])
def test_stale_training_converges_to_the_same_objective(world, sync):
    """Of a strictly convex problem, with the penalty that decay stands for."""
    decay = 0.05
    options = {"optimizer": "sgd", "lr": 0.5, "schedule": "linear", "weight_decay": decay}
    options |= {"epochs": 40, "batch_size": 30}

    def minimum(trainer):
        return trainer.objective() + 0.5 * decay * float(np.sum(trainer.model.parameters[0].array ** 2))

    exact, _, _ = fit(world, "mlr", **options)
    stale, losses, _ = fit(world, "mlr", sync=sync, **options)
    assert exact.objective() < 0.6 * np.log(CLASSES)
    assert minimum(stale) == pytest.approx(minimum(exact), rel=0.01)
    assert stale.position.taken == 40 * 5 == len(losses)
    assert {layer["algorithm"] for layer in stale.sync.layers()} == {"store"}


@pytest.mark.parametrize("options", [{"optimizer": "momentum"}, {"optimizer": "sgd", "l1": 1e-3}], ids=str)
def test_rules_of_the_store_learn(world, options):
    trainer, _, _ = fit(world, "mlp", sync="ssp:1", epochs=15, lr=0.05, **options)
    assert trainer.epochs[-1].loss < 0.7 * trainer.epochs[0].loss


@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp"])
def test_one_rank_that_stops_stops_all_at_the_same_step(world, sync):
    last = world.rank == world.size - 1
    trainer, losses, _ = fit(world, "mlr", sync=sync, optimizer="sgd", epochs=40, stop=lambda step: last and step == 11)
    assert trainer.stopped == "a signal"
    assert len({*world.allgather(trainer.position.taken)}) == 1
    taken = trainer.position.taken
    assert taken == (12 if sync == "bsp" else pytest.approx(12, abs=4 if sync == "ssp:2" else 320))
    assert len(losses) == taken
    position = trainer.position
    assert (position.epoch - 1) * 8 + position.step == taken


@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp"])
def test_a_loss_that_is_not_finite_is_an_error_on_every_rank(world, sync):
    with np.errstate(all="ignore"), pytest.raises(TrainingError, match=r"loss is .*--lr"):
        fit(world, "regression", sync=sync, optimizer="sgd", lr=1e30, epochs=1000)


def test_the_objective_is_that_of_the_parameters(world):
    trainer, _, (weights, bias) = fit(world, "mlr")
    x, y, _ = problem("mlr")
    scores = x @ weights.T + bias
    expected = np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(COUNT), y])
    assert trainer.objective() == pytest.approx(expected, rel=1e-5)
    assert trainer.score() == pytest.approx(np.mean(scores[:10].argmax(axis=1) == y[:10]))


def test_a_target_ends_the_run(world):
    whole, _, _ = fit(world, "mlr", epochs=4)
    target = whole.epochs[1].loss * 1.001
    trainer, _, _ = fit(world, "mlr", epochs=4, target_loss=target)
    assert trainer.stopped == "the target loss"
    assert len(trainer.epochs) == 2


def test_a_limit_of_time_is_that_of_rank_0(world):
    watch = Watch(limit=1e-9 if world.rank == 0 else None)
    x, y, _ = problem("mlr")
    config = config_of("mlr")
    with sfb.Comm(world, reproducible=True) as comm, watch:
        trainer = Trainer(
            comm, world, config, MODELS.build("mlr", FEATURES, CLASSES), samples_of(world, x, y, False), (x, y)
        )
        trainer.run(watch, Saver(world, config), lambda epoch: None)
    assert trainer.stopped == "the limit of time"
    assert trainer.position.taken == 1


class Bound:
    """A model whose rows are to stay within a ball; made of a network."""

    def __new__(cls):
        model = MODELS.build("mlr", FEATURES, CLASSES)
        model.parameters[0].radius = 0.1
        return model


def test_rows_within_a_ball_need_projected_steps():
    config = config_of("mlr")
    assert config.rule_name(Bound()) == "sgd"
    with pytest.raises(TrainingError, match=r"within a ball.*--optimizer sgd"):
        dataclasses.replace(config, optimizer="adam").rule_name(Bound())


class Dense:
    """Yields gradients of matrices as arrays, beyond what travels with the loss."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def gradients(self, *args):
        loss, gradients = self._model.gradients(*args)
        return loss, ((p, g if isinstance(g, np.ndarray) else g.dense()) for p, g in gradients)


def test_gradients_that_are_no_factors(world, monkeypatch):
    from sfb.training import bulk

    monkeypatch.setattr(bulk, "_SMALL", 100)
    x, y, _ = problem("mlp")
    config = config_of("mlp", optimizer="adam", lr=0.01)
    with sfb.Comm(world, reproducible=True) as comm:
        built = MODELS.build("mlp", FEATURES, CLASSES, hidden=(9, 7))
        trainer = Trainer(comm, world, config, Dense(built), samples_of(world, x, y, False), (x, y))
        trainer.run(Watch(), Saver(world, config), lambda epoch: None)
        assert trainer.replicas_identical()
    _, _, theirs = alone("mlp", optimizer="adam", lr=0.01)
    for ours, other in zip(built.parameters, theirs, strict=True):
        np.testing.assert_allclose(ours.array, other, atol=2e-3)
