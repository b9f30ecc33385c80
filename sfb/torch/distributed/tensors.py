"""Tensors as the buffers of MPI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch.distributed import ReduceOp

__all__ = ["Reduction", "check", "flat", "joined", "raw", "restore"]

# Types of as many bytes as those of an element, in which tensors of any type travel.
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_REAL = (torch.float32, torch.float64)
_WHOLE = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64)
_OPS = (
    (ReduceOp.SUM, MPI.SUM),
    (ReduceOp.AVG, MPI.SUM),
    (ReduceOp.PREMUL_SUM, MPI.SUM),
    (ReduceOp.PRODUCT, MPI.PROD),
    (ReduceOp.MIN, MPI.MIN),
    (ReduceOp.MAX, MPI.MAX),
    (ReduceOp.BAND, MPI.BAND),
    (ReduceOp.BOR, MPI.BOR),
    (ReduceOp.BXOR, MPI.BXOR),
)
_BITWISE = (MPI.BAND, MPI.BOR, MPI.BXOR)
_ORDERED = (MPI.MIN, MPI.MAX)


def check(tensors: Sequence[torch.Tensor], what: str) -> None:
    """Raise unless all are dense tensors in the memory of the processor.

    Raises:
        TypeError: Something else than a tensor.
        ValueError: A tensor on another device, a sparse or quantised one.
    """
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{what}: expected tensors, got {type(tensor).__name__}")
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{what}: the backend sfb takes CPU tensors, got one on {tensor.device}; call .cpu() first, or "
                'init_process_group("cpu:sfb,cuda:nccl")'
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantised" if tensor.is_quantized else str(tensor.layout).replace("torch.", "")
            raise ValueError(f"{what}: the backend sfb takes dense tensors, got a {kind} one; call .to_dense() first")


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elements of a tensor as a vector, in its own memory if they lie there in order."""
    tensor = tensor.detach()
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
    return tensor.view(-1)


def restore(tensor: torch.Tensor, vector: torch.Tensor) -> None:
    """Copy a vector of its elements into a tensor, unless it is the tensor's own memory."""
    if vector.data_ptr() != tensor.data_ptr() or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        tensor.detach().copy_(vector.view(tensor.shape))


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the elements of all tensors as one vector; of one alone as `flat` does."""
    return flat(tensors[0]) if len(tensors) == 1 else torch.cat([flat(tensor) for tensor in tensors])


def raw(vector: torch.Tensor) -> np.ndarray:
    """Return a vector's memory as an array of integers, as long as the vector (twice as long for complex128)."""
    if vector.dtype == torch.complex128:
        return vector.view(torch.int64).numpy()
    return vector.view(_CARRIERS[vector.element_size()]).numpy()


class Reduction:
    """How tensors of one type are reduced by one operation.

    float16, bfloat16 and types of 8 bits are reduced in float32, sums of complex numbers as those of their parts. bool
    has the sum "or" and the product "and". The mean of integers is rounded towards 0. Of MIN and MAX, NaN wins.

    Args:
        dtype: The type.
        op: The operation.
        ranks: The number of ranks.
        what: The collective, for messages.

    Attributes:
        op: The operation of MPI.

    Raises:
        ValueError: The operation is not defined for the type.
    """

    def __init__(self, dtype: torch.dtype, op: Any, ranks: int, what: str) -> None:
        found = next(((kind, mpi) for kind, mpi in _OPS if op == kind), None)
        if found is None:
            raise ValueError(f"{what}: expected a torch.distributed.ReduceOp, got {op}")
        kind, self.op = found
        self._dtype = dtype
        self._factor = op.factor if kind == ReduceOp.PREMUL_SUM else None
        self._ranks = ranks if kind == ReduceOp.AVG else 0
        self._work, self._split = dtype, False
        whole = dtype in _WHOLE or dtype == torch.bool
        fits = whole if self.op in _BITWISE else True
        if dtype == torch.bool:
            self._work = torch.uint8
            fits = not self._ranks and self._factor is None
            self.op = MPI.MAX if self.op == MPI.SUM else MPI.MIN if self.op == MPI.PROD else self.op
        elif dtype.is_complex:
            self._split = self.op == MPI.SUM and self._factor is None
            fits = self.op == MPI.SUM or (self.op == MPI.PROD and dtype != torch.complex32)
        elif not whole and dtype not in _REAL:
            self._work = torch.float32
        if not fits:
            raise ValueError(f"{what}: ReduceOp.{kind.name} is not defined for {str(dtype).replace('torch.', '')}")

    def before(self, vector: torch.Tensor) -> torch.Tensor:
        """Return what MPI reduces: the vector itself, or a converted copy."""
        if self._factor is not None:
            vector = (vector * self._factor).to(vector.dtype)
        if self._dtype == torch.bool:
            return vector.view(torch.uint8)
        if self._split:
            vector = torch.view_as_real(vector).view(-1)
            return vector.float() if vector.dtype == torch.float16 else vector
        return vector if self._work is self._dtype else vector.to(self._work)

    def after(self, vector: torch.Tensor) -> torch.Tensor:
        """Return the result, from what MPI has reduced."""
        if self._ranks:
            vector.div_(self._ranks) if vector.is_floating_point() else vector.div_(self._ranks, rounding_mode="trunc")
        if self._dtype == torch.bool:
            return vector.view(torch.bool)
        if self._split:
            real = vector.half() if self._dtype == torch.complex32 else vector
            return torch.view_as_complex(real.view(-1, 2))
        return vector if self._work is self._dtype else vector.to(self._dtype)
