import numpy as np
import pytest

from sfb.models import Network, mlp, mlr


def make(sizes, seed=3):
    network = Network(sizes, np.zeros, scale=2.0, seed=seed)
    network.initialise()
    for layer in network.layers:
        layer.weights = layer.weights.astype(np.float64)
        layer.bias = np.random.default_rng(seed).standard_normal(layer.bias.shape)
    return network


def test_factors_are_the_gradient():
    """Against central differences, in float64."""
    network = make([5, 7, 6, 3])
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4, 5)), rng.integers(0, 3, 4)

    def loss():
        return network.loss(network.forward(x)[-1], y)[0]

    activations = network.forward(x)
    _, error = network.loss(activations[-1], y)
    gradients = {layer.name: factors for layer, factors in network.backward(activations, error)}
    step = 1e-6

    def slope(array, index):
        kept = array[index]
        array[index] = kept + step
        above = loss()
        array[index] = kept - step
        below = loss()
        array[index] = kept
        return (above - below) / (2 * step)

    for layer in network.layers:
        factors = gradients[layer.name]
        for array, gradient in (layer.weights, factors.dense()), (layer.bias, factors.u.sum(axis=0)):
            for index in np.ndindex(array.shape):
                assert gradient[index] == pytest.approx(slope(array, index), abs=1e-6)


def test_layers_come_from_the_last_to_the_first_and_may_be_changed_at_once():
    network = make([4, 5, 3])
    x, y = np.ones((2, 4)), np.array([0, 2])
    activations = network.forward(x)
    _, error = network.loss(activations[-1], y)
    untouched = [factors.dense() for _, factors in network.backward(activations, error)]
    changed = []
    for layer, factors in network.backward(activations, error):
        changed.append(factors.dense())
        layer.weights[:] = np.nan
    for a, b in zip(untouched, changed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_samples():
    network = mlp(4, 3, hidden=(5,))
    network.initialise()
    activations = network.forward(np.empty((0, 4), np.float32))
    loss, error = network.loss(activations[-1], np.empty(0, np.int64))
    assert loss == 0
    assert [len(factors) for _, factors in network.backward(activations, error)] == [0, 0]


def test_loss_of_large_scores_is_finite():
    loss, error = Network.loss(np.array([[1e4, -1e4]], np.float32), np.array([1]))
    assert loss == pytest.approx(2e4)
    np.testing.assert_allclose(error, [[1, -1]])


def test_models():
    network = mlp(784, 10)
    assert [layer.weights.shape for layer in network.layers] == [(4096, 784), (4096, 4096), (10, 4096)]
    network = mlr(64, 10)
    network.initialise()
    assert [layer.weights.shape for layer in network.layers] == [(10, 64)]
    assert not network.layers[0].weights.any()
    with pytest.raises(ValueError, match="at least one unit"):
        mlp(4, 3, hidden=(0,))


def test_same_seed_same_weights():
    a, b, c = (mlp(6, 3, hidden=(5,), seed=seed) for seed in (1, 1, 2))
    for network in (a, b, c):
        network.initialise()
    np.testing.assert_array_equal(a.layers[0].weights, b.layers[0].weights)
    assert (a.layers[0].weights != c.layers[0].weights).any()
