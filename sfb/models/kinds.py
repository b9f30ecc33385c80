"""The kinds of models that a model file may hold."""

from __future__ import annotations

from sfb.models.maps import DictionaryPredictor, MetricPredictor, NearestPredictor
from sfb.models.predictors import LinearPredictor, PerceptronPredictor, Predictor
from sfb.models.recommender import FactorizationPredictor
from sfb.models.topics import TopicPredictor

__all__ = ["KINDS"]

KINDS: dict[str, type[Predictor]] = {
    cls.kind: cls
    for cls in (
        LinearPredictor,
        PerceptronPredictor,
        MetricPredictor,
        NearestPredictor,
        DictionaryPredictor,
        FactorizationPredictor,
        TopicPredictor,
    )
}
