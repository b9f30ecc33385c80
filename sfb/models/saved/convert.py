"""Estimators of scikit-learn from those of this library, and the other way round."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn import linear_model, neural_network, svm
from sklearn.base import BaseEstimator
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import check_is_fitted

from sfb.models.linear.linear_svc import LinearSVC
from sfb.models.linear.logistic_regression import LogisticRegression
from sfb.models.nets.mlp_classifier import MLPClassifier
from sfb.models.nets.mlp_regressor import MLPRegressor

__all__ = ["from_sklearn", "to_sklearn"]

_TWINS: dict[type, type] = {
    LogisticRegression: linear_model.LogisticRegression,
    LinearSVC: svm.LinearSVC,
    MLPClassifier: neural_network.MLPClassifier,
    MLPRegressor: neural_network.MLPRegressor,
}
# What a fit leaves, where there is such an attribute.
_FITTED = (
    "coef_", "intercept_", "coefs_", "intercepts_", "classes_", "n_features_in_", "feature_names_in_", "n_iter_",
    "n_layers_", "n_outputs_", "out_activation_", "loss_", "loss_curve_", "best_loss_", "validation_scores_",
    "best_validation_score_", "t_",
)  # fmt: skip


def to_sklearn(model: Any) -> BaseEstimator:
    """Return scikit-learn's estimator of the same name, fitted.

    It has the parameters of ``model`` that scikit-learn knows. A solver that scikit-learn lacks becomes its default,
    or the solver that takes the penalty; that matters to a later `fit` alone.

    Args:
        model: A fitted `LogisticRegression`, `LinearSVC`, `MLPClassifier` or `MLPRegressor` of `sfb.models`.

    Raises:
        TypeError: It is another object.
        NotFittedError: It has not been fitted.

    >>> import numpy as np
    >>> from sfb.models import LogisticRegression, to_sklearn
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["no", "no", "yes", "yes"])
    >>> to_sklearn(LogisticRegression().fit(X, y))
    LogisticRegression()
    """
    kind = _TWINS.get(type(model))
    if kind is None:
        raise TypeError(f"expected one of {', '.join(each.__name__ for each in _TWINS)} of sfb.models, got {model!r}")
    check_is_fitted(model)
    params = _common(model, kind)
    solver = params.pop("solver", None)
    if isinstance(model, LogisticRegression):
        params["solver"] = "saga" if model.l1_ratio else "lbfgs"
    elif isinstance(model, LinearSVC):
        params["multi_class"] = "crammer_singer"
    else:
        params["solver"] = solver if solver in ("adam", "sgd") else "adam"
        if model.learning_rate not in ("constant", "invscaling", "adaptive"):
            del params["learning_rate"]
    made = kind(**params)
    _copy_fitted(model, made)
    if isinstance(model, MLPClassifier):
        made._label_binarizer = LabelBinarizer().fit(model.classes_)
    return made


def from_sklearn(model: Any, *, comm: Any = None) -> Any:
    """Return the estimator of this library with the name of one of scikit-learn, fitted.

    Args:
        model: A fitted `LogisticRegression`, `LinearSVC`, `MLPClassifier` or `MLPRegressor` of scikit-learn.
        comm: Ranks of later calls of `fit`; see `LogisticRegression`.

    Raises:
        TypeError: It is another object, a classifier of several labels a sample, or a Poisson regression.
        NotFittedError: It has not been fitted.

    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sfb.models import from_sklearn
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["no", "no", "yes", "yes"])
    >>> from_sklearn(LogisticRegression(C=10).fit(X, y)).predict([[0.5], [2.5]])
    array(['no', 'yes'], dtype='<U3')
    """
    kinds = [ours for ours, theirs in _TWINS.items() if type(model) is theirs]
    if not kinds:
        names = ", ".join(each.__name__ for each in _TWINS)
        raise TypeError(f"expected one of {names} of scikit-learn, got {model!r}")
    check_is_fitted(model)
    if getattr(model, "out_activation_", None) == "logistic" and model.n_outputs_ > 1:
        raise TypeError("a classifier of several labels a sample has no counterpart in sfb.models")
    if getattr(model, "loss", None) == "poisson":
        raise TypeError("a regression with loss='poisson' has no counterpart in sfb.models")
    (kind,) = kinds
    params = _common(model, kind)
    if kind in (LogisticRegression, MLPClassifier, MLPRegressor) and params.get("solver") not in kind.choices["solver"]:
        params.pop("solver", None)
    if kind is LogisticRegression:
        penalty = getattr(model, "penalty", "deprecated")
        params["l1_ratio"] = {"l1": 1.0, "l2": 0.0, None: 0.0}.get(penalty, model.l1_ratio or 0.0)
        if penalty is None:
            params["C"] = np.inf
    made = kind(**params, comm=comm)
    _copy_fitted(model, made)
    if kind is MLPRegressor:
        made._target_shape = (model.n_outputs_,) if model.n_outputs_ > 1 else ()
    return made


def _common(model: Any, kind: type) -> dict[str, Any]:
    """Return the parameters that ``model`` shares with another class, but for the communicator."""
    known = kind().get_params()
    return {name: value for name, value in model.get_params().items() if name in known and name != "comm"}


def _copy_fitted(source: Any, target: Any) -> None:
    for name in _FITTED:
        if hasattr(source, name):
            setattr(target, name, copy.deepcopy(getattr(source, name)))
