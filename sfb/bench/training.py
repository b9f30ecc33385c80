"""PyTorch models to train, the ways in which their ranks exchange gradients, and steps of training."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, pairwise
from types import TracebackType

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import sfb
import sfb.torch

__all__ = [
    "CANDIDATES",
    "DDP",
    "EXACT",
    "MODELS",
    "OPTIMIZERS",
    "REFERENCE",
    "Links",
    "Problem",
    "Trainer",
    "make_groups",
    "problem",
]

REFERENCE = "ddp-gloo"
DDP = {REFERENCE: "gloo", "ddp-sfb": "sfb", "ddp-powersgd": "gloo"}  # backends of torch.distributed
EXACT = (REFERENCE, "ddp-sfb", "attach", "attach-unfused")  # weights equal to those of the reference within rounding
CANDIDATES = (*DDP, "attach", "attach-unfused", "local")

# Learning rates at which the models stay far from a perfect fit, whose gradients would be denormal numbers. With an eps
# of 1e-8 an adaptive rule turns the rounding of a gradient near 0 into a whole step, and weights could not be compared.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-4, eps=1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4, eps=1e-3, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-4, eps=1e-3, fused=True),
}

_BATCHES = 4  # of a rank, taken in turn
_VOCABULARY, _WIDTH, _TOKENS = 50_000, 128, 32
_CLASSES = 10

Inputs = Callable[[int, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """A model and the inputs it takes.

    Attributes:
        model: Model from which every candidate starts.
        inputs: Function of a number of samples and a generator that returns inputs.
        classes: Number of classes that the model tells apart.
    """

    model: nn.Module
    inputs: Inputs
    classes: int

    @property
    def parameters(self) -> int:
        """The number of trainable elements."""
        return sum(p.numel() for p in self.model.parameters())

    def batches(self, samples: int, rank: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the inputs and labels that a rank trains on."""
        generator = torch.Generator().manual_seed(rank)
        return [
            (self.inputs(samples, generator), torch.randint(self.classes, (samples,), generator=generator))
            for _ in range(_BATCHES)
        ]


class _Mean(nn.Module):
    """The mean over the tokens of a text: B×T×W → B×W."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1)


def _normal(*shape: int, dtype: torch.dtype) -> Inputs:
    return lambda samples, generator: torch.randn(samples, *shape, generator=generator, dtype=dtype)


def _mlp(layers: Sequence[int], dtype: torch.dtype) -> Problem:
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(layers):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return Problem(nn.Sequential(*modules[:-1]), _normal(layers[0], dtype=dtype), layers[-1])


def _embedding(layers: Sequence[int], dtype: torch.dtype) -> Problem:
    model = nn.Sequential(nn.Embedding(_VOCABULARY, _WIDTH), _Mean(), nn.Linear(_WIDTH, _CLASSES))
    return Problem(model, lambda s, g: torch.randint(_VOCABULARY, (s, _TOKENS), generator=g), _CLASSES)


def _conv(layers: Sequence[int], dtype: torch.dtype) -> Problem:
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1600, _CLASSES)),
    )
    return Problem(model, _normal(1, 28, 28, dtype=dtype), _CLASSES)


MODELS: dict[str, Callable[[Sequence[int], torch.dtype], Problem]] = {
    "mlp": _mlp,
    "embedding": _embedding,
    "conv": _conv,
}


def problem(name: str, layers: Sequence[int], dtype: str) -> Problem:
    """Return a model of `MODELS`, the same on every rank.

    Args:
        name: "mlp", a perceptron; "embedding", a classifier of the mean of a text's embeddings; or "conv", a
            convolutional net for images of 28×28.
        layers: Widths of the perceptron, from its inputs to its classes.
        dtype: "float32" or "float64".
    """
    kind: torch.dtype = getattr(torch, dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MODELS[name](layers, kind)
    made.model.to(kind)
    return made


@dataclass(frozen=True)
class Links:
    """What candidates exchange gradients by.

    Attributes:
        comm: The communicator of `sfb.torch.attach`.
        groups: The process group of each candidate of `DDP`. PowerSGD has one of its own, because no other collectives
            may come between its asynchronous ones.
    """

    comm: sfb.Comm
    groups: Mapping[str, dist.ProcessGroup]


def make_groups(candidates: Iterable[str]) -> dict[str, dist.ProcessGroup]:
    """Return a process group of all ranks for each candidate of `DDP`; collective.

    Args:
        candidates: Names of `CANDIDATES`.
    """
    return {name: dist.new_group(backend=DDP[name]) for name in candidates if name in DDP}


class Trainer:
    """A model of its own, its optimizer, and one way to exchange gradients; a context manager.

    Args:
        candidate: Name of `CANDIDATES`.
        problem: Model to start from.
        optimizer: Name of `OPTIMIZERS`.
        batches: Inputs and labels, taken in turn.
        links: What to exchange gradients by.
    """

    def __init__(
        self,
        candidate: str,
        problem: Problem,
        optimizer: str,
        batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        links: Links,
    ) -> None:
        self.model = copy.deepcopy(problem.model)
        self._optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self._batches = cycle(batches)
        self._called: nn.Module = self.model
        self._stack = ExitStack()
        if candidate in DDP:
            group = links.groups[candidate]
            # Of two buckets under way, the hook of PowerSGD starts collectives in threads of gloo's, in any order.
            bucket = problem.parameters * 8 / (1 << 20) + 1 if candidate == "ddp-powersgd" else None
            ddp = DistributedDataParallel(
                self.model,
                process_group=group,
                gradient_as_bucket_view=True,
                static_graph=True,
                bucket_cap_mb=bucket,
            )
            if candidate == "ddp-powersgd":
                # From the third step on, the earliest that the hook allows.
                state = powerSGD_hook.PowerSGDState(group, matrix_approximation_rank=1, start_powerSGD_iter=2)
                ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
            self._called = ddp
        elif candidate != "local":
            fused = False if candidate == "attach-unfused" else None
            self._stack.enter_context(sfb.torch.attach(self.model, self._optimizer, links.comm, fused=fused))

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def step(self) -> None:
        """Train on the next batch; collective but for "local"."""
        x, y = next(self._batches)
        self._optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self._called(x), y).backward()
        self._optimizer.step()

    def steps(self, number: int) -> None:
        """Take steps in a row; collective but for "local"."""
        for _ in range(number):
            self.step()

    @torch.no_grad()
    def difference(self, other: Trainer, tolerance: float) -> tuple[float, int]:
        """Compare the weights with those of another trainer.

        Args:
            other: Trainer of the same problem.
            tolerance: Largest difference of equal weights, relative to the largest weight of a parameter.

        Returns:
            The largest relative difference, and the number of weights beyond the tolerance.
        """
        largest, wrong = 0.0, 0
        for own, expected in zip(self.model.parameters(), other.model.parameters(), strict=True):
            relative = (own - expected).abs_() / expected.abs().max()
            largest = max(largest, float(relative.max()))
            wrong += int((~(relative <= tolerance)).sum())  # NaN is wrong
        return largest, wrong

    @torch.no_grad()
    def same_bits(self, world: MPI.Intracomm) -> bool:
        """Return whether all ranks hold the same bits; collective."""
        digest = hashlib.blake2b()
        for parameter in self.model.parameters():
            digest.update(parameter.contiguous().numpy())
        return len(set(world.allgather(digest.digest()))) == 1
