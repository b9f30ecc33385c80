"""Receivers: what takes the sum of the ranks' factors, row by row: an array, or an update rule with its parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter, index
from typing import TYPE_CHECKING, Any

import numpy as np

import sfb.kernels as kernels
from sfb.checks import check_matrix, check_receiver
from sfb.kernels import sparse
from sfb.kernels.sparse import Product

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Assign", "Optimizer", "Receiver", "number"]

_MOST_STEPS = 1 << 53  # beyond it the steps of a rule no longer differ as floats


class Receiver:
    """An array that takes a K×D sum, given as factors or as a matrix, for a range of its rows.

    A subclass names, by `rule`, what the kernels do with the sum. The exchange decides which rows a rank works, and
    when. A rule with state creates it in `prepare`.

    Args:
        array: K×D float32 or float64, C-contiguous and writeable.

    Attributes:
        array: The array; no other takes its place.
        passes: The number of reads and writes of a K×D array that taking a sum costs, for the cost model.
        steps: The number of sums taken, where the rule depends on it; equal on all ranks.
        whole: Whether the receiver must see the factors of all ranks at once, not only rows of their sum.
        plain: Whether taking a sum is the `rule` of the kernels and nothing more.

    Raises:
        TypeError: ``array`` is not a NumPy array of float32 or float64.
        ValueError: ``array`` is not two-dimensional, C-contiguous and writeable.
    """

    passes = 1
    plain = True
    steps = 0
    whole = False

    def __init__(self, array: np.ndarray) -> None:
        check_receiver("the receiver", array)
        self.array = array

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D)."""
        rows, columns = self.array.shape
        return rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the array."""
        return self.array.dtype

    @property
    def settings(self) -> tuple[object, ...]:
        """What must be equal on all ranks, beside `steps`, for the replicas to stay equal."""
        return ()

    @property
    def kind(self) -> tuple[object, ...]:
        """What a plan for the receiver rests on."""
        return type(self).__name__, self.passes, self.whole, self.plain

    @property
    def skips_zeros(self) -> bool:
        """Whether a step leaves elements as they are whose sum is 0, so that sparse factors change few columns."""
        return self.rule().skips_zeros

    @property
    def state(self) -> tuple[np.ndarray | None, ...]:
        """K×D arrays that belong to the receiver; None for each that `prepare` has yet to create."""
        return ()

    def check(self) -> None:
        """Raise TypeError or ValueError if the receiver can no longer take a sum."""
        check_receiver("the receiver", self.array)
        for array in self.state:
            if array is not None:
                check_receiver("the receiver's state", array)
                if (array.shape, array.dtype) != (self.shape, self.dtype):
                    raise ValueError(
                        f"the receiver's state must be {self.shape} {self.dtype} like its array, "
                        f"got {array.shape} {array.dtype}"
                    )

    def prepare(self, allocate: Callable[[tuple[int, int], np.dtype[Any]], np.ndarray]) -> None:
        """Create missing state.

        Args:
            allocate: Returns an array of zeros of a shape and dtype, in memory like that of the receiver's array.
        """

    def end(self) -> None:
        """Note the end of a sum, which one or more calls of `update` or `update_dense` have taken."""

    def rule(self) -> kernels.Rule:
        """Return what the kernels do with the array and the state."""
        raise NotImplementedError

    def update(self, u: np.ndarray, v: Any, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Take uᵀv in rows ``start`` to ``stop``; row 0 of uᵀv belongs to row ``first`` of the array. v may be CSR."""
        if not isinstance(v, np.ndarray):
            Receiver.update_sparse(self, sparse.order(sparse.parts_of(u, v)), start, stop, first, threads=threads)
            return
        kernels.update(self.rule(), u, v, self.array, self.state, start, stop, first, threads=threads)

    def update_sparse(self, product: Product, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Take a product of sparse factors, as `update` does."""
        sparse.update(self.rule(), product, self.array, self.state, start, stop, first, threads=threads)

    def update_dense(self, g: np.ndarray, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Take g in rows ``start`` to ``stop``; row 0 of g belongs to row ``first`` of the array."""
        kernels.update_dense(self.rule(), g, self.array, self.state, start, stop, first, threads=threads)


class Assign(Receiver):
    """An array that is set to the sum."""

    def rule(self) -> kernels.Rule:
        """Return the kernels' rule that sets the array."""
        return _ASSIGN


_ASSIGN = kernels.assign()
# Norms, by the bytes of an element, from which a gradient is scaled before it is formed.
_HUGE = {4: 2.0**100, 8: 2.0**960}


class Optimizer(Receiver):
    """An update rule and the parameter that it updates.

    The state of a rule lies where the parameter lies: the ranks of a node share one for an array of `Comm.shared`.
    Settings are attributes; change them between steps, on all ranks alike. Each is checked when it is set, and numbers
    of any kind, in arrays without dimensions, too, become floats.

    Args:
        param: K×D float32 or float64, C-contiguous and writeable; updated in place. None for a rule alone, which
            `sfb.Store` and `bind` take.
        max_norm: Scale the gradient, the sum over all ranks, down to this Frobenius norm (Pascanu, Mikolov and Bengio,
            "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1), as
            ``torch.nn.utils.clip_grad_norm_`` does for one parameter. The norm comes from the factors of all ranks, so
            "auto" takes `broadcast` or `node`. A gradient that holds NaN or Inf makes all of the parameter NaN. None
            for no clipping.
        **settings: The settings of a subclass.

    Attributes:
        hyperparameters: Names of the settings, in the order of `repr`.
        nonnegative: Names of the settings that must be finite numbers ≥ 0.
        states: Names of the attributes that hold its state, K×D arrays like ``param``; None until the first step.

    Raises:
        TypeError: ``param`` is not a NumPy array of float32 or float64, or a setting is unknown.
        ValueError: ``param`` cannot be updated in place, or a setting is not what it must be.

    >>> import numpy as np
    >>> import sfb
    >>> rule = sfb.optim.SGD(lr=0.5)  # a rule alone
    >>> isinstance(rule, sfb.optim.Optimizer), rule.lr
    (True, 0.5)
    """

    hyperparameters: tuple[str, ...] = ()
    nonnegative: tuple[str, ...] = ()
    states: tuple[str, ...] = ()

    max_norm: float | None

    def __init__(self, param: np.ndarray | None, *, max_norm: float | None = None, **settings: Any) -> None:
        if param is None:
            self.array = None  # type: ignore[assignment]
        else:
            super().__init__(param)
        self.max_norm = max_norm
        for name, value in settings.items():
            if name not in self.hyperparameters:
                raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}")
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
        """Return the same rule for ``param``, with state of its own; raise as the constructor does.

        >>> import numpy as np
        >>> import sfb
        >>> rule = sfb.optim.SGD(lr=0.1)
        >>> rule.bind(np.zeros((3, 4)))
        SGD(3×4 float64, lr=0.1, momentum=0.0, weight_decay=0.0, nesterov=False, max_norm=None)
        """
        return type(self)(param, **{name: getattr(self, name) for name in self.hyperparameters})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.hyperparameters or name == "steps":
            value = self.convert(name, value)
        super().__setattr__(name, value)

    def convert(self, name: str, value: Any) -> Any:
        """Return a setting, or the number of steps, as it is kept; raise ValueError if it is not what it must be."""
        if name == "steps":
            return _count(name, value)
        if name == "max_norm":
            return None if value is None else number(name, value, "None or a number > 0", lambda x: x > 0)
        if name in self.nonnegative:
            return number(name, value, "a finite number ≥ 0", lambda x: 0 <= x < math.inf)
        return value

    def check_settings(self) -> None:
        """Raise ValueError if settings do not go together."""

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Whether the rule needs the norm of the gradient, hence the factors of all ranks at once."""
        return self.max_norm is not None

    @property
    def plain(self) -> bool:  # type: ignore[override]
        """Whether a step is the rule of the kernels and nothing more."""
        return self.max_norm is None

    @property
    def passes(self) -> int:  # type: ignore[override]
        """The number of reads and writes of the parameter and of its state in a step."""
        return 2 + 2 * len(self.state)

    @property
    def settings(self) -> tuple[object, ...]:
        """The values of the hyper-parameters."""
        return self._read(self)

    @property
    def state(self) -> tuple[np.ndarray | None, ...]:
        """The arrays that the rule keeps; None each until the first step."""
        return tuple(getattr(self, name) for name in self.states)

    def check(self) -> None:
        """Raise TypeError or ValueError if the parameter, its state or the settings do not fit."""
        if self.array is None:
            raise TypeError(f"this {type(self).__name__} has no parameter to update: give it one, as in SGD(w, lr=0.1)")
        super().check()
        self.check_settings()

    def prepare(self, allocate: Callable[[tuple[int, int], np.dtype[Any]], np.ndarray]) -> None:
        """Create missing state; the first step calls this."""
        for name, array in zip(self.states, self.state, strict=False):
            if array is None:
                setattr(self, name, allocate(self.shape, self.dtype))

    def update(self, u: np.ndarray, v: Any, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply the gradient uᵀv to rows ``start`` to ``stop``, clipped, without forming it; see `Receiver.update`."""
        if not isinstance(v, np.ndarray):
            Optimizer.update_sparse(self, sparse.order(sparse.parts_of(u, v)), start, stop, first, threads=threads)
            return
        alpha = 1.0
        if self.max_norm is not None:
            u, alpha = self._clip(u, kernels.norm(u, v, threads=threads))
        rule = self.rule()
        kernels.update(rule, u, v, self.array, self.state, start, stop, first, alpha=alpha, threads=threads)

    def update_sparse(self, product: Product, start: int, stop: int, first: int = 0, *, threads: int = 1) -> None:
        """Apply a gradient of sparse factors, clipped; see `Receiver.update_sparse`."""
        alpha = 1.0
        if self.max_norm is not None:
            exponent, alpha = self._clipping(sparse.norm(product))
            if exponent:
                product = sparse.scaled(product, exponent)
        rule = self.rule()
        sparse.update(rule, product, self.array, self.state, start, stop, first, alpha=alpha, threads=threads)

    def _clip(self, a: np.ndarray, norm: float) -> tuple[np.ndarray, float]:
        """Return what takes the place of a, of which a gradient is a multiple, and the factor that clips it."""
        exponent, factor = self._clipping(norm)
        return np.ldexp(a, exponent) if exponent else a, factor

    def _clipping(self, norm: float) -> tuple[int, float]:
        """Return an exponent e and a factor; 2ᵉ times the factor clips a gradient of this norm.

        The factor is NaN for a norm that is not finite, so that it shows in every element of the parameter.
        """
        assert self.max_norm is not None
        if not math.isfinite(norm):
            return 0, math.nan
        scale = self.max_norm / (norm + 1e-6)
        if scale >= 1:
            return 0, 1.0
        if norm > _HUGE[self.dtype.itemsize]:  # the product may overflow, and the factor underflow
            exponent = math.frexp(norm)[1]
            return -exponent, self.max_norm / math.ldexp(norm, -exponent)
        return 0, scale

    def step(self, gradient: np.ndarray) -> None:
        """Apply a dense gradient to an array of this rank's own, without communication.

        Args:
            gradient: K×D, of the parameter's dtype, C-contiguous.

        Raises:
            TypeError, ValueError: The gradient is no such array, or there is no parameter.

        >>> import numpy as np
        >>> import sfb
        >>> w = np.zeros((2, 3))
        >>> sfb.optim.SGD(w, lr=0.5).step(np.ones((2, 3)))
        >>> w[0]
        array([-0.5, -0.5, -0.5])
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
            gradient, scale = self._clip(gradient, kernels.norm_dense(gradient))
            gradient = gradient * self.dtype.type(scale)
        self.update_dense(gradient, 0, self.shape[0])
        self.end()


def number(name: str, value: Any, what: str, fits: Callable[[float], bool]) -> float:
    """Return a setting as a float.

    Args:
        name: The name of the setting, for messages.
        value: The value: a number of Python or NumPy, an array without dimensions, or what else converts itself.
        what: What the value must be, for messages.
        fits: Returns whether a number is in range.

    Raises:
        ValueError: The value is no number, or out of range.
    """
    wrong = not (hasattr(value, "__float__") and _is_number(value, "iuf"))
    try:
        converted = math.nan if wrong else float(value)
    except (TypeError, ValueError, OverflowError):
        converted = math.nan
    if not fits(converted):
        raise ValueError(f"{name} must be {what}, got {value!r}")
    return converted


def _count(name: str, value: Any) -> int:
    """Return a number of steps as an integer."""
    try:
        count = index(value) if _is_number(value, "iu") else -1
    except TypeError:
        count = -1
    if not 0 <= count < _MOST_STEPS:
        raise ValueError(f"{name} must be an integer ≥ 0, got {value!r}")
    return count


def _is_number(value: Any, kinds: str) -> bool:
    """Return False for a truth value, and for an array unless it has no dimensions and a dtype of these kinds."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.ndim == 0 and value.dtype.kind in kinds
    return not isinstance(value, bool)
