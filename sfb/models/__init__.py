"""Ready-made models, which ranks train data-parallel by sufficient factors."""

from sfb.models.mlp import mlp
from sfb.models.mlr import mlr
from sfb.models.network import Layer, Network

__all__ = ["MODELS", "Layer", "Network", "mlp", "mlr"]

MODELS = {"mlp": mlp, "mlr": mlr}
