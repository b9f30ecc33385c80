"""Steps of coordinate ascent, one sample after another.

Importing this module imports Numba and compiles, or loads from its cache.
"""

import numpy as np
from numba import types

from sfb.kernels._blocks import matrix, signatures
from sfb.kernels._compile import inner, kernel

__all__ = ["multiclass_hinge"]


def _vector(t):
    return types.Array(t, 1, "C", readonly=True)


_WORDS = _vector(types.int64)


@inner
def _project(b, a, y, cost, sorted_, found):
    """Set ``found`` to the z that minimises a/2·‖z‖² + b·z, where Σ z = 0, z[y] ≤ cost, and z ≤ 0 elsewhere.

    Crammer and Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", JMLR 2, 2001,
    section 6.
    """
    for k in range(b.size):
        sorted_[k] = -b[k]
    sorted_[y] -= a * cost
    sorted_.sort()
    level, terms = -sorted_[0] - a * cost, 1
    while terms < b.size and level < -terms * sorted_[terms]:
        level -= sorted_[terms]
        terms += 1
    level /= terms
    for k in range(b.size):
        found[k] = min(cost if k == y else 0.0, (level - b[k]) / a)


@kernel(
    signatures(
        lambda t: types.void(
            _vector(t),
            _WORDS,
            _WORDS,
            _WORDS,
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
def multiclass_hinge(data, columns, starts, labels, costs, squares, alpha, w, order, factor, change):
    """Maximise the dual of the multi-class hinge loss by the variables of one sample after another.

    The dual and its steps are those of Keerthi et al., "A Sequential Dual Method for Large Scale Multi-class Linear
    SVMs", KDD 2008, section 2.

    Args:
        data: Values of the features of N samples, a CSR matrix with ``columns`` and ``starts``.
        columns: Their columns.
        starts: Where each sample begins, N + 1.
        labels: The class of each sample.
        costs: The weight of the loss of each sample.
        squares: ‖x‖² of each sample.
        alpha: N×K dual variables.
        w: D×K; becomes w + factor·Σ x·changeᵀ.
        order: S samples.
        factor: By how much a change counts for the next samples: 1 for a process alone, the number of ranks for ranks
            whose changes are added up (Ma et al., "Adding vs. Averaging in Distributed Primal-Dual Optimization", ICML
            2015, section 3).
        change: S×K, receives the changes of the dual variables.
    """
    classes = alpha.shape[1]
    scores, sorted_, found = np.empty(classes), np.empty(classes), np.empty(classes)
    for step in range(order.size):
        i = order[step]
        y, a = labels[i], factor * squares[i]
        if a == 0:
            change[step] = 0
            continue
        for k in range(classes):
            scores[k] = (k != y) - a * alpha[i, k]
        for p in range(starts[i], starts[i + 1]):
            x, row = data[p], w[columns[p]]
            for k in range(classes):
                scores[k] += x * row[k]
        _project(scores, a, y, costs[i], sorted_, found)
        for k in range(classes):
            change[step, k] = found[k] - alpha[i, k]
            alpha[i, k] = found[k]
        for p in range(starts[i], starts[i + 1]):
            x, row = factor * data[p], w[columns[p]]
            for k in range(classes):
                row[k] += x * change[step, k]
