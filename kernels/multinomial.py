"""Steps of coordinate ascent for the multinomial logistic loss, one sample after another.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import types

from sfb.kernels._blocks import matrix, signatures
from sfb.kernels._compile import inner, kernel

__all__ = ["multinomial_entropy"]

_MOST = 60  # of Newton's steps; about log K + 4 are needed
_CLOSE = 1e-13


def _vector(t):
    return types.Array(t, 1, "C", readonly=True)


_WORDS = _vector(types.int64)


@inner
def _omega(z):
    """Return the ω with ω + log ω = z, Wright's function.

    Two steps of Fritsch, Shafer and Crowley, "Algorithm 443: Solution of the transcendental equation w·eʷ = x", CACM
    16, 1973, from starts within 60 % of the result.
    """
    if z < -40:
        return np.exp(z)
    if z < -2:
        x = np.exp(z)
    elif z < 1:
        x = np.exp(2 * (z - 1) / 3)
    else:
        x = z - np.log(z)
    for _ in range(2):
        r = z - x - np.log(x)
        a = 2 * (1 + x) * (1 + x + 2 * r / 3)
        x *= 1 + r / (1 + x) * (a - r) / (a - 2 * r)
    return x


@inner
def _distribute(scores, a, before, found):
    """Set ``found`` to the p that minimises Σ p·log p − p·scores + a/2·‖p − before‖², where Σ p = 1.

    Its derivative vanishes where a·p = ω(z + t), z = scores + a·before + log a, for the t at which these sum to a. ω is
    convex and ascends: from above Newton's steps descend to that t.
    """
    classes = scores.size
    total, largest = 0.0, -np.inf
    for k in range(classes):
        found[k] = scores[k] + a * before[k] + np.log(a)
        total += found[k]
        largest = max(largest, found[k])
    # Where the largest term alone is a, and, as ω is convex, where the mean of z would give a/K: both are above.
    t = min(a + np.log(a) - largest, a / classes + np.log(a / classes) - total / classes)
    for _ in range(_MOST):
        value, slope = -a, 0.0
        for k in range(classes):
            w = _omega(found[k] + t)
            value += w
            slope += w / (1 + w)
        t -= value / slope
        if value <= _CLOSE * a:
            break
    total = 0.0
    for k in range(classes):
        found[k] = _omega(found[k] + t)
        total += found[k]
    for k in range(classes):
        found[k] /= total


@kernel(
    signatures(
        lambda t: types.void(
            _vector(t),
            _WORDS,
            _WORDS,
            _vector(t),
            _vector(t),
            _vector(t),
            matrix(t),
            matrix(t),
            _WORDS,
            types.float64,
            matrix(t),
        )
    )
)
def multinomial_entropy(data, columns, starts, costs, squares, offsets, p, w, order, factor, change):
    """Maximise the dual of the multinomial logistic loss by the variables of one sample after another.

    The dual of ½‖w‖² + Σ costs·(log Σ exp(s) − s[y]), s = wᵀx + offsets, is −½‖w‖² − Σ costs·(Σ p·log p − p·offsets +
    offsets[y]) for w = Σ costs·x·(onehot(y) − p)ᵀ, p a distribution for each sample (Yu, Huang and Lin, "Dual
    coordinate descent methods for logistic regression and maximum entropy models", Machine Learning 85, 2011, section
    4). A step takes the best p of a sample.

    Args:
        data: Values of the features of N samples, a CSR matrix with ``columns`` and ``starts``.
        columns: Their columns.
        starts: Where each sample begins, N + 1.
        costs: The weight of the loss of each sample.
        squares: ‖x‖² of each sample.
        offsets: K numbers to add to the scores.
        p: N×K dual variables.
        w: D×K; becomes w + factor·Σ x·changeᵀ.
        order: S samples.
        factor: By how much a change counts for the next samples; see `sfb.kernels.coordinates`.
        change: S×K, receives costs·(p before − p after).
    """
    classes = p.shape[1]
    scores, found, before = np.empty(classes), np.empty(classes), np.empty(classes)
    for step in range(order.size):
        i = order[step]
        for k in range(classes):
            scores[k] = offsets[k]
            before[k] = p[i, k]
        for j in range(starts[i], starts[i + 1]):
            x, row = data[j], w[columns[j]]
            for k in range(classes):
                scores[k] += x * row[k]
        a = factor * costs[i] * squares[i]
        if a > 0:
            _distribute(scores, a, before, found)
        else:  # the sample does not change w
            largest, total = scores.max(), 0.0
            for k in range(classes):
                found[k] = np.exp(scores[k] - largest)
                total += found[k]
            for k in range(classes):
                found[k] /= total
        for k in range(classes):
            p[i, k] = found[k]
            change[step, k] = costs[i] * (before[k] - p[i, k])
        for j in range(starts[i], starts[i + 1]):
            x, row = factor * data[j], w[columns[j]]
            for k in range(classes):
                row[k] += x * change[step, k]
