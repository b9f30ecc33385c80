"""Blocks of a model: arrays that lie together in one buffer and move from rank to rank as one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from sfb.kernels import header
from sfb.runtime import seals
from sfb.runtime.seals import DamagedMessageError
from sfb.schedule.agree import agree, caught, is_alone

__all__ = ["Form", "PackedBlock", "aligned", "check_blocks", "nbytes"]

# Shape and dtype of each array of a block.
Form = tuple[tuple[tuple[int, ...], str], ...]

_ALIGNMENT = 64
_HEAD = 2  # words before the arrays: number and visits; the seal of a message (sfb.runtime.seals) follows them
_PIECE = 1 << 30  # bytes of a message; Open MPI 5 counts up to 2³¹ − 1
_MOST = (1 << 62) - 1


class PackedBlock:
    """A block whose arrays lie in one buffer, behind its number, the ranks that it has visited, and a seal.

    Args:
        number: The number of the block.
        form: Shape and dtype of each array.
        buffer: Bytes to use; None to allocate them. They may be more than the block needs.

    Attributes:
        number: The number of the block.
        arrays: The arrays, which are views of the buffer.
        buffer: The bytes.
        expected: The visits that a block under way will have when it arrives.
    """

    expected: int | None = None

    def __init__(self, number: int, form: Form, buffer: np.ndarray | None = None) -> None:
        self.number = number
        self._nbytes = nbytes(form)
        self.buffer = aligned(self._nbytes) if buffer is None else buffer
        self._head = self.buffer[: 8 * _HEAD].view(np.int64)
        self._seal = self.buffer[8 * _HEAD : 8 * _HEAD + seals.BYTES].view(np.int64)
        self._contents = self.buffer[8 * _HEAD + seals.BYTES : self._nbytes]
        arrays, offset = [], _ALIGNMENT
        for shape, kind in form:
            dtype = np.dtype(kind)
            size = prod(shape) * dtype.itemsize
            arrays.append(self.buffer[offset : offset + size].view(dtype).reshape(shape))
            offset += _padded(size)
        self.arrays = tuple(arrays)

    @property
    def visits(self) -> int:
        """The number of ranks that have worked on the block since it was filled."""
        return int(self._head[1])

    def visit(self) -> None:
        """Count a rank that has worked on the block."""
        self._head[1] += 1

    def restart(self) -> None:
        """Count visits from 0."""
        self._head[1] = 0

    def fill(self, arrays: Sequence[np.ndarray]) -> PackedBlock:
        """Copy arrays into the buffer, and return the block."""
        self._head[:] = self.number, 0
        for own, given in zip(self.arrays, arrays, strict=True):
            own[...] = given
        return self

    def open(self, sender: int, serial: int = 0, *, checked: bool) -> None:
        """Raise DamagedMessageError if the block has not arrived as ``sender`` sent it, with the visits that were due.

        The block then has these visits, so that it can be sent on. Other arguments are those of `send`.
        """
        due = self.number, self.expected or 0
        found = int(self._head[0]), int(self._head[1])
        wrong = seals.fault(self._seal, header.BLOCK, self._stamp(serial, *due), self._contents, checked=checked)
        if not wrong and found != due:
            wrong = f"holds block {found[0]} after {found[1]} visits where block {due[0]} after {due[1]} was due"
        if wrong:
            self._head[:] = due
            raise DamagedMessageError(f"the message of rank {sender} with block {self.number} {wrong}")

    def send(self, comm: Any, target: int, tag: int, serial: int = 0, *, checked: bool) -> list[Any]:
        """Begin to send the block, and return the requests.

        Args:
            comm: The communicator.
            target: The rank that receives it.
            tag: The tag of the message.
            serial: A number that tells this message from earlier ones with the same block and visits.
            checked: Whether the message has a checksum.
        """
        stamp = self._stamp(serial, self.number, self.visits)
        seals.seal(self._seal, header.BLOCK, stamp, self._contents, checked=checked)
        return [comm.Isend(piece, target, tag) for piece in self._pieces()]

    @staticmethod
    def _stamp(serial: int, number: int, visits: int) -> int:
        return (serial << 44 | number << 20 | visits) & _MOST

    def receive(self, comm: Any, source: int, tag: int) -> list[Any]:
        """Begin to receive the block, and return the requests."""
        return [comm.Irecv(piece, source, tag) for piece in self._pieces()]

    def _pieces(self) -> list[np.ndarray]:
        return [self.buffer[at : min(at + _PIECE, self._nbytes)] for at in range(0, self._nbytes, _PIECE)]


def nbytes(form: Form) -> int:
    """Return the bytes of the buffer of a block."""
    return _ALIGNMENT + sum(_padded(prod(shape) * np.dtype(kind).itemsize) for shape, kind in form)


def aligned(size: int) -> np.ndarray:
    """Return ``size`` bytes that begin at a multiple of 64."""
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    skip = -raw.ctypes.data % _ALIGNMENT
    return raw[skip : skip + size]


def check_blocks(comm: Any, blocks: Mapping[int, Sequence[np.ndarray]], call: str) -> tuple[list[Form], list[int]]:
    """Check the blocks of all ranks; collective.

    Args:
        comm: The ranks; None for this process alone.
        blocks: The arrays of the blocks that this rank holds, by the block's number.
        call: The user's call, for messages.

    Returns:
        The form of each block, and the rank that holds it.

    Raises:
        TypeError: A block holds something else than NumPy arrays of plain elements; on every rank.
        ValueError: The numbers of all ranks are not 0, 1, …, each once; on every rank.
    """
    own, error = caught(_forms, blocks)
    agree(comm, call, error=error)
    said = [own] if is_alone(comm) else comm.allgather(own)
    _check_numbers(said)
    found = sorted((number, form, rank) for rank, each in enumerate(said) for number, form in each.items())
    return [form for _, form, _ in found], [rank for _, _, rank in found]


def _forms(blocks: Mapping[int, Sequence[np.ndarray]]) -> dict[int, Form]:
    forms = {}
    for number, arrays in blocks.items():
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
            raise TypeError(f"the number of a block must be an integer, got {number!r}")
        if isinstance(arrays, np.ndarray) or not all(isinstance(array, np.ndarray) for array in arrays):
            raise TypeError(f"block {number} must be a sequence of NumPy arrays, got {type(arrays).__name__}")
        for array in arrays:
            if array.dtype.hasobject or array.dtype.names is not None or array.dtype.itemsize == 0:
                raise TypeError(f"block {number} has an array of {array.dtype}, which cannot be sent")
        forms[int(number)] = tuple((array.shape, array.dtype.str) for array in arrays)
    return forms


def _check_numbers(said: list[dict[int, Form]]) -> None:
    numbers = sorted(number for each in said for number in each)
    if numbers != list(range(len(numbers))):
        raise ValueError(f"the blocks of all ranks must have the numbers 0, 1, …, each once, got {numbers}")


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
