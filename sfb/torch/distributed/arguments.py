"""What collectives of PyTorch are called with: checks, and the forms that arguments may take."""

# PyTorch does not export to type checkers all that it exports.
# mypy: disable-error-code="attr-defined, name-defined"

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sfb.torch.distributed.tensors import check, restore

__all__ = ["expect", "fits", "lists", "options", "overlap", "parts", "single", "split"]


def single(tensors: Any, what: str) -> torch.Tensor:
    """Return the only tensor of a list, or the tensor.

    Raises:
        TypeError, ValueError: There are more, or it cannot be exchanged: see `check`.
    """
    if isinstance(tensors, torch.Tensor):
        tensors = [tensors]
    if len(tensors) != 1:
        raise ValueError(f"{what}: expected one tensor, got {len(tensors)}; each process has one device")
    check(tensors, what)
    return tensors[0]


def lists(tensors: Any) -> list[list[torch.Tensor]]:
    """Return a list of lists of tensors, from one or from a list of tensors."""
    lists = [tensors] if len(tensors) == 0 or isinstance(tensors[0], torch.Tensor) else tensors
    if len(lists) != 1:
        raise ValueError(f"expected one list of tensors, got {len(lists)}; each process has one device")
    return [list(lists[0])]


def options(given: Any, kind: type, timeout: timedelta | None = None) -> Any:
    """Return the options of a collective; a reduction or a root may be given in their place."""
    if given is None or isinstance(given, (int, dist.ReduceOp, dist.ReduceOp.RedOpType)):
        options = kind()
        if isinstance(given, int):
            options.rootRank = given
        elif given is not None:
            options.reduceOp = given
        if timeout is not None:
            options.timeout = timeout
        return options
    return given


def split(vector: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy parts of a vector into tensors, unless it is the memory of the only one."""
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, vector.split(sizes), strict=True):
        restore(tensor, part)


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two contiguous tensors share memory."""
    low, high = a.data_ptr(), a.data_ptr() + a.nbytes
    return low < b.data_ptr() + b.nbytes and b.data_ptr() < high


def parts(tensor: torch.Tensor, sizes: list[int] | None, ranks: int, what: str) -> list[int]:
    """Return how many elements of a tensor belong to each rank."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if not sizes:
        if rows % ranks:
            raise ValueError(
                f"all_to_all_single: the rows of the {what} must divide by {ranks} ranks, got {rows}; "
                f"pass {what}_split_sizes"
            )
        sizes = [rows // ranks] * ranks
    if len(sizes) != ranks or sum(sizes) != rows:
        raise ValueError(
            f"all_to_all_single: {what}_split_sizes must be {ranks} numbers of rows with the sum {rows}, "
            f"got {list(sizes)}"
        )
    row = tensor.numel() // rows if rows else 0
    return [size * row for size in sizes]


def expect(tensors: Sequence[torch.Tensor], dtype: torch.dtype, ranks: int, what: str, role: str) -> None:
    """Raise unless there is a tensor of one type for every rank.

    Raises:
        ValueError: There are fewer or more tensors, or they are of other types.
    """
    if len(tensors) != ranks:
        raise ValueError(f"{what}: expected {ranks} {role}s, one a rank, got {len(tensors)}")
    for tensor in tensors:
        if tensor.dtype != dtype:
            raise ValueError(f"{what}: expected {role}s of one type, {dtype}, got {tensor.dtype}")


def fits(whole: torch.Tensor, part: torch.Tensor, ranks: int, what: str, name: str, other: str) -> None:
    """Raise unless a tensor has the size of one part for each rank."""
    check([whole, part], what)
    if whole.dtype != part.dtype:
        raise ValueError(f"{what}: {name} and {other} must be of one type, got {whole.dtype} and {part.dtype}")
    if whole.numel() != ranks * part.numel():
        raise ValueError(
            f"{what}: the {name} must have {ranks} times the {part.numel()} elements of the {other}, "
            f"got {whole.numel()}"
        )
