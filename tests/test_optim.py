import numpy as np
import oracle
import pytest

from sfb.optim import SGD


def test_step_takes_a_dense_gradient():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 7))
    gradients = [rng.standard_normal((5, 7)) for _ in range(4)]
    rule = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True}
    expected = oracle.sgd(w, gradients, **rule)
    optimizer = SGD(w, **rule)
    for gradient in gradients:
        optimizer.step(gradient)
    np.testing.assert_allclose(w, expected)


@pytest.mark.parametrize(
    "rule",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}],
    ids=str,
)
def test_equals_torch(rule):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 4))
    parameter = torch.tensor(w.copy(), requires_grad=True)
    theirs, ours = torch.optim.SGD([parameter], lr=0.1, **rule), SGD(w, lr=0.1, **rule)
    for _ in range(5):
        gradient = rng.standard_normal((6, 4))
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        ours.step(gradient)
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-12)


def read_only():
    w = np.ones((2, 3))
    w.flags.writeable = False
    return w


@pytest.mark.parametrize(
    ("param", "rule", "error", "message"),
    [
        (np.ones(3), {}, ValueError, "2 dimensions"),
        (np.ones((2, 3), int), {}, TypeError, "float32 or float64"),
        (np.ones((3, 2)).T, {}, ValueError, "Fortran"),
        (read_only(), {}, ValueError, "read-only"),
        (np.ones((2, 3)), {"lr": -1.0}, ValueError, "lr must be"),
        (np.ones((2, 3)), {"lr": float("nan")}, ValueError, "lr must be"),
        (np.ones((2, 3)), {"momentum": -0.1}, ValueError, "momentum must be"),
        (np.ones((2, 3)), {"weight_decay": "1"}, ValueError, "weight_decay must be"),
        (np.ones((2, 3)), {"nesterov": True}, ValueError, "nesterov needs"),
    ],
)
def test_refuses(param, rule, error, message):
    with pytest.raises(error, match=message):
        SGD(param, **{"lr": 0.1, **rule})


def test_refuses_a_foreign_velocity():
    optimizer = SGD(np.ones((2, 3)), lr=0.1, momentum=0.9)
    optimizer.velocity = np.zeros((3, 2))
    with pytest.raises(ValueError, match="state"):
        optimizer.step(np.ones((2, 3)))
