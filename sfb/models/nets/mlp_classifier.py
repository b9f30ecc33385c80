"""Classifier by a multilayer perceptron, data-parallel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax

from sfb.models.estimator import Classifier, Shard
from sfb.models.nets.network import Network
from sfb.models.nets.perceptron import Perceptron
from sfb.models.ranks import Ranks

__all__ = ["MLPClassifier"]


class MLPClassifier(Classifier, Perceptron):
    """Classifier by a perceptron of any depth, as `sklearn.neural_network.MLPClassifier`.

    It minimises the cross-entropy; two classes have one output.

    Every rank passes a shard of the samples. A step takes the samples of a batch from all ranks, from each in
    proportion to its shard; gradients travel as factors, and all ranks hold the same weights.

    Args:
        hidden_layer_sizes: Units of each hidden layer.
        activation: "identity", "relu", "tanh" or "logistic", between layers.
        solver: "adam", "sgd", "adamw" or "adagrad", a rule of `sfb.optim`.
        alpha: Strength of the L2 penalty, ≥ 0: ½·alpha·‖W‖² beside the sum of the losses of a batch; "adamw" shrinks
            the weights by it in place of adding it to the gradient.
        batch_size: Samples of a step, of all ranks together; "auto" for 200, or all if there are fewer.
        learning_rate: Schedule: "constant"; "cosine", which falls to 0 in ``max_iter`` epochs; of "sgd" also
            "invscaling" or "adaptive".
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
        class_weight: Weights of classes by label, "balanced" for the same total weight of each class, or None.
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

    loss = "cross-entropy"

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
        class_weight: Any = None,
        comm: Any = None,
    ) -> None:
        super().__init__(
            hidden_layer_sizes,
            activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
            comm=comm,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPClassifier:
        """Fit the samples of all ranks; collective.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N labels.
            sample_weight: N weights ≥ 0; None for 1 each.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: What a rank passed, or a parameter, is wrong, or the loss is no longer finite; on
                every rank.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks)
            shard = self._shard(ranks, X, y, sample_weight)
            self._fit(ranks, shard, self._width)
        self.out_activation_ = "logistic" if self.n_outputs_ == 1 else "softmax"
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> MLPClassifier:
        """Train once on a part of a stream of samples; collective.

        Weights and moments go on from the parts before, and so do they in a copy by pickle.

        Args:
            X: N×D features of this rank's samples, an array or a SciPy sparse matrix; N may be 0 on some ranks.
            y: N labels.
            classes: All labels that will ever occur; needed in the first call.
            sample_weight: N weights ≥ 0; None for 1 each.

        Returns:
            The estimator.

        Raises:
            TypeError, ValueError: As `fit` does.
        """
        with Ranks(self.comm) as ranks:
            self._agree(ranks, "partial_fit")
            shard = self._part(ranks, X, y, classes, sample_weight)
            self._fit_part(ranks, shard, self._width)
        self.out_activation_ = "logistic" if self.n_outputs_ == 1 else "softmax"
        return self

    @property
    def _width(self) -> int:
        """The number of outputs."""
        return 1 if len(self.classes_) == 2 else len(self.classes_)

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

    def _score(self, ranks: Ranks, network: Network, shard: Shard, rows: np.ndarray) -> float:
        weights = np.ones(len(rows)) if shard.weights is None else shard.weights[rows]
        right = _decide(network.outputs(shard.x, rows)) == shard.y[rows] if len(rows) else np.zeros(0, bool)
        found = ranks.sum(np.array([weights[right].sum(), weights.sum()], np.float64))
        return float(found[0] / found[1]) if found[1] else 0.0


def _decide(outputs: np.ndarray) -> np.ndarray:
    """Return the index of the likeliest class of each sample."""
    return (outputs[:, 0] > 0).astype(np.intp) if outputs.shape[1] == 1 else outputs.argmax(axis=1)
