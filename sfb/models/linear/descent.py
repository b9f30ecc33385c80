"""Gradient descent by mini-batches of all ranks: gradients travel as factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import sfb
from sfb.models.collective import place, take
from sfb.models.nets.network import Network
from sfb.models.ranks import Ranks

__all__ = ["Descent", "weights_of_batches"]


class Descent:
    """Steps of a network, equal on all ranks.

    The weights lie in memory that the ranks of a node share; each layer has an update rule of its own. The biases of
    all layers are one array on every rank.

    Args:
        ranks: The ranks.
        network: The network; its weights are those of rank 0 afterwards.
        rule: Update rule, without a parameter.
        biases: Whether biases change.

    Attributes:
        network: The network.
    """

    def __init__(self, ranks: Ranks, network: Network, rule: sfb.optim.Optimizer, *, biases: bool = True) -> None:
        self._ranks, self.network = ranks, network
        flat = np.concatenate([layer.bias.array for layer in network.layers], axis=1)
        self._biases = rule.bind(flat) if biases else None
        self._rules: dict[str, sfb.optim.Optimizer] = {}
        low = 0
        for layer in network.layers:
            width = layer.bias.array.size
            layer.bias.array = flat[:, low : low + width]
            low += width
            layer.weights.array = place(self._ranks, layer.weights.array)
            self._rules[layer.weights.name] = rule.bind(layer.weights.array)

    def step(self, x: Any, y: np.ndarray, mine: np.ndarray, size: float, lr: float, **penalty: float) -> float:
        """Take a step with samples of all ranks; collective.

        Args:
            x: The samples of this rank, N×D, dense or CSR.
            y: Their targets.
            mine: This rank's samples of the batch, S numbers; S may be 0.
            size: What the sum of the gradients is divided by, the same on all ranks.
            lr: Learning rate.
            **penalty: Further settings of the rule, for weights.

        Returns:
            The sum of the losses of this rank's samples, before the step.
        """
        value, gradients = self.network.gradients(x, y, mine[:, np.newaxis], size)
        biases = []
        for parameter, gradient in gradients:
            if isinstance(gradient, np.ndarray):
                biases.append(gradient)
                continue
            rule = self._rules[parameter.name]
            _change(rule, lr=lr, **penalty)
            take(self._ranks, gradient, rule)
        if self._biases is not None:
            _change(self._biases, lr=lr)
            # The gradients come from the last layer on.
            self._biases.step(self._ranks.sum(np.concatenate(biases[::-1], axis=1)))
        return value

    def state(self) -> dict[str, tuple[int, list[np.ndarray]]]:
        """Return copies of what the rules keep: steps and arrays of each."""
        return {
            name: (rule.steps, [array.copy() for array in rule.state if array is not None])
            for name, rule in self._all_rules()
        }

    def restore(self, state: dict[str, tuple[int, list[np.ndarray]]]) -> None:
        """Go on from what `state` returned on rank 0, where it fits; collective."""
        state = self._ranks.first(state)
        for name, rule in self._all_rules():
            steps, arrays = state.get(name, (0, []))
            wanted = len(rule.states) if rule.state else 0
            if len(arrays) != wanted or any(array.shape != rule.shape for array in arrays):
                continue
            if hasattr(rule, "first_moment"):  # its steps count
                rule.steps = steps
            for key, array in zip(rule.states, arrays, strict=False):
                own = array.astype(rule.dtype)
                setattr(rule, key, own if name == "biases" else place(self._ranks, own))

    def _all_rules(self) -> Iterator[tuple[str, sfb.optim.Optimizer]]:
        yield from self._rules.items()
        if self._biases is not None:
            yield "biases", self._biases


def _change(rule: sfb.optim.Optimizer, **settings: float) -> None:
    """Change the settings of a rule; each change is checked, which takes longer than a comparison."""
    for name, value in settings.items():
        if getattr(rule, name) != value:
            setattr(rule, name, value)


def weights_of_batches(ranks: Ranks, weights: np.ndarray, parts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Return the sum of the weights of all ranks in each batch of an epoch; collective.

    Args:
        ranks: The ranks.
        weights: The weights of this rank's samples.
        parts: What `batches` yields.
    """
    return ranks.sum(np.array([weights[mine].sum(dtype=np.float64) for mine, _ in parts], np.float64))
