"""Training: the same steps on any number of ranks, through exchanges and through the store."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
from scipy import sparse

import sfb
from sfb.models import MODELS
from sfb.models.nets.network import Network
from sfb.training.batches import Epochs, Samples
from sfb.training.config import Config, TrainingError
from sfb.training.saving import Saver
from sfb.training.stopping import Watch
from sfb.training.trainer import Trainer

pytestmark = pytest.mark.mpi

FEATURES, CLASSES, COUNT = 12, 4, 150
NAMES = [*MODELS, "regression"]
FORMS = {"dense": np.asarray, "csr": sparse.csr_matrix}
DECAY = 1e-4


def problem(model):
    """Return made samples for a model, and the number of its outputs."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((COUNT, FEATURES)).astype(np.float32)
    scores = x @ rng.standard_normal((FEATURES, CLASSES)) + 0.5 * rng.standard_normal((COUNT, CLASSES))
    if model == "regression":
        return x, np.tanh(scores[:, :2]).astype(np.float32), 2
    return x, scores.argmax(axis=1), CLASSES


def config_of(model, **options):
    own = {
        "mlp": {"hidden": (9, 7)},
        "regression": {"hidden": (9,), "activation": "tanh", "regression": True},
        "dml": {"components": 5, "candidates": 3},
        "dictionary": {"components": 8, "alpha": 0.5},
    }
    settings = {"options": own.get(model, {}), "epochs": 2, "batch_size": 20, "lr": 0.05, **options}
    return Config(model="mlp" if model == "regression" else model, **settings)


def samples_of(world, x, y, sharded):
    if not sharded:
        return Samples(x, y, np.arange(len(y)))
    low, high = (len(y) * i // world.size for i in (world.rank, world.rank + 1))
    return Samples(x[low:high], y[low:high], np.arange(high - low), whole=False)


def built(config, form="dense"):
    """Return a model, its parameters not yet drawn."""
    outputs = 2 if "regression" in config.options else CLASSES
    model = MODELS.build(config.model, FEATURES, outputs, seed=config.seed, **config.options)
    if isinstance(model, Network):
        model.sparse = form == "csr"
    return model


def fit(world, model, *, sharded=False, form="dense", start=False, stop=lambda step: False, **options):
    """Train, and return the trainer, the loss of each step, and the parameters.

    With ``start`` the parameters are drawn from all samples, not from those of rank 0.
    """
    config = config_of(model, **options)
    config.check()
    x, y, _ = problem(model)
    x = FORMS[form](x)
    losses = []
    watch = Watch()
    watch.flags = lambda: np.array([stop(len(losses)), 0.0])
    with sfb.Comm(world, reproducible=True) as comm:
        own = built(config, form)
        if start:
            whole, initialise = problem(model)[:2], own.initialise
            own.initialise = lambda x, y: initialise(*whole)
        trainer = Trainer(comm, world, config, own, samples_of(world, x, y, sharded), (x[:10], y[:10]))
        trainer.run(watch, Saver(world, config), lambda epoch: None, lambda loss, size, nbytes: losses.append(loss))
        assert trainer.replicas_identical()
        return trainer, losses, [parameter.array.copy() for parameter in own.parameters]


def alone(model, **options):
    from mpi4py import MPI

    return fit(MPI.COMM_SELF, model, **options)


@cache
def by_hand(model, lr, epochs=2):
    """Return the loss of each step of one process, and the parameters in the end: projected gradient steps in NumPy."""
    from mpi4py import MPI

    config = config_of(model)
    x, y, _ = problem(model)
    own = built(config)
    own.initialise(*(array[np.random.default_rng(config.seed).permutation(COUNT)] for array in (x, y)))
    made = Epochs(MPI.COMM_SELF, own, samples_of(None, x, y, False), config.batch_size, config.seed)
    losses = []
    for number in range(1, epochs + 1):
        batches = made.batches(number)
        for step in range(batches.steps):
            rows, size = batches.part(step)
            loss, gradients = own.gradients(x, y, rows, size)
            losses.append(loss / size)
            for parameter, gradient in gradients:
                array = gradient if isinstance(gradient, np.ndarray) else gradient.u.T @ gradient.v
                w = parameter.array
                w -= lr * (array + (DECAY * w if parameter.decays else 0))
                if parameter.radius is not None:
                    w *= parameter.radius / np.maximum(parameter.radius, np.linalg.norm(w, axis=1, keepdims=True))
    return losses, [parameter.array.copy() for parameter in own.parameters]


def assert_close(found, expected, atol=2e-5):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=atol)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("comm", ["auto", "dense", "broadcast", "mpi"])
@pytest.mark.parametrize("model", NAMES)
def test_each_step_is_that_of_one_process(world, model, comm, form):
    """Within the rounding of float32; sparse codes are exact to 100 units of rounding in ‖x‖², so atoms are less so."""
    lr = 0.01 if model == "dml" else 0.1
    _, losses, found = fit(world, model, comm=comm, form=form, lr=lr, optimizer="sgd", weight_decay=DECAY)
    expected, theirs = by_hand(model, lr)
    assert len(losses) == 2 * 8
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(found, theirs, 1e-3 if model == "dictionary" else 2e-5)


@pytest.mark.parametrize("model", NAMES)
def test_momentum_is_that_of_one_process(world, model):
    options = {"optimizer": "sgd"} if model == "dictionary" else {"optimizer": "momentum", "lr": 0.002}
    _, losses, found = fit(world, model, **options)
    _, expected, theirs = alone(model, **options)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(found, theirs, 1e-3 if model == "dictionary" else 2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", ["mlp", "mlr", "svm", "dictionary"])
def test_each_step_is_that_of_one_process_where_ranks_hold_shards(world, model, form):
    _, losses, found = fit(world, model, sharded=True, form=form, start=True)
    _, expected, theirs = alone(model, start=True)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert_close(found, theirs, 1e-3 if model == "dictionary" else 2e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_metric_learning_draws_partners_by_number(world, sharded):
    """Of replicated samples every rank draws the same, whatever the number of ranks; of a shard among its own."""
    from mpi4py import MPI

    x, y, _ = problem("dml")
    y = y.copy()
    y[7] = CLASSES  # alone in its class
    config = config_of("dml")
    samples = samples_of(world, x, y, sharded)
    epochs = Epochs(world, built(config), samples, 20, 0)
    batches = epochs.batches(1)
    parts = [world.allgather(batches.part(step)[0]) for step in range(batches.steps)]
    assert sum(len(part) for step in parts for part in step) == COUNT
    if sharded:
        low = COUNT * world.rank // world.size
        rows, labels = epochs.examples(1), samples.y
        assert rows.max() < len(labels)
    else:
        low, labels = 0, y
        whole = Epochs(MPI.COMM_SELF, built(config), samples, 20, 0).batches(1)
        for step, found in enumerate(parts):
            np.testing.assert_array_equal(np.concatenate(found), whole.part(step)[0])
        rows = np.concatenate([np.concatenate(step) for step in parts])
    for row in rows:
        similar, different = row[1:4], row[4:]
        assert (labels[similar[similar >= 0]] == labels[row[0]]).all()
        assert (labels[different[different >= 0]] != labels[row[0]]).all()
        assert (similar < 0).all() == (np.sum(labels == labels[row[0]]) == 1)
    lone = rows[rows[:, 0] == 7 - low]
    assert (lone[:, 1:4] == -1).all()


def test_samples_that_do_not_exist_stay_so_among_the_rows_to_learn_from(world):
    x, y, _ = problem("dml")
    y = y.copy()
    y[3] = CLASSES
    rows = np.arange(COUNT)[::-1][:-2]
    epochs = Epochs(world, built(config_of("dml")), Samples(x, y, rows), 20, 0)
    found = epochs.examples(1)
    assert (found[found[:, 0] == 3, 1:4] == -1).all()
    assert {*found[:, 0]} == {*rows}
    assert not np.isin(found, [0, 1]).any()


@pytest.mark.parametrize("sharded", [False, True])
def test_the_score_of_a_metric_is_that_of_all_samples(world, sharded):
    """Ranks without a sample, and with one, among them."""
    from sklearn.neighbors import NearestNeighbors

    x, y, _ = problem("dml")
    config = config_of("dml")
    sizes = [0 if rank == 1 else 1 if rank == 2 else 20 + rank for rank in range(world.size)]
    low = sum(sizes[: world.rank])
    mine = slice(low, low + sizes[world.rank])
    with sfb.Comm(world, reproducible=True) as comm:
        model = built(config)
        trainer = Trainer(comm, world, config, model, samples_of(world, x, y, sharded), (x[mine], y[mine]))
        z = model.transform(x[: sum(sizes)])
        _, found = NearestNeighbors(n_neighbors=2).fit(z).kneighbors(z)
        assert trainer.score() == pytest.approx(np.mean(y[found[:, 1]] == y[: len(z)]))


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


def test_a_store_without_staleness_takes_the_steps_of_one_process(world):
    """With decay, part of one step for all ranks, and a schedule, whose rate holds from the first update on."""
    options = {"optimizer": "sgd", "weight_decay": 0.1, "schedule": "linear", "lr": 0.1}
    _, _, found = fit(world, "mlp", sync="ssp:0", **options)
    _, _, theirs = alone("mlp", **options)
    assert_close(found, theirs)


# Problems whose minimum the steps reach.
CONVERGING = {
    "mlp": {"lr": 0.3, "weight_decay": 0.02},
    "mlr": {"lr": 0.5, "weight_decay": 0.05},
    "svm": {"lr": 0.3, "weight_decay": 0.05},
    "regression": {"lr": 0.3, "weight_decay": 0.02},
    "dml": {"lr": 0.01, "batch_size": 75, "weight_decay": 0.0, "options": {"components": FEATURES, "candidates": 1}},
    "dictionary": {"lr": 0.3},
}


@pytest.mark.parametrize("model", NAMES)
def test_stale_training_converges_to_the_objective_of_every_model(world, model):
    """No worse than by 1 %, with the penalty that decay stands for, if there is one."""
    options = {"optimizer": "sgd", "schedule": "linear", "epochs": 20, "batch_size": 30, **CONVERGING[model]}
    decay = options.get("weight_decay", 0.0)

    def minimum(trainer):
        weights = [p.array for p in trainer.model.parameters if p.decays]
        return trainer.objective() + 0.5 * decay * sum(float(np.vdot(w, w)) for w in weights)

    start, _, _ = fit(world, model, **{**options, "epochs": 1, "lr": 1e-9})
    exact, _, _ = fit(world, model, **options)
    assert minimum(exact) < 0.9 * minimum(start)
    for sync in ("ssp:3", "asp"):
        stale, _, found = fit(world, model, sync=sync, **options)
        print(f"{model} {sync}: {minimum(stale):.6f}, bsp {minimum(exact):.6f}, start {minimum(start):.6f}")
        # Networks with hidden layers have several minima.
        assert minimum(stale) <= (1.03 if model in ("mlp", "regression") else 1.01) * minimum(exact)
        if model == "dictionary":
            assert np.linalg.norm(found[0], axis=1).max() <= 1 + 1e-5


@pytest.mark.parametrize("options", [{"optimizer": "momentum"}, {"optimizer": "sgd", "l1": 1e-3}], ids=str)
def test_rules_of_the_store_learn(world, options):
    trainer, _, _ = fit(world, "mlp", sync="ssp:1", epochs=15, lr=0.05, **options)
    assert trainer.epochs[-1].loss < 0.7 * trainer.epochs[0].loss


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("sync", ["bsp", "ssp:2", "asp"])
def test_one_rank_that_stops_stops_all_at_the_same_step(world, sync, schedule):
    last = world.rank == world.size - 1
    options = {"sync": sync, "schedule": schedule, "optimizer": "sgd", "epochs": 40}
    trainer, losses, _ = fit(world, "mlr", stop=lambda step: last and step == 11, **options)
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
        own = MODELS.build("mlp", FEATURES, CLASSES, hidden=(9, 7))
        trainer = Trainer(comm, world, config, Dense(own), samples_of(world, x, y, False), (x, y))
        trainer.run(Watch(), Saver(world, config), lambda epoch: None)
        assert trainer.replicas_identical()
    _, _, theirs = alone("mlp", optimizer="adam", lr=0.01)
    for ours, other in zip(own.parameters, theirs, strict=True):
        np.testing.assert_allclose(ours.array, other, atol=2e-3)
