"""Ready-made models, which ranks train data-parallel by sufficient factors.

Estimators, which need scikit-learn, are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfb.models.mlp import mlp
from sfb.models.mlr import mlr
from sfb.models.network import Layer, Network

if TYPE_CHECKING:
    from sfb.models.lasso import ElasticNet, Lasso, lasso_path
    from sfb.models.linear import LinearSVC, LogisticRegression
    from sfb.models.perceptron import MLPClassifier, MLPRegressor

__all__ = [
    "MODELS",
    "ElasticNet",
    "Lasso",
    "Layer",
    "LinearSVC",
    "LogisticRegression",
    "MLPClassifier",
    "MLPRegressor",
    "Network",
    "lasso_path",
    "mlp",
    "mlr",
]

MODELS = {"mlp": mlp, "mlr": mlr}
_ESTIMATORS = {
    "ElasticNet": "sfb.models.lasso",
    "Lasso": "sfb.models.lasso",
    "lasso_path": "sfb.models.lasso",
    "LinearSVC": "sfb.models.linear",
    "LogisticRegression": "sfb.models.linear",
    "MLPClassifier": "sfb.models.perceptron",
    "MLPRegressor": "sfb.models.perceptron",
}


def __getattr__(name: str) -> Any:
    if name in _ESTIMATORS:
        return getattr(import_module(_ESTIMATORS[name]), name)
    raise AttributeError(f"module 'sfb.models' has no attribute {name!r}")
