"""Models that mini-batches train, and their parameters; no MPI."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from sfb.factors import Factors

__all__ = ["Gradient", "Model", "Parameter"]

Gradient: TypeAlias = "Factors | np.ndarray"


@dataclass
class Parameter:
    """An array that steps change.

    Attributes:
        name: Name in reports and files.
        array: K×D, C-contiguous, float32 or float64; 1×K for a bias. A trainer may put another array of the same shape
            in its place, one that the ranks of a node share or a replica of a store, so a model looks it up each time.
        decays: Whether weight decay applies.
        radius: Radius of the ball onto which rows are projected after each update; None for no projection.

    >>> import numpy as np
    >>> from sfb.models import Parameter
    >>> Parameter("bias1", np.zeros((1, 10), np.float32), decays=False).array.shape
    (1, 10)
    """

    name: str
    array: np.ndarray
    decays: bool = True
    radius: float | None = None


class Model(ABC):
    """What mini-batches train: parameters, and gradients of a loss that is a sum over examples.

    An example is one sample, or several that belong together, such as the pair of metric learning. A model knows
    nothing of other ranks: it sees the samples of its own.

    Attributes:
        parameters: The parameters, from the first layer to the last.
        measure: What `score` returns, for reports: "accuracy", "mean squared error", "1-NN accuracy", …
        terms: Most rows of factors that an example adds to a gradient.

    >>> from sfb.models import MODELS, Model
    >>> model = MODELS.build("mlr", 64, 10)
    >>> isinstance(model, Model), model.measure, [parameter.name for parameter in model.parameters]
    (True, 'accuracy', ['layer1', 'bias1'])
    """

    parameters: list[Parameter]
    measure: str
    terms: int = 1

    @abstractmethod
    def initialise(self, x: Any, y: np.ndarray) -> None:
        """Draw the parameters from the model's seed, in place.

        Args:
            x: Samples to learn from, N×D, dense or CSR: up to 10 000 of rank 0, drawn at random.
            y: Their N targets.
        """

    def examples(self, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the samples of which each example of an epoch consists: N×M, int64; the trainer orders them.

        A number below 0 stands for no sample.

        Args:
            y: The targets of the samples to learn from.
            rng: The generator of the epoch.
        """
        return np.arange(len(y))[:, np.newaxis]

    @abstractmethod
    def gradients(
        self, x: Any, y: np.ndarray, rows: np.ndarray, size: int
    ) -> tuple[float, Iterator[tuple[Parameter, Gradient]]]:
        """Return the loss of examples, and the gradients of their part of the mean over a batch.

        Args:
            x: The samples of this rank, N×D, dense or CSR.
            y: Their N targets.
            rows: S×M: the samples of each example, as `examples` numbers them; S may be 0.
            size: The number of examples of the batch, of all ranks.

        Returns:
            The sum of the losses before the step; and, for each parameter, the gradient of that sum divided by
            ``size``, in the order in which they are available. The caller may change a parameter as soon as it has
            its gradient.
        """

    @abstractmethod
    def objective(self, x: Any, y: np.ndarray, rows: np.ndarray) -> float:
        """Return the sum of the losses of examples with the present parameters, without penalty; see `gradients`."""

    def references(self, x: Any, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return arrays of N rows, with which `score` compares samples; none where a sample is scored by itself.

        The trainer passes every rank the rows of all ranks' samples.

        Args:
            x: Samples to score, N×D, dense or CSR; N may be 0.
            y: Their N targets.
        """
        return ()

    @abstractmethod
    def score(
        self, x: Any, y: np.ndarray, references: Sequence[np.ndarray] = (), first: int = 0
    ) -> tuple[float, float]:
        """Return two sums over samples; the ratio of both over all ranks is the `measure`.

        Args:
            x: Samples, N×D, dense or CSR.
            y: Their N targets.
            references: What `references` returns of the samples of all ranks, in the order of ranks; () for these N
                samples alone.
            first: The row of the references that is sample 0 of ``x``.
        """

    @abstractmethod
    def save(self) -> dict[str, Any]:
        """Return the contents of the model file (`sfb.models.saved.files`) by name: arrays, and settings as "kind"."""
