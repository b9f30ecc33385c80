"""Ratings of users for items, from text, .npz and Parquet files."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfb.data.arrays import read_npz
from sfb.data.errors import DataError, brief

if TYPE_CHECKING:
    from scipy.sparse import coo_array

__all__ = ["RatingTable", "read_ratings"]

# The whole numbers that float64 tells apart.
_EXACT = 2.0**53
_NAMED = "bfiuUS"  # kinds of dtypes of what names users and items
_NAMES = ("user", "item", "rating")
# Other names of columns, in lower case: MovieLens and others.
_ALIASES = {
    "user": ("user", "users", "userid", "user_id", "uid"),
    "item": ("item", "items", "itemid", "item_id", "iid", "movieid", "movie_id", "product_id"),
    "rating": ("rating", "ratings", "value", "values", "score", "count"),
}


@dataclass(frozen=True)
class RatingTable:
    """Ratings with the names that a file gives users and items.

    Attributes:
        users: The user of each rating, an index of ``user_names``, int64.
        items: The item of each rating, an index of ``item_names``, int64.
        values: The ratings, float64.
        user_names: Names or numbers of users, in ascending order.
        item_names: Names or numbers of items, in ascending order.

    >>> import numpy as np
    >>> from sfb.data import RatingTable
    >>> users, items = np.array([0, 1]), np.array([0, 0])
    >>> table = RatingTable(users, items, np.array([4.5, 3.0]), np.array([7, 9]), np.array([50]))
    >>> table.shard(0, 2).toarray()  # user 7's
    array([[4.5]])
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    user_names: np.ndarray
    item_names: np.ndarray

    def shard(self, rank: int, size: int) -> coo_array:
        """Return the ratings of a part of the users by all items, users × items.

        User u is row u // size of part u % size. Duplicates are kept.

        Args:
            rank: The part.
            size: The number of parts.
        """
        from scipy.sparse import coo_array

        if not 0 <= rank < size:
            raise ValueError(f"expected 0 ≤ rank < size, got {rank} and {size}")
        own = self.users % size == rank
        shape = len(range(rank, len(self.user_names), size)), len(self.item_names)
        return coo_array((self.values[own], (self.users[own] // size, self.items[own])), shape=shape)


def read_ratings(path: Path | str) -> RatingTable:
    """Return the ratings of a file; the content tells its format.

    - Text: a line USER ITEM RATING for each, further columns ignored, separated by ``::``, tabs, commas, semicolons or
      spaces; with or without a line of names before. MovieLens's ratings.dat, u.data and ratings.csv are such.
    - .npz: arrays ``users``, ``items`` and ``ratings``; or a SciPy sparse matrix, whose stored entries are ratings.
    - Parquet: columns for user, item and rating, by names such as userId and movieId; needs pyarrow.

    Args:
        path: The file.

    Raises:
        DataError: There is no such file, or it is of another format.

    Returns:
        The ratings, and the names of users and items.

    >>> import tempfile
    >>> from sfb.data import read_ratings
    >>> with tempfile.NamedTemporaryFile("w") as file:
    ...     for line in ("userId,movieId,rating", "7,50,4.5", "9,50,3.0"):
    ...         print(line, file=file, flush=True)
    ...     table = read_ratings(file.name)
    >>> table.user_names, table.item_names, table.values
    (array([7, 9]), array([50]), array([4.5, 3. ]))
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(4)
    try:
        users, items, values = (_parquet if head == b"PAR1" else _npz if head[:2] == b"PK" else _text)(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not users.shape == items.shape == values.shape or users.ndim != 1:
        raise DataError(f"{path}: expected a user, an item and a rating each, got {users.shape} and {values.shape}")
    if users.dtype.kind not in _NAMED or items.dtype.kind not in _NAMED:
        raise DataError(f"{path}: users and items must be numbers or texts, got {users.dtype} and {items.dtype}")
    try:
        values = values.astype(np.float64, casting="unsafe" if values.dtype.kind in "US" else "same_kind")
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: ratings must be numbers: {brief(error)}") from error
    if not np.isfinite(values).all():
        raise DataError(
            f"{path}: rating {int(np.flatnonzero(~np.isfinite(values))[0])} (from 0) is not a finite number"
        )
    user_names, users = np.unique(users, return_inverse=True)
    item_names, items = np.unique(items, return_inverse=True)
    return RatingTable(users.astype(np.int64), items.astype(np.int64), values, user_names, item_names)


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def _text(path: Path) -> _Columns:
    """Return the columns of a text file."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError("is neither text in UTF-8, nor .npz, nor Parquet") from error
    if not lines:
        raise DataError("is empty")
    separator = next((mark for mark in ("::", "\t", ",", ";") if mark in lines[0]), None)
    first = [name.strip().strip('"').lower() for name in lines[0].split(separator)]
    where = [_find(first, name) for name in _NAMES]
    if None in where:
        where = [0, 1, 2]
        names = len(first) >= 3 and not _is_number(first[2])
    else:
        names = True
    places = [place for place in where if place is not None]
    if separator != "::" and len(lines) > names:  # NumPy's reader is fast, and takes numbers and single marks only
        with suppress(ValueError), warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore", UserWarning)  # of nothing but comments
            found = np.loadtxt(lines[names:], delimiter=separator, usecols=places, ndmin=2)
            if found.size and not (found[:, :2] % 1).any() and abs(found[:, :2]).max(initial=0) < _EXACT:
                return found[:, 0].astype(np.int64), found[:, 1].astype(np.int64), found[:, 2]
    rows = [line.split(separator) for line in lines[names:]]
    for number, row in enumerate(rows, 1 + names):
        if len(row) <= max(places) or not _is_number(row[places[2]]):
            raise DataError(f"line {number}: expected USER ITEM RATING, got {brief(lines[number - 1])}")
    users, items = (np.array([row[place].strip() for row in rows], str) for place in places[:2])
    return _numbers(users), _numbers(items), np.array([float(row[places[2]]) for row in rows], np.float64)


def _npz(path: Path) -> _Columns:
    """Return the arrays of a .npz file."""
    try:
        archive = read_npz(path)
        if {"users", "items", "ratings"} <= archive.keys():
            return archive["users"], archive["items"], archive["ratings"]
        if {"data", "shape", "format"} <= archive.keys():
            from scipy.sparse import coo_array, load_npz

            matrix = coo_array(load_npz(path))
            return matrix.coords[0], matrix.coords[1], matrix.data
    except (ValueError, LookupError, TypeError, AttributeError, MemoryError, NotImplementedError) as error:
        raise DataError(f"is a .npz file that holds no matrix of SciPy: {brief(error)}") from error
    raise DataError(
        f"expected arrays users, items and ratings, or a SciPy sparse matrix, found {', '.join(sorted(archive))}"
    )


def _parquet(path: Path) -> _Columns:
    """Return the columns of a Parquet file."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("needs the package pyarrow: pip install 'sfb-mpi[data]'") from error
    from sfb.data.tables import damage

    with damage():
        names = parquet.read_schema(path).names
    where = [_find([name.lower() for name in names], name) for name in _NAMES]
    if None in where:
        raise DataError(f"expected columns user, item and rating, found {', '.join(names)}")
    with damage():
        table = parquet.read_table(path, columns=[names[place] for place in where if place is not None])
        users, items, values = (column.to_numpy() for column in table.columns)
    return _plain(users), _plain(items), values


def _find(names: list[str], name: str) -> int | None:
    """Return the place of a column, by its name or an alias."""
    return next((names.index(alias) for alias in _ALIASES[name] if alias in names), None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(names: np.ndarray) -> np.ndarray:
    """Return names as integers if they are such."""
    try:
        return names.astype(np.int64)
    except (ValueError, OverflowError):
        return names


def _plain(names: np.ndarray) -> np.ndarray:
    """Return names without objects."""
    return names.astype(str) if names.dtype == object else names
