"""Optimizers of torch as update rules of this library: settings, and state in torch's own layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import sfb

__all__ = ["FusedState", "refusal"]

Group = Mapping[str, Any]


@dataclass(frozen=True)
class _Kind:
    """How an optimizer of torch maps to a rule.

    Attributes:
        rule: Returns the class of the rule for a parameter group.
        settings: Returns the rule's settings for a parameter group in a step, counted from 1.
        states: The rule's attribute of each tensor that torch keeps.
        refused: Options that no rule has.
        counts: Whether torch keeps a tensor "step".
    """

    rule: Callable[[Group], type[sfb.optim.Optimizer]]
    settings: Callable[[Group, int], dict[str, Any]]
    states: Mapping[str, str]
    refused: tuple[str, ...]
    counts: bool = True


def _sgd(group: Group, step: int) -> dict[str, Any]:
    return {
        "lr": float(group["lr"]),
        "momentum": float(group["momentum"]),
        "weight_decay": float(group["weight_decay"]),
        "nesterov": bool(group["nesterov"]),
    }


def _adam(group: Group, step: int) -> dict[str, Any]:
    first, second = group["betas"]
    return {
        "lr": float(group["lr"]),
        "betas": (float(first), float(second)),
        "eps": float(group["eps"]),
        "weight_decay": float(group["weight_decay"]),
    }


def _adagrad(group: Group, step: int) -> dict[str, Any]:
    return {
        "lr": float(group["lr"]) / (1 + (step - 1) * float(group["lr_decay"])),
        "eps": float(group["eps"]),
        "weight_decay": float(group["weight_decay"]),
    }


def _adam_rule(group: Group) -> type[sfb.optim.Optimizer]:
    return sfb.optim.AdamW if group.get("decoupled_weight_decay") else sfb.optim.Adam


_MOMENTS = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}
_KINDS = {
    torch.optim.SGD: _Kind(
        lambda group: sfb.optim.SGD, _sgd, {"momentum_buffer": "velocity"}, ("dampening", "differentiable"), False
    ),
    torch.optim.Adam: _Kind(_adam_rule, _adam, _MOMENTS, ("amsgrad", "differentiable")),
    torch.optim.AdamW: _Kind(lambda group: sfb.optim.AdamW, _adam, _MOMENTS, ("amsgrad", "differentiable")),
    torch.optim.Adagrad: _Kind(lambda group: sfb.optim.Adagrad, _adagrad, {"sum": "squares"}, ("differentiable",)),
}


def refusal(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why no rule of `sfb.optim` does what an optimizer of torch does, or None if one does."""
    kind = _KINDS.get(type(optimizer))
    if kind is None:
        known = ", ".join(each.__name__ for each in _KINDS)
        return f"fused=True takes {known} of torch.optim, got {type(optimizer).__name__}"
    for group in optimizer.param_groups:
        for option in kind.refused:
            if group.get(option):
                return f"{type(optimizer).__name__} with {option}={group[option]!r} cannot be fused; pass fused=False"
    return None


class FusedState:
    """The rule that updates one weight, beside what torch's optimizer holds of that weight.

    Args:
        optimizer: The optimizer of torch, for which `refusal` returns None.
        group: Its parameter group of the weight.
        param: The weight, K×D.

    Attributes:
        rule: The update rule, of `sfb.optim`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], param: torch.Tensor) -> None:
        self._optimizer = optimizer
        self._kind = _KINDS[type(optimizer)]
        self._param = param
        self.group = group
        self._steps = 0
        self._stepped = False
        self.rule = self._kind.rule(group)(None, **self._kind.settings(group, 1))

    @property
    def arrays(self) -> int:
        """The number of arrays like the weight that the rule keeps."""
        return len(self.rule.state)

    def bind(self, weight: np.ndarray, arrays: list[np.ndarray]) -> None:
        """Let the rule update ``weight`` and keep its state in ``arrays``, which take the values that torch holds."""
        self.rule = self.rule.bind(weight)
        for name, array in zip(self.rule.states, arrays, strict=False):
            setattr(self.rule, name, array)
        self.adopt()

    def adopt(self) -> None:
        """Take the state that torch's optimizer holds, as after its `load_state_dict`; show it in the rule's memory."""
        held = self._optimizer.state.get(self._param, {})
        for key, name in self._kind.states.items():
            array, tensor = getattr(self.rule, name), held.get(key)
            if array is not None:
                if tensor is None:
                    array[...] = 0
                elif tensor.data_ptr() != array.ctypes.data:
                    np.copyto(array, tensor.detach().numpy())
        self._steps = int(held["step"]) if "step" in held else 0
        self._stepped = bool(held)
        if self._stepped:
            self._show()

    def begin(self) -> None:
        """Give the rule the settings of the parameter group for the next step."""
        for name, value in self._kind.settings(self.group, self._steps + 1).items():
            setattr(self.rule, name, value)
        if self._kind.counts:
            self.rule.steps = self._steps

    def end(self) -> None:
        """Count a step, and let torch's optimizer show the state."""
        self._steps += 1
        if not self._stepped:
            self._stepped = True
            self._show()
        elif self._kind.counts:
            self._optimizer.state[self._param]["step"].fill_(self._steps)

    def release(self) -> None:
        """Leave torch's optimizer a copy of the state in memory of this rank's own."""
        if self._stepped:
            state = self._optimizer.state[self._param]
            for key in self._kind.states:
                if state.get(key) is not None:
                    state[key] = state[key].clone()

    def _show(self) -> None:
        state: dict[str, Any] = {"step": torch.tensor(float(self._steps))} if self._kind.counts else {}
        for key, name in self._kind.states.items():
            array = getattr(self.rule, name)
            if array is not None:
                state[key] = torch.from_numpy(array)
        if state:
            self._optimizer.state[self._param] = state
