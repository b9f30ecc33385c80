"""What one rank has and others do not: NaN, no samples, fewer batches."""

from __future__ import annotations

from functools import partial

import pytest
from mpi4py import MPI

torch = pytest.importorskip("torch", minversion="2.9")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch_training import (  # noqa: E402
    Attached,
    ByHand,
    assert_close,
    assert_ranks_agree,
    broadcast,
    compare,
    numbers,
    perceptron,
    seeded,
    squares,
    weights,
)

pytestmark = pytest.mark.mpi

MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
ADAM = partial(torch.optim.Adam, lr=0.01, eps=1e-3)


def test_a_nan_reaches_all_ranks(world, nodes, fused):
    trainer = Attached(seeded(perceptron), MOMENTUM, nodes, fused=fused)
    loss = squares(world)
    trainer.train(loss, steps=1)
    trainer.optimizer.zero_grad()
    (loss(trainer.forward, 1) * (float("nan") if world.rank == world.size - 1 else 1.0)).backward()
    trainer.step()
    for name, param in trainer.model.named_parameters():
        assert param.isnan().all(), name
    trainer.close()


def test_the_norm_of_a_nan(world, comm, fused):
    trainer = Attached(seeded(perceptron), MOMENTUM, comm, fused=fused)
    (squares(world)(trainer.forward, 1) * float("nan")).backward()
    assert trainer.clip(1.0).isnan()
    trainer.close()


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_the_norm_of_what_overflows_or_underflows_when_squared(world, comm, fused, scale):
    norms = []
    for factor in (1.0, scale):
        trainer = Attached(seeded(perceptron), MOMENTUM, comm, fused=fused)
        (squares(world)(trainer.forward, 1) * factor).backward()
        norms.append(trainer.clip(scale / 10))
        trainer.step()
        trainer.close()
        assert all(param.isfinite().all() for param in trainer.model.parameters())
    torch.testing.assert_close(norms[1] / scale, norms[0], rtol=1e-4, atol=0)


def sums(world, samples):
    """Return a loss, a sum over ``samples(step, rank)`` samples, which may be none."""

    def loss(forward, step):
        x = numbers(samples(step, world.rank), 12, seed=(step, world.rank))
        return forward(x).sin().square().sum()

    return loss


@pytest.mark.parametrize(
    "samples",
    [lambda step, rank: 5 * (rank != 0), lambda step, rank: 4 * ((step + rank) % 2), lambda step, rank: 3 * rank],
    ids=["none on rank 0", "none in turn", "more on later ranks"],
)
def test_empty_batches(world, nodes, fused, samples):
    if world.size == 1:
        samples = lambda step, rank: 2 * (step % 2)  # noqa: E731
    make = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    compare(world, perceptron, make, lambda t: t.train(sums(world, samples)), comm=nodes, fused=fused)


@pytest.mark.parametrize("last", ["empty", "short"])
def test_weighted_by_samples(world, nodes, fused, last):
    """Batches of any length, with means as losses, equal one batch of all samples."""

    def length(step, rank):
        return (0 if last == "empty" else 1) if rank == world.size - 1 and step else 2 + (3 * step + rank) % 5

    def data(step, rank):
        seed = (step, rank)
        return numbers(length(*seed), 12, seed=seed), numbers(length(*seed), 3, seed=(*seed, 1))

    def mean(forward, step):
        x, y = data(step, world.rank)
        return functional.mse_loss(forward(x), y)

    def mean_of_all(forward, step):
        x, y = (torch.cat(parts) for parts in zip(*(data(step, r) for r in range(world.size)), strict=True))
        return functional.mse_loss(forward(x), y)

    model, reference = (seeded(perceptron, world.rank) for _ in range(2))
    broadcast(world, reference)
    optimizer = ADAM(reference.parameters())
    steps = 4 if world.size > 1 or last == "short" else 1
    for step in range(steps):
        optimizer.zero_grad()
        mean_of_all(reference, step).backward()
        optimizer.step()
    trainer = Attached(model, ADAM, nodes, fused=fused, weight="samples")
    trainer.train(mean, steps)
    trainer.close()
    assert_close(model, reference)
    assert_ranks_agree(world, model)


def test_weighted_by_samples_without_any(world, comm, fused):
    trainer = Attached(seeded(perceptron), MOMENTUM, comm, fused=fused, weight="samples")
    start = weights(trainer.model)
    functional.mse_loss(trainer.forward(torch.empty(0, 12).double()), torch.empty(0, 3).double()).backward()
    trainer.step()
    trainer.close()
    decayed = {name: param * (1 - 0.1 * 0.01) for name, param in start.items()}
    assert_close(trainer.model, decayed)


JOINS = {
    "fewer on later ranks": lambda rank, size: 2 + size - rank,
    "fewer on earlier ranks": lambda rank, size: 2 + rank,
    "none on rank 0": lambda rank, size: 3 * (rank > 0),
    "none on the last rank": lambda rank, size: 3 * (rank < size - 1),
    "as many": lambda rank, size: 3,
    "none": lambda rank, size: 0,
}


@pytest.mark.parametrize("name", JOINS)
def test_join(world, nodes, fused, name):
    """Ranks without batches take part with gradients of zero, and follow the scheduler of the others."""
    mine = JOINS[name](world.rank, world.size)
    most = world.allreduce(mine, MPI.MAX)
    loss = squares(world)

    def take(trainer, scheduler, step, batch):
        trainer.optimizer.zero_grad()
        if batch:
            loss(trainer.forward, step).backward()
        trainer.clip(0.5)
        trainer.step()
        scheduler.step()

    reference = ByHand(world, seeded(perceptron, world.rank), MOMENTUM)
    scheduler = torch.optim.lr_scheduler.StepLR(reference.optimizer, 2, 0.5)
    for step in range(most):
        take(reference, scheduler, step, step < mine)
    trainer = Attached(seeded(perceptron, world.rank), MOMENTUM, nodes, fused=fused)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2, 0.5)
    with trainer.handle.join():
        for step in range(mine):
            take(trainer, scheduler, step, True)
    assert_close(trainer.model, reference.model)
    assert_ranks_agree(world, trainer.model)
    trainer.optimizer.param_groups[0]["lr"] = reference.optimizer.param_groups[0]["lr"] = 0.02
    trainer.train(loss, steps=2)  # the ranks go on together
    reference.train(loss, steps=2)
    trainer.close()
    assert_close(trainer.model, reference.model)


def test_join_with_accumulation_and_buffers(world, nodes, fused):
    """Each step is two backward passes; buffers come from a rank that has batches."""

    def model():
        return nn.Sequential(perceptron(outputs=6), nn.BatchNorm1d(6))

    mine = 2 + world.rank
    loss = squares(world, outputs=6)

    def take(trainer, step, batch=True):
        trainer.optimizer.zero_grad()
        if batch:
            with trainer.no_sync():
                loss(trainer.forward, step).backward()
            loss(trainer.forward, 100 + step).backward()
        trainer.step()

    reference = ByHand(world, seeded(model, world.rank), ADAM)
    for step in range(world.size + 1):
        take(reference, step, step < mine)
    trainer = Attached(seeded(model, world.rank), ADAM, nodes, fused=fused)
    with trainer.handle.join():
        for step in range(mine):
            take(trainer, step)
    trainer.close()
    assert_close(trainer.model, reference.model)
    assert_ranks_agree(world, trainer.model)
    for name, buffer in trainer.model.named_buffers():
        assert len({each.numpy().tobytes() for each in world.allgather(buffer)}) == 1, name


def test_join_weighted_by_samples(world, nodes):
    """Every step is the mean over the samples that there are."""
    mine = 2 + world.rank
    model, reference = (seeded(perceptron, world.rank) for _ in range(2))
    broadcast(world, reference)
    optimizer = ADAM(reference.parameters())
    for step in range(1 + world.size):
        parts = [(step, rank) for rank in range(world.size) if step < 2 + rank]
        optimizer.zero_grad()
        out = reference(torch.cat([numbers(2 + rank, 12, seed=(step, rank)) for step, rank in parts]))
        out.sin().mean().backward()
        optimizer.step()
    trainer = Attached(model, ADAM, nodes, weight="samples")
    with trainer.handle.join():
        trainer.train(
            lambda forward, step: forward(numbers(2 + world.rank, 12, seed=(step, world.rank))).sin().mean(), mine
        )
    trainer.close()
    assert_close(model, reference)
    assert_ranks_agree(world, model)
