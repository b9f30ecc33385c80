"""What models and optimizers must be before ranks train them together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ["check_half", "check_model", "check_optimizer"]

_HALF = (torch.float16, torch.bfloat16)


def check_model(model: nn.Module) -> None:
    """Raise TypeError or ValueError if ranks cannot exchange the gradients of a model.

    Raises:
        TypeError: ``model`` is not a module; a parameter is complex; a parameter or a buffer is quantised; an embedding
            has sparse gradients.
        ValueError: A parameter or a buffer is not in the memory of a CPU, or its shape is not known yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet: call the model once before attach")
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {tensor.device}: move the model there, model.cpu()")
        if tensor.is_quantized:
            raise TypeError(f"{name} is quantised, {tensor.dtype}: train in floating point, and quantise afterwards")
    for name, param in model.named_parameters():
        if param.requires_grad and not param.is_floating_point():
            raise TypeError(f"{name} must be of a real floating-point type, got {param.dtype}")
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            raise TypeError(
                f"{name} has sparse gradients, which cannot be exchanged: make it with sparse=False; "
                "the rows of an nn.Embedding that a step touches then travel alone anyway"
            )


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise TypeError or ValueError if an optimizer does not hold the trainable parameters of a model, and no others.

    Raises:
        TypeError: ``optimizer`` is not an optimizer of torch, or calls the model itself, as LBFGS does.
        ValueError: It holds other parameters, or lacks some.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("LBFGS evaluates the model within step(closure); attach takes optimizers whose step() does not")
    names = {param: name for name, param in model.named_parameters()}
    held = {param for group in optimizer.param_groups for param in group["params"]}
    foreign = len(held - names.keys())
    if foreign:
        raise ValueError(
            f"the optimizer holds {foreign} parameters that are not of the model: attach each model with an optimizer "
            "of its own parameters"
        )
    missing = [name for param, name in names.items() if param.requires_grad and param not in held]
    if missing:
        raise ValueError(
            f"the optimizer lacks {len(missing)} trainable parameters of the model, the first is {missing[0]}: "
            "add them, or freeze them by requires_grad_(False)"
        )


def check_half(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Raise ValueError if a trainable parameter has 16 bits, which fused updates do not take."""
    for name, param in named:
        if param.requires_grad and param.dtype in _HALF:
            raise ValueError(f"{name} is {param.dtype}; fused=True takes float32 and float64, fused=False any type")
