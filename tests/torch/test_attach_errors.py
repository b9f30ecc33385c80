"""What cannot be trained is refused on every rank, and the ranks work on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import suppress
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
from mpi4py import MPI

import sfb

torch = pytest.importorskip("torch", minversion="2.9")

from jobs import mpirun, needs_mpirun  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch_training import LARGE, Attached, assert_bits, compare, perceptron, seeded, squares, weights  # noqa: E402

SGD, Adam = torch.optim.SGD, torch.optim.Adam
MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)

mpi = pytest.mark.mpi


def refused(world, call, error, message):
    """Assert that every rank raises an error, and that the ranks work on."""
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(set(world.allgather(type(caught.value)))) == 1
    world.Barrier()
    return str(caught.value)


def trains(world, comm=None):
    """Assert that the ranks can train a model."""
    compare(world, lambda: nn.Linear(*LARGE), MOMENTUM, lambda t: t.train(squares_of(world), 2), comm=comm)


def squares_of(world):
    return squares(world, inputs=LARGE[0], outputs=LARGE[1])


def with_optimizer(model, make=MOMENTUM):
    return model, make(model.parameters())


def quantised():
    model = perceptron()
    values = torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)
    model.register_parameter("codes", nn.Parameter(values, requires_grad=False))
    return model


def on_meta():
    model = nn.BatchNorm1d(3)
    model.running_mean = model.running_mean.to("meta")
    return with_optimizer(model)


def half(dtype):
    return with_optimizer(perceptron().to(dtype))


def lacks_one():
    model = perceptron()
    return model, SGD(list(model.parameters())[1:], lr=0.1)


def holds_another():
    model = perceptron()
    return model, SGD([*model.parameters(), nn.Parameter(torch.ones(3))], lr=0.1)


def of_another():
    return perceptron(), SGD(perceptron().parameters(), lr=0.1)


def partly(options, make=Adam):
    """Return a model with an optimizer of two groups, of which the second has options."""
    model = perceptron()
    first, *others = model.parameters()
    return model, make([{"params": [first]}, {"params": others, **options}], lr=0.01)


FUSED = {"fused": True}
BAD = {
    "no module": (lambda: (print, with_optimizer(perceptron())[1]), {}, TypeError, "Module"),
    "no optimizer": (lambda: (perceptron(), print), {}, TypeError, "Optimizer"),
    "meta": (lambda: with_optimizer(perceptron().to("meta")), {}, ValueError, "0.weight.*meta"),
    "meta buffer": (on_meta, {}, ValueError, "running_mean.*meta"),
    "no shape yet": (lambda: with_optimizer(nn.LazyLinear(3)), {}, ValueError, "weight has no shape"),
    "float16": (partial(half, torch.float16), FUSED, ValueError, "float16.*fused=False"),
    "bfloat16": (partial(half, torch.bfloat16), FUSED, ValueError, "bfloat16.*fused=False"),
    "complex": (lambda: with_optimizer(nn.Linear(3, 3, dtype=torch.complex64)), {}, TypeError, "weight.*complex64"),
    "sparse": (lambda: with_optimizer(nn.Embedding(9, 3, sparse=True)), {}, TypeError, "sparse=False"),
    "sparse bag": (lambda: with_optimizer(nn.EmbeddingBag(9, 3, sparse=True)), {}, TypeError, "sparse=False"),
    "quantised": (lambda: with_optimizer(quantised()), FUSED, TypeError, "codes.*qint8"),
    "parameter without optimizer": (lacks_one, {}, ValueError, "lacks 1 .*0.weight"),
    "optimizer with one more": (holds_another, {}, ValueError, "holds 1 parameter"),
    "optimizer of another model": (of_another, {}, ValueError, "holds 6 parameters"),
    "LBFGS": (lambda: with_optimizer(perceptron(), torch.optim.LBFGS), {}, TypeError, "LBFGS"),
    "RMSprop fused": (lambda: with_optimizer(perceptron(), torch.optim.RMSprop), FUSED, ValueError, "RMSprop"),
    "amsgrad fused": (partial(partly, {"amsgrad": True}), FUSED, ValueError, "amsgrad"),
    "dampening fused": (
        partial(partly, {"momentum": 0.9, "dampening": 0.1}, SGD),
        FUSED,
        ValueError,
        "dampening",
    ),
    "weight": (lambda: with_optimizer(perceptron()), {"weight": "batches"}, ValueError, "ranks, samples"),
}


@mpi
@pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.*deprecated")
@pytest.mark.parametrize("who", ["all", "last"])
@pytest.mark.parametrize("what", BAD)
def test_what_attach_refuses(world, what, who):
    make, options, error, message = BAD[what]
    culprit = who == "all" or world.rank == world.size - 1
    model, optimizer = make() if culprit else with_optimizer(perceptron())
    arguments = options if culprit else {}
    before = weights(model) if culprit and what not in ("no module", "no shape yet", "meta") else None
    text = refused(world, lambda: sfb.torch.attach(model, optimizer, **arguments), error, message)
    if who == "last" and world.size > 1:
        assert f"rank {world.size - 1}" in text
    if before is not None and what not in ("complex", "quantised"):
        assert_bits(model, before)
        assert "forward" not in vars(model)
    if what in ("complex", "float16", "amsgrad fused"):
        trains(world)


@mpi
@pytest.mark.parametrize("comm", ["world", 3, MPI.COMM_NULL, MPI.Intracomm()], ids=["text", "number", "null", "none"])
def test_comm_must_be_one(world, comm):
    refused(world, lambda: sfb.torch.attach(*with_optimizer(perceptron()), comm), TypeError, "Intracomm")


@mpi
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_averaged_in_float32(world, comm, dtype):
    model, optimizer = with_optimizer(seeded(perceptron, 0, dtype))
    with sfb.torch.attach(model, optimizer, comm) as handle:
        assert not handle.fused
        own = deepcopy(model)
        squares(world)(own, 0).backward()
        squares(world)(model, 0).backward()
    for name, param in model.named_parameters():
        mean = np.empty(param.shape, np.float32)
        world.Allreduce(own.get_parameter(name).grad.float().numpy() / world.size, mean)
        assert param.grad.dtype == dtype
        torch.testing.assert_close(param.grad, torch.from_numpy(mean).to(dtype))


@mpi
def test_attaching_twice(world, comm):
    model, optimizer = with_optimizer(perceptron())
    handle = sfb.torch.attach(model, optimizer, comm)
    for other, its in ((model, optimizer), (model[2], SGD(model[2].parameters(), lr=1)), with_optimizer(model)):
        refused(world, lambda other=other, its=its: sfb.torch.attach(other, its, comm), ValueError, "already")
    outer = nn.Sequential(model, nn.ReLU())
    refused(world, lambda: sfb.torch.attach(*with_optimizer(outer), comm), ValueError, "already")
    handle.detach()
    handle.detach()
    sfb.torch.attach(model, optimizer, comm).detach()


# Models that differ between ranks.


def one(frozen=False, **options):
    model = perceptron()
    model[0].bias.requires_grad_(not frozen)
    return model, SGD(model.parameters(), **{"lr": 0.1, **options})


def named(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(3, 3))
    return with_optimizer(model)


DIFFERENT = {
    "shape": (lambda: with_optimizer(perceptron(inputs=13)), {}, "0.weight, .400, 13."),
    "dtype": (lambda: with_optimizer(perceptron().double()), {}, "float64"),
    "more layers": (lambda: with_optimizer(perceptron().append(nn.Linear(3, 3))), {}, "5.weight"),
    "fewer layers": (lambda: with_optimizer(perceptron()[:3]), {}, "nothing more|4.weight"),
    "name": (lambda: named("inner"), {}, "inner.weight"),
    "frozen": (lambda: one(frozen=True), {}, "0.bias.*frozen"),
    "buffers": (lambda: with_optimizer(perceptron().append(nn.BatchNorm1d(3))), {}, "5.weight"),
    "optimizer": (lambda: with_optimizer(perceptron(), partial(Adam, lr=0.1)), {}, "Adam"),
    "lr": (lambda: one(lr=0.2), {}, "lr=0.2"),
    "momentum": (lambda: one(momentum=0.5), {}, "momentum=0.5"),
    "groups": (lambda: partly({}, SGD), {}, "group"),
    "fused": (lambda: one(), {"fused": False}, "fused=False"),
    "weight": (lambda: one(), {"weight": "samples"}, "weight=samples"),
    "overlap": (lambda: one(), {"overlap": True}, "overlap=True"),
}


@mpi
@pytest.mark.parametrize("what", DIFFERENT)
def test_ranks_with_different_models(world, what):
    if world.size == 1:
        pytest.skip("needs two ranks")
    make, options, message = DIFFERENT[what]
    model, optimizer = make() if world.rank == world.size - 1 else one()
    arguments = options if world.rank == world.size - 1 else {}
    text = refused(world, lambda: sfb.torch.attach(model, optimizer, **arguments), sfb.MismatchError, message)
    assert f"rank {world.size - 1}" in text
    assert len(set(world.allgather(text))) == 1


@mpi
def test_ranks_with_different_buffer_options(world):
    if world.size == 1:
        pytest.skip("needs two ranks")
    refused(
        world,
        lambda: sfb.torch.attach(*one(), broadcast_buffers=world.rank > 0),
        sfb.MismatchError,
        "broadcast_buffers",
    )


# Calls that have no meaning.


@mpi
def test_a_closure(world, comm, fused):
    trainer = Attached(seeded(perceptron), MOMENTUM, comm, fused=fused)
    for call in (lambda: trainer.optimizer.step(lambda: 0.0), lambda: trainer.optimizer.step(closure=lambda: 0.0)):
        refused(world, call, TypeError, "closure")
    trainer.train(squares(world), 2)
    trainer.close()


@mpi
def test_only_part_of_a_step_is_synchronised(world, comm, fused):
    trainer = Attached(seeded(perceptron), MOMENTUM, comm, fused=fused)
    start = weights(trainer.model)
    with trainer.no_sync():
        squares(world)(trainer.forward, 0).backward()
    for call in (trainer.step, lambda: trainer.clip(1.0)):
        refused(world, call, RuntimeError, "no_sync")
    assert_bits(trainer.model, start)
    squares(world)(trainer.forward, 1).backward()
    trainer.step()
    trainer.close()


@mpi
@pytest.mark.parametrize("norm", [-1.0, float("nan")])
def test_no_norm(world, comm, fused, norm):
    trainer = Attached(seeded(perceptron), MOMENTUM, comm, fused=fused)
    squares(world)(trainer.forward, 0).backward()
    refused(world, lambda: trainer.clip(norm), ValueError, "max_norm")
    trainer.step()
    trainer.close()


@pytest.fixture
def early(world, comm):
    """A training whose exchanges have begun in the backward pass, and are applied at once."""
    trainer = Attached(seeded(perceptron), MOMENTUM, comm, overlap=True)
    for step in range(3):
        trainer.optimizer.zero_grad()
        squares(world)(trainer.forward, step).backward()
        if step < 2:
            trainer.step()
    yield trainer
    with suppress(RuntimeError):
        trainer.step()
    trainer.close()


@mpi
@pytest.mark.parametrize("call", ["backward", "zero_grad", "clip", "lr"])
def test_gradients_that_are_applied_already(world, early, call):
    def change():
        early.optimizer.param_groups[0]["lr"] = 0.5
        early.step()

    calls = {
        "backward": lambda: squares(world)(early.forward, 5).backward(),
        "zero_grad": early.optimizer.zero_grad,
        "clip": lambda: early.clip(1.0),
        "lr": change,
    }
    refused(world, calls[call], RuntimeError, "overlap=False")


@mpi
def test_what_comes_after_attach(world, comm, fused):
    """Parameters that are thawed, and groups that are added, need another attach."""
    model = seeded(perceptron)
    model[4].requires_grad_(False)
    optimizer = MOMENTUM(param for param in model.parameters())
    loss = squares(world)
    handle = sfb.torch.attach(model, optimizer, comm, fused=fused)
    model[4].requires_grad_(True)
    refused(world, lambda: loss(model, 0).backward(), RuntimeError, "4.weight.*attach again")
    optimizer.zero_grad()
    handle.detach()
    with sfb.torch.attach(model, optimizer, comm, fused=fused):
        loss(model, 0).backward()
        optimizer.step()
        model.append(nn.Linear(3, 3).double())
        optimizer.add_param_group({"params": list(model[5].parameters())})
        refused(world, lambda: loss(model, 1).backward(), RuntimeError, "another parameter group")


@mpi
def test_sparse_gradients_of_a_function(world, comm, fused):
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(7, 3))

        def forward(self, words):
            return functional.embedding(words, self.table, sparse=True)

    model, optimizer = with_optimizer(Lookup())
    with sfb.torch.attach(model, optimizer, comm, fused=fused):
        refused(world, lambda: model(torch.tensor([1, 2])).sum().backward(), TypeError, "sparse")


@mpi
def test_a_scaler_of_gradients(world, comm, fused):
    """Fused updates have no gradients to scale; without them a scaler is at home."""
    trainer = Attached(seeded(perceptron, 0, torch.float32), MOMENTUM, comm, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(squares(world)(trainer.forward, 0)).backward()
    start = weights(trainer.model)
    if fused:
        refused(world, lambda: scaler.step(trainer.optimizer), TypeError, "GradScaler.*fused=False")
        assert_bits(trainer.model, start)
        trainer.close()
        return
    scaler.step(trainer.optimizer)
    scaler.update()
    trainer.close()
    plain = Attached(seeded(perceptron, 0, torch.float32), MOMENTUM, comm, fused=False)
    plain.train(squares(world), 1)
    plain.close()
    for name, param in weights(plain.model).items():
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), param)


# Whole jobs.


def job(ranks, script):
    preamble = """
        import torch
        from torch import nn
        from mpi4py import MPI
        import sfb.torch
        torch.set_num_threads(1)
        rank = MPI.COMM_WORLD.rank
        model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = sfb.torch.attach(model, optimizer)
        x = torch.ones(4, 300)
    """
    return mpirun(ranks, sys.executable, "-c", textwrap.dedent(preamble) + textwrap.dedent(script))


@needs_mpirun
@pytest.mark.parametrize("where", ["backward", "between"])
def test_one_rank_that_fails_ends_the_job(where):
    script = f"""
        def fail(*arguments):
            raise OSError("the disk of rank 1 is gone")
        if rank == 1 and {where!r} == "backward":
            model[1].register_full_backward_hook(fail)
        for step in range(3):
            optimizer.zero_grad()
            model(x).sum().backward()
            if rank == 1 and {where!r} == "between" and step == 1:
                fail()
            optimizer.step()
        print("ended")
    """
    code, out = job(2, script)
    assert code != 0
    assert "the disk of rank 1 is gone" in out
    assert "rank 1 failed" in out
    assert "ended" not in out


@needs_mpirun
def test_one_rank_that_leaves_is_not_waited_for_at_exit():
    """Rank 1 exits without detaching, as all do; nothing collective runs then."""
    code, out = job(2, "model(x).sum().backward(); optimizer.step(); print('done')")
    assert code == 0, out
    assert out.count("done") == 2


def test_the_package_does_not_load_torch():
    code = "import sys, sfb; sfb.Comm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
