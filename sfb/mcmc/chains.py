"""Chains on ranks, and their results as ArviZ has them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from math import inf, prod
from types import ModuleType
from typing import Any

import numpy as np

from sfb.mcmc.samplers import HMC, Metropolis, Sampler, Target
from sfb.models.ranks import Ranks

__all__ = ["diagnostics", "run_chains"]

_SAMPLERS = ("metropolis", "hmc")
_MASSES = ("diagonal", "dense")


def run_chains(
    logp: Callable[[np.ndarray], float],
    start: Any,
    *,
    gradient: Callable[[np.ndarray], np.ndarray] | None = None,
    sampler: str | None = None,
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 1000,
    thin: int = 1,
    path: float = np.pi / 2,
    accept: float = 0.8,
    mass: str = "diagonal",
    parameters: Mapping[str, tuple[int, ...]] | None = None,
    seed: int = 0,
    comm: Any = None,
) -> Any:
    """Sample from a density by independent chains, which the ranks share out; collective.

    Chain c runs on rank c mod P, with the stream c that `numpy.random.SeedSequence.spawn` makes of the seed. So the
    draws depend on the seed, and not on the number of ranks. All ranks get the draws of all chains.

    >>> import numpy as np
    >>> from sfb.mcmc import diagnostics, run_chains
    >>> result = run_chains(lambda x: -0.5 * x @ x, np.zeros(2), gradient=lambda x: -x, draws=300, warmup=300)
    >>> result.posterior["x"].shape  # chains, draws, elements
    (4, 300, 2)
    >>> diagnostics(result)["rhat"] < 1.05
    True

    Args:
        logp: Function of a point, d numbers of float64, that returns the logarithm of the density there, up to a
            constant; −∞ outside its support. Where it is NaN, proposals are refused, and rank 0 warns.
        start: The first point of all chains; or C×d numbers, one point for each; or a function of a
            `numpy.random.Generator`, the chain's own, that returns a point.
        gradient: Function of a point that returns the gradient of ``logp``, d numbers; for "hmc".
        sampler: "hmc", Hamiltonian Monte Carlo, or "metropolis", random-walk Metropolis. None for "hmc" if there is a
            gradient.
        chains: The number of chains C, ≥ 1.
        draws: Draws kept of each chain, ≥ 1.
        warmup: Iterations before them, in which step size and mass, or the steps' covariance, adapt; ≥ 0.
        thin: Iterations for each draw that is kept, ≥ 1.
        path: Length of HMC's trajectories in standard deviations, > 0. Longer ones suit densities whose elements
            correlate much.
        accept: The acceptance probability to which HMC's step size adapts, between 0 and 1.
        mass: What the warm-up learns: the variance of each element, "diagonal", or the whole covariance, "dense".
        parameters: Names and shapes of the parameters that a point consists of, in their order; by default "x", of
            shape (d,).
        seed: The seed, an integer ≥ 0, the same on all ranks.
        comm: The ranks; None for MPI.COMM_WORLD where MPI has been started, and else this process alone.

    Returns:
        An `arviz.InferenceData`, the same on all ranks. Its group ``posterior`` has the parameters, chains × draws ×
        their shapes; ``sample_stats`` has lp, acceptance_rate, step_size, and of HMC n_steps and diverging.

    Raises:
        ImportError: ArviZ is missing; on every rank.
        TypeError, ValueError: An argument is wrong, or the density is not positive at a first point; on every rank.
        MismatchError: Ranks pass different numbers; on every rank.
        Exception: ``logp`` or ``gradient`` raised one in a chain; on every rank.
    """
    with Ranks(comm) as ranks:
        kind = sampler or ("metropolis" if gradient is None else "hmc")
        with ranks.together("run_chains"):
            arviz = _arviz()
            _check(kind, gradient, chains, draws, warmup, thin, path, accept, mass, seed)
        said = f"run_chains of {kind}, {chains}, {draws}, {warmup}, {thin}, {path}, {accept}, {mass}, {seed}"
        ranks.compare("run_chains", f"{said}, {parameters}")
        make = partial(HMC, path=path, accept=accept) if kind == "hmc" else Metropolis
        streams = np.random.SeedSequence(seed).spawn(chains)
        own: dict[int, tuple[np.ndarray, dict[str, np.ndarray], int]] = {}
        with ranks.together("run_chains"):
            for chain in range(ranks.rank, chains, ranks.size):
                rng = np.random.default_rng(streams[chain])
                first = _first(start, chain, chains, rng)
                target = Target(logp, gradient, len(first))
                with _naming(chain):
                    walk = _begin(make, target, first, rng, warmup, dense=mass == "dense")
                    own[chain] = (*_walk(walk, draws, warmup, thin), target.nans)
        found = {chain: each for part in ranks.gather(own) for chain, each in part.items()}
        with ranks.together("run_chains"):
            sizes = sorted({points.shape[1] for points, _, _ in found.values()})
            if len(sizes) > 1:
                raise ValueError(f"the first points of chains have different numbers of elements: {sizes}")
            shapes = _shapes(parameters, sizes[0])
        nans = sum(each[2] for each in found.values())
        if nans and ranks.rank == 0:
            warnings.warn(f"logp or its gradient was NaN {nans} times; proposals there were refused", stacklevel=2)
    points = np.stack([found[chain][0] for chain in range(chains)])
    stats = {name: np.stack([found[chain][1][name] for chain in range(chains)]) for name in found[0][1]}
    posterior, at = {}, 0
    for name, shape in shapes.items():
        posterior[name] = points[:, :, at : at + prod(shape)].reshape(chains, draws, *shape)
        at += prod(shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains")  # than draws, as asked for
        return arviz.from_dict(posterior=posterior, sample_stats=stats)


def diagnostics(result: Any) -> dict[str, float]:
    """Return whether chains agree, by ArviZ (Vehtari et al., "Rank-normalization, folding, and localization", 2021).

    Args:
        result: What `run_chains` returned, with at least 4 draws.

    Returns:
        ``rhat``, the largest rank-normalised split-R̂ of all parameters; ``ess_bulk`` and ``ess_tail``, the least
        effective sample sizes; and ``divergences``, the number of draws whose trajectory diverged. Results are good
        where R̂ < 1.01 and the sizes exceed 100 for each chain.

    >>> import numpy as np
    >>> from sfb.mcmc import diagnostics, run_chains
    >>> result = run_chains(lambda x: -0.5 * x @ x, np.zeros(1), gradient=lambda x: -x, draws=100, warmup=100)
    >>> sorted(diagnostics(result))
    ['divergences', 'ess_bulk', 'ess_tail', 'rhat']
    """
    arviz = _arviz()

    def extreme(dataset: Any, choose: Callable[..., Any]) -> float:
        return float(choose([choose(dataset[name].values) for name in dataset.data_vars]))

    diverging = result.sample_stats.get("diverging")
    return {
        "rhat": extreme(arviz.rhat(result), np.max),
        "ess_bulk": extreme(arviz.ess(result, method="bulk"), np.min),
        "ess_tail": extreme(arviz.ess(result, method="tail"), np.min),
        "divergences": 0.0 if diverging is None else float(diverging.sum()),
    }


def _arviz() -> ModuleType:
    """Return the module arviz.

    Raises:
        ImportError: It is missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of coming versions
            import arviz
    except ImportError as error:
        raise ImportError("sfb.mcmc needs ArviZ; install it with pip install 'sfb-mpi[mcmc]'") from error
    return arviz


def _check(
    kind: str,
    gradient: Any,
    chains: int,
    draws: int,
    warmup: int,
    thin: int,
    path: float,
    accept: float,
    mass: str,
    seed: int,
) -> None:
    """Raise ValueError if an argument is wrong."""
    if kind not in _SAMPLERS or mass not in _MASSES:
        raise ValueError(f"sampler must be one of {_SAMPLERS} and mass one of {_MASSES}, got {kind!r} and {mass!r}")
    if kind == "hmc" and gradient is None:
        raise ValueError("sampler='hmc' needs a gradient")
    for name, value, least in (
        ("chains", chains, 1),
        ("draws", draws, 1),
        ("warmup", warmup, 0),
        ("thin", thin, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")
    if not 0 < path < inf or not 0 < accept < 1:
        raise ValueError(f"path must be > 0 and accept between 0 and 1, got {path!r} and {accept!r}")


def _first(start: Any, chain: int, chains: int, rng: np.random.Generator) -> np.ndarray:
    """Return the first point of a chain."""
    given = np.array(start(rng) if callable(start) else start, float)
    if given.ndim == 2 and not callable(start):
        if len(given) != chains:
            raise ValueError(f"start has {len(given)} points for {chains} chains")
        given = given[chain]
    if given.ndim != 1 or not given.size:
        raise ValueError(f"the first point of a chain must be a row of numbers, got shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError(f"the first point of chain {chain} is not finite: {given}")
    return given


def _begin(
    make: Any, target: Target, first: np.ndarray, rng: np.random.Generator, warmup: int, *, dense: bool
) -> Sampler:
    """Return a sampler at its first point."""
    value = target.value(first)
    if value == -inf:
        what = "NaN" if target.nans else "-inf"
        raise ValueError(f"logp is {what} at the first point {first}; start where the density is positive")
    return make(target, first, rng, warmup, dense=dense)


def _walk(walk: Sampler, draws: int, warmup: int, thin: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the draws of a chain, and the numbers about each."""
    for _ in range(warmup):
        walk.step()
    points, stats = np.empty((draws, len(walk.x))), []
    for row in points:
        for _ in range(thin):
            last = walk.step()
        row[:] = walk.x
        stats.append(last)
    return points, {name: np.array([each[name] for each in stats]) for name in stats[0]}


class _naming:
    """Adds the number of the chain to the message of an error."""

    def __init__(self, chain: int) -> None:
        self._chain = chain

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (TypeError, ValueError)):
            raise type(error)(f"chain {self._chain}: {error}") from error


def _shapes(parameters: Mapping[str, tuple[int, ...]] | None, size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter."""
    given: Mapping[str, tuple[int, ...]] = {"x": (size,)} if parameters is None else parameters
    shapes = {name: tuple(shape) for name, shape in given.items()}
    total = sum(prod(shape) for shape in shapes.values())
    if total != size:
        raise ValueError(f"parameters have {total} elements, points have {size}")
    return shapes
