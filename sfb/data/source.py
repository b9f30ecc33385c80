"""What every format gives: samples and labels, block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sfb.data.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

__all__ = ["Block", "Locate", "Source", "as_float32", "bounds", "not_finite", "sample"]

Locate = Callable[[int], str]


@dataclass
class Block:
    """Some consecutive samples.

    Attributes:
        x: S×D features, float32; in CSR form, D is as wide as these samples need.
        y: S labels: int64, uint64, bool or strings for classes, float64 for numbers, S×T if a sample has several;
            None without labels.
        notes: What the user should know.

    >>> import sfb.data
    >>> block = next(sfb.data.describe("digits").blocks(0, 4))
    >>> block.x.shape, block.y.shape
    ((449, 64), (449,))
    """

    x: np.ndarray | csr_matrix
    y: np.ndarray | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source(ABC):
    """Labelled data that can be read in parts; small, and picklable, so that one rank can describe it to the others.

    Attributes:
        path: The file, or the name of a built-in data set.
        targets: "classes" or "numbers".
        labelled: Whether labels are read.
        width: The number of features; None if that is known only when all has been read.
        rows: The number of samples; None if that is known only when all has been read.
        names: Names of the features, where they have some.
        label: Name of the labels, where they have one.
        notes: What the user should know.
        sparse: Whether samples come in CSR form.
        untyped: Whether labels are text that may stand for numbers.

    >>> import sfb.data
    >>> source = sfb.data.describe("digits")
    >>> source.rows, source.width, source.targets, source.sparse
    (1797, 64, 'classes', False)
    """

    path: str
    targets: str
    labelled: bool
    width: int | None = None
    rows: int | None = None
    names: tuple[str, ...] | None = None
    label: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    sparse: ClassVar[bool] = False
    untyped: ClassVar[bool] = False

    @abstractmethod
    def blocks(self, part: int = 0, parts: int = 1) -> Iterator[Block]:
        """Yield the samples of a part, in their order, in blocks of some MiB.

        Parts are consecutive: part 0, then 1 and so on are the whole.

        Raises:
            DataError: A sample cannot be read, or trained on; the message says where it is.
        """

    @abstractmethod
    def memory(self) -> float:
        """Return the bytes that all samples take in memory, as far as that can be told without reading all."""

    def mapped(self, part: int, parts: int) -> np.ndarray | None:
        """Return the features of a part as a memory map of the file; None if the file does not hold them that way."""
        return None


def bounds(count: int, part: int, parts: int) -> tuple[int, int]:
    """Return where a part of ``count`` rows begins and ends."""
    return count * part // parts, count * (part + 1) // parts


def sample(first: int) -> Locate:
    """Return a function that says where a sample of a block is whose first is the sample ``first`` of all."""
    return lambda row: f"sample {first + row} (from 0)"


def as_float32(x: np.ndarray, locate: Locate, feature: Locate) -> np.ndarray:
    """Return S×D features as a C-contiguous float32 array.

    Args:
        x: The features, of any type of numbers.
        locate: Says where a row is.
        feature: Names a column.

    Raises:
        DataError: A value is not finite, or is beyond float32.
    """
    if x.dtype.kind not in "fiub":
        raise DataError(f"expected numbers in x, got {x.dtype}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(x, dtype=np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(f"{locate(int(row))}, {feature(int(column))}: {not_finite(float(x[row, column]))}")
    return values


def not_finite(value: float) -> str:
    """Return what is wrong with a value that float32 cannot hold."""
    what = "beyond float32 (3.4e38): scale the features" if np.isfinite(value) else "not a finite number"
    return f"{value:g} is {what}"
