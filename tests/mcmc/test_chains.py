"""Chains against the moments of known densities, on any number of ranks."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from oracle import assert_same_bits

pytest.importorskip("sklearn")
pytest.importorskip("arviz")

import arviz
from mpi4py import MPI

from sfb import MismatchError
from sfb.mcmc import diagnostics, run_chains
from sfb.mcmc.adaptation import DualAveraging, Moments, window_ends

pytestmark = pytest.mark.mpi


def normal(x):
    return -0.5 * x @ x


def slope(x):
    return -x


def gaussian(size, correlation, rng):
    """Return mean, covariance, log-density and gradient of a Gaussian whose elements correlate with neighbours."""
    scales = np.exp(rng.uniform(-1, 1, size))
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    covariance = correlation**distance * np.outer(scales, scales)
    precision, mean = np.linalg.inv(covariance), rng.normal(0, 3, size)
    return (
        mean,
        covariance,
        lambda x: -0.5 * (x - mean) @ precision @ (x - mean),
        lambda x: -precision @ (x - mean),
    )


def draws_of(result):
    return result.posterior["x"].values


def assert_moments(result, mean, covariance, errors=5):
    """Means, variances and covariances of neighbours lie within Monte Carlo errors, by effective sample sizes."""
    points = draws_of(result)
    ess = np.array(arviz.ess(result, method="mean")["x"])
    np.testing.assert_array_less(np.abs(points.mean((0, 1)) - mean), errors * np.sqrt(np.diag(covariance) / ess))
    centred = points - mean
    for shift in (0, 1):
        products = centred[..., shift:] * centred[..., : centred.shape[-1] - shift]
        expected = np.diag(covariance, shift)
        sizes = np.array([arviz.ess(products[:, :, k], method="mean") for k in range(products.shape[-1])])
        spread = products.std((0, 1))
        np.testing.assert_array_less(np.abs(products.mean((0, 1)) - expected), errors * spread / np.sqrt(sizes))


@pytest.mark.parametrize("mass", ["diagonal", "dense"])
def test_hmc_on_50_correlated_elements(world, rng, mass):
    mean, covariance, logp, gradient = gaussian(50, 0.8, rng)
    path = 3.0 if mass == "diagonal" else np.pi / 2
    result = run_chains(
        logp, np.zeros(50), gradient=gradient, chains=4, draws=1200, warmup=500, mass=mass, path=path, seed=1
    )
    found = diagnostics(result)
    assert found["rhat"] < 1.01
    assert found["ess_bulk"] > 400
    assert found["divergences"] == 0
    assert_moments(result, mean, covariance)
    rate = result.sample_stats["acceptance_rate"].values.mean()
    assert 0.7 < rate < 0.95


def test_metropolis(world, rng):
    mean, covariance, logp, _ = gaussian(3, 0.7, rng)
    result = run_chains(logp, np.zeros(3), chains=4, draws=1000, warmup=1000, thin=10, mass="dense", seed=2)
    assert diagnostics(result)["rhat"] < 1.01
    assert_moments(result, mean, covariance)
    assert 0.15 < result.sample_stats["acceptance_rate"].values.mean() < 0.4


@pytest.mark.parametrize("gradient", [None, slope], ids=["metropolis", "hmc"])
def test_the_same_draws_on_any_number_of_ranks(world, gradient):
    options = {"gradient": gradient, "chains": 3, "draws": 20, "warmup": 60, "seed": 5}
    together = draws_of(run_chains(normal, np.ones(4), **options))
    alone = draws_of(run_chains(normal, np.ones(4), comm=MPI.COMM_SELF, **options))
    np.testing.assert_array_equal(together, alone)
    assert_same_bits(world, together)
    assert len({chain.tobytes() for chain in together}) == 3  # streams of their own
    other = draws_of(run_chains(normal, np.ones(4), **(options | {"seed": 6})))
    assert (other != together).any()


def test_more_ranks_than_chains_and_one_draw(world):
    result = run_chains(normal, [0.5], chains=1, draws=1, warmup=0)
    assert draws_of(result).shape == (1, 1, 1)


def test_parameters_have_names_and_shapes(world):
    result = run_chains(normal, np.zeros(5), draws=5, warmup=5, parameters={"mu": (), "b": (2, 2)})
    assert result.posterior["mu"].shape == (4, 5)
    assert result.posterior["b"].shape == (4, 5, 2, 2)
    assert set(result.sample_stats.data_vars) == {"lp", "acceptance_rate", "step_size"}


def test_starts(world):
    points = np.arange(8.0).reshape(4, 2)
    lp = run_chains(lambda x: 0.0, points, draws=1, warmup=0, sampler="metropolis")
    assert np.abs(draws_of(lp)[:, 0] - points).max() < 20
    drawn = run_chains(normal, lambda rng: rng.normal(size=3), draws=2, warmup=0)
    assert draws_of(drawn).shape == (4, 2, 3)


def half(x):
    """Return the log-density of a half-normal: −∞ below 0."""
    return -0.5 * x[0] ** 2 if x[0] > 0 else -np.inf


def test_a_support_with_an_end(world):
    result = run_chains(half, [1.0], draws=1000, warmup=500, thin=3, seed=3)
    points = draws_of(result)
    assert points.min() > 0
    error = points.std() / np.sqrt(float(arviz.ess(result, method="mean")["x"].values[0]))
    assert abs(points.mean() - np.sqrt(2 / np.pi)) < 5 * error


@pytest.mark.parametrize("gradient", [None, slope], ids=["metropolis", "hmc"])
def test_nan_is_refused_and_rank_0_warns(world, gradient):
    def logp(x):
        return np.nan if x[0] < 0 else normal(x)

    def call():
        return run_chains(logp, [1.0], gradient=gradient, draws=200, warmup=100)

    if world.rank == 0:
        with pytest.warns(UserWarning, match="NaN"):
            result = call()
    else:
        result = call()
    assert draws_of(result).min() >= 0


def fails_on(rank, error):
    def logp(x):
        if MPI.COMM_WORLD.rank == rank:
            raise error
        return normal(x)

    return logp


def test_an_error_on_one_rank_is_raised_on_all(world):
    last = world.size - 1
    with pytest.raises(ZeroDivisionError if world.size == 1 else RuntimeError, match="by hand"):
        run_chains(fails_on(last, ZeroDivisionError("by hand")), [0.0], chains=world.size)
    with pytest.raises(ValueError, match=f"chain {last}: by hand"):
        run_chains(fails_on(last, ValueError("by hand")), [0.0], chains=world.size)
    run_chains(normal, [0.0], draws=2, warmup=2)  # the ranks go on


BAD = {
    "NaN at the start": (lambda x: np.nan, {}, "chain .: logp is NaN"),
    "no density at the start": (lambda x: -np.inf, {}, "chain .: logp is -inf"),
    "infinite density": (lambda x: np.inf, {}, r"\+inf"),
    "no gradient": (normal, {"sampler": "hmc"}, "needs a gradient"),
    "a gradient of another shape": (normal, {"gradient": lambda x: np.zeros(7)}, "shape"),
    "a gradient of NaN": (normal, {"gradient": lambda x: x * np.nan}, "not finite"),
    "no draws": (normal, {"draws": 0}, "draws"),
    "half a chain": (normal, {"chains": 0.5}, "chains"),
    "a negative warm-up": (normal, {"warmup": -1}, "warmup"),
    "a sampler": (normal, {"sampler": "gibbs"}, "sampler"),
    "a mass": (normal, {"mass": "full"}, "mass"),
    "a path": (normal, {"path": 0}, "path"),
    "other parameters": (normal, {"parameters": {"mu": (3,)}, "draws": 1, "warmup": 0}, "elements"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments(world, what):
    logp, options, words = BAD[what]
    with pytest.raises(ValueError, match=words):
        run_chains(logp, np.zeros(2), **({"chains": max(2, world.size)} | options))


@pytest.mark.parametrize(
    "start",
    [np.zeros((3, 2)), np.zeros((1, 2, 2)), [], [np.nan], lambda rng: 3.0],
    ids=["two axes", "three axes", "empty", "NaN", "a number"],
)
def test_bad_starts(world, start):
    with pytest.raises(ValueError, match="point"):
        run_chains(normal, start)


def test_text_for_a_density(world):
    with pytest.raises(TypeError, match="number"):
        run_chains(lambda x: "0", [0.0])


def test_arviz_is_missing_on_one_rank(world, monkeypatch):
    if world.rank == world.size - 1:
        monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"sfb-mpi\[mcmc\]"):
        run_chains(normal, [0.0])


def test_numbers_that_differ_between_ranks(world):
    if world.size == 1:
        return
    with pytest.raises(MismatchError, match="run_chains of"):
        run_chains(normal, [0.0], seed=world.rank)


def test_moments_are_those_of_numpy(rng):
    points = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 4))
    dense, diagonal = Moments(4, dense=True), Moments(4, dense=False)
    for point in points:
        dense.add(point)
        diagonal.add(point)
    covariance = np.cov(points.T)
    variances = 30 / 35 * np.diag(covariance) + 1e-3 * 5 / 35
    np.testing.assert_allclose(diagonal.covariance(), variances)
    expected = 30 / 39 * covariance
    np.fill_diagonal(expected, variances)
    np.testing.assert_allclose(dense.covariance(), expected)


def test_a_covariance_of_few_points_is_regular(rng):
    moments = Moments(20, dense=True)
    for _ in range(10):
        moments.add(rng.normal(size=20))
    assert np.linalg.cond(moments.covariance()) < 100


def test_a_step_size_reaches_its_acceptance_rate(rng):
    averaging = DualAveraging(5.0, 0.8)
    for _ in range(2000):
        averaging.update(float(np.clip(np.exp(-averaging.step) + rng.normal(0, 0.05), 0, 1)))
    assert np.exp(-averaging.average) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("warmup", [0, 1, 30, 50, 99, 200, 1000, 4000])
def test_windows_lie_in_the_warmup(warmup):
    ends = window_ends(warmup)
    assert ends == sorted(set(ends))
    if warmup >= 100:
        assert ends[-1] == int(0.9 * warmup)
        assert ends[0] > int(0.15 * warmup)
