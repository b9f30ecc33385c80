"""Samplers: random-walk Metropolis, and Hamiltonian Monte Carlo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import exp, inf, isnan, log

import numpy as np

from sfb.mcmc.adaptation import DualAveraging, Moments, window_ends

__all__ = ["HMC", "Metropolis", "Sampler", "Target"]

_DIVERGED = 1000.0  # error of the energy at which a trajectory counts as divergent, as in Stan
_STEPS = 1000  # steps of a trajectory, at most


class Target:
    """The density to sample from, up to a factor.

    Args:
        logp: Function that returns the logarithm of the density at a point.
        gradient: Function that returns its gradient; None if there is none.
        size: The number of elements of a point.

    Attributes:
        nans: How often the density or its gradient was NaN.
    """

    def __init__(
        self, logp: Callable[[np.ndarray], float], gradient: Callable[[np.ndarray], np.ndarray] | None, size: int
    ) -> None:
        self._logp, self._gradient, self._size = logp, gradient, size
        self.nans = 0

    def value(self, x: np.ndarray) -> float:
        """Return the logarithm of the density; −∞ where it is NaN, which counts.

        Raises:
            TypeError, ValueError: The function did not return a number below +∞.
        """
        found = np.asarray(self._logp(x.copy()))
        if found.size != 1 or found.dtype.kind not in "fiub":
            raise TypeError(f"logp must return a number, got {found!r}")
        value = float(found.item())
        if value == inf:
            raise ValueError(f"logp returned +inf at {x}")
        if isnan(value):
            self.nans += 1
            return -inf
        return value

    def slope(self, x: np.ndarray) -> np.ndarray:
        """Return the gradient.

        Raises:
            ValueError: The function did not return as many numbers as the point has.
        """
        assert self._gradient is not None
        found = np.asarray(self._gradient(x.copy()), float)
        if found.shape != (self._size,):
            raise ValueError(f"gradient must return shape {(self._size,)}, got {found.shape}")
        return found


class Sampler(ABC):
    """A chain: a point, what the next one is drawn by, and what the warm-up has learnt.

    Args:
        target: The density.
        x: The first point.
        rng: The generator of the chain.
        warmup: Iterations in which the sampler adapts.
        dense: Whether it learns the whole covariance rather than its diagonal.

    Attributes:
        x: The point.
        logp: The logarithm of the density there.
    """

    def __init__(self, target: Target, x: np.ndarray, rng: np.random.Generator, warmup: int, *, dense: bool) -> None:
        self.x, self.logp = x, target.value(x)
        self._target, self._rng, self._warmup, self._dense = target, rng, warmup, dense
        self._ends = window_ends(warmup)
        self._begin = int(0.15 * warmup)
        self._moments = Moments(len(x), dense=dense)
        self._iteration = 0

    def step(self) -> dict[str, float]:
        """Draw the next point, and return numbers about the draw."""
        stats = self._draw()
        if self._iteration < self._warmup:
            self._learn()
        self._iteration += 1
        return stats

    @abstractmethod
    def _draw(self) -> dict[str, float]:
        """Draw the next point, adapting the step size in the warm-up."""

    @abstractmethod
    def _take_covariance(self, covariance: np.ndarray) -> None:
        """Take the covariance of a window, or its diagonal."""

    @property
    def _adapting(self) -> bool:
        return self._iteration < self._warmup

    def _learn(self) -> None:
        if self._ends and self._begin <= self._iteration < self._ends[-1]:
            self._moments.add(self.x)
            if self._iteration + 1 in self._ends:
                self._take_covariance(self._moments.covariance())
                self._moments = Moments(len(self.x), dense=self._dense)


class Metropolis(Sampler):
    """Random-walk Metropolis, whose steps have the covariance learnt in the warm-up.

    The scale of the steps adapts to an acceptance rate of 0.234, the best for many elements (Roberts, Gelman and Gilks,
    Annals of Applied Probability 7(1), 1997), or 0.44 for one.
    """

    def __init__(self, target: Target, x: np.ndarray, rng: np.random.Generator, warmup: int, *, dense: bool) -> None:
        super().__init__(target, x, rng, warmup, dense=dense)
        self._goal = 0.44 if len(x) == 1 else 0.234
        self._scale = 2.38 / np.sqrt(len(x))
        self._root: np.ndarray = np.ones(len(x))
        self._since = 0

    def _draw(self) -> dict[str, float]:
        noise = self._rng.standard_normal(len(self.x))
        threshold = log(1 - self._rng.random())
        proposal = self.x + self._scale * (self._root @ noise if self._root.ndim == 2 else self._root * noise)
        value = self._target.value(proposal)
        accepted = exp(min(0.0, value - self.logp)) if value > -inf else 0.0
        stats = {"acceptance_rate": accepted, "step_size": float(self._scale)}
        if threshold < value - self.logp:
            self.x, self.logp = proposal, value
        if self._adapting:
            self._since += 1
            self._scale *= exp((accepted - self._goal) / self._since**0.6)
        return stats | {"lp": self.logp}

    def _take_covariance(self, covariance: np.ndarray) -> None:
        self._root = np.linalg.cholesky(covariance) if self._dense else np.sqrt(covariance)
        self._scale, self._since = 2.38 / np.sqrt(len(self.x)), 0


class HMC(Sampler):
    """Hamiltonian Monte Carlo with trajectories of a given length (Neal, Handbook of MCMC, 2011).

    Args:
        target: The density, with its gradient.
        x: The first point.
        rng: The generator of the chain.
        warmup: Iterations in which the sampler adapts the step size, and the mass to the inverse covariance.
        dense: Whether the mass is a whole matrix.
        path: The length of a trajectory, in standard deviations as the mass has them. Each trajectory is up to a fifth
            shorter or longer, so that no frequency resonates.
        accept: The wanted mean of the acceptance probability.
    """

    def __init__(
        self,
        target: Target,
        x: np.ndarray,
        rng: np.random.Generator,
        warmup: int,
        *,
        dense: bool,
        path: float,
        accept: float,
    ) -> None:
        super().__init__(target, x, rng, warmup, dense=dense)
        self._path, self._accept = path, accept
        self._covariance = np.eye(len(x)) if dense else np.ones(len(x))
        self._root = self._covariance
        self._slope = target.slope(x)
        if not np.isfinite(self._slope).all():
            raise ValueError(f"the gradient is not finite at the first point {x}")
        self._averaging = DualAveraging(self._first_step(), accept)
        self._step = self._averaging.step

    def _draw(self) -> dict[str, float]:
        momentum = self._momentum()
        length = self._path * self._rng.uniform(0.8, 1.2)
        threshold = log(1 - self._rng.random())
        size = self._averaging.step if self._adapting else self._step
        count = int(np.clip(np.rint(length / size), 1, _STEPS))
        x, logp, slope, error = self._trajectory(momentum, size, count)
        accepted = exp(min(0.0, -error)) if error < inf else 0.0
        if threshold < -error:
            self.x, self.logp, self._slope = x, logp, slope
        if self._adapting:
            self._averaging.update(accepted)
            self._step = self._averaging.average
        return {
            "lp": self.logp,
            "acceptance_rate": accepted,
            "step_size": size,
            "n_steps": count,
            "diverging": error > _DIVERGED,
        }

    def _trajectory(self, momentum: np.ndarray, size: float, count: int) -> tuple[np.ndarray, float, np.ndarray, float]:
        """Return the end of a trajectory, density and gradient there, and the energy's error; +∞ if it diverged."""
        x, p, slope = self.x.copy(), momentum.copy(), self._slope
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(count):
                p = p + 0.5 * size * slope
                x = x + size * self._velocity(p)
                if not np.isfinite(x).all():
                    return x, -inf, slope, inf
                slope = self._target.slope(x)
                if not np.isfinite(slope).all():
                    self._target.nans += int(np.isnan(slope).any())
                    return x, -inf, slope, inf
                p = p + 0.5 * size * slope
            logp = self._target.value(x)
            error = self.logp - logp + 0.5 * float(p @ self._velocity(p) - momentum @ self._velocity(momentum))
        return x, logp, slope, inf if isnan(error) else error

    def _momentum(self) -> np.ndarray:
        noise = self._rng.standard_normal(len(self.x))
        return np.linalg.solve(self._root.T, noise) if self._dense else noise / self._root

    def _velocity(self, momentum: np.ndarray) -> np.ndarray:
        return self._covariance @ momentum if self._dense else self._covariance * momentum

    def _first_step(self) -> float:
        """Return a step size for which one step is accepted with a probability of about one half."""
        size, momentum = 1.0, self._momentum()
        error = self._trajectory(momentum, size, 1)[3]
        factor = 2.0 if error < log(2) else 0.5
        for _ in range(60):
            if (error < log(2)) != (factor > 1):
                break
            size *= factor
            error = self._trajectory(momentum, size, 1)[3]
        return size

    def _take_covariance(self, covariance: np.ndarray) -> None:
        self._covariance = covariance
        self._root = np.linalg.cholesky(covariance) if self._dense else np.sqrt(covariance)
        self._averaging = DualAveraging(self._first_step(), self._accept)
