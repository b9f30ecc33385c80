from decimal import Decimal
from fractions import Fraction

import numpy as np
import oracle
import pytest

from sfb.optim import SGD, Adagrad, Adam, AdamW, Proximal


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


TORCH = [
    (SGD, "SGD", {"lr": 0.1}),
    (SGD, "SGD", {"lr": 0.1, "momentum": 0.9}),
    (SGD, "SGD", {"lr": 0.1, "weight_decay": 0.1}),
    (SGD, "SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (Adam, "Adam", {}),
    (Adam, "Adam", {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3, "weight_decay": 0.2}),
    (AdamW, "AdamW", {}),
    (AdamW, "AdamW", {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-3, "weight_decay": 0.2}),
    (Adagrad, "Adagrad", {}),
    (Adagrad, "Adagrad", {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.2}),
]


@pytest.mark.parametrize(("ours", "theirs", "rule"), TORCH)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_torch(ours, theirs, rule, dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w = rng.standard_normal((6, 40)).astype(dtype)
    parameter = torch.tensor(w.copy(), requires_grad=True)
    reference, optimizer = getattr(torch.optim, theirs)([parameter], **rule), ours(w, **rule)
    for _ in range(5):
        gradient = rng.standard_normal((6, 40)).astype(dtype)
        parameter.grad = torch.tensor(gradient)
        reference.step()
        optimizer.step(gradient)
    tolerance = 30 * np.finfo(dtype).eps
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("ours", "theirs", "rule"), TORCH)
def test_defaults_are_those_of_torch(ours, theirs, rule):
    torch = pytest.importorskip("torch")
    reference = getattr(torch.optim, theirs)([torch.zeros(1, requires_grad=True)], lr=0.1).defaults
    optimizer = ours(np.ones((1, 1)), lr=0.1)
    assert all(getattr(optimizer, name) == reference.get(name) for name in optimizer.hyperparameters)


@pytest.mark.parametrize("length", [0.5, 50.0, float("nan")])
def test_clips_as_torch_does(length):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w, gradient = rng.standard_normal((2, 6, 40))
    gradient *= length / np.linalg.norm(gradient)
    parameter = torch.tensor(w.copy(), requires_grad=True)
    parameter.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_([parameter], 3.0)
    torch.optim.SGD([parameter], lr=0.1).step()
    SGD(w, lr=0.1, max_norm=3.0).step(gradient)
    np.testing.assert_allclose(w, parameter.detach().numpy(), rtol=1e-12)


def test_rows_shrink_as_groups():
    w = np.array([[3.0, 4.0], [0.3, 0.4]])
    Proximal(w, lr=0.5, rows=2.0).step(np.zeros((2, 2)))
    np.testing.assert_allclose(w, [[2.4, 3.2], [0.0, 0.0]])


def test_rows_stay_in_a_ball():
    w = np.array([[3.0, 4.0], [0.3, 0.4]])
    Proximal(w, lr=0.5, radius=2.0).step(np.zeros((2, 2)))
    np.testing.assert_allclose(w, [[1.2, 1.6], [0.3, 0.4]])
    Proximal(w, lr=1.0, l1=0.2, rows=0.5, radius=0.5).step(np.zeros((2, 2)))  # thresholds first, then the ball
    shrunk = np.array([[1.0, 1.4], [0.1, 0.2]])
    lengths = np.linalg.norm(shrunk, axis=1, keepdims=True)
    shrunk *= np.maximum(0, 1 - 0.5 / lengths)
    np.testing.assert_allclose(
        w, shrunk * np.minimum(1, 0.5 / np.maximum(np.linalg.norm(shrunk, axis=1), 1e-9))[:, None]
    )


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


@pytest.mark.parametrize(
    ("optimizer", "rule", "message"),
    [
        (Adam, {"eps": -1.0}, "eps must be"),
        (Adam, {"betas": (0.9, 1.0)}, "betas must be"),
        (Adam, {"betas": 0.9}, "betas must be"),
        (AdamW, {"weight_decay": float("inf")}, "weight_decay must be"),
        (Adagrad, {"lr": None}, "lr must be"),
        (Proximal, {"l1": -0.1}, "l1 must be"),
        (SGD, {"max_norm": 0}, "max_norm must be"),
        (Adam, {"max_norm": "1"}, "max_norm must be"),
        (Proximal, {"rows": "a"}, "rows must be"),
        (Proximal, {"radius": 0.0}, "radius must be"),
        (Proximal, {"radius": float("inf")}, "radius must be"),
    ],
)
def test_other_optimizers_refuse(optimizer, rule, message):
    with pytest.raises(ValueError, match=message):
        optimizer(np.ones((2, 3)), **{"lr": 0.1, **rule})


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW, Adagrad, Proximal])
def test_refuses_an_unknown_setting(optimizer):
    name = optimizer.__name__
    with pytest.raises(TypeError, match=rf"{name}.__init__\(\) got an unexpected keyword argument 'dampening'"):
        optimizer(np.ones((2, 3)), lr=0.1, dampening=0.1)


def test_refuses_a_foreign_velocity():
    optimizer = SGD(np.ones((2, 3)), lr=0.1, momentum=0.9)
    optimizer.velocity = np.zeros((3, 2))
    with pytest.raises(ValueError, match="state"):
        optimizer.step(np.ones((2, 3)))


def test_a_rule_without_a_parameter_binds_to_many():
    rule = Adam(lr=0.1, betas=(0.8, 0.9), max_norm=2.0)
    assert repr(rule) == "Adam(lr=0.1, betas=(0.8, 0.9), eps=1e-08, weight_decay=0.0, max_norm=2.0)"
    with pytest.raises(TypeError, match="no parameter"):
        rule.step(np.ones((2, 3)))
    one, other = rule.bind(np.ones((2, 3))), rule.bind(np.ones((4, 5), np.float32))
    one.step(np.ones((2, 3)))
    assert (one.steps, other.steps, other.first_moment) == (1, 0, None)
    assert one.settings == other.settings == rule.settings


@pytest.mark.parametrize("value", [1, np.float32(1), np.array(1.0), np.array(1), np.int8(1), Fraction(1), Decimal(1)])
def test_settings_become_numbers_when_they_are_set(value):
    sgd, adam = SGD(lr=value, max_norm=value), Adam()
    sgd.momentum, adam.betas = value, [Fraction(1, 2), np.array(0.25)]
    for setting in (sgd.lr, sgd.max_norm, sgd.momentum, *adam.betas):
        assert type(setting) is float
    assert (sgd.lr, adam.betas) == (1.0, (0.5, 0.25))
    sgd.nesterov = np.True_
    assert sgd.nesterov is True


NO_NUMBERS = ["1", b"1", True, np.False_, np.array(True), np.ones(1), [1.0], 1j, np.complex64(1), 10**400, -1, object()]


@pytest.mark.parametrize("value", [*NO_NUMBERS, float("nan")], ids=[*map(repr, NO_NUMBERS[:-1]), "object", "nan"])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "max_norm", "betas", "eps", "steps", "nesterov"])
def test_wrong_settings_are_refused_when_they_are_set(name, value):
    optimizer = SGD(lr=0.1) if name in ("momentum", "nesterov") else Adam()
    before = getattr(optimizer, name)
    wrong = (value, 0.5) if name == "betas" else value
    if name == "nesterov" and isinstance(value, (bool, np.bool_)):
        return
    with pytest.raises(ValueError, match=f"{name} must be"):
        setattr(optimizer, name, wrong)
    assert getattr(optimizer, name) == before


def gradient_of(kind, dtype):
    """Return u and v whose squares are beyond the range of the type, or their product."""
    u, v = np.eye(2, 8, dtype=dtype), np.ones((2, 9), dtype)
    small, large, least = (1e-30, 1e30, 1e10) if dtype == "f4" else (1e-200, 1e200, 1e107)
    if kind == "large":
        v *= large
    elif kind == "large product":
        u, v = u * large, v * least
    elif kind == "one of each":  # the product has ordinary elements
        u, v = u * small, v * large
    elif kind == "rows of either":
        u, v = u * np.array([[small], [large]], dtype), v * np.array([[large], [small]], dtype)
    elif kind == "beside a zero":
        v[0], v[1] = large, 0
    return u, v


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(
    "kind", ["ordinary", "large", "large product", "one of each", "rows of either", "beside a zero"]
)
def test_clips_to_its_norm_what_overflows_or_underflows_when_squared(kind, dtype):
    u, v = gradient_of(kind, dtype)
    exact = u.astype("g").T @ v.astype("g")
    w = np.zeros((8, 9), dtype)
    rule = SGD(w, lr=1.0, max_norm=1.0)
    rule.update(u, v, 0, 8)
    np.testing.assert_allclose(w, -(exact / np.linalg.norm(exact)), rtol=1e-5)
    if np.abs(exact).max() <= np.finfo(dtype).max:
        w[:] = 0
        rule.step(exact.astype(dtype))
        np.testing.assert_allclose(w, -(exact / np.linalg.norm(exact)), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_clips_nothing_that_is_short(dtype):
    small = 1e-30 if dtype == "f4" else 1e-200
    w, u, v = np.zeros((8, 9), dtype), np.eye(2, 8, dtype=dtype), np.full((2, 9), small, dtype)
    SGD(w, lr=1.0, max_norm=1.0).update(u, v, 0, 8)
    np.testing.assert_array_equal(w, -(u.T @ v))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", [SGD, Adam, AdamW, Adagrad, Proximal])
def test_clips_no_gradient_that_is_not_finite(rule, value, dtype):
    u, v = np.ones((2, 8), dtype), np.full((2, 9), 1e20, dtype)
    v[0, 0] = value
    g = u.T @ v
    for step in (lambda rule: rule.update(u, v, 0, 8), lambda rule: rule.step(g)):
        w = np.zeros((8, 9), dtype)
        optimizer = rule(w, lr=1.0, max_norm=1.0)
        optimizer.prepare(np.zeros)
        step(optimizer)
        assert np.isnan(w).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("length", [1e-30, 1e30, 1e-200, 1e200])
def test_rows_of_any_length_shrink(length, dtype):
    if dtype == "f4" and not 1e-38 < length < 1e38:
        pytest.skip("beyond float32")
    w = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]], dtype) * np.array(
        [[length]] + 3 * [[1]], dtype
    )
    Proximal(w, lr=1.0, rows=length).step(np.zeros_like(w))
    np.testing.assert_allclose(w[0], np.array([2.4, 3.2]) * length, rtol=1e-6)
    assert (w[1] == 0).all()
    assert np.isnan(w[2]).all()
    assert not np.isfinite(w[3, 0])
