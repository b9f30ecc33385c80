"""Ready-made models, which ranks train data-parallel by sufficient factors.

Estimators, which need scikit-learn, and conversions are imported when they are first used.
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
    from sfb.models.convert import from_sklearn, to_sklearn
    from sfb.models.dictionary import DictionaryLearning, MiniBatchDictionaryLearning
    from sfb.models.factorization import MatrixFactorization
    from sfb.models.lasso import ElasticNet, Lasso, lasso_path
    from sfb.models.lda import LatentDirichletAllocation
    from sfb.models.linear_svc import LinearSVC
    from sfb.models.logistic_regression import LogisticRegression
    from sfb.models.metric import MetricLearning
    from sfb.models.mlp_classifier import MLPClassifier
    from sfb.models.mlp_regressor import MLPRegressor
    from sfb.models.onnx_file import to_onnx

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
    "DictionaryLearning": "sfb.models.dictionary",
    "ElasticNet": "sfb.models.lasso",
    "Lasso": "sfb.models.lasso",
    "lasso_path": "sfb.models.lasso",
    "LatentDirichletAllocation": "sfb.models.lda",
    "LinearSVC": "sfb.models.linear_svc",
    "LogisticRegression": "sfb.models.logistic_regression",
    "MLPClassifier": "sfb.models.mlp_classifier",
    "MLPRegressor": "sfb.models.mlp_regressor",
    "MatrixFactorization": "sfb.models.factorization",
    "MetricLearning": "sfb.models.metric",
    "MiniBatchDictionaryLearning": "sfb.models.dictionary",
    "from_sklearn": "sfb.models.convert",
    "to_onnx": "sfb.models.onnx_file",
    "to_sklearn": "sfb.models.convert",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sfb.models' has no attribute {name!r}")
