"""Ranks that have run out of batches and take part without samples."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import torch

import sfb

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Join"]


class Collectives(Protocol):
    """What ranks with batches do together; see `sfb.torch.Handle`."""

    comm: sfb.Comm
    optimizer: torch.optim.Optimizer

    def synchronise(self) -> None:
        """Exchange gradients."""

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Scale gradients down."""


class Join:
    """What ranks tell each other inside `Handle.join`: before each collective what it is.

    Args:
        handle: The handle, whose methods do the collectives.
    """

    def __init__(self, handle: Collectives) -> None:
        self._handle = handle
        self._active = False
        self._shadowing = False
        self._root = 0

    def announce(self, event: str, value: Any = None) -> int:
        """Tell ranks without batches what comes; return the first rank with batches."""
        if not self._active:
            return 0
        if not self._shadowing:
            said = self._handle.comm.allgather((event, value))
            self._root = next(rank for rank, each in enumerate(said) if each is not None)
        return self._root

    def __enter__(self) -> Self:
        self._active = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._shadow()
        finally:
            self._active = self._shadowing = False

    def _shadow(self) -> None:
        """Do what ranks with batches do, until none has any."""
        handle, optimizer = self._handle, self._handle.optimizer
        optimizer.zero_grad()
        self._shadowing = True
        while True:
            said = handle.comm.allgather(None)
            active = [rank for rank, each in enumerate(said) if each is not None]
            if not active:
                return
            self._root = active[0]
            event, value = said[self._root]
            if event == "backward":
                handle.synchronise()
            elif event == "clip":
                handle.clip_grad_norm_(value)
            else:
                for group, settings in zip(optimizer.param_groups, value, strict=True):
                    group.update(settings)
                optimizer.step()
                optimizer.zero_grad()
