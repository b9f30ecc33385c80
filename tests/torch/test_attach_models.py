"""Modules of many kinds, attached, equal a training by plain PyTorch with gradients averaged by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", minversion="2.9")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_training import LARGE, SMALL, STEPS, assert_bits, compare, numbers  # noqa: E402

pytestmark = pytest.mark.mpi

MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
ADAM = partial(torch.optim.Adam, lr=0.01, eps=1e-3)


def of(world, *shape, high=None, targets=None):
    """Return a loss of a model that takes numbers of a shape, or integers below ``high``."""

    def loss(forward, step):
        x = numbers(*shape, seed=(step, world.rank))
        if high is not None:
            x = torch.from_numpy(np.random.default_rng((step, world.rank)).integers(high, size=shape))
        out = forward(x)
        return (out if targets is None else out[targets]).sin().square().mean()

    return loss


class First(nn.Module):
    """The first of what a module returns, where it returns several."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


class SelfAttention(nn.Module):
    """Attention of tokens to each other."""

    def __init__(self, features=160, heads=4):
        super().__init__()
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Scaled(nn.Module):
    """Parameters of its own, also in containers, and without dimensions."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shifts = nn.ParameterList([torch.ones(12), torch.zeros(3, 12)])
        self.branches = nn.ModuleDict({"a": nn.Linear(12, 12), "b": nn.Sequential(nn.Linear(12, 12))})

    def forward(self, x):
        return self.branches["b"](self.branches["a"](x) * self.scale + self.shifts[0]) * self.shifts[1].sum()


class OwnLinear(nn.Linear):
    """A subclass that keeps the forward of nn.Linear."""


class Doubled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return functional.linear(x, 2 * self.weight, self.bias)


class Functional(nn.Module):
    """A layer whose weight is used past its forward as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(LARGE[1], LARGE[0])

    def forward(self, x):
        return self.layer(x) + functional.linear(x.cos(), self.layer.weight)


def embedding(words=40, **options):
    return lambda: nn.Sequential(nn.Embedding(words, 6, **options), nn.Linear(6, 3))


def both(module, *arguments, **options):
    """Return a large and a small linear layer of a class, in a row."""
    rows, columns = LARGE
    return nn.Sequential(module(8, columns, *arguments, **options), nn.Tanh(), module(columns, rows, **options))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 5)
    )


MODELS = {
    "Linear without bias": (partial(both, nn.Linear, bias=False), (4, 8)),
    "subclass of Linear": (partial(both, OwnLinear), (4, 8)),
    "Linear with another forward": (partial(both, Doubled), (4, 8)),
    "weight outside its layer": (Functional, (4, LARGE[1])),
    "LSTM": (lambda: nn.Sequential(nn.Linear(6, 7), First(nn.LSTM(7, 5))), (4, 6)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(*LARGE[::-1])), (4, LARGE[1])),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 6)), nn.Linear(6, 2)), (4, 6)),
    "convolutions and norms": (convolutional, (4, 2, 6, 6)),
    "Conv1d and GroupNorm": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.GroupNorm(2, 4), nn.PReLU()), (4, 3, 9)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, bias=False), (2, 2, 5, 5)),
    "LayerNorm": (lambda: nn.Sequential(nn.Linear(*SMALL), nn.LayerNorm(SMALL[1])), (4, SMALL[0])),
    "parameters in containers": (Scaled, (4, 12)),
    "GRU": (lambda: First(nn.GRU(7, 6, num_layers=2, batch_first=True)), (3, 5, 7)),
    "attention": (SelfAttention, (2, 5, 160)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(160, 4, dim_feedforward=512, dropout=0.0, batch_first=True),
        (2, 5, 160),
    ),
    "Embedding": (embedding(), (4, 5), 40),
    "Embedding, padding": (embedding(padding_idx=2), (4, 50), 40),
    "Embedding by frequency": (embedding(scale_grad_by_freq=True), (4, 50), 40),
    "large Embedding": (embedding(12000), (4, 5), 12000),
    "large Embedding, few words": (embedding(12000), (40, 50), 7),
    "large Embedding, padding": (embedding(12000, padding_idx=2), (4, 50), 9),
    "large Embedding by frequency": (embedding(12000, scale_grad_by_freq=True), (4, 50), 9),
    "large Embedding, every word": (
        lambda: nn.Sequential(nn.Embedding(1100, 60), nn.Linear(60, 3)),
        (4, 500),
        1100,
    ),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(12000, 6, mode="mean"), (4, 5), 12000),
}


@pytest.mark.parametrize("what", MODELS)
def test_modules(world, comm, what, fused):
    factory, shape, *high = MODELS[what]
    compare(
        world, factory, MOMENTUM, lambda t: t.train(of(world, *shape, high=high[0] if high else None)), comm=comm,
        fused=fused,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["large Embedding", "large Embedding, few words", "large Embedding, every word"])
def test_embeddings_between_nodes(world, lone_comm, what):
    factory, shape, high = MODELS[what]
    compare(world, factory, ADAM, lambda t: t.train(of(world, *shape, high=high)), comm=lone_comm)


# PyTorch's own second derivative leaves the scale by frequency out.
@pytest.mark.parametrize("what", ["large Embedding", "large Embedding, padding", "large Embedding, every word"])
def test_penalties_of_gradients_of_embeddings(world, comm, what):
    factory, shape, high = MODELS[what]
    loss = of(world, *shape, high=high)

    def script(trainer):
        for step in range(2):
            trainer.optimizer.zero_grad()
            table = next(iter(trainer.model.parameters()))
            (gradient,) = torch.autograd.grad(loss(trainer.forward, step), table, create_graph=True)
            (loss(trainer.forward, step) + gradient.square().sum()).backward()
            trainer.step()

    compare(world, factory, MOMENTUM, script, comm=comm)


def test_an_embedding_with_a_largest_norm(world, comm):
    """Looking rows up changes them, on each rank its own: rank 0's are not those of others, as in PyTorch."""
    tokens = torch.arange(30).reshape(3, 10)  # the same on every rank
    compare(
        world,
        lambda: nn.Embedding(40, 2000, max_norm=1.0),
        MOMENTUM,
        lambda t: t.train(lambda forward, step: forward(tokens).sin().mean() * (world.rank + 1)),
        comm=comm,
    )


class Checkpointed(nn.Module):
    """A perceptron that computes activations anew in its backward pass; the checkpoint may come last."""

    def __init__(self, reentrant, *, last=False):
        super().__init__()
        self.inward, self.reentrant = nn.Linear(8, LARGE[1]), reentrant
        self.middle = nn.Sequential(nn.Linear(*LARGE[::-1]), nn.Tanh(), nn.Linear(*LARGE), nn.Tanh())
        self.outward = nn.Identity() if last else nn.Linear(LARGE[1], 3)

    def forward(self, x):
        x = self.inward(x)
        for _ in range(2):
            x = checkpoint(self.middle, x, use_reentrant=self.reentrant)
        return self.outward(x)


CHECKPOINTS = {
    "reentrant": partial(Checkpointed, True),
    "reentrant, last": partial(Checkpointed, True, last=True),
    "not reentrant": partial(Checkpointed, False),
}


@pytest.mark.parametrize("model", CHECKPOINTS.values(), ids=CHECKPOINTS)
@pytest.mark.parametrize("nodes", ["comm", "lone_comm"], ids=["one node", "nodes of one"])
def test_activation_checkpoints(request, world, nodes, fused, model):
    comm = request.getfixturevalue(nodes)
    compare(world, model, ADAM, lambda t: t.train(of(world, 4, 8)), comm=comm, fused=fused)


def test_buffers_are_those_of_rank_0(world, comm):
    def script(trainer):
        trainer.train(of(world, 4, 2, 6, 6))
        return {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}

    actual, by_hand = compare(world, convolutional, MOMENTUM, script, comm=comm)
    assert_bits(actual, world.bcast(actual))
    torch.testing.assert_close(actual, world.bcast(by_hand))


def test_buffers_may_stay_apart(world, comm):
    def script(trainer):
        trainer.train(of(world, 4, 2, 6, 6))
        return {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}

    actual, by_hand = compare(world, convolutional, MOMENTUM, script, comm=comm, broadcast_buffers=False)
    torch.testing.assert_close(actual, by_hand)
    if world.size > 1:
        means = world.allgather(actual["1.running_mean"].numpy().tobytes())
        assert len(set(means)) == world.size


class Tree(nn.Module):
    """Random modules in a row and side by side: tokens go in, numbers come out.

    Args:
        rng: The generator; the same on every rank.
    """

    def __init__(self, rng):
        super().__init__()
        self.words = int(rng.integers(5, 3000))
        width = int(rng.integers(4, 60))
        self.embedding = nn.Embedding(self.words, width)
        self.rows = nn.ModuleList()
        for _ in range(rng.integers(2, 5)):
            kind, wide = rng.integers(5), int(rng.choice([7, 40, 350, 700]))
            if kind == 0:
                row = nn.Sequential(nn.Linear(width, wide, bias=bool(rng.integers(2))), nn.ReLU())
            elif kind == 1:
                row, wide = nn.LayerNorm(width), width
            elif kind == 2:
                row = nn.Sequential(nn.Unflatten(-1, (1, width)), nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(1))
                wide = 2 * width
            elif kind == 3:
                row = nn.Sequential(nn.Linear(width, wide), nn.Tanh(), nn.Sequential(nn.Linear(wide, 9), nn.GELU()))
                wide = 9
            else:
                row, wide = nn.Bilinear(min(width, 20), min(width, 20), 9), 9
            self.rows.append(row)
            width = wide
        self.outward = nn.Linear(width, 3)

    def forward(self, tokens):
        x = self.embedding(tokens).flatten(0, -2)
        for row in self.rows:
            x = row(x[:, :20].tanh(), x[:, :20].tanh()) if isinstance(row, nn.Bilinear) else row(x)
        return self.outward(x)


@pytest.mark.parametrize("number", range(6))
def test_random_trees(world, comm, rng, number, fused):
    """SFB_TEST_SEED draws others."""
    shape, seed = tuple(rng.integers(1, 6, size=2)), int(rng.integers(2**31))
    words = Tree(np.random.default_rng(seed)).words
    make = (partial(torch.optim.SGD, lr=1e-3, momentum=0.9), ADAM)[number % 2]
    compare(
        world,
        lambda: Tree(np.random.default_rng(seed)),
        make,
        lambda t: t.train(of(world, *shape, high=words), steps=min(STEPS, 4)),
        comm=comm,
        tolerance=1e-10,
        fused=fused,
    )
