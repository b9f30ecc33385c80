"""Optimizers as receivers: they take the sum of the ranks' factors and apply it, without forming K×D."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.checks import check_matrix
from sfb.receiver import Receiver

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "Proximal"]


class Optimizer(Receiver):
    """An update rule with the parameter that it updates, as a receiver.

    Its state lies as the parameter does: for an array from `Comm.shared` there is one per node. Settings may be
    changed between steps, on all ranks alike.

    Args:
        param: K×D float32 or float64, C-contiguous and writeable; updated in place. None for a rule alone, which
            `sfb.Store` takes, and `bind`.

    Attributes:
        hyperparameters: Names of the settings.
        states: Names of the arrays that it keeps; None each until the first step.
    """

    hyperparameters: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    max_norm: float | None

    def __init__(self, param: np.ndarray | None, **settings: Any) -> None:
        if param is None:
            self.array = None  # type: ignore[assignment]
        else:
            super().__init__(param)
        for name, value in settings.items():
            setattr(self, name, value)
        for name in self.states:
            setattr(self, name, None)
        self.check_settings()

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.hyperparameters)
        what = "" if self.array is None else f"{self.shape[0]}×{self.shape[1]} {self.dtype}, "
        return f"{type(self).__name__}({what}{settings})"

    def __init_subclass__(cls) -> None:
        if "max_norm" not in cls.hyperparameters:
            cls.hyperparameters = (*cls.hyperparameters, "max_norm")
        cls._read = staticmethod(attrgetter(*cls.hyperparameters))

    _read: Callable[[Optimizer], tuple[object, ...]]

    def bind(self, param: np.ndarray) -> Self:
        """Return the same rule for ``param``, with state of its own; raises as the constructor does."""
        return type(self)(param, **{name: getattr(self, name) for name in self.hyperparameters})

    def check_settings(self) -> None:
        """Raise ValueError if a setting is out of range."""
        raise NotImplementedError

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Whether it has to know the length of the gradient first."""
        return self.max_norm is not None

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Whether there is nothing to do but the rule."""
        return self.max_norm is None

    @property
    def passes(self) -> int:  # type: ignore[override]
        """Reads and writes of the parameter and of its state."""
        return 2 + 2 * len(self.state)

    @property
    def settings(self) -> tuple[object, ...]:
        """The hyper-parameters."""
        return self._read(self)

    @property
    def state(self) -> tuple[np.ndarray | None, ...]:
        """The arrays that it keeps."""
        return tuple(getattr(self, name) for name in self.states)

    def check(self) -> None:
        """Raise TypeError or ValueError if the parameter, its state or the settings do not fit."""
        if self.array is None:
            raise TypeError(f"this {type(self).__name__} has no parameter to update: give it one, as in SGD(w, lr=0.1)")
        super().check()
        self.check_settings()

    def prepare(self, allocate: Callable[[tuple[int, int], np.dtype[Any]], np.ndarray]) -> None:
        """Create missing state on first use."""
        for name, array in zip(self.states, self.state, strict=False):
            if array is None:
                setattr(self, name, allocate(self.shape, self.dtype))

    def update(self, u: np.ndarray, v: np.ndarray, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply uᵀv to the rows, fused: the gradient is never stored."""
        alpha = 1.0 if self.max_norm is None else self._scale(kernels.norm(u, v, threads=threads))
        rule = self.rule()
        kernels.update(rule, u, v, self.array, self.state, start, stop, first, alpha=alpha, threads=threads)

    def _scale(self, norm: float) -> float:
        """Return the factor of a gradient of that length; not a number stays so."""
        assert self.max_norm is not None
        scale = self.max_norm / (norm + 1e-6)
        return 1.0 if scale >= 1 else scale

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
        if self.max_norm is not None:
            gradient = gradient * self.dtype.type(self._scale(float(np.linalg.norm(gradient))))
        self.update_dense(gradient, 0, self.shape[0])
        self.end()

    def _check_finite(self, *names: str) -> None:
        limit = self.max_norm
        if limit is not None and not (isinstance(limit, Real) and limit > 0):
            raise ValueError(f"max_norm must be None or a number > 0, got {limit!r}")
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")


class SGD(Optimizer):
    """Stochastic gradient descent, with the semantics of torch.optim.SGD without dampening.

    d = g + weight_decay·w; velocity ← momentum·velocity + d; w ← w − lr·velocity. With ``nesterov``
    the step is d + momentum·velocity, without momentum it is d.

    Args:
        param: K×D float32 or float64, C-contiguous and writeable; updated in place. None for a rule without one.
        lr: Learning rate.
        momentum: Factor of the velocity, ≥ 0.
        weight_decay: Factor of the parameter added to the gradient, ≥ 0.
        nesterov: Nesterov's momentum.
        max_norm: Scale the gradient, the sum of all ranks', down to this Frobenius norm, as
            torch.nn.utils.clip_grad_norm_ does for one parameter. Its norm comes from the factors, so "auto" takes
            `broadcast` or `node`.

    Attributes:
        velocity: K×D, with momentum; None until the first step.

    Raises:
        TypeError: ``param`` is not a NumPy array of float32 or float64.
        ValueError: ``param`` cannot be updated in place, or a setting is out of range.
    """

    hyperparameters = ("lr", "momentum", "weight_decay", "nesterov")
    states = ("velocity",)

    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool
    velocity: np.ndarray | None

    def __init__(
        self,
        param: np.ndarray | None = None,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        max_norm: float | None = None,
    ) -> None:
        settings = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(param, lr=lr, **settings, max_norm=max_norm)

    def rule(self) -> kernels.Rule:
        """Return SGD of the settings."""
        return kernels.sgd(self.lr, self.momentum, self.weight_decay, self.nesterov)

    @property
    def state(self) -> tuple[np.ndarray | None, ...]:
        """The velocity, if there is momentum."""
        return (self.velocity,) if self.momentum else ()

    def check_settings(self) -> None:
        """Raise ValueError if a setting is out of range."""
        self._check_finite("lr", "momentum", "weight_decay")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")


class Adam(Optimizer):
    """Adam, with the semantics of torch.optim.Adam (Kingma and Ba, ICLR 2015, algorithm 1).

    d = g + weight_decay·w; m ← β₁m + (1−β₁)d; q ← β₂q + (1−β₂)d²; w ← w − lr·m̂/(√q̂ + eps), where
    m̂ = m/(1−β₁ᵗ) and q̂ = q/(1−β₂ᵗ) in step t.

    Args:
        param: K×D float32 or float64, C-contiguous and writeable; updated in place. None for a rule without one.
        lr: Learning rate.
        betas: β₁ and β₂, each ≥ 0 and < 1.
        eps: Added to the root.
        weight_decay: Factor of the parameter added to the gradient, ≥ 0.
        max_norm: As of `SGD`.

    Attributes:
        first_moment: K×D, m; None until the first step.
        second_moment: K×D, q; likewise.
        steps: Taken so far, t; the same on all ranks.

    Raises:
        TypeError, ValueError: As `SGD` does.
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay")
    states = ("first_moment", "second_moment")

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    first_moment: np.ndarray | None
    second_moment: np.ndarray | None
    decoupled = False

    def __init__(
        self,
        param: np.ndarray | None = None,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        self.steps = 0
        super().__init__(param, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_norm=max_norm)

    def end(self) -> None:
        """Count a step."""
        self.steps += 1

    def rule(self) -> kernels.Rule:
        """Return Adam of the settings in the step after those taken."""
        return kernels.adam(self.lr, self.steps + 1, self.betas, self.eps, self.weight_decay, self.decoupled)

    def check_settings(self) -> None:
        """Raise ValueError if a setting is out of range."""
        self._check_finite("lr", "eps", "weight_decay")
        betas = self.betas
        if not (
            isinstance(betas, tuple) and len(betas) == 2 and all(isinstance(b, Real) and 0 <= b < 1 for b in betas)
        ):
            raise ValueError(f"betas must be a tuple of two numbers ≥ 0 and < 1, got {betas!r}")


class AdamW(Adam):
    """Adam with decoupled weight decay, with the semantics of torch.optim.AdamW (Loshchilov and Hutter, ICLR 2019).

    d = g, and w is scaled by 1 − lr·weight_decay in every step. Arguments, attributes and errors as of `Adam`.
    """

    decoupled = True

    def __init__(
        self,
        param: np.ndarray | None = None,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(param, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_norm=max_norm)


class Adagrad(Optimizer):
    """AdaGrad, with the semantics of torch.optim.Adagrad (Duchi, Hazan and Singer, JMLR 2011, figure 1).

    d = g + weight_decay·w; q ← q + d²; w ← w − lr·d/(√q + eps).

    Args:
        param: K×D float32 or float64, C-contiguous and writeable; updated in place. None for a rule without one.
        lr: Learning rate.
        eps: Added to the root.
        weight_decay: Factor of the parameter added to the gradient, ≥ 0.
        max_norm: As of `SGD`.

    Attributes:
        squares: K×D, q; None until the first step.

    Raises:
        TypeError, ValueError: As `SGD` does.
    """

    hyperparameters = ("lr", "eps", "weight_decay")
    states = ("squares",)

    lr: float
    eps: float
    weight_decay: float
    squares: np.ndarray | None

    def __init__(
        self,
        param: np.ndarray | None = None,
        *,
        lr: float = 1e-2,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(param, lr=lr, eps=eps, weight_decay=weight_decay, max_norm=max_norm)

    def rule(self) -> kernels.Rule:
        """Return AdaGrad of the settings."""
        return kernels.adagrad(self.lr, self.eps, self.weight_decay)

    def check_settings(self) -> None:
        """Raise ValueError if a setting is out of range."""
        self._check_finite("lr", "eps", "weight_decay")


class Proximal(Optimizer):
    """Proximal gradient descent for a smooth loss plus l1·‖w‖₁ + l2/2·‖w‖² + rows·Σ‖row of w‖.

    x = w − lr·g; w ← soft(x, lr·l1)/(1 + lr·l2); then each row r is scaled by max(0, 1 − lr·rows/‖r‖) (Parikh and
    Boyd, "Proximal Algorithms", 2014, sections 4.2 and 6.5; for l1 with rows, Simon et al., "A Sparse-Group Lasso",
    JCGS 2013, section 3).

    Args:
        param: K×D float32 or float64, C-contiguous and writeable; updated in place. None for a rule without one.
        lr: Learning rate.
        l1: Factor of the sum of magnitudes, ≥ 0: the lasso.
        l2: Factor of half the sum of squares, ≥ 0: the ridge.
        rows: Factor of the sum of lengths of rows, ≥ 0: the group lasso.
        max_norm: As of `SGD`.

    Raises:
        TypeError, ValueError: As `SGD` does.
    """

    hyperparameters = ("lr", "l1", "l2", "rows")

    lr: float
    l1: float
    l2: float
    rows: float

    def __init__(
        self,
        param: np.ndarray | None = None,
        *,
        lr: float,
        l1: float = 0.0,
        l2: float = 0.0,
        rows: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        super().__init__(param, lr=lr, l1=l1, l2=l2, rows=rows, max_norm=max_norm)

    def rule(self) -> kernels.Rule:
        """Return proximal gradient descent of the settings."""
        return kernels.proximal(self.lr, self.l1, self.l2)

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Whether there is nothing to do but the rule."""
        return super().plain and not self.rows

    def update(self, u: np.ndarray, v: np.ndarray, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply uᵀv to the rows, and shrink them as groups."""
        super().update(u, v, start, stop, first, threads=threads)
        self._shrink(start, stop, threads)

    def update_dense(self, g: np.ndarray, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply g to the rows, and shrink them as groups."""
        super().update_dense(g, start, stop, first, threads=threads)
        self._shrink(start, stop, threads)

    def _shrink(self, start: int, stop: int, threads: int) -> None:
        if self.rows:
            kernels.shrink_rows(self.array, self.lr * self.rows, start, stop, threads=threads)

    def check_settings(self) -> None:
        """Raise ValueError if a setting is out of range."""
        self._check_finite("lr", "l1", "l2", "rows")
