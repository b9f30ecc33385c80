"""Ready-made models, which ranks train data-parallel by sufficient factors.

Estimators, which need scikit-learn, are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfb.models.files import ModelError, load, save
from sfb.models.mlp import mlp
from sfb.models.mlr import mlr
from sfb.models.model import Model, Parameter
from sfb.models.network import Layer, Network
from sfb.models.registry import MODELS
from sfb.models.svm import svm

if TYPE_CHECKING:
    from sfb.models.linear_svc import LinearSVC
    from sfb.models.logistic_regression import LogisticRegression
    from sfb.models.perceptron import MLPClassifier, MLPRegressor

__all__ = [
    "MODELS",
    "Layer",
    "LinearSVC",
    "LogisticRegression",
    "MLPClassifier",
    "MLPRegressor",
    "Model",
    "ModelError",
    "Network",
    "Parameter",
    "load",
    "mlp",
    "mlr",
    "save",
    "svm",
]

_ESTIMATORS = {
    "LinearSVC": "sfb.models.linear_svc",
    "LogisticRegression": "sfb.models.logistic_regression",
    "MLPClassifier": "sfb.models.perceptron",
    "MLPRegressor": "sfb.models.perceptron",
}


def __getattr__(name: str) -> Any:
    if name in _ESTIMATORS:
        return getattr(import_module(_ESTIMATORS[name]), name)
    raise AttributeError(f"module 'sfb.models' has no attribute {name!r}")
