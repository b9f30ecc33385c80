"""Ready-made models, which ranks train data-parallel by sufficient factors.

Estimators, which need scikit-learn, are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfb.models.mlp import mlp
from sfb.models.mlr import mlr
from sfb.models.network import Layer, Network

if TYPE_CHECKING:
    from sfb.models.factorization import MatrixFactorization
    from sfb.models.lda import LatentDirichletAllocation
    from sfb.models.linear import LinearSVC, LogisticRegression
    from sfb.models.perceptron import MLPClassifier, MLPRegressor

__all__ = [
    "MODELS",
    "LatentDirichletAllocation",
    "Layer",
    "LinearSVC",
    "LogisticRegression",
    "MLPClassifier",
    "MLPRegressor",
    "MatrixFactorization",
    "Network",
    "mlp",
    "mlr",
]

MODELS = {"mlp": mlp, "mlr": mlr}
_ESTIMATORS = {
    "LatentDirichletAllocation": "sfb.models.lda",
    "MatrixFactorization": "sfb.models.factorization",
    "LinearSVC": "sfb.models.linear",
    "LogisticRegression": "sfb.models.linear",
    "MLPClassifier": "sfb.models.perceptron",
    "MLPRegressor": "sfb.models.perceptron",
}


def __getattr__(name: str) -> Any:
    if name in _ESTIMATORS:
        return getattr(import_module(_ESTIMATORS[name]), name)
    raise AttributeError(f"module 'sfb.models' has no attribute {name!r}")
