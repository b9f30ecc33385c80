"""Write a made file in LIBSVM's format, of any size, fast.

    python tests/support/make_libsvm.py data.svm 10G

Values decide the class: a sample's class is the largest of a few sums of its features, with noise, so that a linear
model learns it, and which part of a file is read does not matter. Blocks of a pool are repeated in another order, each
time with another last digit of their values, so that 10 GB take a minute or two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sfb.units import parse_size

POOL = 64  # blocks
ROWS = 4096  # of a block


def block(
    rng: np.random.Generator, features: int, classes: int, filled: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the labels, indices from 1 and values of some samples; values in units of 1e-4, below 1."""
    # Few features are frequent, as words of a text are.
    gaps = rng.geometric(filled / features, (ROWS, filled))
    indices = np.cumsum(gaps, axis=1)
    values = rng.integers(1000, 10_000, indices.shape)
    weights = np.random.default_rng(1).standard_normal((features + 1, classes))  # the same in all blocks
    inside = indices <= features
    scores = np.einsum("rf,rfk->rk", np.where(inside, values, 0) / 1e4, weights[np.where(inside, indices, 0)])
    scores += 0.1 * rng.standard_normal(scores.shape)
    return np.argmax(scores, axis=1) + 1, np.where(inside, indices, 0), values


def text_of(labels: np.ndarray, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return samples as text, each in bytes; the last digit of each value can be changed."""
    lines = []
    for label, row, numbers in zip(labels.tolist(), indices.tolist(), values.tolist(), strict=True):
        fields = " ".join(f"{index}:0.{value:04d}" for index, value in zip(row, numbers, strict=True) if index)
        lines.append(f"{label} {fields}\n")
    return np.frombuffer("".join(lines).encode(), np.uint8).copy()


def write(path: Path, size: int, *, features: int = 47_000, classes: int = 10, filled: int = 90, seed: int = 0) -> int:
    """Write a file of at least ``size`` bytes and whole lines, and return its size.

    Args:
        path: The file.
        size: Its bytes.
        features: The number of features.
        classes: The number of classes.
        filled: Features of a sample that are not 0, on average.
        seed: Seed of everything.
    """
    rng = np.random.default_rng(seed)
    pool: list[tuple[np.ndarray, np.ndarray]] = []
    written = 0
    with path.open("wb") as file:
        while written < size:
            if len(pool) < POOL:
                lines = text_of(*block(rng, features, classes, filled))
                # The last digit of a value stands before a blank or the end of a line; labels stand at its beginning.
                ends = np.flatnonzero((lines == ord(" ")) | (lines == ord("\n")))
                ends = ends[(ends > 5) & (lines[np.maximum(ends - 5, 0)] == ord("."))] - 1
                pool.append((lines, ends))
            else:
                lines, ends = pool[rng.integers(POOL)]
                lines[ends] = rng.integers(ord("0"), ord("9") + 1, len(ends), dtype=np.uint8)
            file.write(lines.data)
            written += lines.size
    return written


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("size", type=parse_size, help="bytes: 100M, 10G")
    parser.add_argument("--features", type=int, default=47_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--filled", type=int, default=90, help="features of a sample that are not 0")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(write(**vars(options)), "bytes")


if __name__ == "__main__":
    main()
