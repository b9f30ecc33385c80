"""Gradients of many parameters in one flat array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mpi4py import MPI
from torch import nn

import sfb

__all__ = ["Bucket", "fill_buckets"]

# Bytes of a bucket at most, and of the first, which is to start early; those of DistributedDataParallel.
_MOST, _FIRST = 25 << 20, 1 << 20


class Bucket:
    """Parameters whose gradients are summed in one call.

    Args:
        params: Parameters of one type; those of 16 bits are summed in 32.

    Attributes:
        params: The parameters.
        missing: The parameters whose gradients the backward pass has yet to leave.
        started: Whether the sum has begun and not ended.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self.params = list(params)
        self.missing = set(params)
        self._request: Any = None
        dtype = torch.promote_types(params[0].dtype, torch.float32)
        self._flat = torch.zeros(sum(param.numel() for param in params), dtype=dtype)
        parts = self._flat.split([param.numel() for param in params])
        self._views = [part.view(param.shape) for part, param in zip(parts, params, strict=True)]

    @property
    def nbytes(self) -> int:
        """The size of the flat array in bytes."""
        return self._flat.numel() * self._flat.element_size()

    @property
    def started(self) -> bool:
        """Whether the sum has begun and not ended."""
        return self._request is not None

    @property
    def ready(self) -> bool:
        """Whether the backward pass has left all gradients."""
        return not self.missing

    def _fill(self, scale: float) -> None:
        views, grads = [], []
        for param, view in zip(self.params, self._views, strict=True):
            if param.grad is None:
                view.zero_()
            else:
                views.append(view)
                grads.append(param.grad.detach())
        if views:
            torch._foreach_copy_(views, grads)
        if scale != 1:
            self._flat.mul_(scale)

    def start(self, comm: sfb.Comm, scale: float) -> None:
        """Begin to sum the gradients, each scaled."""
        self._fill(scale)
        self._request = comm.Iallreduce(MPI.IN_PLACE, self._flat.numpy())

    def finish(self, comm: sfb.Comm, scale: float, touched: Sequence[bool]) -> None:
        """Sum the gradients, or wait for the sum that `start` began, and set `grad` of parameters touched on a rank."""
        if self._request is not None:
            request, self._request = self._request, None
            request.Wait()
        else:
            self._fill(scale)
            comm.Allreduce(MPI.IN_PLACE, self._flat.numpy())
        grads, views = [], []
        for param, view, used in zip(self.params, self._views, touched, strict=True):
            if used:
                grad = param.grad
                if grad is None:
                    grad = param.grad = torch.empty_like(param, requires_grad=False)
                grads.append(grad.detach())
                views.append(view)
        if grads:
            torch._foreach_copy_(grads, views)
        self.missing = set(self.params)


def fill_buckets(params: Sequence[nn.Parameter]) -> Iterator[Bucket]:
    """Yield buckets for parameters, in the order in which backward passes leave their gradients."""
    limit = _FIRST
    filling: list[nn.Parameter] = []
    nbytes = 0
    for param in params:
        size = param.numel() * max(4, param.element_size())
        if filling and (nbytes + size > limit or param.dtype != filling[0].dtype):
            yield Bucket(filling)
            filling, nbytes, limit = [], 0, _MOST
        filling.append(param)
        nbytes += size
    if filling:
        yield Bucket(filling)
