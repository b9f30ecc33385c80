"""The model file of a matrix factorization whose users are divided among ranks."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfb.models.ratings.factorization import MatrixFactorization

__all__ = ["Whole", "gather"]


class Whole:
    """A factorization with the users of all ranks, which `sfb.models.save` takes.

    Args:
        contents: The contents of the file.
    """

    def __init__(self, contents: dict[str, Any]) -> None:
        self._contents = contents

    def save(self) -> dict[str, Any]:
        """Return the contents of the file."""
        return self._contents


def gather(
    comm: Any, model: MatrixFactorization, users: np.ndarray | None = None, items: np.ndarray | None = None
) -> Whole | None:
    """Return the factors of the users of all ranks on rank 0, None on others; collective.

    Args:
        comm: The ranks that fitted the model; user u is the user u // P of rank u mod P, for P ranks.
        model: The model of this rank.
        users: Names of the users of all ranks, in ascending order; those of rank 0 count.
        items: Names of the items, in ascending order; those of rank 0 count.
    """
    parts = comm.gather((model.user_factors_, model.user_biases_))
    if parts is None:
        return None
    count = sum(len(biases) for _, biases in parts)
    factors = np.empty((count, model.user_factors_.shape[1]), model.user_factors_.dtype)
    biases = np.empty(count, model.user_biases_.dtype)
    for rank, (own_factors, own_biases) in enumerate(parts):
        factors[rank :: comm.size], biases[rank :: comm.size] = own_factors, own_biases
    names = {"users": users, "items": items}
    return Whole(
        model._contents()
        | {"user_factors": factors, "user_biases": biases}
        | {name: given for name, given in names.items() if given is not None}
    )
