"""What attached programs do between their calls means what it means in PyTorch."""

from __future__ import annotations

from functools import partial

import pytest

torch = pytest.importorskip("torch", minversion="2.9")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch_training import (  # noqa: E402
    LARGE,
    Attached,
    ByHand,
    assert_close,
    assert_ranks_agree,
    compare,
    numbers,
    perceptron,
    seeded,
    squares,
)

pytestmark = pytest.mark.mpi

MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
ADAM = partial(torch.optim.Adam, lr=0.01, eps=1e-3)


def several_passes(trainer, loss):
    kept = loss(trainer.forward, 0)
    kept.backward(retain_graph=True)
    kept.backward()
    loss(trainer.forward, 1).backward()
    trainer.step()


def no_zero_grad(trainer, loss):
    for step in range(3):
        loss(trainer.forward, step).backward()
        trainer.step()


def one_gradient_for_two_steps(trainer, loss):
    loss(trainer.forward, 0).backward()
    trainer.step()
    trainer.step()


def zero_grad_without_step(trainer, loss):
    loss(trainer.forward, 0).backward()
    trainer.optimizer.zero_grad()
    loss(trainer.forward, 1).backward()
    trainer.step()


def zero_grad_of_the_model(trainer, loss):
    for step in range(3):
        trainer.model.zero_grad()
        loss(trainer.forward, step).backward()
        trainer.step()


def zero_grad_of_some_layers(trainer, loss):
    loss(trainer.forward, 0).backward()
    trainer.model[0].zero_grad()
    trainer.step()
    with trainer.no_sync():
        loss(trainer.forward, 1).backward()
    trainer.model[2].zero_grad()
    loss(trainer.forward, 2).backward()
    trainer.step()


def gradients_set_to_zero(trainer, loss):
    for step in range(3):
        trainer.optimizer.zero_grad(set_to_none=False)
        loss(trainer.forward, step).backward()
        trainer.step()


def step_without_backward(trainer, loss):
    trainer.step()
    loss(trainer.forward, 0).backward()
    trainer.step()
    trainer.optimizer.zero_grad()
    trainer.step()


def discarded_within_no_sync(trainer, loss):
    with trainer.no_sync():
        loss(trainer.forward, 0).backward()
    trainer.optimizer.zero_grad()
    loss(trainer.forward, 1).backward()
    trainer.step()


def nested_no_sync(trainer, loss):
    with trainer.no_sync():
        with trainer.no_sync():
            loss(trainer.forward, 0).backward()
        loss(trainer.forward, 1).backward()
    loss(trainer.forward, 2).backward()
    trainer.step()


def evaluation_between(trainer, loss):
    out = loss(trainer.forward, 0)
    trainer.model.eval()
    with torch.no_grad():
        loss(trainer.forward, 1)
    with torch.inference_mode():
        loss(trainer.forward, 2)
    trainer.model.train()
    loss(trainer.forward, 3)  # a graph that is dropped
    out.backward()
    trainer.step()


def gradient_of_the_input(trainer, loss):
    x = numbers(5, 12, seed=(7, 0)).requires_grad_()
    gradient = torch.autograd.grad(trainer.forward(x).sum(), x)[0]
    (loss(trainer.forward, 0) + trainer.forward(gradient).square().mean()).backward()
    trainer.step()


def gradients_of_some(trainer, loss):
    """The last weight and the biases, and then the large weight alone."""
    _, bias, large, *rest = trainer.model.parameters()
    loss(trainer.forward, 0).backward(inputs=[bias, *rest])
    trainer.step()
    trainer.optimizer.zero_grad()
    loss(trainer.forward, 1).backward(inputs=[large])
    trainer.step()


def clipping_twice(trainer, loss):
    loss(trainer.forward, 0).backward()
    trainer.clip(1e-2)
    trainer.clip(1e-3)
    trainer.step()


def settings_changed_by_hand(trainer, loss):
    for step, lr in enumerate((0.1, 0.0, 0.05)):
        trainer.optimizer.param_groups[0].update(lr=lr, weight_decay=0.1 * step)
        trainer.optimizer.zero_grad()
        loss(trainer.forward, step).backward()
        trainer.step()


def settings_changed_after_backward(trainer, loss):
    for step in range(3):
        trainer.optimizer.zero_grad()
        loss(trainer.forward, step).backward()
        trainer.optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        trainer.step()


def weights_clamped(trainer, loss):
    for step in range(3):
        trainer.optimizer.zero_grad()
        loss(trainer.forward, step).backward()
        trainer.step()
        with torch.no_grad():
            for param in trainer.model.parameters():
                param.clamp_(-0.05, 0.05)


def weights_loaded(trainer, loss):
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    loss(trainer.forward, 0).backward()
    trainer.step()
    trainer.model.load_state_dict(start)
    trainer.optimizer.zero_grad()
    loss(trainer.forward, 1).backward()
    trainer.step()


def other_weights(trainer, loss):
    """A call of the model with weights of its own, as meta-learning makes them."""
    fast = {name: param.detach().clone().requires_grad_() for name, param in trainer.model.named_parameters()}
    out = torch.func.functional_call(trainer.model, fast, (numbers(5, 12, seed=(8, 0)),))
    gradients = torch.autograd.grad(out.square().sum(), list(fast.values()))
    scale = sum(gradient.square().sum() for gradient in gradients)
    (loss(trainer.forward, 1) / scale.sqrt()).backward()
    trainer.step()


def gradient_penalty(trainer, loss):
    """The gradient of the input is to have length 1, as in a Wasserstein GAN."""
    for step in range(3):
        trainer.optimizer.zero_grad()
        x = numbers(5, 12, seed=(9, step)).requires_grad_()
        gradient = torch.autograd.grad(trainer.forward(x).sum(), x, create_graph=True)[0]
        (loss(trainer.forward, step) + (gradient.norm(dim=1) - 1).square().mean()).backward()
        trainer.step()


def penalties_of_gradients_of_weights(trainer, loss):
    for step in range(3):
        trainer.optimizer.zero_grad()
        gradients = torch.autograd.grad(loss(trainer.forward, step), trainer.model.parameters(), create_graph=True)
        (loss(trainer.forward, step) + sum(gradient.square().sum() for gradient in gradients)).backward()
        trainer.step()


SCRIPTS = [
    several_passes, no_zero_grad, one_gradient_for_two_steps, zero_grad_without_step, zero_grad_of_the_model,
    zero_grad_of_some_layers, gradients_set_to_zero, step_without_backward, discarded_within_no_sync,
    nested_no_sync, evaluation_between, gradient_of_the_input, gradients_of_some, clipping_twice,
    settings_changed_by_hand, settings_changed_after_backward, weights_clamped, weights_loaded, other_weights,
    gradient_penalty, penalties_of_gradients_of_weights,
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_scripts(world, nodes, script, fused):
    compare(
        world, perceptron, MOMENTUM, lambda t: script(t, squares(world)), comm=nodes, fused=fused, overlap=False
    )  # fmt: skip


# What tensors hold when backward() returns may change before step().


@pytest.mark.parametrize("wanted", [False, True], ids=["input", "input with a gradient"])
def test_an_input_may_be_overwritten_after_backward(world, nodes, fused, wanted):
    """A buffer of batches; or an example that an attack changes in place."""

    def script(trainer):
        x = torch.empty(5, LARGE[1], dtype=torch.float64, requires_grad=wanted)
        for step in range(3):
            trainer.optimizer.zero_grad()
            for part in range(2):
                with torch.no_grad():
                    x.copy_(numbers(*x.shape, seed=(step, part, world.rank)))
                trainer.forward(x).square().mean().backward()
                with torch.no_grad():
                    x.fill_(1e3)
            trainer.step()

    compare(
        world, lambda: nn.Sequential(nn.Linear(*LARGE[::-1]), nn.Tanh()), ADAM, script, comm=nodes, fused=fused,
        overlap=False,
    )  # fmt: skip


def test_a_retained_gradient_may_be_overwritten(world, nodes, fused):
    def script(trainer):
        for step in range(3):
            trainer.optimizer.zero_grad()
            out = trainer.forward(numbers(5, LARGE[1], seed=(step, world.rank)))
            out.retain_grad()
            (out * numbers(5, LARGE[0], seed=(step, 1, world.rank))).sum().backward()
            out.grad.fill_(1e3)
            trainer.step()

    compare(world, lambda: nn.Linear(*LARGE[::-1]), ADAM, script, comm=nodes, fused=fused, overlap=False)


def test_a_weight_in_the_loss(world, nodes, fused):
    def script(trainer):
        loss = squares(world)
        trainer.train(
            lambda forward, step: loss(forward, step) + sum(0.1 * p.pow(2).sum() for p in trainer.model.parameters())
        )

    compare(world, perceptron, ADAM, script, comm=nodes, fused=fused)


@pytest.mark.parametrize("first", [0, 4], ids=["from the first step", "later"])
def test_a_weight_in_the_loss_of_some_ranks(world, nodes, fused, first):
    """Later: once exchanges begin during the backward pass."""

    def script(trainer):
        loss = squares(world)

        def penalised(forward, step):
            penalty = trainer.model[2].weight.pow(2).sum() if first <= step and step % 2 == world.rank % 2 else 0.0
            return loss(forward, step) + penalty

        trainer.train(penalised)

    compare(world, perceptron, ADAM, script, comm=nodes, fused=fused)


# Parameters that are frozen or unused.


def freeze(model, frozen, *names):
    for name, param in model.named_parameters():
        if name.startswith(names):
            param.requires_grad_(not frozen)


@pytest.mark.parametrize("frozen", ["0", "2", "4.bias", ("2.weight", "0")], ids=str)
def test_layers_frozen_before(world, nodes, fused, frozen):
    """Their optimizer may hold them or not; here it does."""
    names = (frozen,) if isinstance(frozen, str) else frozen

    def model():
        net = perceptron()
        freeze(net, True, *names)
        return net

    compare(world, model, MOMENTUM, lambda t: t.train(squares(world), steps=4), comm=nodes, fused=fused)


def test_the_optimizer_may_lack_frozen_layers(world, comm, fused):
    def model():
        net = perceptron()
        freeze(net, True, "0", "2")
        return net

    def make(params):
        return torch.optim.Adam([param for param in params if param.requires_grad], lr=0.01, eps=1e-3)

    compare(world, model, make, lambda t: t.train(squares(world), steps=4), comm=comm, fused=fused)


@pytest.mark.parametrize("name", ["0", "2", "4"])
def test_layers_frozen_and_thawed(world, nodes, fused, name):
    def script(trainer):
        loss = squares(world)
        for step in range(6):
            freeze(trainer.model, step in (1, 2, 4), name)
            trainer.optimizer.zero_grad()
            loss(trainer.forward, step).backward()
            trainer.step()

    compare(world, perceptron, MOMENTUM, script, comm=nodes, fused=fused, overlap=False)


class Branches(nn.Module):
    """Layers of which a call uses some: ``uses`` are names."""

    def __init__(self):
        super().__init__()
        self.large, self.also = nn.Linear(*LARGE[::-1]), nn.Linear(*LARGE[::-1])
        self.small, self.table = nn.Linear(LARGE[1], LARGE[0]), nn.Embedding(300, 300)
        self.outward = nn.Linear(LARGE[0], 3)

    def forward(self, x, uses):
        total = sum(getattr(self, name)(x) for name in uses if name != "table")
        if "table" in uses:
            total = total + self.table((x[:, 0] * 1e3).long() % 300)
        return self.outward(torch.tanh(total))


def use(world, trainer, choose, steps=5):
    for step in range(steps):
        trainer.optimizer.zero_grad()
        x = numbers(5, LARGE[1], seed=(step, world.rank))
        trainer.forward(x, choose(step)).square().mean().backward()
        trainer.step()


USES = {
    "none": lambda step, rank: ["large"],
    "some ranks": lambda step, rank: ["large", "also", "table"] if rank == 0 else ["large", "small"],
    "some steps": lambda step, rank: ["large", ("also", "small", "table")[step % 3]],
    "both": lambda step, rank: ["large", ("also", "small", "table")[(step * (rank + 1)) % 3]],
}


@pytest.mark.parametrize("name", USES)
def test_layers_used_by(world, nodes, fused, name):
    """A layer that no rank uses keeps its weights, without decay and momentum, as with find_unused_parameters."""
    compare(
        world, Branches, MOMENTUM, lambda t: use(world, t, lambda step: USES[name](step, world.rank)), comm=nodes,
        fused=fused,
    )  # fmt: skip


# Several models.


def test_two_models_train_against_each_other(world, nodes, fused):
    """A generator learns by the weights of a critic, whose gradients of that pass are discarded."""

    def models():
        return nn.Sequential(nn.Linear(8, 300), nn.Tanh(), nn.Linear(300, 300)), perceptron(inputs=300, outputs=1)

    def train(generator, critic, its_optimizer, optimizer, its_step, step):
        for number in range(4):
            noise = numbers(5, 8, seed=(number, world.rank))
            optimizer.zero_grad()
            real = critic(numbers(5, 300, seed=(number, 1, world.rank)))
            (functional.softplus(-real) + functional.softplus(critic(generator(noise).detach()))).mean().backward()
            step()
            its_optimizer.zero_grad()
            functional.softplus(-critic(generator(noise))).mean().backward()
            its_step()

    ours = [seeded(lambda i=i: models()[i], world.rank) for i in (0, 1)]
    theirs = [ByHand(world, seeded(lambda i=i: models()[i], world.rank), ADAM) for i in (0, 1)]
    train(*(t.model for t in theirs), *(t.optimizer for t in theirs), *(t.step for t in theirs))
    attached = [Attached(model, ADAM, nodes, fused=fused) for model in ours]
    train(*ours, *(t.optimizer for t in attached), *(t.step for t in attached))
    for mine, reference in zip(attached, theirs, strict=True):
        mine.close()
        assert_close(mine.model, reference.model)
        assert_ranks_agree(world, mine.model)


def test_two_models_share_a_loss(world, comm):
    """Handles on two models, one fused and one not, in one backward pass."""
    make = (MOMENTUM, partial(torch.optim.RMSprop, lr=0.01))
    theirs = [ByHand(world, seeded(perceptron, world.rank + 10 * i), make[i]) for i in (0, 1)]
    ours = [Attached(seeded(perceptron, world.rank + 10 * i), make[i], comm) for i in (0, 1)]
    assert [each.handle.fused for each in ours] == [True, False]
    for pair in (theirs, ours):
        for step in range(4):
            for each in pair:
                each.optimizer.zero_grad()
            x = numbers(5, 12, seed=(step, world.rank))
            (pair[0].forward(x) - pair[1].forward(x)).square().mean().backward()
            for each in pair:
                each.step()
    for mine, reference in zip(ours, theirs, strict=True):
        mine.close()
        assert_close(mine.model, reference.model)


def test_autocast(world, comm, fused):
    """Layers computed in bfloat16 leave gradients of the weights' type."""

    def script(trainer):
        for step in range(4):
            trainer.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = trainer.forward(numbers(5, 12, seed=(step, world.rank), dtype=torch.float32))
            out.float().square().mean().backward()
            trainer.step()

    compare(world, perceptron, MOMENTUM, script, comm=comm, dtype=torch.float32, tolerance=2e-3, fused=fused)
