"""Ready-made models, which ranks train data-parallel by sufficient factors.

Estimators, which need scikit-learn, and conversions are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sfb.models.model import Model, Parameter
from sfb.models.nets.mlp import mlp
from sfb.models.nets.mlr import mlr
from sfb.models.nets.network import Layer, Network
from sfb.models.nets.svm import svm
from sfb.models.registry import MODELS
from sfb.models.saved.files import ModelError, load, save

if TYPE_CHECKING:
    from sfb.models.codes.dictionary import DictionaryLearning, MiniBatchDictionaryLearning
    from sfb.models.linear.lasso import ElasticNet, Lasso, lasso_path
    from sfb.models.linear.linear_svc import LinearSVC
    from sfb.models.linear.logistic_regression import LogisticRegression
    from sfb.models.metrics.metric import MetricLearning
    from sfb.models.nets.mlp_classifier import MLPClassifier
    from sfb.models.nets.mlp_regressor import MLPRegressor
    from sfb.models.ratings.factorization import MatrixFactorization
    from sfb.models.saved.convert import from_sklearn, to_sklearn
    from sfb.models.saved.onnx_file import to_onnx
    from sfb.models.topics.lda import LatentDirichletAllocation

__all__ = [
    "MODELS",
    "DictionaryLearning",
    "ElasticNet",
    "Lasso",
    "LatentDirichletAllocation",
    "Layer",
    "LinearSVC",
    "LogisticRegression",
    "MLPClassifier",
    "MLPRegressor",
    "MatrixFactorization",
    "MetricLearning",
    "MiniBatchDictionaryLearning",
    "Model",
    "ModelError",
    "Network",
    "Parameter",
    "from_sklearn",
    "lasso_path",
    "load",
    "mlp",
    "mlr",
    "save",
    "svm",
    "to_onnx",
    "to_sklearn",
]

_LAZY = {
    "DictionaryLearning": "sfb.models.codes.dictionary",
    "ElasticNet": "sfb.models.linear.lasso",
    "Lasso": "sfb.models.linear.lasso",
    "lasso_path": "sfb.models.linear.lasso",
    "LatentDirichletAllocation": "sfb.models.topics.lda",
    "LinearSVC": "sfb.models.linear.linear_svc",
    "LogisticRegression": "sfb.models.linear.logistic_regression",
    "MLPClassifier": "sfb.models.nets.mlp_classifier",
    "MLPRegressor": "sfb.models.nets.mlp_regressor",
    "MatrixFactorization": "sfb.models.ratings.factorization",
    "MetricLearning": "sfb.models.metrics.metric",
    "MiniBatchDictionaryLearning": "sfb.models.codes.dictionary",
    "from_sklearn": "sfb.models.saved.convert",
    "to_onnx": "sfb.models.saved.onnx_file",
    "to_sklearn": "sfb.models.saved.convert",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sfb.models' has no attribute {name!r}")
