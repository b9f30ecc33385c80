"""Optimizers as receivers: they take the sum of the ranks' factors and apply it, without forming K×D."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

import sfb.kernels as kernels
from sfb.checks import check_matrix
from sfb.receiver import Receiver

__all__ = ["SGD"]


class SGD(Receiver):
    """Stochastic gradient descent, with the semantics of torch.optim.SGD without dampening.

    d = g + weight_decay·w; velocity ← momentum·velocity + d; w ← w − lr·velocity. With ``nesterov``
    the step is d + momentum·velocity, without momentum it is d.

    The velocity lies as the parameter does: for an array from `Comm.shared` there is one per node.

    Args:
        param: K×D float32 or float64, C-contiguous and writeable; updated in place.
        lr: Learning rate; may be changed between steps, on all ranks alike.
        momentum: Factor of the velocity, ≥ 0.
        weight_decay: Factor of the parameter added to the gradient, ≥ 0.
        nesterov: Nesterov's momentum.

    Raises:
        TypeError: ``param`` is not a NumPy array of float32 or float64.
        ValueError: ``param`` cannot be updated in place, or a setting is out of range.
    """

    def __init__(
        self,
        param: np.ndarray,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(param)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov
        self.velocity: np.ndarray | None = None
        self._check_settings()

    def __repr__(self) -> str:
        return (
            f"SGD({self.shape[0]}×{self.shape[1]} {self.dtype}, lr={self.lr}, momentum={self.momentum}, "
            f"weight_decay={self.weight_decay}, nesterov={self.nesterov})"
        )

    @property
    def passes(self) -> int:  # type: ignore[override]
        """Reads and writes of the parameter and, with momentum, of the velocity."""
        return 4 if self.momentum else 2

    @property
    def settings(self) -> tuple[object, ...]:
        """The hyper-parameters."""
        return float(self.lr), float(self.momentum), float(self.weight_decay), bool(self.nesterov)

    def check(self) -> None:
        """Raise TypeError or ValueError if the parameter, its state or the settings do not fit."""
        super().check()
        self._check_settings()

    @property
    def state(self) -> tuple[np.ndarray | None, ...]:
        """The velocity, if there is momentum."""
        return (self.velocity,) if self.momentum else ()

    def prepare(self, allocate: Callable[[tuple[int, int], np.dtype[Any]], np.ndarray]) -> None:
        """Create the velocity on first use."""
        if self.momentum and self.velocity is None:
            self.velocity = allocate(self.shape, self.dtype)

    def step(self, gradient: np.ndarray) -> None:
        """Apply a dense gradient to an array of this rank's own, without communication.

        Args:
            gradient: K×D, of the parameter's dtype, C-contiguous.

        Raises:
            TypeError, ValueError: The gradient is no such array.
        """
        self.check()
        check_matrix("the gradient", gradient)
        if (gradient.shape, gradient.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"the gradient must be {self.shape} {self.dtype} like the parameter, "
                f"got {gradient.shape} {gradient.dtype}"
            )
        self.prepare(np.zeros)
        self.update_dense(gradient, 0, self.shape[0])

    def update(self, u: np.ndarray, v: np.ndarray, start: int, stop: int, first: int = 0) -> None:
        """Apply uᵀv to the rows, fused: the gradient is never stored."""
        rule = self.lr, self.momentum, self.weight_decay, self.nesterov
        kernels.sgd(u, v, self.array, self.velocity, start, stop, first, *rule)

    def update_dense(self, g: np.ndarray, start: int, stop: int, first: int = 0) -> None:
        """Apply g to the rows."""
        rule = self.lr, self.momentum, self.weight_decay, self.nesterov
        kernels.sgd_dense(g, self.array, self.velocity, start, stop, first, *rule)

    def _check_settings(self) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")
