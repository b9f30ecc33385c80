"""Ratings of users for items by NumPy alone, from the factors of a model file."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from sfb.models.saved.predictors import ModelError, Predictor

__all__ = ["FactorizationPredictor"]


class FactorizationPredictor(Predictor):
    """Factors of N users, N×K, and of M items, M×K, with their biases.

    Attributes:
        users_: The names of the users, in the order of their factors; None where numbers stand for them.
        items_: The same of items.
    """

    kind = "factorization"

    def _open(self) -> int:
        self._users = self._array("user_factors", (None, None))
        self._items = self._array("item_factors", (None, self._users.shape[1]))
        self._user_biases = self._array("user_biases", (len(self._users),))
        self._item_biases = self._array("item_biases", (len(self._items),))
        mean, limits = self.settings.get("mean"), self.settings.get("rating_range")
        if not isinstance(mean, (int, float)) or isinstance(mean, bool) or not abs(mean) <= sys.float_info.max:
            raise ModelError(f"mean must be a finite number, got {mean!r}")
        if limits is not None and not (
            isinstance(limits, list)
            and len(limits) == 2
            and all(isinstance(limit, (int, float)) and abs(limit) <= sys.float_info.max for limit in limits)
            and limits[0] < limits[1]
        ):
            raise ModelError(f"rating_range must be a least and a largest rating, got {limits!r}")
        self._mean, self._limits = float(mean), limits
        self.users_, self.items_ = self._names("users", len(self._users)), self._names("items", len(self._items))
        return len(self._items)

    def predict(self, users: Any, items: Any) -> np.ndarray:
        """Return the predicted ratings, or preferences, of pairs of a user and an item.

        Args:
            users: Names of users, or their numbers from 0 where the file holds no names; broadcast against items.
            items: The same of items.

        Raises:
            ValueError: The model knows no such user or item.
        """
        rows, columns = np.broadcast_arrays(
            _places("user", users, self.users_, len(self._users)), _places("item", items, self.items_, len(self._items))
        )
        products = np.einsum("...j,...j->...", self._users[rows], self._items[columns])
        return self._limited(products + self._user_biases[rows] + self._item_biases[columns] + self._mean)

    def recommend(self, user: Any, n: int = 10, *, exclude: Any = ()) -> tuple[np.ndarray, np.ndarray]:
        """Return the n items with the highest predictions for a user.

        Args:
            user: The name of a user, or the number where the file holds no names.
            n: The number of items, ≥ 1; fewer are returned where there are fewer.
            exclude: Items that are not recommended, such as those that the user has rated.

        Returns:
            Items and predictions.
        """
        if n < 1:
            raise ValueError(f"n must be an integer ≥ 1, got {n!r}")
        row = int(_places("user", user, self.users_, len(self._users)))
        scores = self._items @ self._users[row] + self._item_biases
        allowed = np.ones(len(scores), bool)
        allowed[_places("item", exclude, self.items_, len(self._items))] = False
        order = np.argsort(-scores, kind="stable")
        best = order[allowed[order]][:n]
        found = self._limited(scores[best] + (self._user_biases[row] + self._mean))
        return (best if self.items_ is None else self.items_[best]), found

    def _names(self, name: str, count: int) -> np.ndarray | None:
        """Return the names of users or items, in ascending order, if there are any."""
        found = self._arrays.get(name)
        if found is not None and (found.shape != (count,) or not (found[1:] > found[:-1]).all()):
            raise ModelError(f"{name} must hold {count} names in ascending order, got an array {found.shape}")
        return found

    def _limited(self, predictions: np.ndarray) -> np.ndarray:
        return predictions if self._limits is None else np.clip(predictions, *self._limits)


def _places(what: str, given: Any, names: np.ndarray | None, count: int) -> np.ndarray:
    """Return the places of users or items among the factors.

    Raises:
        ValueError: There is no such user or item.
    """
    asked = np.asarray(given)
    if not asked.size:
        return np.empty(asked.shape, np.intp)
    if names is None:
        if asked.dtype.kind not in "iu" or asked.min() < 0 or asked.max() >= count:
            raise ValueError(f"a {what} must be a number from 0 to {count - 1}, got {given!r}")
        return asked.astype(np.intp)
    if (asked.dtype.kind in "US") != (names.dtype.kind in "US"):
        raise ValueError(f"the names of {what}s are {names.dtype}, got {asked.dtype}")
    places = np.minimum(np.searchsorted(names, asked), count - 1)
    unknown = asked[names[places] != asked]
    if unknown.size:
        raise ValueError(f"the model knows no {what} {unknown.ravel()[0]!s}")
    return places
