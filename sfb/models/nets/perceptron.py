"""What multilayer perceptrons share: epochs of mini-batches, schedules, early stopping, streams."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

import sfb
from sfb.models.collective import batches
from sfb.models.estimator import Estimator, Number, Shard
from sfb.models.linear.descent import Descent, weights_of_batches
from sfb.models.nets.network import ACTIVATIONS, Network, activate
from sfb.models.ranks import Ranks

__all__ = ["Perceptron"]

# The rate below which "adaptive" ends, and the divisor of each of its steps, as in scikit-learn.
_LEAST_RATE, _SLOWER = 1e-6, 5


class Perceptron(Estimator):
    """A multilayer perceptron, of which every rank fits its shard of the samples."""

    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    loss_curve_: list[float]
    out_activation_: str
    loss: ClassVar[str]
    numbers: ClassVar = {
        "alpha": Number(0),
        "learning_rate_init": Number(0, above=True),
        "power_t": Number(0),
        "max_iter": Number(1, whole=True),
        "tol": Number(0),
        "momentum": Number(0, 1),
        "validation_fraction": Number(0, 1, above=True),
        "beta_1": Number(0, 1),
        "beta_2": Number(0, 1),
        "epsilon": Number(0, above=True),
        "n_iter_no_change": Number(1, whole=True),
    }
    choices: ClassVar = {
        "activation": ACTIVATIONS,
        "solver": ("adam", "sgd", "adamw", "adagrad"),
        "learning_rate": ("constant", "invscaling", "adaptive", "cosine"),
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 1e-3,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        comm: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.comm = comm

    def _contents(self) -> dict[str, Any]:
        check_is_fitted(self)
        contents: dict[str, Any] = {
            "kind": "mlp",
            "model": type(self).__name__,
            "activation": self.activation,
            "out_activation": self.out_activation_,
        }
        for i, (coef, intercept) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            contents |= {f"weights{i}": coef.T, f"bias{i}": intercept}
        return contents

    def _fit(self, ranks: Ranks, shard: Shard, outputs: int) -> None:
        """Train on the samples of all ranks until the loss or the score improves no more; collective."""
        descent, rng, batch = self._begin(ranks, shard, outputs, "fit", fresh=not self.warm_start)
        train, held_out = self._divide(ranks, rng, len(shard.y))
        sizes = ranks.gather(len(train))
        rate, stale, best, kept = self.learning_rate_init, 0, -np.inf, None
        self.loss_curve_ = []
        self.validation_scores_: list[float] | None = [] if self.early_stopping else None
        for epoch in range(1, self.max_iter + 1):
            order = rng.permutation(train) if self.shuffle else train
            self._epoch(ranks, descent, shard, order, sizes, batch, rate)
            merit = -self.loss_
            if self.validation_scores_ is not None:
                merit = self._score(ranks, descent.network, shard, held_out)
                self.validation_scores_.append(merit)
            stale = stale + 1 if merit < best + self.tol else 0
            if merit > best:
                best = merit
                if self.early_stopping:
                    kept = _arrays(descent.network)
            rate = self._scheduled(rate, epoch)
            if stale > self.n_iter_no_change:
                if not self._adapts or self.early_stopping or rate <= _LEAST_RATE:
                    break
                rate, stale = rate / _SLOWER, 0
        else:
            if ranks.rank == 0 and self.learning_rate != "cosine":  # whose end is max_iter
                warnings.warn(
                    f"the training stopped at max_iter={self.max_iter} epochs, still improving",
                    ConvergenceWarning,
                    stacklevel=3,
                )
        self.n_iter_ = len(self.loss_curve_)
        self.best_loss_ = None if self.early_stopping else -best
        self.best_validation_score_ = best if self.early_stopping else None
        self._keep(kept or _arrays(descent.network))
        self._moments: dict[str, Any] = {}

    def _fit_part(self, ranks: Ranks, shard: Shard, outputs: int) -> None:
        """Train once on a part of a stream, with the moments of the parts before; collective."""
        with ranks.together("partial_fit"):
            if self.early_stopping:
                raise ValueError("partial_fit does not support early_stopping=True")
            if self.learning_rate == "cosine":
                raise ValueError("partial_fit does not support learning_rate='cosine': a stream has no last epoch")
        first = not any(ranks.gather(hasattr(self, "coefs_")))
        descent, rng, batch = self._begin(ranks, shard, outputs, "partial_fit", fresh=first)
        descent.restore({} if first else getattr(self, "_moments", {}))
        self.loss_curve_ = [] if first else getattr(self, "loss_curve_", [])
        order = np.arange(len(shard.y))
        rate = self._scheduled(self.learning_rate_init, 0)
        sizes = ranks.gather(len(order))
        self._epoch(ranks, descent, shard, rng.permutation(order) if self.shuffle else order, sizes, batch, rate)
        self.n_iter_ = len(self.loss_curve_)
        self.best_loss_ = min(self.loss_curve_)
        self.validation_scores_ = self.best_validation_score_ = None
        self._keep(_arrays(descent.network))
        self._moments = descent.state()

    def _begin(
        self, ranks: Ranks, shard: Shard, outputs: int, call: str, *, fresh: bool
    ) -> tuple[Descent, np.random.RandomState, int]:
        """Return gradient descent, the generator of this rank's order, and the samples of a batch; collective."""
        with ranks.together(call):
            seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        seed = ranks.first(seed)
        sizes = [shard.x.shape[1], *self._hidden, outputs]
        shapes = [(rows, columns) for columns, rows in pairwise(sizes)]
        first = np.random.RandomState(seed)
        weights, biases = [], []
        with ranks.together(call):
            if fresh or not hasattr(self, "coefs_"):
                gain = 2 if self.activation == "logistic" else 6
                for rows, columns in shapes:
                    bound = np.sqrt(gain / (rows + columns))
                    weights.append(first.uniform(-bound, bound, (rows, columns)))
                    biases.append(first.uniform(-bound, bound, rows))
                self.t_ = 0
            else:
                weights, biases = [coef.T for coef in self.coefs_], self.intercepts_
                if [weight.shape for weight in weights] != shapes:
                    raise ValueError(f"warm_start needs layers of {sizes}, got coefs_ of other sizes")
        if not fresh:  # ranks may hold different models
            weights, biases, self.t_ = ranks.first((weights, biases, self.t_))
        self.n_layers_, self.n_outputs_ = len(sizes), outputs
        network = Network(sizes, activation=self.activation, loss=self.loss, dtype=shard.x.dtype)
        for layer, weight, bias in zip(network.layers, weights, biases, strict=True):
            layer.weights.array[:] = weight
            layer.bias.array[:] = bias
        network.sample_weights = shard.weights
        network.sparse = ranks.sparse(shard.x)
        total = sum(ranks.gather(shard.x.shape[0]))
        batch = min(200, total) if self.batch_size == "auto" else min(int(self.batch_size), total)
        # Each part of a stream comes in an order of its own.
        rng = np.random.RandomState([seed, ranks.rank, self.t_ % 2**32] if call != "fit" else [seed, ranks.rank])
        return Descent(ranks, network, self._rule()), rng, batch

    def _rule(self) -> sfb.optim.Optimizer:
        if self.solver == "adam":
            return sfb.optim.Adam(betas=(self.beta_1, self.beta_2), eps=self.epsilon)
        if self.solver == "adamw":
            return sfb.optim.AdamW(betas=(self.beta_1, self.beta_2), eps=self.epsilon, weight_decay=0.0)
        if self.solver == "adagrad":
            return sfb.optim.Adagrad(eps=self.epsilon)
        nesterov = bool(self.nesterovs_momentum and self.momentum)
        return sfb.optim.SGD(lr=self.learning_rate_init, momentum=self.momentum, nesterov=nesterov)

    @property
    def _adapts(self) -> bool:
        return self.solver == "sgd" and self.learning_rate == "adaptive"

    def _scheduled(self, rate: float, epoch: int) -> float:
        """Return the learning rate after some epochs, of which the last had ``rate``."""
        if self.solver == "sgd" and self.learning_rate == "invscaling":
            return self.learning_rate_init / (self.t_ + 1) ** self.power_t
        if self.learning_rate == "cosine":
            return 0.5 * self.learning_rate_init * (1 + math.cos(math.pi * epoch / self.max_iter))
        return rate

    def _divide(self, ranks: Ranks, rng: np.random.RandomState, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of this rank to learn from, and those to hold out; collective."""
        if not self.early_stopping:
            return np.arange(samples), np.empty(0, np.int64)
        order = rng.permutation(samples)
        held = round(self.validation_fraction * samples)
        with ranks.together("fit"):
            if not sum(ranks.gather(held)):
                raise ValueError("validation_fraction leaves no sample to validate with")
        return np.sort(order[held:]), np.sort(order[:held])

    def _epoch(
        self,
        ranks: Ranks,
        descent: Descent,
        shard: Shard,
        order: np.ndarray,
        sizes: list[int],
        batch: int,
        rate: float,
    ) -> None:
        """Train once on the samples of all ranks in this rank's ``order``; collective.

        Args:
            ranks: The ranks.
            descent: Gradient descent of the network.
            shard: The samples of this rank.
            order: Numbers of the samples to take.
            sizes: The number of samples that each rank takes.
            batch: Samples of a batch, of all ranks together.
            rate: The learning rate.

        Raises:
            ValueError: The loss is no longer finite; on every rank.
        """
        parts = list(batches(order, sizes, batch))
        counts = np.array([count for _, count in parts], np.float64)
        if shard.weights is not None:
            counts = weights_of_batches(ranks, shard.weights, parts)
        value, steps = np.zeros(1), 0
        for (mine, _), count in zip(parts, counts.tolist(), strict=True):
            if count > 0:
                value += descent.step(shard.x, shard.y, mine, count, rate, weight_decay=self.alpha / count)
                steps += 1
        if self.loss == "squared":
            value /= self.n_outputs_
        self.t_ += sum(sizes)
        squares = sum(float(np.vdot(w, w)) for w in _arrays(descent.network, copies=False)[::2])
        self.loss_ = (float(ranks.sum(value)[0]) + 0.5 * self.alpha * squares * steps) / float(counts.sum())
        self.loss_curve_.append(self.loss_)
        if not np.isfinite(self.loss_):  # the same on all ranks
            raise ValueError(
                f"the loss is {self.loss_} after epoch {len(self.loss_curve_)}: lower learning_rate_init, or scale the "
                "features"
            )

    def _keep(self, arrays: list[np.ndarray]) -> None:
        """Take the weights and biases of each layer in turn."""
        self.coefs_ = [np.array(weights.T, order="C") for weights in arrays[::2]]
        self.intercepts_ = [bias[0] for bias in arrays[1::2]]

    def _outputs(self, x: Any) -> np.ndarray:
        """Return what the last layer gives, without an activation, N×K."""
        x = self._rows(x)
        for i, (coef, intercept) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            if i:
                activate(self.activation, x)
            x = np.asarray(x @ coef)
            x += intercept
        return x

    def _score(self, ranks: Ranks, network: Network, shard: Shard, rows: np.ndarray) -> float:
        """Return the score of the network on some samples of all ranks; collective."""
        raise NotImplementedError

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for size in self._hidden:
            Number(1, whole=True).check("hidden_layer_sizes", size)
        if self.batch_size != "auto":
            Number(1, whole=True).check("batch_size", self.batch_size)

    @property
    def _hidden(self) -> Sequence[Any]:
        sizes: Any = self.hidden_layer_sizes
        return [sizes] if isinstance(sizes, Integral) else list(sizes)


def _arrays(network: Network, *, copies: bool = True) -> list[np.ndarray]:
    """Return the weights and the biases of each layer in turn."""
    return [parameter.array.copy() if copies else parameter.array for parameter in network.parameters]
