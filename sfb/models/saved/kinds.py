"""The kinds of models that a model file may hold."""

from __future__ import annotations

from sfb.models.saved.maps import DictionaryPredictor, MetricPredictor, NearestPredictor
from sfb.models.saved.predictors import LinearPredictor, PerceptronPredictor, Predictor
from sfb.models.saved.recommender import FactorizationPredictor
from sfb.models.saved.topics import TopicPredictor

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
