"""Update rules: optimizers that take the sum of the ranks' factors and apply it, without forming K×D."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

import sfb.kernels as kernels
from sfb.kernels.sparse import Product
from sfb.receiver import Optimizer, number

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "Proximal"]


class _Clipping(TypedDict, total=False):
    max_norm: float | None


class _AdamSettings(_Clipping, total=False):
    lr: float
    betas: tuple[float, float]
    eps: float


class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD without dampening.

    d = g + weight_decay·w; velocity ← momentum·velocity + d; w ← w − lr·velocity. With ``nesterov`` the last is
    w ← w − lr·(d + momentum·velocity); without momentum it is w ← w − lr·d, and there is no velocity. Sutskever et al.,
    "On the importance of initialization and momentum in deep learning", ICML 2013, section 2, has lr in the velocity.

    Args:
        param: See `Optimizer`.
        lr: Learning rate, ≥ 0.
        momentum: Factor of the velocity, ≥ 0.
        weight_decay: Factor of the parameter added to the gradient, ≥ 0.
        nesterov: Whether to take Nesterov's momentum; needs momentum > 0.
        **clipping: ``max_norm``; see `Optimizer`.

    Attributes:
        velocity: K×D of the parameter's dtype, with momentum; None until the first step.

    Raises:
        TypeError, ValueError: See `Optimizer`.

    >>> import numpy as np
    >>> import sfb
    >>> w = np.zeros((1, 2))
    >>> sgd = sfb.optim.SGD(w, lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     sgd.step(np.ones((1, 2)))
    >>> w, sgd.velocity
    (array([[-1.25, -1.25]]), array([[1.5, 1.5]]))
    """

    hyperparameters = ("lr", "momentum", "weight_decay", "nesterov")
    nonnegative = ("lr", "momentum", "weight_decay")
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
        **clipping: Unpack[_Clipping],
    ) -> None:
        super().__init__(param, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, **clipping)

    def rule(self) -> kernels.Rule:
        """Return the kernels' rule for SGD with these settings."""
        return kernels.sgd(self.lr, self.momentum, self.weight_decay, self.nesterov)

    @property
    def state(self) -> tuple[np.ndarray | None, ...]:
        """The velocity, if there is momentum."""
        return (self.velocity,) if self.momentum else ()

    def convert(self, name: str, value: Any) -> Any:
        """Return a setting as it is kept; see `Optimizer.convert`."""
        if name != "nesterov":
            return super().convert(name, value)
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"nesterov must be True or False, got {value!r}")
        return bool(value)

    def check_settings(self) -> None:
        """Raise ValueError if ``nesterov`` lacks momentum."""
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")


class Adam(Optimizer):
    """Adam, as torch.optim.Adam.

    d = g + weight_decay·w; m ← β₁m + (1−β₁)d; q ← β₂q + (1−β₂)d²; w ← w − lr·m̂/(√q̂ + eps), where m̂ = m/(1−β₁ᵗ) and
    q̂ = q/(1−β₂ᵗ) in step t = 1, 2, … Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
    algorithm 1; the paper has no weight decay.

    Args:
        param: See `Optimizer`.
        lr: Learning rate, ≥ 0.
        betas: β₁ and β₂, each ≥ 0 and < 1.
        eps: Added to the root, ≥ 0.
        weight_decay: Factor of the parameter added to the gradient, ≥ 0.
        **clipping: ``max_norm``; see `Optimizer`.

    Attributes:
        first_moment: m, K×D of the parameter's dtype; None until the first step.
        second_moment: q, K×D of the parameter's dtype; None until the first step.
        steps: The number of steps taken; set it, on all ranks alike, to go on from a checkpoint.

    Raises:
        TypeError, ValueError: See `Optimizer`.

    >>> import numpy as np
    >>> import sfb
    >>> w = np.zeros((1, 2))
    >>> sfb.optim.Adam(w, lr=0.5).step(np.array([[3.0, -0.1]]))
    >>> w.round(6)  # the first step is lr in every element
    array([[-0.5,  0.5]])
    """

    hyperparameters = ("lr", "betas", "eps", "weight_decay")
    nonnegative = ("lr", "eps", "weight_decay")
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
        **clipping: Unpack[_Clipping],
    ) -> None:
        self.steps = 0
        super().__init__(param, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **clipping)

    def end(self) -> None:
        """Count a step."""
        self.__dict__["steps"] += 1  # past the check of what users set, since every call counts

    def rule(self) -> kernels.Rule:
        """Return the kernels' rule for the next step of Adam with these settings."""
        return kernels.adam(self.lr, self.steps + 1, self.betas, self.eps, self.weight_decay, self.decoupled)

    def convert(self, name: str, value: Any) -> Any:
        """Return a setting as it is kept; see `Optimizer.convert`."""
        if name != "betas":
            return super().convert(name, value)
        what = "two numbers ≥ 0 and < 1"
        if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != 2:
            raise ValueError(f"betas must be {what}, got {value!r}")
        return tuple(number("betas", beta, what, lambda x: 0 <= x < 1) for beta in value)


class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW.

    As `Adam`, but d = g, and every step first scales w by 1 − lr·weight_decay. Loshchilov and Hutter, "Decoupled Weight
    Decay Regularization", ICLR 2019, algorithm 2.

    Args:
        param: See `Optimizer`.
        weight_decay: Factor of the decay, ≥ 0.
        **others: ``lr``, ``betas``, ``eps`` and ``max_norm`` of `Adam`.

    Raises:
        TypeError, ValueError: See `Optimizer`.

    >>> import numpy as np
    >>> import sfb
    >>> w = np.ones((1, 2))
    >>> sfb.optim.AdamW(w, lr=0.5, weight_decay=0.5).step(np.zeros((1, 2)))
    >>> w
    array([[0.75, 0.75]])
    """

    decoupled = True

    def __init__(
        self, param: np.ndarray | None = None, *, weight_decay: float = 1e-2, **others: Unpack[_AdamSettings]
    ) -> None:
        super().__init__(param, weight_decay=weight_decay, **others)


class Adagrad(Optimizer):
    """AdaGrad, as torch.optim.Adagrad.

    d = g + weight_decay·w; q ← q + d²; w ← w − lr·d/(√q + eps). Duchi, Hazan and Singer, "Adaptive Subgradient Methods
    for Online Learning and Stochastic Optimization", JMLR 2011, figure 1, with diagonal matrices.

    Args:
        param: See `Optimizer`.
        lr: Learning rate, ≥ 0.
        eps: Added to the root, ≥ 0.
        weight_decay: Factor of the parameter added to the gradient, ≥ 0.
        **clipping: ``max_norm``; see `Optimizer`.

    Attributes:
        squares: q, K×D of the parameter's dtype; None until the first step.

    Raises:
        TypeError, ValueError: See `Optimizer`.

    >>> import numpy as np
    >>> import sfb
    >>> w = np.zeros((1, 2))
    >>> adagrad = sfb.optim.Adagrad(w, lr=0.5)
    >>> adagrad.step(np.array([[3.0, -4.0]]))
    >>> w.round(6), adagrad.squares
    (array([[-0.5,  0.5]]), array([[ 9., 16.]]))
    """

    hyperparameters = ("lr", "eps", "weight_decay")
    nonnegative = ("lr", "eps", "weight_decay")
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
        **clipping: Unpack[_Clipping],
    ) -> None:
        super().__init__(param, lr=lr, eps=eps, weight_decay=weight_decay, **clipping)

    def rule(self) -> kernels.Rule:
        """Return the kernels' rule for AdaGrad with these settings."""
        return kernels.adagrad(self.lr, self.eps, self.weight_decay)


class Proximal(Optimizer):
    """Proximal gradient descent for a smooth loss plus l1·‖w‖₁ + l2/2·‖w‖² + rows·Σ‖row of w‖, rows within a ball.

    x = w − lr·g; w ← soft(x, lr·l1)/(1 + lr·l2), where soft(x, t) = ``sign(x)·max(|x| − t, 0)``; then each row r of w
    is scaled by max(0, 1 − lr·rows/‖r‖), and with ``radius`` by min(1, radius/‖r‖). Parikh and Boyd, "Proximal
    Algorithms", 2014, sections 4.2 and 6.5; for l1 with rows Simon et al., "A Sparse-Group Lasso", JCGS 2013, section
    3; for the ball after other penalties Yu, "On Decomposing the Proximal Map", NIPS 2013, section 3.

    Args:
        param: See `Optimizer`.
        lr: Learning rate, ≥ 0.
        l1: Factor of the sum of magnitudes, ≥ 0: the lasso.
        l2: Factor of half the sum of squares, ≥ 0: the ridge.
        rows: Factor of the sum of the Euclidean norms of rows, ≥ 0: the group lasso.
        radius: Largest Euclidean norm of a row, > 0: projected gradient descent; None for no limit.
        **clipping: ``max_norm``; see `Optimizer`.

    Raises:
        TypeError, ValueError: See `Optimizer`.

    >>> import numpy as np
    >>> import sfb
    >>> w = np.array([[1.0, 0.25]])
    >>> sfb.optim.Proximal(w, lr=0.5, l1=1.0).step(np.zeros((1, 2)))
    >>> w
    array([[0.5, 0. ]])
    >>> sfb.optim.Proximal(w, lr=0.5, radius=1.0).step(np.array([[-5.0, -8.0]]))
    >>> w
    array([[0.6, 0.8]])
    """

    hyperparameters = ("lr", "l1", "l2", "rows", "radius")
    nonnegative = ("lr", "l1", "l2", "rows")

    lr: float
    l1: float
    l2: float
    rows: float
    radius: float | None

    def __init__(
        self,
        param: np.ndarray | None = None,
        *,
        lr: float,
        l1: float = 0.0,
        l2: float = 0.0,
        rows: float = 0.0,
        radius: float | None = None,
        **clipping: Unpack[_Clipping],
    ) -> None:
        super().__init__(param, lr=lr, l1=l1, l2=l2, rows=rows, radius=radius, **clipping)

    def rule(self) -> kernels.Rule:
        """Return the kernels' rule for proximal gradient descent with these settings."""
        return kernels.proximal(self.lr, self.l1, self.l2)

    def convert(self, name: str, value: Any) -> Any:
        """Return a setting as it is kept; see `Optimizer.convert`."""
        if name != "radius":
            return super().convert(name, value)
        return None if value is None else number(name, value, "None or a number > 0", lambda x: 0 < x < math.inf)

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Whether a step is the rule of the kernels and nothing more: without clipping, row groups and a ball."""
        return super().plain and not self.rows and self.radius is None

    @property
    def skips_zeros(self) -> bool:
        """Whether a step leaves elements as they are whose gradient is 0: without penalties and a ball."""
        return super().skips_zeros and not self.rows and self.radius is None

    def update(self, u: np.ndarray, v: Any, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply the gradient uᵀv to rows ``start`` to ``stop``, and scale these rows; see `Optimizer.update`."""
        super().update(u, v, start, stop, first, threads=threads)
        self._scale(start, stop, threads)

    def update_sparse(self, product: Product, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply a gradient of sparse factors, and scale these rows; see `Optimizer.update_sparse`."""
        super().update_sparse(product, start, stop, first, threads=threads)
        self._scale(start, stop, threads)

    def update_dense(self, g: np.ndarray, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply the gradient g to rows ``start`` to ``stop``, and scale these rows; see `Receiver.update_dense`."""
        super().update_dense(g, start, stop, first, threads=threads)
        self._scale(start, stop, threads)

    def _scale(self, start: int, stop: int, threads: int) -> None:
        if self.rows:
            kernels.shrink_rows(self.array, self.lr * self.rows, start, stop, threads=threads)
        if self.radius is not None:
            kernels.project_rows(self.array, self.radius, start, stop, threads=threads)
