"""The models that `sfb train` trains, by name; each is imported when it is first built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sfb.models.model import Model

__all__ = ["MODELS", "Entry", "Registry"]


@dataclass(frozen=True)
class Entry:
    """A model of the registry.

    Attributes:
        module: Module with a function of the model's name, which takes the number of features, the number of outputs,
            ``seed`` and these options, and returns a `Model`.
        summary: A line for the help of `sfb train`.
        options: Options of `sfb train` that the function takes.
        supervised: Whether the targets tell the number of outputs.
        objective: What the reports call the loss of an example.
        lr: Learning rate where the user gives none.
        optimizer: Update rule where the user gives none.
    """

    module: str
    summary: str
    options: tuple[str, ...] = ()
    supervised: bool = True
    objective: str = "cross-entropy"
    lr: float = 0.05
    optimizer: str = "momentum"


class Registry(Mapping[str, Entry]):
    """Models by name.

    >>> from sfb.models import MODELS
    >>> model = MODELS.build("mlp", 64, 10, hidden=[32], seed=1)
    >>> [(parameter.name, parameter.array.shape) for parameter in model.parameters]
    [('layer1', (32, 64)), ('bias1', (1, 32)), ('layer2', (10, 32)), ('bias2', (1, 10))]
    """

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def build(self, name: str, features: int, outputs: int, *, seed: int = 0, **options: Any) -> Model:
        """Return a model, its parameters not yet drawn.

        Args:
            name: Name of the model.
            features: The number of features of the data.
            outputs: The number of classes or targets; 0 without any.
            seed: Seed of the initial parameters.
            **options: Options of the model; those that it does not take are passed over.
        """
        entry = self[name]
        function = getattr(import_module(entry.module), name)
        taken = {key: value for key, value in options.items() if key in entry.options and value is not None}
        return function(features, outputs, seed=seed, **taken)


MODELS = Registry(
    {
        "mlp": Entry("sfb.models.nets.mlp", "multilayer perceptron", ("hidden", "activation", "regression")),
        "mlr": Entry("sfb.models.nets.mlr", "multiclass logistic regression"),
        "svm": Entry("sfb.models.nets.svm", "linear support vector machine, hinge loss of Crammer and Singer"),
        "dml": Entry(
            "sfb.models.metrics.dml",
            "distance metric learning by pairs of labelled samples",
            ("components", "dissimilar_weight", "candidates"),
            objective="loss of pairs",
            lr=0.005,
            optimizer="sgd",
        ),
        "dictionary": Entry(
            "sfb.models.codes.coding",
            "sparse coding by a dictionary of atoms",
            ("components", "alpha"),
            supervised=False,
            objective="½‖x − Aᵀc‖² + alpha·‖c‖₁",
            lr=0.1,
            optimizer="sgd",
        ),
    }
)
