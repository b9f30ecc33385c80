"""Reference results, in NumPy and float64; tests use them, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["adagrad", "adam", "bound", "draw", "proximal", "rounding", "sgd", "total"]

# u and v of one rank; v is dense.
Part = tuple[np.ndarray, np.ndarray]

# The largest relative error of a number in 16 bits, rounded up or down, and the largest error of a small one.
_ROUNDING = {"bfloat16": (2.0**-7, 2.0**-133), "float16": (2.0**-10, 2.0**-24)}


def draw(rng: np.random.Generator, samples: Sequence[int], shape: tuple[int, int], dtype: Any) -> list[Part]:
    """Return a random (u, v) for each number of samples."""
    rows, columns = shape
    return [
        (rng.standard_normal((s, rows)).astype(dtype), rng.standard_normal((s, columns)).astype(dtype)) for s in samples
    ]


def total(parts: Sequence[Part], shape: tuple[int, int]) -> np.ndarray:
    """Return the sum of uᵀv over parts."""
    return sum((u.astype(np.float64).T @ v.astype(np.float64) for u, v in parts), np.zeros(shape))


def _magnitude(parts: Sequence[Part], shape: tuple[int, int]) -> np.ndarray:
    return total([(abs(u), abs(v)) for u, v in parts], shape)


def bound(parts: Sequence[Part], shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """Return the largest |error| of a sum: c·eps·Σ|u||v|, with c the number of terms and of partial sums."""
    terms = sum(len(u) for u, _ in parts) + len(parts) + 2
    return terms * float(np.finfo(dtype).eps) * _magnitude(parts, shape)


def rounding(parts: Sequence[Part], shape: tuple[int, int], wire: str) -> np.ndarray:
    """Return the largest |error| of a sum whose factors are rounded to 16 bits, up or down, each once."""
    relative, least = _ROUNDING[wire]
    small = sum((abs(u).sum(axis=0)[:, None] + abs(v).sum(axis=0) + len(u) * least for u, v in parts), np.zeros(shape))
    return (2 * relative + relative**2) * _magnitude(parts, shape) + 2 * least * small


def sgd(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> np.ndarray:
    """Return w after steps of SGD with momentum, by the textbook."""
    w = w.astype(np.float64)
    velocity = np.zeros_like(w)
    for g in gradients:
        d = g + weight_decay * w
        velocity = momentum * velocity + d
        w = w - lr * (d + momentum * velocity if nesterov else velocity)
    return w


def adam(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> np.ndarray:
    """Return w after steps of Adam or AdamW, by the papers."""
    w = w.astype(np.float64)
    m, q = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        d = g if decoupled else g + weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * d
        q = betas[1] * q + (1 - betas[1]) * d**2
        if decoupled:
            w = w * (1 - lr * weight_decay)
        w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(q / (1 - betas[1] ** t)) + eps)
    return w


def adagrad(
    w: np.ndarray, gradients: Sequence[np.ndarray], lr: float, eps: float, weight_decay: float = 0.0
) -> np.ndarray:
    """Return w after steps of AdaGrad, by the paper."""
    w = w.astype(np.float64)
    q = np.zeros_like(w)
    for g in gradients:
        d = g + weight_decay * w
        q += d**2
        w = w - lr * d / (np.sqrt(q) + eps)
    return w


def proximal(
    w: np.ndarray,
    gradients: Sequence[np.ndarray],
    lr: float,
    l1: float = 0.0,
    l2: float = 0.0,
    radius: float = np.inf,
) -> np.ndarray:
    """Return w after steps of proximal gradient descent, by the monograph; rows within a ball."""
    w = w.astype(np.float64)
    for g in gradients:
        x = w - lr * g
        w = np.sign(x) * np.maximum(abs(x) - lr * l1, 0) / (1 + lr * l2)
        w *= np.minimum(1, radius / np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-300))
    return w
