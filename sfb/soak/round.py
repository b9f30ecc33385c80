"""A round: calls on one communicator, drawn from the seed and the number of the round."""

from __future__ import annotations

from hashlib import blake2b
from time import sleep
from typing import Any

import numpy as np

import sfb
from sfb.soak.dice import Dice

__all__ = ["Round", "Wrong"]

_WAIT, _LONG_WAIT = 2e-3, 0.05  # most seconds for which a rank waits before some calls, and before a few


class Wrong(Exception):
    """A call has given what it must not."""


class Round:
    """Calls on one communicator, drawn from the seed and the number of the round.

    Args:
        seed: The seed of the run.
        number: The number of the round.

    Attributes:
        dice: Choices that are the same on all ranks.
        own: Choices of this rank.
        comm: The communicator; set by the one who runs the round, like those that follow.
        wire: The 16 bits in which factors travel; None for their own.
        title: What the communicator is.
        roomy: Whether its buffers may hold the factors of all ranks.
        calls: The number of calls so far.
        text: What the last call is.
        bits: A digest of each result that must be the same on all ranks, with the text of its call.
    """

    comm: sfb.Comm
    wire: str | None = None
    title: str = ""
    roomy: bool = True

    def __init__(self, seed: int, number: int, rank: int) -> None:
        self._seed = seed, number
        self.dice = Dice(seed, number)
        self.own = Dice(seed, number, 1 + rank)
        self.calls = 0
        self.text = "start"
        self.bits: list[tuple[str, bytes]] = []

    @property
    def rank(self) -> int:
        """This rank in the communicator."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """The number of ranks of the communicator."""
        return self.comm.size

    def begin(self, text: str) -> None:
        """Note that a call begins, after a while on some ranks; all ranks make the same calls."""
        self.calls += 1
        self.text = text
        self.dawdle()

    def dawdle(self) -> None:
        """Wait for a while, on some ranks."""
        if self.own.chance(0.2):
            sleep(_LONG_WAIT if self.own.chance(0.05) else self.own.real(0, _WAIT))

    def rng(self, rank: int, *more: int) -> np.random.Generator:
        """Return the generator of the data of a rank in the call under way; every rank can make that of all others."""
        return np.random.default_rng((*self._seed, self.calls, rank, *more))

    def close(self, got: np.ndarray, expected: np.ndarray, slack: Any, what: str = "the result") -> None:
        """Raise Wrong unless all elements are within ``slack`` of what is expected; NaN is within it of NaN only."""
        if got.shape != expected.shape:
            raise Wrong(f"{what} has shape {got.shape}, expected {expected.shape}")
        good = np.abs(got - expected) <= slack if got.dtype.kind in "fc" else got == expected
        if got.dtype.kind in "fc":
            good |= np.isnan(got) & np.isnan(expected)
        if not good.all():
            at = tuple(int(n) for n in np.argwhere(~good)[0])
            allowed = np.broadcast_to(slack, got.shape)[at]
            raise Wrong(
                f"{what} is wrong in {got.size - int(good.sum())} of {got.size} elements; at {at} it is {got[at]!r}, "
                f"expected {expected[at]!r} ± {allowed:.3g}"
            )

    def equal(self, got: np.ndarray, expected: np.ndarray, what: str = "the result") -> None:
        """Raise Wrong unless the arrays are equal; NaN equals NaN."""
        self.close(got, expected, 0, what)

    def same(self, array: np.ndarray) -> None:
        """Note a result that must have the same bits on all ranks; the end of the round compares them."""
        self.bits.append((f"call {self.calls} ({self.text})", blake2b(array.tobytes(), digest_size=8).digest()))

    def array(self, shape: tuple[int, ...], dtype: Any, fill: Any, *, shared: bool) -> np.ndarray:
        """Return an array filled with a value or an array, of this rank or shared by those of the node; collective."""
        if not shared:
            made = np.empty(shape, dtype)
            made[...] = fill
            return made
        made = self.comm.shared(shape, dtype)
        if self.comm.node.rank == 0:
            made[...] = fill
        self.comm.Barrier()
        return made
