"""Trainings by several ranks: attached, by DistributedDataParallel, and by plain PyTorch with means taken by hand.

A script, a function of a `Trainer`, trains a model; tests run one script by trainers of several kinds, and compare the
weights.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import torch
from mpi4py import MPI
from oracle import assert_same_bits
from torch import nn

import sfb.torch

__all__ = [
    "LARGE",
    "SMALL",
    "STEPS",
    "TOLERANCE",
    "Attached",
    "ByHand",
    "Ddp",
    "Trainer",
    "assert_bits",
    "assert_close",
    "assert_ranks_agree",
    "broadcast",
    "compare",
    "numbers",
    "perceptron",
    "seeded",
    "squares",
    "weights",
]

# Optimizer steps of a training. SFB_TEST_STEPS=50 for a long one.
STEPS = int(os.environ.get("SFB_TEST_STEPS", 6))

# The largest ‖a − b‖ / ‖b‖ of a parameter.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}

# Outputs and inputs of a linear layer whose weight is small, and of one whose weight is large (above 64 Ki elements).
SMALL, LARGE = (10, 8), (300, 400)


def seeded(factory, seed=0, dtype=torch.float64):
    """Return the model that ``factory`` makes with a seed, in a dtype; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory().to(dtype)


def numbers(*shape, seed, dtype=torch.float64):
    """Return normal random numbers; ``seed`` is a sequence of integers, such as step and rank."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def perceptron(inputs=12, outputs=3):
    """Return a perceptron with small layers and a large one."""
    rows, columns = LARGE
    return nn.Sequential(
        nn.Linear(inputs, columns), nn.Tanh(), nn.Linear(columns, rows), nn.Tanh(), nn.Linear(rows, outputs)
    )


def broadcast(world, model):
    """Give all ranks the parameters and buffers of rank 0, by MPI."""
    for tensor in (*model.parameters(), *model.buffers()):
        world.Bcast(tensor.detach().numpy())


class Trainer:
    """A model, its optimizer, and what a script does with them; this one trains a rank by itself.

    Args:
        model: The model to train, as it is.
        make: A function that makes an optimizer for parameters.

    Attributes:
        forward: What a script calls on inputs.
    """

    def __init__(self, model, make):
        self.model = self.forward = model
        self.optimizer = make(model.parameters())

    def no_sync(self):
        """Return the context of a backward pass after which another follows before the step."""
        return nullcontext()

    def clip(self, max_norm):
        """Clip the norm of the gradient; return the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm)

    def step(self):
        """Take a step of the optimizer."""
        self.optimizer.step()

    def train(self, loss, steps=STEPS, scheduler=None):
        """Take steps for ``loss(forward, step)``; ``scheduler`` is called after each."""
        for step in range(steps):
            self.optimizer.zero_grad()
            loss(self.forward, step).backward()
            self.step()
            if scheduler is not None:
                scheduler.step()

    def close(self):
        """End the training."""


class ByHand(Trainer):
    """A training by plain PyTorch, in which `step` first sets gradients to their mean over ranks.

    Args:
        world: The ranks.
        model: The model; all ranks get its weights on rank 0.
        make: See `Trainer`.
    """

    def __init__(self, world, model, make):
        broadcast(world, model)
        super().__init__(model, make)
        self.world = world
        self.weight = 1 / world.size
        self._averaged = False

    def average(self):
        """Set the gradients to their sum over ranks, times ``weight``; one that no rank has stays None."""
        for param in self.model.parameters():
            if self.world.allreduce(param.grad is not None, MPI.LOR):
                mine = torch.zeros_like(param) if param.grad is None else param.grad
                total = np.empty(param.shape, mine.numpy().dtype)
                self.world.Allreduce(np.ascontiguousarray(mine.numpy() * self.weight), total)
                param.grad = torch.from_numpy(total)
        self._averaged = True

    def clip(self, max_norm):
        """Clip the norm of the mean."""
        self.average()
        return super().clip(max_norm)

    def step(self):
        """Take a step with the mean."""
        if not self._averaged:
            self.average()
        self._averaged = False
        self.optimizer.step()


class Ddp(Trainer):
    """A training by DistributedDataParallel over the default process group.

    Args:
        model: See `Trainer`.
        make: See `Trainer`.
        **options: Options of DistributedDataParallel.
    """

    def __init__(self, model, make, **options):
        super().__init__(model, make)
        self.forward = nn.parallel.DistributedDataParallel(model, **options)

    def no_sync(self):
        """Return `DistributedDataParallel.no_sync`."""
        return self.forward.no_sync()


class Attached(Trainer):
    """A training of a model that is attached.

    Args:
        model: See `Trainer`.
        make: See `Trainer`.
        comm: See `sfb.torch.attach`, like ``options``.
        **options: Options of `sfb.torch.attach`.
    """

    def __init__(self, model, make, comm=None, **options):
        super().__init__(model, make)
        self.handle = sfb.torch.attach(model, self.optimizer, comm, **options)

    def no_sync(self):
        """Return the handle's `no_sync`."""
        return self.handle.no_sync()

    def clip(self, max_norm):
        """Clip by the handle."""
        return self.handle.clip_grad_norm_(max_norm)

    def close(self):
        """Detach."""
        self.handle.detach()


def squares(world, *, samples=5, inputs=12, outputs=3, seed=1):
    """Return a loss, the mean square of the error on a batch that differs between ranks and steps."""

    def loss(forward, step):
        dtype = next(p for p in getattr(forward, "module", forward).parameters()).dtype
        x = numbers(samples, inputs, seed=(seed, step, world.rank), dtype=dtype)
        y = numbers(samples, outputs, seed=(seed + 1, step, world.rank), dtype=dtype)
        return nn.functional.mse_loss(forward(x), y)

    return loss


def weights(model):
    """Return copies of the parameters by name."""
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def assert_close(actual, expected, tolerance=None):
    """Assert that models have the same parameters within rounding; both may be dictionaries of tensors."""
    actual, expected = (each if isinstance(each, dict) else weights(each) for each in (actual, expected))
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        assert reference.isfinite().all(), name
        error = (actual[name] - reference).norm().item()
        allowed = (tolerance or TOLERANCE[reference.dtype]) * reference.norm().item()
        assert error <= allowed, f"{name}: ‖a − b‖ = {error:.3g}, at most {allowed:.3g} is rounding"


def assert_bits(actual, expected):
    """Assert that models, or dictionaries of tensors, are equal bit for bit."""
    actual, expected = (each if isinstance(each, dict) else weights(each) for each in (actual, expected))
    assert actual.keys() == expected.keys()
    for name, reference in expected.items():
        ours, theirs = (each.detach().reshape(-1).view(torch.uint8) for each in (actual[name], reference))
        assert torch.equal(ours, theirs), name


def assert_ranks_agree(world, model):
    """Assert that all ranks hold the same bits of every parameter."""
    for param in model.parameters():
        assert_same_bits(world, param.detach().numpy())


def compare(world, factory, make, script, *, comm=None, dtype=torch.float64, tolerance=None, **options):
    """Assert that a script leads to the same weights attached and by hand, and that it moves some.

    Every rank starts from weights of its own, and attaching takes those of rank 0.

    Args:
        world: The ranks.
        factory: A function that makes the model.
        make: See `Trainer`.
        script: A function of a `Trainer`.
        comm: See `Attached`, like ``options``.
        dtype: That of the weights.
        tolerance: The largest relative difference, by default that of `TOLERANCE`.
        **options: Options of `sfb.torch.attach`.

    Returns:
        What the script returned, attached and by hand.
    """
    model = seeded(factory, world.rank, dtype)
    by_hand = ByHand(world, deepcopy(model), make)
    start = weights(by_hand.model)
    expected = script(by_hand)
    assert any(not torch.equal(start[name], end) for name, end in weights(by_hand.model).items())
    attached = Attached(model, make, comm, **options)
    try:
        actual = script(attached)
        assert_close(model, by_hand.model, tolerance)
        assert_ranks_agree(world, model)
    finally:
        attached.close()
    assert_close(model, by_hand.model, tolerance)
    return actual, expected
