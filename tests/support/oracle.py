"""Reference results, in NumPy and float64."""

from hashlib import blake2b

import numpy as np


def draw(rng, samples, shape, dtype):
    """Return a random (u, v) for each number of samples."""
    return [tuple(rng.standard_normal((s, n)).astype(dtype) for n in shape) for s in samples]


def total(parts, shape):
    """Return the sum of uᵀv over parts."""
    return sum((u.astype(np.float64).T @ v.astype(np.float64) for u, v in parts), np.zeros(shape))


def bound(parts, shape, dtype):
    """Return the largest |error| of a sum: c·eps·Σ|u||v|, with c the number of terms and of partial sums."""
    magnitude = sum((abs(u.astype(np.float64)).T @ abs(v.astype(np.float64)) for u, v in parts), np.zeros(shape))
    return (sum(len(u) for u, _ in parts) + len(parts) + 2) * np.finfo(dtype).eps * magnitude


def sgd(w, gradients, lr, momentum=0.0, weight_decay=0.0, nesterov=False):
    """Return w after steps of SGD with momentum, by the textbook."""
    w = w.astype(np.float64)
    velocity = np.zeros_like(w)
    for g in gradients:
        d = g + weight_decay * w
        velocity = momentum * velocity + d
        w = w - lr * (d + momentum * velocity if nesterov else velocity)
    return w


def adam(w, gradients, lr, betas, eps, weight_decay=0.0, decoupled=False):
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


def adagrad(w, gradients, lr, eps, weight_decay=0.0):
    """Return w after steps of AdaGrad, by the paper."""
    w = w.astype(np.float64)
    q = np.zeros_like(w)
    for g in gradients:
        d = g + weight_decay * w
        q += d**2
        w = w - lr * d / (np.sqrt(q) + eps)
    return w


def proximal(w, gradients, lr, l1=0.0, l2=0.0, radius=np.inf):
    """Return w after steps of proximal gradient descent, by the monograph; rows within a ball."""
    w = w.astype(np.float64)
    for g in gradients:
        x = w - lr * g
        w = np.sign(x) * np.maximum(abs(x) - lr * l1, 0) / (1 + lr * l2)
        w *= np.minimum(1, radius / np.maximum(np.linalg.norm(w, axis=1, keepdims=True), 1e-300))
    return w


def assert_same_bits(world, array):
    """Assert that every rank holds the same bits."""
    assert len(set(world.allgather(blake2b(array.tobytes()).digest()))) == 1
