"""What keeps the gradients of a model equal on all ranks, from backward() to step()."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from types import TracebackType
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

import sfb
from sfb.torch.buckets import Bucket, fill_buckets
from sfb.torch.early import EarlyExchanges, Exchanged
from sfb.torch.join import Join
from sfb.torch.report import table
from sfb.torch.state import broadcast
from sfb.torch.weights import FusedWeight, MeanWeight, TableWeight

__all__ = ["Handle", "Model"]

# Steps with one backward pass each, after which exchanges of fused weights begin during the backward pass.
_REGULAR = 2
# Norms from this on have squares that do not underflow in float32.
_SHORT = 2.0**-50

Weight = FusedWeight | MeanWeight | TableWeight


class Model:
    """A model and its optimizer, sorted by how gradients travel.

    Attributes:
        module: The model.
        optimizer: The optimizer.
        weights: The weights whose gradients are collected.
        others: The other trainable parameters.
        frozen: The parameters that are not trainable, by name.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimizer = optimizer
        self.weights: list[Weight] = []
        self.others: list[nn.Parameter] = []
        self.frozen: dict[str, nn.Parameter] = {}
        self._groups = len(optimizer.param_groups)

    def check(self) -> None:
        """Raise RuntimeError if there is something to train that was not there when `attach` was called."""
        for name, param in self.frozen.items():
            if param.requires_grad:
                raise RuntimeError(f"{name} was frozen when attach was called: detach, and attach again")
        if len(self.optimizer.param_groups) != self._groups:
            raise RuntimeError("the optimizer has another parameter group since attach: detach, and attach again")


class Handle:
    """A model and its optimizer, whose gradients are means over the ranks; from `attach`.

    Attributes:
        model: The model.
        optimizer: The optimizer.
        comm: The communicator of the ranks.
        fused: Whether weights of linear layers are updated without forming their gradients.

    Args:
        model: The model with its optimizer, and how each parameter travels.
        comm: The communicator of the ranks.
        fused: As for `attach`, decided.
        by_samples: Whether ranks are weighted by their samples.
        broadcast_buffers: As for `attach`.
        overlap: As for `attach`.
        threads: Threads of this rank.

    >>> import torch, sfb.torch
    >>> model = torch.nn.Linear(3, 2)
    >>> handle = sfb.torch.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> handle.model is model
    True
    >>> handle.detach()
    """

    def __init__(
        self,
        model: Model,
        comm: sfb.Comm,
        *,
        fused: bool,
        by_samples: bool,
        broadcast_buffers: bool,
        overlap: bool | None,
        threads: int,
    ) -> None:
        self.model = model.module
        self.optimizer = model.optimizer
        self.comm = comm
        self.fused = fused
        self._parts = model
        self._by_samples = by_samples
        self._broadcast_buffers = broadcast_buffers
        self._threads = threads
        self._undo: list[Callable[[], Any]] = []

        # From one zero_grad() to the next.
        self._armed = False  # autograd will call synchronise at the end of the backward pass
        self._quiet = False  # inside no_sync()
        self._behind = False  # a backward pass inside no_sync() waits for one outside
        self._passes = 0  # backward passes exchanged since the last step
        self._touched: dict[Any, bool] = {}
        self._outside: dict[Any, bool] = {}
        self._samples = 0.0

        # Between nodes buckets and factors begin to travel during the backward pass. Fused weights do if asked to, or
        # once the program has shown that it calls backward() once a step.
        self._far = far = comm.node.size < comm.size
        self._overlap = (far if overlap is None else overlap) and not by_samples
        self._early_fused = self._overlap and overlap is True
        self._undecided = self._overlap and overlap is None
        self._regular = 0
        self._buckets: list[Bucket] | None = None
        self._bucket_of: dict[nn.Parameter, Bucket] = {}
        self._arrivals: dict[nn.Parameter, int] = {}  # how often the first backward pass has left each gradient
        self._repeated: set[nn.Parameter] = set()
        self._order: list[nn.Parameter] = []
        self._early: EarlyExchanges | None = None
        self._join = Join(self)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Let backward passes add to the gradients of this rank only; the next one outside sends all together.

        >>> import torch, sfb.torch
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with sfb.torch.attach(model, optimizer) as handle:
        ...     with handle.no_sync():
        ...         model(torch.ones(4, 3)).sum().backward()
        ...     model(torch.ones(4, 3)).sum().backward()
        ...     optimizer.step()
        """
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients of all parameters down to a total norm, as `torch.nn.utils.clip_grad_norm_` does.

        Call it between backward() and step(); collective. Norms of fused weights come from the Gram matrices of their
        factors, or from their gradients where these are smaller than the factors of all ranks.

        Args:
            max_norm: The largest Euclidean norm, of all gradients together, ≥ 0.

        Returns:
            The norm before, a tensor without dimensions.

        Raises:
            ValueError: ``max_norm`` is below 0.
            RuntimeError: Gradients have been applied during backward(), as ``overlap=True`` demands; or backward() was
                only called within `no_sync`.
        """
        if not max_norm >= 0:
            raise ValueError(f"max_norm must be ≥ 0, got {max_norm!r}")
        self._check_synchronised("clip_grad_norm_()")
        if any(weight.started for weight in self._fused):
            raise RuntimeError("backward() has applied gradients already; clip_grad_norm_ needs attach(overlap=False)")
        self._undecided = False
        self._join.announce("clip", max_norm)
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        grads = [param.grad.detach() for param in params if param.grad is not None]
        norms = [_total_norm(grads)] if grads else []
        fused = [weight for weight in self._fused if self._touched.get(weight)]
        if fused:
            samples = np.empty((self.comm.size, len(fused)), np.int64)
            self.comm.Allgather(np.array([len(weight.factors()) for weight in fused], np.int64), samples)
            for weight, column in zip(fused, samples.T, strict=True):
                norms.append(weight.gather(self.comm, np.ascontiguousarray(column), self._outside[weight]))
        total = math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)
        dtypes = [tensor.dtype for tensor in (*grads, *(weight.param for weight in fused))]
        factor = max_norm / (total + 1e-6)
        if not factor >= 1:  # NaN, too, as in torch
            for weight in fused:
                weight.scale(factor)
            for grad in grads:
                grad.mul_(factor)
        return torch.tensor(total, dtype=reduce(torch.promote_types, dtypes) if dtypes else None)

    @contextmanager
    def join(self) -> Iterator[None]:
        """Let ranks have different numbers of batches: one that leaves the block early takes part without samples.

        The block ends when the last rank has left its body. Ranks without batches apply the same updates, with the
        options of the optimizer of a rank with batches. Means are over all ranks, as in DistributedDataParallel, or
        with ``weight="samples"`` over the samples that there are. Ranks with batches call zero_grad() once a step.
        Inside, no exchange begins before backward() has ended.
        """
        overlap, self._overlap, self._early = self._overlap, False, None
        try:
            with self._join:
                yield
        finally:
            self._overlap = overlap
            self._order_early()

    def explain(self) -> str:
        """Return a table of the parameters: how the last exchange of each went on this rank.

        It gives the algorithm, the bytes received from other ranks, and milliseconds of exchange and of forming and
        applying the mean.
        """
        return table(self._parts.weights, self._parts.others, self.comm.size)

    def detach(self) -> None:
        """Leave the model and its optimizer as they were, with their present weights and state; collective.

        A second call does nothing.
        """
        undo, self._undo = self._undo, []
        for weight in self._fused:
            if weight.started:
                self._step(weight)
        for call in undo:
            call()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With an error on the way the other ranks may never reach a collective.
        if kind is None:
            self.detach()

    def at_detach(self, call: Callable[[], Any]) -> None:
        """Let `detach` call a function."""
        self._undo.append(call)

    def arrived(self, weight: Weight) -> None:
        """Take note that a backward pass has left the gradient of a weight."""
        if isinstance(weight, (FusedWeight, MeanWeight)) and weight.started:
            raise _second_pass(weight.name)
        weight.ready = not self._quiet
        self._continue(weight.param)

    def other_arrived(self, param: nn.Parameter) -> None:
        """Take note that a backward pass has left the gradient of another parameter."""
        if param.grad is not None and param.grad.layout != torch.strided:
            raise TypeError("attach exchanges dense gradients only, got a sparse one: make the layer with sparse=False")
        bucket = self._bucket_of.get(param)
        if bucket is not None and not self._quiet:
            if bucket.started:
                raise _second_pass("another parameter")
            bucket.missing.discard(param)
        self._continue(param)

    def count_samples(self, samples: int) -> None:
        """Count samples that the model has been given."""
        self._samples += samples

    def zero_grad(self, params: Iterable[nn.Parameter] | None) -> None:
        """Forget gradients that are collected; zero_grad of modules and of the optimizer call this.

        Args:
            params: The parameters whose gradients are zeroed; None for all.
        """
        weights, everything = self._parts.weights, params is None
        if params is not None:
            zeroed = set(params)
            weights = [weight for weight in weights if weight.param in zeroed]
            everything = zeroed.issuperset(self.model.parameters())
        if any(weight.started for weight in weights):
            raise RuntimeError(
                "zero_grad() after backward() without step(), but backward() has applied the gradients already: attach "
                "with overlap=False"
            )
        for weight in weights:
            weight.discard()
            self._touched[weight] = False
        if self._passes:
            self._undecided = False
        if everything:
            self._passes = 0
            self._behind = self._armed = False
            self._samples = 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Apply the means to fused weights; the optimizer calls this before it steps."""
        self._check_synchronised("step()")
        optimizer = self.optimizer
        if getattr(optimizer, "found_inf", None) is not None or getattr(optimizer, "grad_scale", None) is not None:
            raise TypeError("GradScaler scales gradients that fused updates never form: attach with fused=False")
        self._join.announce("step", [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups])
        for weight in self._fused:
            if self._touched.get(weight) or weight.started:
                self._step(weight)
        if any(isinstance(weight.last, str) for weight in self._fused):
            self.comm.node.Barrier()  # ranks of the node have updated rows, each its own
        self._regular = self._regular + 1 if self._passes == 1 else 0
        self._passes = 0

    @property
    def _fused(self) -> list[FusedWeight]:
        return [weight for weight in self._parts.weights if isinstance(weight, FusedWeight)]

    def _step(self, weight: FusedWeight) -> None:
        node = self.comm.node
        weight.step(self.comm, (node.rank, node.size), self._threads, self._outside.get(weight, False))

    def _check_synchronised(self, call: str) -> None:
        if self._behind:
            raise RuntimeError(f"{call} after backward() within no_sync(): call the last backward() outside")

    def _continue(self, param: nn.Parameter) -> None:
        """Go on in a backward pass that has left the gradient of a parameter."""
        if self._quiet:
            self._behind = True
            return
        if not self._armed:
            self._armed = True
            torch.autograd.Variable._execution_engine.queue_callback(self.synchronise)
        if self._buckets is None:
            self._arrivals[param] = self._arrivals.get(param, 0) + 1
        elif self._early is not None:
            self._early.advance(1 / self.comm.size)

    @torch.no_grad()
    def synchronise(self) -> None:
        """Exchange what the backward pass has left; autograd calls this at the end of the pass."""
        self._armed = self._behind = False
        self._parts.check()
        root = self._join.announce("backward")
        scale, turn_early = self._agree()
        if self._buckets is None:
            self._fill_buckets()
        assert self._buckets is not None
        if self._early is not None:
            self._early.finish(scale, lambda each: isinstance(each, Bucket) or self._touched[each])
            if not self._far:  # beside exchanges under way, MPI would sum the buckets, in an order of its own
                for each in self._fused:
                    each.wait()
        for bucket in self._buckets:
            bucket.finish(self.comm, scale, [self._touched[param] for param in bucket.params])
        for weight in self._parts.weights:
            if isinstance(weight, FusedWeight):
                weight.settle(scale)
            elif self._touched[weight]:
                weight.finish(self.comm, scale, self._outside[weight])
            weight.ready = False
        if self._broadcast_buffers:
            broadcast(self.comm, list(self.model.buffers()), root)
        self._passes += 1
        if self._passes > 1:
            self._undecided = False
        if turn_early:
            self._early_fused, self._undecided = True, False
            self._order_early()

    def _agree(self) -> tuple[float, bool]:
        """Find out which parameters have gradients on any rank.

        Returns:
            The factor of this rank's gradients in the mean, and whether fused weights travel early from now on.
        """
        weights, others = self._parts.weights, self._parts.others
        own = self._samples if self._by_samples else 1.0
        said = np.array(
            [
                *(weight.touched for weight in weights),
                *(param.grad is not None for param in others),
                *(weight.outside for weight in weights),
                self._undecided and self._regular >= _REGULAR,
                own,
            ],
            np.float64,
        )
        total = said
        if self.comm.size > 1:
            total = np.empty_like(said)
            self.comm.Allreduce(said, total)
        flags = iter((total[:-2] > 0).tolist())
        self._touched = dict(zip([*weights, *others], flags, strict=False))
        self._outside = dict(zip(weights, flags, strict=True))
        self._samples = 0.0
        return (own / total[-1] if total[-1] else 0.0), bool(total[-2] == self.comm.size)

    def _fill_buckets(self) -> None:
        """Fill the buckets in the order in which rank 0 has the gradients."""
        weights, others = self._parts.weights, self._parts.others
        params = [weight.param for weight in weights] + others
        numbers = {param: i for i, param in enumerate(params)}
        arrived = [numbers[param] for param in self._arrivals]
        arrived += sorted(set(numbers.values()).difference(arrived), reverse=True)
        self._order = [params[i] for i in self.comm.bcast(arrived)]
        # Activation checkpoints that are re-entrant leave a gradient in parts; only the last would end its exchange.
        counts = np.array([self._arrivals.get(param, 0) for param in params], np.int64)
        self.comm.Allreduce(MPI.IN_PLACE, counts, MPI.MAX)
        self._repeated = {param for param, count in zip(params, counts.tolist(), strict=True) if count > 1}
        mine = set(others) if self.comm.size > 1 else set()
        once, repeated = mine - self._repeated, mine & self._repeated
        self._buckets = [
            bucket for kind in (once, repeated) for bucket in fill_buckets([p for p in self._order if p in kind])
        ]
        self._bucket_of = {param: bucket for bucket in self._buckets for param in bucket.params}
        self._order_early()

    def _order_early(self) -> None:
        """Arrange the exchanges that begin during the backward pass."""
        if not self._overlap or self._buckets is None:
            return
        members: dict[Exchanged, list[nn.Parameter]] = {}
        if self._far:
            members |= {bucket: bucket.params for bucket in self._buckets if self._repeated.isdisjoint(bucket.params)}
        for weight in self._parts.weights:
            if weight.param in self._repeated:
                continue
            if (isinstance(weight, MeanWeight) and weight.overlaps) or (
                isinstance(weight, FusedWeight) and self._early_fused and not self._outside.get(weight)
            ):
                members[weight] = [weight.param]
        self._early = EarlyExchanges(self.comm, members, self._order)


def _second_pass(name: str) -> RuntimeError:
    return RuntimeError(
        f"backward() reached {name} again, whose gradient is already being exchanged: attach with overlap=False, or "
        "call all backward() of a step but the last within no_sync()"
    )


def _total_norm(grads: list[torch.Tensor]) -> float:
    """Return the Euclidean norm of all elements, where squares overflow or underflow, too."""
    norm = float(torch.nn.utils.get_total_norm(grads))
    if _SHORT <= norm < math.inf:
        return norm
    peaks = [float(grad.abs().max()) for grad in grads if grad.numel()]
    peak = max(peaks, default=0.0)
    if any(map(math.isnan, peaks)):
        return math.nan
    if not 0 < peak < math.inf:
        return peak
    return peak * math.hypot(*(float(torch.linalg.vector_norm(grad / peak)) for grad in grads))
