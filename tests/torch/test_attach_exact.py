"""Weights of attached models equal those of DistributedDataParallel over gloo, for every optimizer."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
from oracle import sums_alike

import sfb

torch = pytest.importorskip("torch", minversion="2.9")

from torch import nn  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402
from torch_training import (  # noqa: E402
    LARGE,
    STEPS,
    TOLERANCE,
    Attached,
    Ddp,
    assert_bits,
    assert_close,
    assert_ranks_agree,
    numbers,
    perceptron,
    seeded,
    squares,
    weights,
)

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("gloo")]

SGD, Adam, AdamW, Adagrad = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad

FUSED = {
    "SGD": partial(SGD, lr=0.01),
    "SGD, weight decay": partial(SGD, lr=0.01, weight_decay=0.1),
    "SGD, maximize": partial(SGD, lr=0.001, maximize=True),
    "SGD, momentum": partial(SGD, lr=0.01, momentum=0.9),
    "SGD, momentum, weight decay, maximize": partial(SGD, lr=0.001, momentum=0.9, weight_decay=0.1, maximize=True),
    "SGD, Nesterov": partial(SGD, lr=0.01, momentum=0.9, nesterov=True),
    "SGD, Nesterov, weight decay": partial(SGD, lr=0.01, momentum=0.8, weight_decay=0.1, nesterov=True),
    "SGD, foreach": partial(SGD, lr=0.01, momentum=0.9, foreach=True),
    "SGD, fused by torch": partial(SGD, lr=0.01, momentum=0.9, fused=True),
    "Adam": partial(Adam, lr=0.003),
    "Adam, weight decay": partial(Adam, lr=0.003, betas=(0.5, 0.8), eps=1e-3, weight_decay=0.1),
    "Adam, maximize": partial(Adam, lr=0.001, maximize=True, weight_decay=0.1),
    "Adam, decoupled": partial(Adam, lr=0.003, weight_decay=0.1, decoupled_weight_decay=True),
    "Adam, fused by torch": partial(Adam, lr=0.003, fused=True),
    "AdamW": partial(AdamW, lr=0.003),
    "AdamW, maximize": partial(AdamW, lr=0.003, weight_decay=0.3, maximize=True),
    "AdamW, lr a tensor": partial(AdamW, lr=torch.tensor(0.003, dtype=torch.float64)),
    "Adagrad": partial(Adagrad, lr=0.02),
    "Adagrad, weight decay": partial(Adagrad, lr=0.02, weight_decay=0.1, eps=1e-3),
    "Adagrad, lr decay": partial(Adagrad, lr=0.02, lr_decay=0.2, initial_accumulator_value=0.3),
    "Adagrad, maximize": partial(Adagrad, lr=0.001, maximize=True),
}
NOT_FUSED = {
    "SGD, dampening": partial(SGD, lr=0.01, momentum=0.9, dampening=0.5),
    "Adam, amsgrad": partial(Adam, lr=0.003, amsgrad=True),
    "AdamW, amsgrad": partial(AdamW, lr=0.003, amsgrad=True),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.003, eps=1e-3),
    "NAdam": partial(torch.optim.NAdam, lr=0.003),
    "Rprop": partial(torch.optim.Rprop, lr=0.01),
}
# AdaGrad without eps turns the rounding of the first small gradients into whole steps.
SOME = {
    name: FUSED[name]
    for name in ("SGD, Nesterov, weight decay", "Adam, weight decay", "AdamW", "Adagrad, weight decay")
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def equals_ddp(world, factory, make, script, dtype=torch.float64, modes=(True, False), comm=None, **options):
    """Assert that a script leads to the same weights by DDP and attached, fused and not, from weights of rank 0."""
    model = seeded(factory, world.rank, dtype)
    ddp = Ddp(deepcopy(model), make, **options)
    start = weights(ddp.model)
    script(ddp)
    assert any(not torch.equal(start[name], end) for name, end in weights(ddp.model).items())
    for fused in modes:
        attached = Attached(deepcopy(model), make, comm, fused=fused)
        assert attached.handle.fused is bool(fused)
        script(attached)
        assert_close(attached.model, ddp.model)
        assert_ranks_agree(world, attached.model)
        attached.close()
        assert_close(attached.model, ddp.model)


@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_optimizers(world, make):
    equals_ddp(world, perceptron, make, lambda t: t.train(squares(world)))


@pytest.mark.parametrize("make", SOME.values(), ids=SOME)
def test_optimizers_in_float32(world, make):
    equals_ddp(world, perceptron, make, lambda t: t.train(squares(world)), torch.float32)


@pytest.mark.parametrize("make", NOT_FUSED.values(), ids=NOT_FUSED)
def test_any_optimizer(world, make):
    equals_ddp(world, perceptron, make, lambda t: t.train(squares(world)), modes=(None,))


@pytest.mark.parametrize("make", [*SOME.values()][:2], ids=[*SOME][:2])
def test_nodes(world, any_comm, make):
    equals_ddp(world, perceptron, make, lambda t: t.train(squares(world)), comm=any_comm)


def test_parameter_groups(world, fused):
    """Settings of their own for a large weight, a bias and the rest."""

    def make(params):
        first, first_bias, large, *rest = params
        groups = [
            {"params": [large], "lr": 0.03, "momentum": 0.9},
            {"params": [first_bias], "weight_decay": 0.5},
            {"params": [first, *rest], "nesterov": True, "momentum": 0.5},
        ]
        return SGD(groups, lr=0.01)

    equals_ddp(world, perceptron, make, lambda t: t.train(squares(world)), modes=(fused,))


SCHEDULERS = {
    "StepLR": partial(lr_scheduler.StepLR, step_size=2, gamma=0.3),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=STEPS + 1),
    "CosineAnnealingLR": partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
    "LinearLR": partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=3),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("name", ["SGD, momentum", "Adam", "Adagrad"])
def test_schedulers(world, name, scheduler):
    if name == "Adagrad" and scheduler.func is lr_scheduler.OneCycleLR:
        scheduler = partial(scheduler, cycle_momentum=False)

    def script(trainer):
        trainer.train(squares(world), scheduler=scheduler(trainer.optimizer))

    equals_ddp(world, perceptron, FUSED[name], script)


@pytest.mark.parametrize("synchronise", [False, True], ids=["no_sync", "every backward"])
@pytest.mark.parametrize("make", SOME.values(), ids=SOME)
def test_accumulation(world, make, synchronise):
    def script(trainer):
        loss = squares(world)
        for step in range(STEPS):
            trainer.optimizer.zero_grad()
            for part in range(3):
                with nullcontext() if synchronise or part == 2 else trainer.no_sync():
                    (loss(trainer.forward, 3 * step + part) / 3).backward()
            trainer.step()

    equals_ddp(world, perceptron, make, script)


@DTYPES
@pytest.mark.parametrize(
    ("name", "max_norm"), [("SGD, momentum", 1e-2), ("SGD, momentum", 1e6), ("Adam, weight decay", 1e-2)]
)
def test_clipping(world, name, max_norm, dtype):
    norms = []

    def script(trainer):
        loss, norms[:] = squares(world), [*norms, []]
        for step in range(STEPS):
            trainer.optimizer.zero_grad()
            loss(trainer.forward, step).backward()
            norms[-1].append(trainer.clip(max_norm))
            trainer.step()

    equals_ddp(world, perceptron, FUSED[name], script, dtype)
    for other in norms[1:]:
        for ours, theirs in zip(other, norms[0], strict=True):
            assert ours.shape == ()
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=0)


class TiedLayers(nn.Module):
    """An autoencoder, or two layers in a row, with one weight in both."""

    def __init__(self, size=LARGE[0]):
        super().__init__()
        self.inward = nn.Linear(12, size)
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        self.second.weight = self.first.weight
        self.outward = nn.Linear(size, 3)

    def forward(self, x):
        x = torch.tanh(self.inward(x))
        return self.outward(torch.tanh(self.second(torch.tanh(self.first(x)))))


class TiedEmbedding(nn.Module):
    """A language model whose outputs have the weight of the embedding."""

    def __init__(self, words=300, features=256):
        super().__init__()
        self.embedding = nn.Embedding(words, features)
        self.middle = nn.Linear(features, features)
        self.outward = nn.Linear(features, words, bias=False)
        self.outward.weight = self.embedding.weight

    def forward(self, tokens):
        return self.outward(torch.tanh(self.middle(self.embedding(tokens))))


class Recurrent(nn.Module):
    """A cell whose layer is used at every token."""

    def __init__(self, size=LARGE[0]):
        super().__init__()
        self.inward, self.cell, self.outward = nn.Linear(12, size), nn.Linear(size, size), nn.Linear(size, 3)

    def forward(self, x):
        hidden = self.inward(x)
        for _ in range(3):
            hidden = torch.tanh(self.cell(hidden) + hidden)
        return self.outward(hidden)


@DTYPES
@pytest.mark.parametrize("model", [TiedLayers, partial(TiedLayers, 10), Recurrent], ids=["tied", "small", "recurrent"])
@pytest.mark.parametrize("name", ["SGD, momentum", "Adam, weight decay"])
def test_a_weight_used_several_times(world, model, name, dtype):
    equals_ddp(world, model, FUSED[name], lambda t: t.train(squares(world)), dtype)


def next_words(world, words=300):
    """Return a loss, the cross entropy of the next word."""

    def loss(forward, step):
        tokens = torch.from_numpy(np.random.default_rng((step, world.rank)).integers(words, size=(2, 8)))
        scores = forward(tokens[:, :-1])
        return nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


@DTYPES
@pytest.mark.parametrize("model", [TiedEmbedding, partial(TiedEmbedding, 30, 8)], ids=["large", "small"])
@pytest.mark.parametrize("name", ["SGD, momentum", "Adam, weight decay"])
def test_an_embedding_tied_to_the_output(world, model, name, dtype):
    words = model().embedding.num_embeddings
    equals_ddp(world, model, FUSED[name], lambda t: t.train(next_words(world, words)), dtype)


@pytest.mark.parametrize("shape", [(12,), (1, 12), (2, 7, 12), (2, 1, 3, 12)], ids=str)
def test_inputs_of_any_dimension(world, shape):
    def loss(forward, step):
        return forward(numbers(*shape, seed=(step, world.rank))).square().mean()

    equals_ddp(world, perceptron, SOME["Adam, weight decay"], lambda t: t.train(loss))


@pytest.mark.parametrize("name", ["SGD, Nesterov", "AdamW"])
@pytest.mark.parametrize("one_rank_a_node", [False, True], ids=["one node", "nodes of one"])
def test_the_same_bits_whether_exchanges_overlap(world, one_rank_a_node, name):
    node = world.Split(world.rank) if one_rank_a_node else None
    ends = {}
    with sfb.Comm(world, reproducible=True, node=node) as comm:
        for overlap in (None, False, True):
            attached = Attached(seeded(perceptron), FUSED[name], comm, overlap=overlap)
            attached.train(squares(world))
            assert_ranks_agree(world, attached.model)
            attached.close()
            ends[overlap] = weights(attached.model)
        agree = assert_bits if sums_alike(comm) else assert_close
    if node is not None:
        node.Free()
    agree(ends[None], ends[False])
    agree(ends[True], ends[False])
