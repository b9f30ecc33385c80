"""Update rules as numbers for the kernels, where g is an element of a gradient and w the parameter's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

__all__ = [
    "ADAGRAD",
    "ADAM",
    "ASSIGN",
    "MOMENTUM",
    "NESTEROV",
    "PROXIMAL",
    "SGD",
    "Rule",
    "adagrad",
    "adam",
    "assign",
    "proximal",
    "sgd",
]

ASSIGN, SGD, MOMENTUM, NESTEROV, ADAM, ADAGRAD, PROXIMAL = range(7)


class Rule:
    """A rule for one step.

    Args:
        kind: The rule of `sfb.kernels._rules`.
        values: Its numbers, in the order in which that rule reads them.
        states: How many arrays like the parameter it keeps.

    Attributes:
        linear: α and β if the rule is w ← β·w + α·g without state; (1, 0) for others.
        skips_zeros: Whether the rule leaves w and its states as they are where a gradient is 0.

    >>> from sfb.kernels import sgd
    >>> rule = sgd(0.1, weight_decay=0.5)
    >>> rule.states, rule.linear, rule.skips_zeros
    (0, (-0.1, 0.95), False)
    """

    __slots__ = ("_double", "_single", "kind", "linear", "skips_zeros", "states")

    def __init__(self, kind: int, values: tuple[float, ...], states: int) -> None:
        self.kind = kind
        self.states = states
        self.linear = (-values[0], 1 - values[0] * values[1]) if kind == SGD else (1.0, 0.0)
        self.skips_zeros = _skips_zeros(kind, values)
        self._single = np.array(values, np.float32)
        self._double = np.array(values, np.float64)

    def numbers(self, dtype: np.dtype[Any]) -> np.ndarray:
        """Return its numbers as elements of a type."""
        return self._single if dtype.itemsize == 4 else self._double


def _skips_zeros(kind: int, values: tuple[float, ...]) -> bool:
    if kind == SGD:
        return values[1] == 0
    if kind == ADAGRAD:
        return values[1] == 0 and values[2] > 0
    return kind == PROXIMAL and values[1:] == (0.0, 1.0)


@functools.cache
def assign() -> Rule:
    """Return the rule that sets the parameter to the gradient.

    >>> from sfb.kernels import assign
    >>> assign().states
    0
    """
    return Rule(ASSIGN, (), 0)


@functools.lru_cache(64)
def sgd(lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> Rule:
    """Return SGD: d = g + weight_decay·w; velocity ← momentum·velocity + d; w ← w − lr·velocity.

    With Nesterov's momentum w ← w − lr·(d + momentum·velocity), without momentum w ← w − lr·d and no state.

    Args:
        lr: Learning rate.
        momentum: Factor of the velocity.
        weight_decay: Factor of the parameter added to the gradient.
        nesterov: Whether to take Nesterov's momentum.

    >>> from sfb.kernels import sgd
    >>> sgd(0.1).states, sgd(0.1, momentum=0.9).states
    (0, 1)
    """
    if momentum == 0:
        return Rule(SGD, (lr, weight_decay), 0)
    return Rule(NESTEROV if nesterov else MOMENTUM, (lr, weight_decay, momentum), 1)


def adam(
    lr: float, step: int, betas: tuple[float, float], eps: float, weight_decay: float = 0.0, decoupled: bool = False
) -> Rule:
    """Return Adam (Kingma and Ba, ICLR 2015, algorithm 1), or AdamW (Loshchilov and Hutter, ICLR 2019) if decoupled.

    d = g + weight_decay·w; m ← β₁m + (1−β₁)d; q ← β₂q + (1−β₂)d²; w ← w − lr·m̂/(√q̂ + eps), where
    m̂ = m/(1−β₁ᵗ) and q̂ = q/(1−β₂ᵗ) in step t, from 1 on. Decoupled, d = g and w is scaled by 1 − lr·weight_decay.

    Args:
        lr: Learning rate.
        step: The step t, from 1 on.
        betas: β₁ and β₂.
        eps: Added to the root.
        weight_decay: Factor of the parameter added to the gradient, or of the decay if decoupled.
        decoupled: Whether the rule is AdamW.

    >>> from sfb.kernels import adam
    >>> adam(1e-3, 1, (0.9, 0.999), 1e-8).states
    2
    """
    first, second = betas
    keep = 1 - lr * weight_decay if decoupled else 1.0
    size, root = lr / (1 - first**step), (1 - second**step) ** -0.5
    decay = 0.0 if decoupled else weight_decay
    return Rule(ADAM, (size, decay, first, 1 - first, second, 1 - second, root, eps, keep), 2)


@functools.lru_cache(64)
def adagrad(lr: float, eps: float, weight_decay: float = 0.0) -> Rule:
    """Return AdaGrad (Duchi, Hazan and Singer, JMLR 2011, figure 1).

    d = g + weight_decay·w; q ← q + d²; w ← w − lr·d/(√q + eps).

    Args:
        lr: Learning rate.
        eps: Added to the root.
        weight_decay: Factor of the parameter added to the gradient.

    >>> from sfb.kernels import adagrad
    >>> rule = adagrad(0.01, 1e-10)
    >>> rule.states, rule.skips_zeros
    (1, True)
    """
    return Rule(ADAGRAD, (lr, weight_decay, eps), 1)


@functools.lru_cache(64)
def proximal(lr: float, l1: float = 0.0, l2: float = 0.0) -> Rule:
    """Return proximal gradient descent: w ← soft(w − lr·g, lr·l1)/(1 + lr·l2).

    Parikh and Boyd, "Proximal Algorithms", 2014, sections 4.2 and 6.5.

    Args:
        lr: Learning rate.
        l1: Factor of the sum of magnitudes.
        l2: Factor of half the sum of squares.

    >>> from sfb.kernels import proximal
    >>> proximal(0.1).skips_zeros, proximal(0.1, l1=0.5).skips_zeros
    (True, False)
    """
    return Rule(PROXIMAL, (lr, lr * l1, 1 / (1 + lr * l2)), 0)
