"""Samples without targets, which each rank passes to an estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from sfb.models.estimator import Estimator
from sfb.models.finite import naming_samples
from sfb.models.ranks import Ranks

__all__ = ["check_samples"]


def check_samples(
    estimator: Estimator, ranks: Ranks, x: Any, *, call: str = "fit", first: bool = True, sparse: bool = False
) -> Any:
    """Return samples of this rank, checked, C-contiguous and of the same type on all ranks; collective.

    Args:
        estimator: The estimator, which learns the number of features.
        ranks: The ranks.
        x: What the user passed.
        call: The user's call, for messages.
        first: Whether the estimator has seen no samples before.
        sparse: Whether sparse matrices are taken, as CSR.

    Raises:
        TypeError, ValueError: What a rank passed is wrong, or ranks differ in their features, or there are no samples
            on any rank; on every rank.
    """
    with ranks.together(call), naming_samples(x):
        x = validate_data(
            estimator,
            x,
            reset=first,
            accept_sparse="csr" if sparse else False,
            dtype=(np.float64, np.float32),
            order="C",
            ensure_min_samples=int(ranks.size == 1),
        )
    said = ranks.gather((x.shape[1], x.dtype, x.shape[0]))
    with ranks.together(call):
        if len({features for features, _, _ in said}) > 1:
            raise ValueError(f"x has {x.shape[1]} features on this rank, and another number on others")
        if not any(samples for _, _, samples in said):
            raise ValueError("no rank has a sample: found array with 0 sample(s) (minimum of 1 is required)")
    return x.astype(np.result_type(*(kind for _, kind, _ in said)), copy=False)
