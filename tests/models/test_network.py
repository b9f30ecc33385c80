import numpy as np
import pytest
from scipy import sparse

from sfb.models import MODELS, Network, mlp, mlr, svm
from sfb.models.losses import LOSSES, hinge, squared


def make(sizes, seed=3, **options):
    network = Network(sizes, dtype=np.float64, seed=seed, **options)
    network.initialise()
    for layer in network.layers:
        layer.bias.array[:] = np.random.default_rng(seed).standard_normal(layer.bias.array.shape)
    return network


def samples(features, targets, loss, count=4):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, features))
    return x, rng.standard_normal((count, targets)) if loss == "squared" else rng.integers(0, max(2, targets), count)


def every(x):
    return np.arange(len(x))[:, np.newaxis]


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic"])
@pytest.mark.parametrize(
    ("loss", "outputs"), [("cross-entropy", 3), ("cross-entropy", 1), ("hinge", 3), ("squared", 2)]
)
def test_gradients_are_slopes(activation, loss, outputs):
    """Against central differences, in float64."""
    network = make([5, 7, 6, outputs], activation=activation, loss=loss)
    x, y = samples(5, outputs, loss)
    size = 10
    total, gradients = network.gradients(x, y, every(x), size)
    gradients = {parameter.name: gradient for parameter, gradient in gradients}
    assert total == pytest.approx(network.objective(x, y, every(x)))
    assert [parameter.name for parameter in network.parameters] == [
        f"{kind}{i}" for i in (1, 2, 3) for kind in ("layer", "bias")
    ]
    step = 1e-6
    for parameter in network.parameters:
        gradient = gradients[parameter.name]
        gradient = gradient if isinstance(gradient, np.ndarray) else gradient.dense()
        array = parameter.array
        assert gradient.shape == array.shape
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = network.objective(x, y, every(x))
            array[index] = kept - step
            below = network.objective(x, y, every(x))
            array[index] = kept
            assert gradient[index] * size == pytest.approx((above - below) / (2 * step), abs=1e-6)


def test_gradients_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    network = make([5, 7, 3], activation="tanh")
    x, y = samples(5, 3, "cross-entropy", 9)
    layers = []
    for layer in network.layers:
        linear = torch.nn.Linear(*layer.weights.array.shape[::-1], dtype=torch.float64)
        linear.weight.data, linear.bias.data = (
            torch.from_numpy(array.copy()) for array in (layer.weights.array, layer.bias.array[0])
        )
        layers += [linear, torch.nn.Tanh()]
    torch.nn.functional.cross_entropy(
        torch.nn.Sequential(*layers[:-1])(torch.from_numpy(x)), torch.from_numpy(y)
    ).backward()
    _, gradients = network.gradients(x, y, every(x), len(x))
    found = {parameter.name: gradient for parameter, gradient in gradients}
    for i, linear in enumerate(layers[::2], 1):
        np.testing.assert_allclose(found[f"layer{i}"].dense(), linear.weight.grad, rtol=1e-10)
        np.testing.assert_allclose(found[f"bias{i}"][0], linear.bias.grad, rtol=1e-10)


def test_layers_come_from_the_last_to_the_first_and_may_be_changed_at_once():
    network = make([4, 5, 3])
    x, y = np.ones((2, 4)), np.array([0, 2])
    untouched = [np.array(getattr(g, "u", g)) for _, g in network.gradients(x, y, every(x), 2)[1]]
    changed, names = [], []
    for parameter, gradient in network.gradients(x, y, every(x), 2)[1]:
        changed.append(np.array(getattr(gradient, "u", gradient)))
        names.append(parameter.name)
        parameter.array[:] = np.nan
    assert names == ["layer2", "bias2", "layer1", "bias1"]
    for a, b in zip(untouched, changed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_array_in_place_of_a_parameter():
    """Where a store's replica or memory of a node takes its place, the model uses that."""
    network = make([4, 3])
    x, y = samples(4, 3, "hinge")
    before = network.objective(x, y, every(x))
    for parameter in network.parameters:
        parameter.array = np.zeros_like(parameter.array)
    assert network.objective(x, y, every(x)) == pytest.approx(len(x) * np.log(3))
    assert before != pytest.approx(len(x) * np.log(3))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_samples(loss):
    network = make([4, 5, 3], loss=loss)
    x, y = samples(4, 3, loss)
    total, gradients = network.gradients(x, y, every(x)[:0], 7)
    assert total == 0
    for _, gradient in gradients:
        assert not (gradient if isinstance(gradient, np.ndarray) else gradient.dense()).any()
    assert network.score(x[:0], y[:0]) == (0, 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_sparse_samples(loss):
    network = make([6, 5, 3], loss=loss)
    x, y = samples(6, 3, loss, 20)
    x[x < 0.3] = 0
    rows = np.array([[3], [0], [3]])
    dense, thin = (network.gradients(given, y, rows, 3) for given in (x, sparse.csr_matrix(x)))
    assert dense[0] == thin[0]
    for (_, a), (_, b) in zip(dense[1], thin[1], strict=True):
        np.testing.assert_array_equal(*(g if isinstance(g, np.ndarray) else g.dense() for g in (a, b)))
    assert network.score(x, y) == network.score(sparse.csr_matrix(x), y)


def test_loss_of_large_scores_is_finite():
    losses, error = LOSSES["cross-entropy"](np.array([[1e4, -1e4]], np.float32), np.array([1]))
    assert losses[0] == pytest.approx(2e4)
    np.testing.assert_allclose(error, [[1, -1]])


def test_the_hinge_takes_the_strongest_rival():
    scores = np.array([[3.0, 2.5, 0.0], [3.0, 1.0, 0.0], [0.0, 5.0, 0.0], [np.nan, 0.0, 0.0]])
    losses, error = hinge(scores, np.array([0, 0, 2, 0]))
    np.testing.assert_allclose(losses, [0.5, 0, 6, np.nan])
    np.testing.assert_array_equal(error[:3], [[-1, 1, 0], [0, 0, 0], [0, 1, -1]])


def test_the_squared_loss_takes_targets_of_any_number():
    losses, error = squared(np.array([[1.0], [3.0]]), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(losses, [0.5, 2])
    np.testing.assert_array_equal(error, [[1], [2]])


@pytest.mark.parametrize("loss", LOSSES)
def test_scores(loss):
    network = make([4, 3], loss=loss)
    x, y = samples(4, 3, loss, 3000)
    total, count = network.score(x, y)
    outputs = x @ network.layers[0].weights.array.T + network.layers[0].bias.array
    if loss == "squared":
        assert network.measure == "mean squared error"
        assert total / count == pytest.approx(np.mean((outputs - y) ** 2))
    else:
        assert network.measure == "accuracy"
        assert (total, count) == (np.sum(outputs.argmax(axis=1) == y), 3000)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sizes", [[4, 3], [4, 5, 3]])
def test_what_the_model_file_holds(loss, sizes):
    contents = make(sizes, loss=loss).save()
    assert contents["kind"] == ("linear" if len(sizes) == 2 else "mlp")
    assert contents["out_activation"] == ("softmax" if loss == "cross-entropy" else "identity")
    names = {"coef", "intercept"} if len(sizes) == 2 else {"weights0", "bias0", "weights1", "bias1"}
    assert {name for name, value in contents.items() if isinstance(value, np.ndarray)} == names
    assert make([4, 1]).save()["out_activation"] == "logistic"


def test_models():
    network = mlp(784, 10)
    assert [layer.weights.array.shape for layer in network.layers] == [(4096, 784), (4096, 4096), (10, 4096)]
    assert not any(layer.bias.decays for layer in network.layers)
    assert mlp(4, 2, hidden=(3,), regression=True, activation="tanh").loss == "squared"
    for linear in (mlr(64, 10), svm(64, 10)):
        linear.initialise()
        assert [layer.weights.array.shape for layer in linear.layers] == [(10, 64)]
        assert not linear.layers[0].weights.array.any()
    assert svm(3, 2).loss == "hinge"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sizes": [4, 0, 3]}, "at least one unit"), ({"sizes": [4, 3], "activation": "sine"}, "identity, relu"),
     ({"sizes": [4, 3], "loss": "absolute"}, "cross-entropy, hinge, squared")],
)  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Network(**options)


def test_same_seed_same_weights():
    a, b, c = (mlp(6, 3, hidden=(5,), seed=seed) for seed in (1, 1, 2))
    for network in (a, b, c):
        network.initialise()
    np.testing.assert_array_equal(a.layers[0].weights.array, b.layers[0].weights.array)
    assert (a.layers[0].weights.array != c.layers[0].weights.array).any()


def test_the_registry_passes_on_what_a_model_takes():
    assert {"mlp", "mlr", "svm"} <= set(MODELS)
    network = MODELS.build("mlp", 4, 3, hidden=(5,), activation=None, seed=1, components=7)
    assert [p.array.shape for p in network.parameters] == [(5, 4), (1, 5), (3, 5), (1, 3)]
    assert network.activation == "relu"
    assert all(len(entry.summary) > 10 for entry in MODELS.values())
