"""Multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfb.models.network import Allocate, Network

__all__ = ["mlp"]


def mlp(
    features: int,
    classes: int,
    allocate: Allocate = np.zeros,
    *,
    hidden: Sequence[int] = (4096, 4096),
    seed: int = 0,
) -> Network:
    """Return a network of ReLU layers of ``hidden`` units, with He's initialisation (ICCV 2015, section 2.2)."""
    return Network([features, *hidden, classes], allocate, scale=2.0, seed=seed)
