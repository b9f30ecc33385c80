"""Parameters, buffers and state of rank 0 on all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import sfb

__all__ = ["broadcast"]


@torch.no_grad()
def broadcast(comm: sfb.Comm, tensors: Sequence[torch.Tensor], root: int = 0) -> None:
    """Give ``tensors`` on all ranks the values that they have on ``root``, a message for each dtype; collective."""
    if comm.size == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
        comm.Bcast(flat.view(torch.uint8).numpy(), root)
        if comm.rank != root:
            for tensor, values in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(values.view(tensor.shape))
