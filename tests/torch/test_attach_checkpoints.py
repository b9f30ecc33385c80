"""State of attached models and optimizers: what users see, save, load and take away."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from functools import partial

import pytest

import sfb

torch = pytest.importorskip("torch", minversion="2.9")

from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402
from torch_training import (  # noqa: E402
    LARGE,
    Attached,
    ByHand,
    Trainer,
    assert_bits,
    assert_close,
    assert_ranks_agree,
    broadcast,
    perceptron,
    seeded,
    squares,
    weights,
)

pytestmark = pytest.mark.mpi

# Optimizer steps from one checkpoint to the next.
STEPS = 3

MAKERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD, momentum": partial(torch.optim.SGD, lr=0.02, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.01, eps=1e-3, weight_decay=0.1),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, eps=1e-3),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.05, lr_decay=0.1),
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture
def exact(world):
    """A Comm whose sums have the same bits in every run."""
    with sfb.Comm(world, reproducible=True) as comm:
        yield comm


def saved(trainer):
    """Return the state of a training as a program saves and loads it."""
    file = io.BytesIO()
    torch.save({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def restore(trainer, state):
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])


def later(world, steps):
    """Return a loss whose first step is one of later."""
    loss = squares(world)
    return lambda forward, step: loss(forward, step + steps)


def tensors(state, name=""):
    """Yield the tensors and numbers of nested dictionaries and lists, with their names."""
    if isinstance(state, (dict, list, tuple)):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{name}.{key}")
    else:
        yield name, state


def assert_same_layout(actual, expected, tolerance):
    """Assert that states hold the same names, types, shapes, and values within rounding."""
    actual, expected = dict(tensors(actual)), dict(tensors(expected))
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert type(actual[name]) is type(value), name
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert actual[name] == value, name


@makers
def test_states_have_the_layout_of_torch(world, comm, make, fused):
    reference = ByHand(world, seeded(perceptron), make)
    trainer = Attached(seeded(perceptron), make, comm, fused=fused)
    assert_same_layout(trainer.optimizer.state_dict(), reference.optimizer.state_dict(), 0)
    for each in (reference, trainer):
        each.train(squares(world))
    for state in (trainer.optimizer.state_dict(), saved(trainer)["optimizer"]):
        assert_same_layout(state, reference.optimizer.state_dict(), 1e-12)
    assert_same_layout(trainer.model.state_dict(), reference.model.state_dict(), 1e-12)
    trainer.close()
    assert_same_layout(trainer.optimizer.state_dict(), reference.optimizer.state_dict(), 1e-12)


@pytest.mark.parametrize(
    ("make", "fused", "order"),
    [
        *(pytest.param(make, True, "attach, load", id=f"{name}-fused") for name, make in MAKERS.items()),
        *(
            pytest.param(MAKERS["Adam"], fused, order, id=f"{order}-{'fused' if fused else 'not fused'}")
            for fused in (True, False)
            for order in ("load, attach", "load into the same")
        ),
    ],
)
def test_attached_training_continues_bit_for_bit(world, exact, make, order, fused):
    whole = Attached(seeded(perceptron), make, exact, fused=fused)
    whole.train(squares(world), STEPS)
    state = saved(whole)
    whole.train(later(world, STEPS), STEPS)
    expected, its_state = weights(whole.model), saved(whole)
    if order == "load into the same":
        again = whole
        world.Barrier()  # the weights of a node are one: a rank may not load while another looks at them
        restore(again, state)
    else:
        whole.close()
        model = seeded(perceptron, 7)
        if order == "load, attach":
            optimizer = make(model.parameters())
            if world.rank == 0:  # the others take the state of rank 0
                model.load_state_dict(state["model"])
                optimizer.load_state_dict(state["optimizer"])
            again = Attached(model, lambda _: optimizer, exact, fused=fused)
        else:
            again = Attached(model, make, exact, fused=fused)
            restore(again, state)
    again.train(later(world, STEPS), STEPS)
    assert_bits(again.model, expected)
    assert_same_layout(saved(again), its_state, 0)
    again.close()
    assert_bits(again.model, expected)


@makers
def test_plain_training_continues_attached_and_back(world, comm, make, fused):
    reference, plain = (ByHand(world, seeded(perceptron), make) for _ in range(2))
    reference.train(squares(world), 3 * STEPS)

    plain.train(squares(world), STEPS)
    attached = Attached(seeded(perceptron, 7), make, comm, fused=fused)
    restore(attached, saved(plain))
    attached.train(later(world, STEPS), STEPS)
    state = saved(attached)
    attached.close()
    back = ByHand(world, seeded(perceptron, 8), make)
    restore(back, state)
    back.train(later(world, 2 * STEPS), STEPS)
    assert_close(back.model, reference.model)
    assert_same_layout(back.optimizer.state_dict(), reference.optimizer.state_dict(), 1e-11)


@pytest.mark.parametrize("make", [MAKERS["SGD, momentum"], MAKERS["Adam"]], ids=["SGD, momentum", "Adam"])
def test_the_same_objects_go_on_plain_and_attached(world, comm, make, fused):
    """Detached they are this rank's own, and attached again they are one."""
    reference = ByHand(world, seeded(perceptron), make)
    reference.train(squares(world), 3 * STEPS)
    trainer = Attached(seeded(perceptron), make, comm, fused=fused)
    trainer.train(squares(world), STEPS)
    trainer.close()

    by_hand = ByHand(world, trainer.model, lambda _: trainer.optimizer)
    by_hand.train(later(world, STEPS), STEPS)
    with sfb.torch.attach(trainer.model, trainer.optimizer, comm, fused=fused):
        trainer.train(later(world, 2 * STEPS), STEPS)
    assert_close(trainer.model, reference.model)
    own = Trainer(trainer.model, lambda _: trainer.optimizer)
    own.train(squares(world), 1)
    if world.size > 1:
        large = trainer.model[2].weight.detach()
        assert len(set(world.allgather(large.numpy().tobytes()))) == world.size


def test_one_rank_saves(world, comm):
    """Reading states is not collective, and a file holds no more than the state of plain PyTorch."""
    trainer = Attached(seeded(perceptron), MAKERS["Adam"], comm)
    trainer.train(squares(world), 2)
    sizes = {}
    if world.rank == 0:
        plain = Trainer(seeded(perceptron), MAKERS["Adam"])
        plain.train(squares(world), 2)
        for name, each in (("attached", trainer), ("plain", plain)):
            file = io.BytesIO()
            torch.save((each.model.state_dict(), each.optimizer.state_dict()), file)
            sizes[name] = file.tell()
        assert sizes["attached"] <= 1.02 * sizes["plain"]
    trainer.train(squares(world), 2)
    trainer.close()


class Named(nn.Module):
    """A model with a class, a name and buffers of its own."""

    def __init__(self):
        super().__init__()
        self.large, self.table = nn.Linear(*LARGE[::-1]), nn.Embedding(300, 300)
        self.norm = nn.BatchNorm1d(LARGE[0])

    def forward(self, x):
        return self.norm(self.large(x) + self.table((x[:, 0] * 1e3).long() % 300))


def test_the_model_stays_what_it_is(world, comm, fused):
    model, plain = seeded(Named), seeded(Named)
    optimizer = MAKERS["Adam"](model.parameters())
    params = list(model.parameters())
    with sfb.torch.attach(model, optimizer, comm, fused=fused) as handle:
        assert type(model) is Named
        assert repr(model) == repr(plain)
        assert list(model.state_dict()) == list(plain.state_dict())
        assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
        assert all(a is b for a, b in zip(params, model.parameters(), strict=True))
        assert repr(optimizer) == repr(MAKERS["Adam"](plain.parameters()))
        assert (handle.model, handle.optimizer, handle.fused) == (model, optimizer, fused)
        assert handle.comm is comm
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        assert vars(module).keys() == vars(other).keys()
    hooks = ("_backward_hooks", "_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)
    assert not any(param._post_accumulate_grad_hooks for param in params)


COPIES = {
    "deepcopy": deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(_file_of(model), weights_only=False),
}


def _file_of(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_a_plain_model(world, comm, copy, fused):
    """It shares no memory, learns by itself, and can be attached."""
    trainer = Attached(seeded(perceptron), MAKERS["SGD, momentum"], comm, fused=fused)
    trainer.train(squares(world), 2)
    before = weights(trainer.model)
    copied = copy(trainer.model)
    assert type(copied) is type(trainer.model)
    assert_bits(copied, before)
    alone = Trainer(copied, MAKERS["SGD"])
    if world.rank == 0:
        alone.train(squares(world), 2)
        assert not torch.equal(copied[2].weight, before["2.weight"])
        assert copied[2].weight.grad is not None
    assert_bits(trainer.model, before)
    trainer.train(squares(world), 2)
    other = Attached(copied, MAKERS["SGD"], comm, fused=fused)
    other.train(squares(world), 2)
    assert_ranks_agree(world, copied)
    other.close()
    trainer.close()


def test_an_average_of_the_weights(world, comm, fused):
    reference = ByHand(world, seeded(perceptron), MAKERS["SGD"])
    trainer = Attached(seeded(perceptron), MAKERS["SGD"], comm, fused=fused)
    averages = []
    for each in (reference, trainer):
        average = AveragedModel(each.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        for step in range(3):
            each.train(later(world, step), 1)
            average.update_parameters(each.model)
        averages.append(average)
    assert_close(averages[1], averages[0])
    trainer.close()


# Handles.


@pytest.mark.parametrize("kind", ["default", "intracommunicator", "part", "Comm"])
def test_communicators(world, kind):
    """Also a part of the ranks; the others train by themselves."""
    comm, mine = None, world
    if kind == "intracommunicator":
        comm = mine = world.Dup()
    elif kind == "part":
        comm = mine = world.Split(world.rank % 2)
    elif kind == "Comm":
        comm = sfb.Comm(world, reproducible=True, progress="poll")
    reference = ByHand(mine, seeded(perceptron, world.rank), MAKERS["Adam"])
    trainer = Attached(seeded(perceptron, world.rank), MAKERS["Adam"], comm)
    assert isinstance(trainer.handle.comm, sfb.Comm)
    assert trainer.handle.comm.size == mine.size
    for each in (reference, trainer):
        each.train(squares(mine))
    trainer.close()
    assert_close(trainer.model, reference.model)
    if isinstance(comm, sfb.Comm):
        comm.free()
    elif comm is not None:
        comm.Free()


def test_exchanges_in_16_bits(world):
    """Options of a Comm hold: factors travel in bfloat16, and results are near."""
    with sfb.Comm(world, wire="bfloat16") as comm:
        reference = ByHand(world, seeded(perceptron, 0, torch.float32), MAKERS["SGD"])
        trainer = Attached(seeded(perceptron, 0, torch.float32), MAKERS["SGD"], comm)
        for each in (reference, trainer):
            each.train(squares(world))
        trainer.close()
    assert_ranks_agree(world, trainer.model)
    assert_close(trainer.model, reference.model, 1e-3)


def test_a_block_detaches(world, comm, fused):
    model = seeded(perceptron)
    optimizer = MAKERS["Adam"](model.parameters())
    for _ in range(3):
        with sfb.torch.attach(model, optimizer, comm, fused=fused):
            squares(world)(model, 0).backward()
            optimizer.step()
            optimizer.zero_grad()
    squares(world)(model, world.rank).backward()
    assert all(param.grad is not None for param in model.parameters())


def test_gradients(world, comm, fused):
    """Fused, large weights have none; else every rank has the mean."""
    trainer = Attached(seeded(perceptron), MAKERS["SGD"], comm, fused=fused)
    reference = ByHand(world, seeded(perceptron), MAKERS["SGD"])
    for each in (trainer, reference):
        squares(world)(each.forward, 0).backward()
    reference.average()
    for name, param in trainer.model.named_parameters():
        if fused and name == "2.weight":
            assert param.grad is None
        else:
            torch.testing.assert_close(param.grad, reference.model.get_parameter(name).grad, rtol=1e-12, atol=1e-15)
    trainer.close()


def test_explain(world, comm, fused):
    trainer = Attached(seeded(Named), MAKERS["Adam"], comm, fused=fused)
    assert "large.weight" in trainer.handle.explain() or (world.size == 1 and not fused)
    trainer.train(squares(world, inputs=LARGE[1], outputs=LARGE[0]), 2)
    text = trainer.handle.explain()
    head, *lines = text.splitlines()
    for word in ("parameter", "shape", "algorithm", "received", "exchange", "rebuild"):
        assert word in head
    if fused or world.size > 1:
        (large,) = (line for line in lines if line.startswith("large.weight"))
        assert "300×400" in large
        assert ("fused" in large) is fused
        assert comm.last_exchange is not None
    if world.size > 1:
        (table,) = (line for line in lines if line.startswith("table.weight"))
        assert "300×300" in table
        assert "rows" in table
    assert "others" in lines[-1]
    trainer.close()


def test_weights_of_a_node_are_one(world, comm):
    """Ranks of a node see in their weights what one of them writes."""
    trainer = Attached(seeded(perceptron), MAKERS["SGD"], comm)
    node = comm.node
    with torch.no_grad():
        if node.rank == 0:
            trainer.model[2].weight[0, 0] = 12.5
    node.Barrier()
    assert trainer.model[2].weight[0, 0] == 12.5
    node.Barrier()
    trainer.close()
    if node.rank == 0:
        trainer.model[2].weight.detach()[0, 0] = 3.5
    node.Barrier()
    assert trainer.model[2].weight[0, 0] == (3.5 if node.rank == 0 else 12.5)


def test_rank_0_gives_its_state(world, comm, fused):
    """Weights, buffers and the state of the optimizer, which other ranks may lack."""
    model = nn.Sequential(seeded(perceptron, world.rank), nn.BatchNorm1d(3).double())
    optimizer = MAKERS["Adam"](model.parameters())
    if world.rank == 0:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(4, 12).double()).square().mean().backward()
            optimizer.step()
    optimizer.zero_grad()
    expected = deepcopy(model)
    broadcast(world, expected)
    state = world.bcast(optimizer.state_dict()["state"])
    with sfb.torch.attach(model, optimizer, comm, fused=fused):
        assert_bits(dict(model.state_dict()), dict(expected.state_dict()))
        assert_same_layout(optimizer.state_dict()["state"], state, 0)
