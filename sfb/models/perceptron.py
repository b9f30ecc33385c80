"""Perceptrons of any depth, data-parallel: the ranks exchange the gradients of their layers as factors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, log_softmax, softmax
from sklearn.base import RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d

import sfb
from sfb.models.estimator import Classifier, Estimator, Number
from sfb.models.network import ACTIVATIONS, Network, activate
from sfb.models.ranks import Ranks

__all__ = ["MLPClassifier", "MLPRegressor"]

# The rate below which "adaptive" ends, and the divisor of each of its steps, as in scikit-learn.
_LEAST_RATE, _SLOWER = 1e-6, 5


class _Perceptron(Estimator):
    """What classifier and regressor share."""

    coefs_: list[np.ndarray]
    out_activation_: str
    intercepts_: list[np.ndarray]
    _loss: ClassVar[str]
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
        "solver": ("adam", "sgd"),
        "learning_rate": ("constant", "invscaling", "adaptive"),
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

    def __getstate__(self) -> dict[str, Any]:
        # A copy goes on from the same weights, with fresh moments.
        return {name: value for name, value in super().__getstate__().items() if name not in ("_network", "_rules")}

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

    def _fit(self, ranks: Ranks, x: Any, targets: np.ndarray, *, outputs: int) -> None:
        """Train on the samples of all ranks until the loss or the score improves no more; collective."""
        rng, batches = self._begin(ranks, x, outputs, fresh=not self.warm_start)
        train, held_out = np.arange(len(targets)), np.empty(0, np.int64)
        if self.early_stopping:
            order = rng.permutation(len(targets))
            held = round(self.validation_fraction * len(targets))
            train, held_out = np.sort(order[held:]), np.sort(order[:held])
            with ranks.together("fit"):
                if not sum(ranks.gather(held)):
                    raise ValueError("validation_fraction leaves no sample to validate with")
        sizes = ranks.gather(len(train))
        rate, stale, best, best_weights = self.learning_rate_init, 0, -np.inf, None
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] | None = [] if self.early_stopping else None
        for _ in range(self.max_iter):
            order = rng.permutation(train) if self.shuffle else train
            self._epoch(ranks, x, targets, order, sizes, batches, rate)
            merit = -self.loss_
            if self.validation_scores_ is not None:
                merit = self._score(ranks, x[held_out], targets[held_out])
                self.validation_scores_.append(merit)
            stale = stale + 1 if merit < best + self.tol else 0
            if merit > best:
                best = merit
                if self.early_stopping:
                    best_weights = [array.copy() for array in self._arrays_of(self._network)]
            if self.solver == "sgd" and self.learning_rate == "invscaling":
                rate = self.learning_rate_init / (self.t_ + 1) ** self.power_t
            if stale > self.n_iter_no_change:
                if (
                    self.solver != "sgd"
                    or self.learning_rate != "adaptive"
                    or self.early_stopping
                    or rate <= _LEAST_RATE
                ):
                    break
                rate, stale = rate / _SLOWER, 0
        else:
            if ranks.rank == 0:
                warnings.warn(
                    f"the training stopped at max_iter={self.max_iter} epochs, still improving",
                    ConvergenceWarning,
                    stacklevel=3,
                )
        self.n_iter_ = len(self.loss_curve_)
        self.best_loss_ = None if self.early_stopping else -best
        self.best_validation_score_ = best if self.early_stopping else None
        arrays = best_weights or self._arrays_of(self._network)
        self.coefs_ = [np.array(weights.T, order="C") for weights in arrays[::2]]
        self.intercepts_ = [bias[0].copy() for bias in arrays[1::2]]
        del self._network, self._rules

    def _begin(self, ranks: Ranks, x: Any, outputs: int, *, fresh: bool) -> tuple[np.random.RandomState, int]:
        """Make the network, and return the generator of this rank's order, and the samples of a batch; collective."""
        with ranks.together("fit"):
            rng = check_random_state(self.random_state)
            seed = rng.randint(np.iinfo(np.int32).max)
        seed = ranks.first(seed)
        sizes = [x.shape[1], *self._hidden, outputs]
        shapes = [(rows, columns) for columns, rows in pairwise(sizes)]
        dtype = np.dtype(x.dtype)
        first = np.random.RandomState(seed)
        weights, biases = [], []
        with ranks.together("fit"):
            if fresh or not hasattr(self, "coefs_"):
                gain = 2 if self.activation == "logistic" else 6
                for rows, columns in shapes:
                    bound = np.sqrt(gain / (rows + columns))
                    weights.append(first.uniform(-bound, bound, (rows, columns)).astype(dtype))
                    biases.append(first.uniform(-bound, bound, rows).astype(dtype))
                self.t_ = 0
            else:
                weights = [np.ascontiguousarray(coef.T, dtype) for coef in self.coefs_]
                biases = [intercept.astype(dtype) for intercept in self.intercepts_]
                if [weight.shape for weight in weights] != shapes:
                    raise ValueError(f"warm_start needs layers of {sizes}, got coefs_ of other sizes")
        if not fresh:  # ranks may hold different models
            weights, biases, self.t_ = ranks.first((weights, biases, self.t_))
        self.n_layers_, self.n_outputs_ = len(sizes), outputs
        self._network = Network(sizes, activation=self.activation, loss=self._loss, dtype=dtype)
        rule, flat = self._rule(), np.concatenate(biases).reshape(1, -1)
        self._rules, low = {"biases": rule.bind(flat)}, 0
        for layer, weight in zip(self._network.layers, self._place(ranks, weights), strict=True):
            layer.weights.array, layer.bias.array = weight, flat[:, low : low + len(weight)]
            self._rules[layer.weights.name] = rule.bind(weight)
            low += len(weight)
        total = sum(ranks.gather(x.shape[0]))
        batch = min(200, total) if self.batch_size == "auto" else min(int(self.batch_size), total)
        return np.random.RandomState([seed, ranks.rank]), batch

    @staticmethod
    def _place(ranks: Ranks, weights: list[np.ndarray]) -> list[np.ndarray]:
        """Return the weights in memory that the ranks of a node share; collective."""
        if ranks.comm is None:
            return weights
        placed = [ranks.comm.shared(weight.shape, weight.dtype) for weight in weights]
        if ranks.comm.node.rank == 0:
            for target, weight in zip(placed, weights, strict=True):
                target[:] = weight
        ranks.comm.Barrier()
        return placed

    def _rule(self) -> sfb.optim.Optimizer:
        if self.solver == "adam":
            return sfb.optim.Adam(betas=(self.beta_1, self.beta_2), eps=self.epsilon)
        nesterov = bool(self.nesterovs_momentum and self.momentum)
        return sfb.optim.SGD(lr=self.learning_rate_init, momentum=self.momentum, nesterov=nesterov)

    def _epoch(
        self, ranks: Ranks, x: Any, targets: np.ndarray, order: np.ndarray, sizes: list[int], batch: int, rate: float
    ) -> None:
        """Train once on the samples of all ranks in this rank's ``order``; collective.

        Args:
            ranks: The ranks.
            x: Features of this rank.
            targets: Their targets.
            order: Numbers of this rank's samples.
            sizes: The number of samples of each rank.
            batch: Samples of a batch, of all ranks together.
            rate: The learning rate.

        Raises:
            ValueError: The loss is no longer finite; on every rank.
        """
        total, steps, value = sum(sizes), 0, np.zeros(1)
        for mine, count in self._batches(order, sizes, batch):
            steps += 1
            value += self._step(ranks, x, targets, mine, count, rate)
        self.t_ += total
        weights = self._arrays_of(self._network)[::2]
        squares = sum(float(np.vdot(weight, weight)) for weight in weights)
        self.loss_ = (float(ranks.sum(value)[0]) + 0.5 * self.alpha * squares * steps) / total
        self.loss_curve_.append(self.loss_)
        if not np.isfinite(self.loss_):  # the same on all ranks
            raise ValueError(
                f"the loss is {self.loss_} after epoch {len(self.loss_curve_)}: lower learning_rate_init, or scale the "
                "features"
            )

    def _step(self, ranks: Ranks, x: Any, targets: np.ndarray, mine: np.ndarray, count: int, rate: float) -> float:
        """Take a step with ``count`` samples of all ranks, and return the loss of this rank's, ``mine``; collective."""
        value, gradients = self._network.gradients(x, targets, mine[:, np.newaxis], count)
        biases = []
        for parameter, gradient in gradients:
            if isinstance(gradient, np.ndarray):
                biases.append(gradient)
                continue
            rule = self._rules[parameter.name]
            rule.lr, rule.weight_decay = rate, self.alpha / count
            if ranks.comm is not None:
                ranks.comm.Allreduce(gradient, rule)
            else:
                rule.prepare(np.zeros)
                rule.update(gradient.u, gradient.v, 0, rule.shape[0])
                rule.end()
        self._rules["biases"].lr = rate
        self._rules["biases"].step(ranks.sum(np.concatenate(biases[::-1], axis=1)))  # they come from the last layer on
        return value / (self.n_outputs_ if self._loss == "squared" else 1)

    @staticmethod
    def _batches(order: np.ndarray, sizes: list[int], batch: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yield this rank's part of each batch, which may be empty, and the number of samples of all ranks in it."""
        steps = -(-sum(sizes) // batch)
        for step in range(steps):
            low, high = (len(order) * i // steps for i in (step, step + 1))
            count = sum(size * (step + 1) // steps - size * step // steps for size in sizes)
            if count:
                yield order[low:high], count

    @staticmethod
    def _arrays_of(network: Network) -> list[np.ndarray]:
        """Return the weights and the biases of each layer in turn."""
        return [parameter.array for parameter in network.parameters]

    def _outputs(self, x: Any) -> np.ndarray:
        """Return what the last layer gives, without an activation, N×K."""
        x = self._rows(x)
        for i, (coef, intercept) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            if i:
                activate(self.activation, x)
            x = np.asarray(x @ coef)
            x += intercept
        return x

    def _score(self, ranks: Ranks, x: Any, targets: np.ndarray) -> float:
        """Return the score of the network on samples of all ranks; collective."""
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


class MLPClassifier(_Perceptron, Classifier):
    """Classifier by a perceptron of any depth, as `sklearn.neural_network.MLPClassifier`.

    It minimises the cross-entropy; two classes have one output.

    Every rank passes a shard of the samples. A step takes the samples of a batch from all ranks, from each in
    proportion to its shard; gradients travel as factors, and all ranks hold the same weights.

    Args:
        hidden_layer_sizes: Units of each hidden layer.
        activation: "identity", "relu", "tanh" or "logistic", between layers.
        solver: "adam" or "sgd".
        alpha: Strength of the L2 penalty, ≥ 0: ½·alpha·‖W‖² beside the sum of the losses of a batch.
        batch_size: Samples of a step, of all ranks together; "auto" for 200, or all if there are fewer.
        learning_rate: Schedule of "sgd": "constant", "invscaling" or "adaptive".
        learning_rate_init: First learning rate.
        power_t: Exponent of "invscaling".
        max_iter: Most epochs.
        shuffle: Whether each epoch takes the samples in another order.
        random_state: Seed of weights and order; that of rank 0 counts.
        tol: Least improvement of loss or score that counts as one.
        warm_start: Whether `fit` starts from the weights that there are.
        momentum: Momentum of "sgd".
        nesterovs_momentum: Whether to use Nesterov's momentum.
        early_stopping: Whether to hold out samples, and to end when their score improves no more.
        validation_fraction: Part of each shard to hold out.
        beta_1: Decay of the first moment of "adam".
        beta_2: Decay of the second moment of "adam".
        epsilon: Added to the root by "adam".
        n_iter_no_change: Epochs without improvement, after which training ends.
        comm: Ranks that fit together, an `MPI.Intracomm`; None for COMM_WORLD where MPI has been started, else this
            process alone.

    Attributes:
        coefs_: Weights of each layer, D×K for D inputs and K outputs, the same bits on all ranks.
        intercepts_: Biases of each layer, K.
        loss_: Loss of the last epoch, each sample before its step, with the penalty.
        loss_curve_: Loss of each epoch.
        validation_scores_: Score of the samples held out, after each epoch; None without `early_stopping`.
        n_features_in_: Number of features.
        n_iter_: Number of epochs.
        classes_: Labels that occur on any rank, in ascending order.

    >>> import numpy as np
    >>> from sfb.models import MLPClassifier
    >>> X, y = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]] * 8), np.array([0, 1, 1, 0] * 8)
    >>> MLPClassifier((16,), learning_rate_init=0.05, random_state=0).fit(X, y).score(X, y)
    1.0
    """

    _loss = "cross-entropy"

    def fit(self, X: Any, y: Any) -> MLPClassifier:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N labels.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong, or the loss is no longer finite; on
                every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            x, y = self._arrays(ranks, X, y)
            indices = self._encode(ranks, y)
            self._fit(ranks, x, indices, outputs=1 if len(self.classes_) == 2 else len(self.classes_))
        self.out_activation_ = "logistic" if self.n_outputs_ == 1 else "softmax"
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels of local samples, N×D features."""
        outputs = self._outputs(X)
        return self.classes_[_decide(outputs)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class for local samples, N×K."""
        scores = self._outputs(X)
        return np.hstack([expit(-scores), expit(scores)]) if scores.shape[1] == 1 else softmax(scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of `predict_proba`, N×K."""
        scores = self._outputs(X)
        if scores.shape[1] == 1:
            return np.hstack([-np.logaddexp(0, scores), -np.logaddexp(0, -scores)])
        return log_softmax(scores, axis=1)

    def _contents(self) -> dict[str, Any]:
        return super()._contents() | {"classes": self.classes_}

    def _score(self, ranks: Ranks, x: Any, targets: np.ndarray) -> float:
        right = np.sum(_decide(self._network.outputs(x)) == targets) if len(targets) else 0
        found = ranks.sum(np.array([right, len(targets)], np.float64))
        return float(found[0] / found[1])


class MLPRegressor(RegressorMixin, _Perceptron):
    """Regressor by a perceptron of any depth, as `sklearn.neural_network.MLPRegressor`.

    It minimises half the squared error, the mean over outputs in reports. Parameters and attributes are those of
    `MLPClassifier`, but for ``classes_``; the score of samples held out is R².

    >>> import numpy as np
    >>> from sfb.models import MLPRegressor
    >>> X = np.linspace(-1, 1, 64).reshape(-1, 1)
    >>> model = MLPRegressor((32,), learning_rate_init=0.03, max_iter=400, random_state=0).fit(X, X.ravel() ** 2)
    >>> model.score(X, X.ravel() ** 2) > 0.98
    True
    """

    _loss = "squared"

    def fit(self, X: Any, y: Any) -> MLPRegressor:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N targets, or N×M.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong, or the loss is no longer finite; on
                every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            x, y = self._arrays(ranks, X, y, multi_output=True, y_numeric=True)
            with ranks.together("fit"):
                if y.ndim == 2 and y.shape[1] == 1:
                    y = column_or_1d(y, warn=True)
            widths = {targets for targets in ranks.gather(y.shape[1:] if len(y) else None) if targets is not None}
            with ranks.together("fit"):
                if len(widths) > 1:
                    raise ValueError(f"y has {y.shape[1:] or 1} targets on this rank, and another number on others")
            (self._target_shape,) = widths
            targets = y.reshape(len(y), -1).astype(x.dtype)
            outputs = self._target_shape[0] if self._target_shape else 1
            self._fit(ranks, x, targets.reshape(len(y), outputs), outputs=outputs)
        self.out_activation_ = "identity"
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the targets of local samples, N, or N×M if `fit` took N×M."""
        found = self._outputs(X)
        return found if self._target_shape else found.ravel()

    def _contents(self) -> dict[str, Any]:
        return super()._contents() | {"matrix": bool(self._target_shape)}

    def _score(self, ranks: Ranks, x: Any, targets: np.ndarray) -> float:
        error = (self._network.outputs(x) - targets).astype(np.float64)
        count = ranks.sum(np.array([float(len(targets))]))
        mean = ranks.sum(targets.sum(axis=0, dtype=np.float64)) / count
        sums = ranks.sum(np.stack([(error**2).sum(axis=0), ((targets - mean) ** 2).sum(axis=0, dtype=np.float64)]))
        return float(np.mean(1 - sums[0] / np.where(sums[1], sums[1], 1)))


def _decide(outputs: np.ndarray) -> np.ndarray:
    """Return the index of the likeliest class of each sample."""
    return (outputs[:, 0] > 0).astype(np.intp) if outputs.shape[1] == 1 else outputs.argmax(axis=1)
