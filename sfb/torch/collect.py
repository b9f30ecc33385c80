"""Gradients of weights as the backward pass leaves them: factors of linear layers, rows of embeddings."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Collected", "patch", "patched", "unpatch"]

# What a layer leaves: a tensor, another, and the version of that other one, which autograd counts up when it changes.
Part = tuple[torch.Tensor, torch.Tensor, int]

# The weights whose gradients are collected, by the modules that use them.
_weights: WeakKeyDictionary[nn.Module, Collected] = WeakKeyDictionary()


class Collected:
    """A weight whose gradient is kept as pairs of tensors, not formed.

    The backward pass of a linear layer leaves the error at its output and its input, that of an embedding the rows
    looked up and their gradients. They count once autograd reaches the weight: a pass that needs no gradient of the
    weight, as `torch.autograd.grad` for an input, leaves nothing.

    Args:
        name: Name of the parameter in the model.
        param: The weight.
        arrived: A function to call, with this object, when a backward pass has left all that it leaves.

    Attributes:
        parts: Pairs of tensors, in the order of the backward passes.
        ready: Whether the gradient is there that is to travel; whoever sends it sets this.
    """

    def __init__(self, name: str, param: nn.Parameter, arrived: Callable[[Any], None]) -> None:
        self.name = name
        self.param = param
        self.parts: list[Part] = []
        self.ready = False
        self._arrived = arrived
        self._staged: tuple[int, list[Part]] = (-1, [])
        self._hook = param.register_post_accumulate_grad_hook(self._reached)

    def add(self, first: torch.Tensor, second: torch.Tensor) -> None:
        """Keep what a layer leaves in the backward pass under way."""
        task = torch._C._current_graph_task_id()
        if self._staged[0] != task:
            self._staged = (task, [])
        self._staged[1].append((first, second, second._version))

    def _reached(self, param: torch.Tensor) -> None:
        task, parts = self._staged
        self._staged = (-1, [])
        if task == torch._C._current_graph_task_id():
            self.parts += parts
        self._arrived(self)

    def take(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the parts, and keep them no longer.

        Raises:
            RuntimeError: The program has changed a tensor since the backward pass left it.
        """
        parts, self.parts = self.parts, []
        for _, second, version in parts:
            if second._version != version:
                raise RuntimeError(
                    f"an input of the layer of {self.name} was changed in place between backward() and the exchange of "
                    "its gradient: change it after optimizer.step()"
                )
        return [(first.detach(), second.detach()) for first, second, _ in parts]

    def discard(self) -> None:
        """Forget what backward passes have left, as `zero_grad` does."""
        self.parts = []

    def release(self) -> None:
        """Collect no more."""
        self._hook.remove()


def _is_result(x: torch.Tensor) -> bool:
    """Return whether a tensor is the result of a differentiable operation, and not a view of what is none."""
    return x.grad_fn is not None and (x._base is None or x._base.grad_fn is not None)


class _Linear(torch.autograd.Function):
    """x Wᵀ + b, whose backward pass keeps the factors of the gradient of W; it forms what is to be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, collected: Collected
    ) -> torch.Tensor:
        ctx.collected = collected
        # What is no result of the model may be overwritten before the factors are sent, a buffer of batches, say.
        ctx.save_for_backward(x if _is_result(x) or not ctx.needs_input_grad[1] else x.clone(), weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, error: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        error = error.to(weight.dtype)
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        u = error.reshape(-1, weight.shape[0])
        gradient = None
        if needs_weight:
            v = x.to(weight.dtype).reshape(-1, weight.shape[1])
            if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated
                gradient = u.T @ v
            else:
                ctx.collected.add(u.contiguous(), v.contiguous())
        return (
            torch.matmul(error, weight).to(x.dtype) if needs_x else None,
            gradient,
            u.sum(0) if needs_bias else None,
            None,
        )


class _Embedding(torch.autograd.Function):
    """Rows of a table, whose backward pass keeps the rows and their gradients, as that of `_Linear` the factors."""

    @staticmethod
    def forward(
        ctx: Any, indices: torch.Tensor, weight: torch.Tensor, module: nn.Embedding, collected: Collected
    ) -> torch.Tensor:
        ctx.collected = collected
        ctx.padding, ctx.by_frequency = module.padding_idx, module.scale_grad_by_freq
        ctx.size = len(weight)
        ctx.save_for_backward(indices.clone())
        return functional.embedding(indices, weight, module.padding_idx, module.max_norm, module.norm_type)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        rows, gradient = indices.reshape(-1), gradient.reshape(-1, gradient.shape[-1])
        if ctx.padding is not None:
            kept = rows != ctx.padding
            rows, gradient = rows[kept], gradient[kept]
        if ctx.by_frequency:
            _, inverse, counts = torch.unique(rows, return_inverse=True, return_counts=True)
            gradient = gradient / counts[inverse].to(gradient.dtype).unsqueeze(1)
        if torch.is_grad_enabled():  # as for a linear layer
            return None, gradient.new_zeros(ctx.size, gradient.shape[-1]).index_add(0, rows, gradient), None, None
        ctx.collected.add(rows.to(torch.int64), gradient.contiguous())
        return None, None, None, None


def _collecting(collected: Collected | None, weight: torch.Tensor) -> TypeGuard[Collected]:
    """Return whether to collect the gradient of a weight; `torch.func.functional_call` may replace a module's own."""
    return (
        collected is not None
        and collected.param is weight
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _linear_forward(self: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    collected = _weights.get(self)
    if not _collecting(collected, self.weight):
        return functional.linear(input, self.weight, self.bias)
    return _Linear.apply(input, self.weight, self.bias, collected)


def _embedding_forward(self: nn.Embedding, input: torch.Tensor) -> torch.Tensor:
    collected = _weights.get(self)
    if not _collecting(collected, self.weight):
        return nn.Embedding.forward(self, input)
    return _Embedding.apply(input, self.weight, self, collected)


# pickle finds a bound method by its name: a copy of a model has the forward of its class.
_linear_forward.__name__ = _embedding_forward.__name__ = "forward"

_FORWARDS: dict[Any, Callable[..., torch.Tensor]] = {
    nn.Linear.forward: _linear_forward,
    nn.Embedding.forward: _embedding_forward,
}


def patched(module: nn.Module) -> Callable[..., torch.Tensor] | None:
    """Return the forward that collects gradients of a module's weight, or None if the module has another forward."""
    return None if "forward" in vars(module) else _FORWARDS.get(type(module).forward)


def patch(module: nn.Module, collected: Collected) -> None:
    """Let a module leave the gradient of its weight in ``collected``; its class stays."""
    forward = patched(module)
    assert forward is not None
    _weights[module] = collected
    module.forward = MethodType(forward, module)


def unpatch(module: nn.Module) -> None:
    """Give a module the forward of its class again."""
    if _weights.pop(module, None) is not None:
        vars(module).pop("forward", None)
