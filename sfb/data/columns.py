"""Arrays that grow at their end, in memory or in files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = ["Column", "InFile", "InMemory", "mapped", "scratch"]


class Column(Protocol):
    """An array that grows at its end."""

    def append(self, items: np.ndarray) -> None:
        """Add items."""

    def finish(self) -> np.ndarray:
        """Return all items, one after another; nothing can be added any more."""

    def close(self) -> None:
        """Give back what the column needs to grow."""


class InMemory:
    """An array in memory; a `Column`.

    Args:
        dtype: Type of the items.
    """

    def __init__(self, dtype: Any) -> None:
        self._items = np.empty(0, dtype)
        self._size = 0

    def append(self, items: np.ndarray) -> None:
        """Add items."""
        end = self._size + items.size
        if end > self._items.size:
            self._items.resize(max(end, self._items.size * 5 // 4), refcheck=False)
        self._items[self._size : end] = items.ravel()
        self._size = end

    def finish(self) -> np.ndarray:
        """Return all items; nothing can be added any more."""
        self._items.resize(self._size, refcheck=False)
        return self._items

    def close(self) -> None:
        """Do nothing; memory is given back with the items."""


class InFile:
    """An array in a file, of which memory holds only what is added at a time; a `Column`.

    Args:
        path: The file, which is written anew.
        dtype: Type of the items.
    """

    def __init__(self, path: Path, dtype: Any) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")

    def append(self, items: np.ndarray) -> None:
        """Add items."""
        self._file.write(np.ascontiguousarray(items, self._dtype).data)

    def finish(self) -> np.ndarray:
        """Return all items as a memory map; nothing can be added any more."""
        self.close()
        return mapped(self._path, self._dtype)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def mapped(path: Path, dtype: Any) -> np.ndarray:
    """Return the items of a file as a memory map that cannot be written."""
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r"))


def scratch(folder: Path | None, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an array to write: in memory, or in a file of a folder that vanishes with the array."""
    if folder is None or 0 in shape:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape))
