"""Weights whose gradients travel as factors or as rows, and what becomes of the sum over the ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

import sfb
from sfb import kernels
from sfb.torch.collect import Collected
from sfb.torch.rules import FusedState

__all__ = ["FusedWeight", "MeanWeight", "TableWeight"]


def concatenated(parts: list[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int], dtype: Any) -> sfb.Factors:
    """Return the factors of the sum of several parts, of none too."""
    if len(parts) == 1:
        return sfb.Factors(*parts[0])
    empty = np.empty((0, shape[0]), dtype), np.empty((0, shape[1]), dtype)
    u, v = (np.concatenate(arrays) for arrays in zip(*parts, strict=True)) if parts else empty
    return sfb.Factors(u, v)


class FusedWeight(Collected):
    """The K×D weight of linear layers, to which an update rule applies the mean over ranks without forming it.

    Args:
        name: Name of the parameter in the model.
        param: The weight.
        arrived: See `Collected`.
        state: The rule, and what torch's optimizer holds.

    Attributes:
        dense: The sum of gradients that come from outside linear layers, scaled; None without any.
        started: Whether the exchange of the gradient has begun, and no step has ended it.
        last: How the last exchange went: a `sfb.Exchange`, or the name of what took its place.
    """

    def __init__(self, name: str, param: nn.Parameter, arrived: Callable[[Any], None], state: FusedState) -> None:
        super().__init__(name, param, arrived)
        self.state = state
        self.dense: np.ndarray | None = None
        self.last: sfb.Exchange | str | None = None
        self._outside: torch.Tensor | None = None
        self._factors: list[tuple[np.ndarray, np.ndarray]] = []
        self._sum: sfb.Factors | np.ndarray | None = None
        self._request: Any = None
        self._waited = False
        self._settings: tuple[object, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(K, D)."""
        rows, columns = self.param.shape
        return rows, columns

    @property
    def touched(self) -> bool:
        """Whether backward passes have left a gradient."""
        return bool(self.parts or self._factors) or self.outside

    @property
    def outside(self) -> bool:
        """Whether the weight has a gradient from outside linear layers, a penalty in the loss, say."""
        return self._outside is not None or self.dense is not None

    @property
    def started(self) -> bool:
        """Whether the exchange of the gradient has begun, and no step has ended it."""
        return self._request is not None

    def _reached(self, param: torch.Tensor) -> None:
        if self._sum is not None:
            raise RuntimeError("backward() after clip_grad_norm_: call optimizer.step() or zero_grad() first")
        if param.grad is not None:
            gradient, param.grad = param.grad.detach(), None
            self._outside = gradient if self._outside is None else self._outside + gradient
        super()._reached(param)

    def settle(self, scale: float) -> None:
        """Scale what new backward passes have left."""
        scale = -scale if self.state.group.get("maximize") else scale
        for u, v in self.take():
            error = u.numpy()
            self._factors.append((error if scale == 1 else error * error.dtype.type(scale), v.numpy()))
        if self._outside is not None:
            gradient = self._outside.numpy() * scale
            self.dense = gradient if self.dense is None else self.dense + gradient
            self._outside = None

    def factors(self) -> sfb.Factors:
        """Return this rank's factors of the mean over ranks."""
        return concatenated(self._factors, self.shape, self.state.rule.dtype)

    def start(self, comm: sfb.Comm, scale: float) -> None:
        """Begin to exchange the gradient and to apply the mean, before the step."""
        self.settle(scale)
        if self.dense is not None:
            # Other ranks may have factors alone: the dense part becomes factors, too.
            self._factors.append((np.eye(len(self.dense), dtype=self.dense.dtype), self.dense))
            self.dense = None
        self.state.begin()
        self._settings = self.state.rule.settings
        self._request = comm.Iallreduce(self.factors(), self.state.rule)

    def wait(self) -> None:
        """Wait for the end of the exchange that `start` began, if any."""
        if self._request is not None and not self._waited:
            self._request.Wait()
            self.last = self._request.exchange
            self._waited = True

    def gather(self, comm: sfb.Comm, samples: np.ndarray, outside: bool) -> float:
        """Keep the mean over ranks for the step, as factors where they are smaller, and return its Frobenius norm.

        Args:
            comm: The ranks.
            samples: The number of samples of each rank.
            outside: Whether a rank has a gradient from outside linear layers.
        """
        rows, columns = self.shape
        if self._sum is not None:
            return self._norm()
        total, factors = int(samples.sum()), self.factors()
        if outside or total * (rows + columns) > rows * columns:
            self._add_up(comm)
            return self._norm()
        u, v = np.empty((total, rows), factors.dtype), np.empty((total, columns), factors.dtype)
        comm.Allgatherv(factors.u, [u, samples * rows])
        comm.Allgatherv(factors.v, [v, samples * columns])
        self._sum = sfb.Factors(u, v)
        return self._norm()

    def _norm(self) -> float:
        if isinstance(self._sum, sfb.Factors):
            return kernels.norm(self._sum.u, self._sum.v) if len(self._sum) else 0.0
        assert self._sum is not None
        return kernels.norm_dense(self._sum)

    def _add_up(self, comm: sfb.Comm) -> None:
        total = self.factors().dense()
        if self.dense is not None:
            total += self.dense
        comm.Allreduce(MPI.IN_PLACE, total)
        self._sum = total

    def scale(self, factor: float) -> None:
        """Scale the mean that `gather` keeps."""
        if isinstance(self._sum, sfb.Factors):
            self._sum = self._sum * factor
        elif self._sum is not None:
            self._sum = self._sum * self._sum.dtype.type(factor)

    def step(self, comm: sfb.Comm, rows: tuple[int, int], threads: int, outside: bool) -> None:
        """Apply the mean over ranks to the weight.

        Args:
            comm: The ranks.
            rows: This rank's part of the ranks of its node, as a fraction.
            threads: Threads of this rank.
            outside: Whether a rank has a gradient from outside linear layers.

        Raises:
            RuntimeError: The weight has moved, or settings have changed since backward() applied the gradient.
        """
        state = self.state
        if self.param.data_ptr() != state.rule.array.ctypes.data:
            raise RuntimeError(
                f"{self.name} is no longer where attach put it: detach before the model moves or changes its type"
            )
        if self._request is not None:
            self.wait()
            self._request, self._waited = None, False
            state.begin()
            if state.rule.settings != self._settings:
                raise RuntimeError(
                    f"options of the optimizer for {self.name} changed between backward(), which has applied its "
                    "gradient, and step(): change them after step(), or attach with overlap=False"
                )
        elif self._sum is None and not outside:
            state.begin()
            comm.Allreduce(self.factors(), state.rule)
            self.last = comm.last_exchange
        else:
            self._apply(comm, rows, threads)
        state.end()
        torch.autograd.graph.increment_version(self.param)

    def _apply(self, comm: sfb.Comm, rows: tuple[int, int], threads: int) -> None:
        if self._sum is None:
            self._add_up(comm)
        state = self.state
        state.begin()
        rule = state.rule
        if any(array is None for array in rule.state):
            rule.prepare(comm.shared)
        me, ranks = rows
        start, stop = (self.shape[0] * i // ranks for i in (me, me + 1))
        if isinstance(self._sum, sfb.Factors):
            rule.update(self._sum.u, self._sum.v, start, stop, threads=threads)
            self.last = "gathered"
        else:
            assert self._sum is not None
            rule.update_dense(self._sum, start, stop, threads=threads)
            self.last = "dense"
        rule.end()

    def discard(self) -> None:
        """Forget the gradient, as `zero_grad` does."""
        super().discard()
        self._factors, self._sum, self._outside, self.dense = [], None, None, None


class _Mean(Collected):
    """A weight whose `grad` becomes the mean over ranks."""

    def __init__(self, name: str, param: nn.Parameter, arrived: Callable[[Any], None]) -> None:
        super().__init__(name, param, arrived)
        self.last: sfb.Exchange | str | None = None
        self._own: tuple[torch.Tensor | None, int] = (None, 0)

    @property
    def started(self) -> bool:
        """Whether the exchange of the gradient has begun and not ended."""
        return False

    @property
    def touched(self) -> bool:
        """Whether backward passes have left a gradient."""
        return bool(self.parts) or self.started or self.outside

    @property
    def outside(self) -> bool:
        """Whether the program or another layer has changed `grad` since this object set it."""
        own, version = self._own
        grad = self.param.grad
        return grad is not None and (grad is not own or grad._version != version)

    def _mean_of_outside(self, comm: sfb.Comm, scale: float) -> None:
        grad = self.param.grad
        mean = torch.zeros_like(self.param) if grad is None else grad.detach() * scale
        mean = mean.contiguous()
        comm.Allreduce(MPI.IN_PLACE, mean.numpy())
        self.param.grad = mean

    def _set(self, gradient: torch.Tensor) -> None:
        param = self.param
        if param.grad is None:
            param.grad = gradient
        else:
            param.grad.add_(gradient)
        self._own = param.grad, param.grad._version


class MeanWeight(_Mean):
    """The K×D weight of linear layers, whose `grad` becomes the mean over ranks, from factors.

    Args:
        name: Name of the parameter in the model.
        param: The weight.
        arrived: See `Collected`.
        staging: Memory that the ranks of the node share, of K·D elements or more, where the ranks form the mean
            together; None where each rank forms it for itself.

    Attributes:
        last: How the last exchange went.
    """

    def __init__(
        self, name: str, param: nn.Parameter, arrived: Callable[[Any], None], staging: np.ndarray | None
    ) -> None:
        super().__init__(name, param, arrived)
        self._staging = None if staging is None else staging[: param.numel()].reshape(param.shape)
        self._started: tuple[Any, torch.Tensor] | None = None

    @property
    def started(self) -> bool:
        """Whether the exchange of the gradient has begun and not ended."""
        return self._started is not None

    @property
    def overlaps(self) -> bool:
        """Whether `start` may be called."""
        return self._staging is None

    def _factors(self, scale: float) -> sfb.Factors:
        parts = [(u.numpy() * u.numpy().dtype.type(scale), v.numpy()) for u, v in self.take()]
        rows, columns = self.param.shape
        return concatenated(parts, (rows, columns), self.param.detach().numpy().dtype)

    def start(self, comm: sfb.Comm, scale: float) -> None:
        """Begin to exchange the factors."""
        gradient = torch.empty_like(self.param, memory_format=torch.contiguous_format, requires_grad=False)
        self._started = comm.Iallreduce(self._factors(scale), gradient.numpy()), gradient

    def finish(self, comm: sfb.Comm, scale: float, outside: bool) -> None:
        """Exchange the factors, or wait for the exchange that `start` began, and set `grad`."""
        if outside:
            self._mean_of_outside(comm, scale)
        if self._started is not None:
            (request, gradient), self._started = self._started, None
            request.Wait()
            self.last = request.exchange
        else:
            gradient = torch.empty_like(self.param, memory_format=torch.contiguous_format, requires_grad=False)
            target = gradient.numpy() if self._staging is None else self._staging
            comm.Allreduce(self._factors(scale), target)
            self.last = comm.last_exchange
            if self._staging is not None:
                np.copyto(gradient.numpy(), target)
        self._set(gradient)


class TableWeight(_Mean):
    """The table of embeddings, V×D, of which the rows that ranks have touched travel, or all of it if that is less."""

    def finish(self, comm: sfb.Comm, scale: float, outside: bool) -> None:
        """Exchange the rows, and set `grad` to the mean over ranks."""
        if outside:
            self._mean_of_outside(comm, scale)
        size, width = self.param.shape
        parts = self.take()
        indices = torch.cat([rows for rows, _ in parts]) if parts else torch.empty(0, dtype=torch.int64)
        rows, inverse = torch.unique(indices, return_inverse=True)
        sums = torch.zeros(len(rows), width, dtype=self.param.dtype)
        if parts:
            sums.index_add_(0, inverse, torch.cat([gradient for _, gradient in parts]))
        sums *= scale
        counts = np.empty(comm.size, np.int64)
        comm.Allgather(np.array([len(rows)]), counts)
        # A ring moves 2(P-1)/P of the table to each rank; of the rows a rank receives those of all others.
        total = int(counts.sum())
        item = sums.element_size()
        gradient = torch.zeros_like(self.param, memory_format=torch.contiguous_format, requires_grad=False)
        if total * (width * item + 8) > 2 * size * width * item:
            gradient.index_add_(0, rows, sums)
            comm.Allreduce(MPI.IN_PLACE, gradient.numpy())
            self.last = "dense"
        else:
            all_rows = torch.empty(total, dtype=torch.int64)
            all_sums = torch.empty(total, width, dtype=sums.dtype)
            comm.Allgatherv(rows.numpy(), [all_rows.numpy(), counts])
            comm.Allgatherv(sums.numpy(), [all_sums.numpy(), counts * width])
            gradient.index_add_(0, all_rows, all_sums)
            self.last = "rows"
        self._set(gradient)
