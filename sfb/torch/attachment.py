"""Data-parallel training of a PyTorch model whose linear layers send factors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

import sfb
from sfb.launch import end_job_on_error
from sfb.runtime.agreement import compare, on_all_ranks
from sfb.runtime.team import check_comm
from sfb.runtime.threads import cores, same_host, threads_of
from sfb.torch.checks import check_half, check_model, check_optimizer
from sfb.torch.collect import patch, patched, unpatch
from sfb.torch.handle import Handle, Model
from sfb.torch.rules import FusedState, refusal
from sfb.torch.state import broadcast
from sfb.torch.weights import FusedWeight, MeanWeight, TableWeight

__all__ = ["attach"]

# Elements of a weight from which its factors travel: a smaller gradient is formed and sent sooner than it is planned.
_LARGE = 1 << 16
# Elements to which arrays in shared memory are aligned.
_ALIGNED = 1024

_WEIGHTS = ("ranks", "samples")

# Handles by their models, and by the modules and optimizers whose zero_grad they follow.
_attached: WeakKeyDictionary[Any, Handle] = WeakKeyDictionary()


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    comm: MPI.Intracomm | None = None,
    *,
    fused: bool | None = None,
    weight: str = "ranks",
    broadcast_buffers: bool = True,
    overlap: bool | None = None,
) -> Handle:
    """Let ranks train a model together, in place of wrapping it in DistributedDataParallel; collective.

    The training loop stays as it is, and so do the class of the model and the keys of its state. All ranks take the
    parameters, buffers and optimizer state of rank 0. From then on gradients are means over the ranks: those of large
    `torch.nn.Linear` layers travel as sufficient factors, those of `torch.nn.Embedding` as the rows touched, others in
    flat arrays.

    Args:
        model: The model, on the CPU.
        optimizer: The optimizer of all its trainable parameters.
        comm: The ranks: COMM_WORLD by default, any `MPI.Intracomm`, or a `sfb.Comm` with options of its own.
        fused: Keep weights of large linear layers in memory that the ranks of a node share, and let `sfb.optim` apply
            the mean in step() without forming it: `grad` of these weights stays None. None for that where the optimizer
            is SGD, Adam, AdamW or Adagrad of torch.optim with options that a rule of `sfb.optim` has, and no parameter
            has 16 bits. False to fill every `grad` in backward(), for any optimizer.
        weight: "ranks" for the mean over ranks, as DistributedDataParallel takes it; "samples" to weight ranks by the
            samples they gave to the model since the last exchange, the length of the first tensor passed to it, so that
            the result is the mean over all samples where losses are means.
        broadcast_buffers: Give all ranks the buffers of rank 0 after each backward pass, running means of batch
            normalisation for instance.
        overlap: Begin exchanges during the backward pass. None for that between nodes; weights in shared memory are
            then updated during the backward pass, too, once two steps have called backward() once each. True updates
            them there at once, False never.

    Returns:
        A `Handle`: `no_sync`, `clip_grad_norm_`, `join`, `explain`, `detach`.

    Raises:
        MismatchError: Parameters, buffers, optimizers or arguments differ between ranks; on all of them.
        TypeError, ValueError: Something of the model, the optimizer or the arguments cannot be used, or the model is
            attached already; on all ranks.

    >>> import torch, sfb.torch
    >>> model = torch.nn.Linear(512, 256)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = sfb.torch.attach(model, optimizer)
    >>> for x in torch.ones(3, 8, 512):
    ...     optimizer.zero_grad()
    ...     model(x).square().mean().backward()
    ...     optimizer.step()
    >>> handle.detach()
    """
    world = MPI.COMM_WORLD if comm is None else comm
    check_comm("comm", world)
    with on_all_ranks(world, "attach"):
        fused = _check(model, optimizer, fused, weight)
        options = {"fused": fused, "weight": weight, "broadcast_buffers": broadcast_buffers, "overlap": overlap}
        lines = list(_description(model, optimizer, *(f"{key}={value}" for key, value in options.items())))
    _compare_lines(world, lines)

    own = comm if isinstance(comm, sfb.Comm) else sfb.Comm(world)
    host = same_host(world)
    threads = threads_of(host, cores(host))
    host.Free()
    _take_state(own, model, optimizer)
    parts = Model(model, optimizer)
    handle = Handle(
        parts,
        own,
        fused=fused,
        by_samples=weight == "samples",
        broadcast_buffers=broadcast_buffers,
        overlap=overlap,
        threads=threads,
    )
    _sort(handle, parts)
    _follow(handle, parts, count=weight == "samples")
    if own is not comm:
        handle.at_detach(own.free)
    return handle


def _check(model: nn.Module, optimizer: torch.optim.Optimizer, fused: bool | None, weight: str) -> bool:
    """Check the arguments of `attach`, and return whether to fuse."""
    check_model(model)
    check_optimizer(model, optimizer)
    if weight not in _WEIGHTS:
        raise ValueError(f"weight must be one of {', '.join(_WEIGHTS)}, got {weight!r}")
    if any(module in _attached for module in (optimizer, *model.modules())):
        raise ValueError("the model or the optimizer is attached already: detach it first")
    refused = refusal(optimizer)
    if fused is None:
        half = any(p.requires_grad and p.dtype.itemsize < 4 for p in model.parameters())
        return refused is None and not half
    if fused:
        if refused is not None:
            raise ValueError(refused)
        check_half(model.named_parameters())
    return fused


def _description(model: nn.Module, optimizer: torch.optim.Optimizer, *arguments: str) -> Iterator[str]:
    """Yield what must be equal on all ranks, in parts."""
    names = {param: name for name, param in model.named_parameters()}
    yield ", ".join(arguments)
    for name, param in model.named_parameters():
        frozen = "" if param.requires_grad else ", frozen"
        yield f"parameter {name}, {tuple(param.shape)} {param.dtype}{frozen}"
    for name, buffer in model.named_buffers():
        yield f"buffer {name}, {tuple(buffer.shape)} {buffer.dtype}"
    yield f"optimizer {type(optimizer).__name__}"
    for number, group in enumerate(optimizer.param_groups):
        options = ", ".join(f"{key}={value}" for key, value in sorted(group.items()) if key != "params")
        members = ", ".join(names[param] for param in group["params"])
        yield f"parameter group {number} with {options}; of {members}"


def _compare_lines(world: MPI.Intracomm, lines: list[str]) -> None:
    """Raise MismatchError with the first line that differs between ranks."""
    everybody = world.allgather(lines)
    for i in range(max(map(len, everybody))):
        if len({tuple(each[i : i + 1]) for each in everybody}) > 1:
            compare(world, "attach", lines[i] if i < len(lines) else "nothing more")


def _take_state(comm: sfb.Comm, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take parameters, buffers and state of the optimizer from rank 0."""
    broadcast(comm, [*model.parameters(), *model.buffers()])
    held = comm.bcast({key: value for key, value in optimizer.state_dict().items() if key == "state"})
    if comm.rank != 0 and (held["state"] or optimizer.state):
        optimizer.load_state_dict({**optimizer.state_dict(), **held})


def _sort(handle: Handle, parts: Model) -> None:
    """Decide how the gradient of each parameter travels, and prepare for it."""
    users: dict[nn.Parameter, list[nn.Module]] = {}
    for module in parts.module.modules():
        for param in module.parameters(recurse=False):
            users.setdefault(param, []).append(module)
    collected: list[tuple[str, nn.Parameter]] = []
    for name, param in parts.module.named_parameters():
        if not param.requires_grad:
            parts.frozen[name] = param
        elif _collects(param, users[param], handle):
            collected.append((name, param))
        else:
            parts.others.append(param)

    if handle.fused:
        parts.weights += _share(handle, parts, [each for each in collected if _linear(users[each[1]])])
    else:
        parts.weights += _average(handle, [each for each in collected if _linear(users[each[1]])])
    parts.weights += [
        TableWeight(name, param, handle.arrived) for name, param in collected if not _linear(users[param])
    ]
    for weight in parts.weights:
        handle.at_detach(weight.release)
        for module in users[weight.param]:
            patch(module, weight)
            handle.at_detach(partial(unpatch, module))
    for param in parts.others:
        handle.at_detach(param.register_post_accumulate_grad_hook(handle.other_arrived).remove)


def _linear(modules: list[nn.Module]) -> bool:
    return isinstance(modules[0], nn.Linear)


def _collects(param: nn.Parameter, users: list[nn.Module], handle: Handle) -> bool:
    """Return whether the gradient of a parameter is collected rather than formed."""
    if param.numel() < _LARGE or param.dtype.itemsize < 4 or (handle.comm.size == 1 and not handle.fused):
        return False
    if any(patched(module) is None or module.weight is not param for module in users):
        return False
    if _linear(users):
        # torch uses the weights of this subclass without calling its forward.
        inner = nn.modules.linear.NonDynamicallyQuantizableLinear
        return all(isinstance(module, nn.Linear) and not isinstance(module, inner) for module in users)
    return handle.comm.size > 1 and all(isinstance(module, nn.Embedding) for module in users)


def _share(handle: Handle, parts: Model, named: list[tuple[str, nn.Parameter]]) -> list[FusedWeight]:
    """Move weights and the state of their rules into memory that the ranks of a node share."""
    groups = {param: group for group in parts.optimizer.param_groups for param in group["params"]}
    weights = [
        FusedWeight(name, param, handle.arrived, FusedState(parts.optimizer, groups[param], param))
        for name, param in named
    ]
    # One window for each type, as MPI has few.
    for dtype in dict.fromkeys(weight.param.dtype for weight in weights):
        group = [weight for weight in weights if weight.param.dtype == dtype]
        sizes = [-(-weight.param.numel() // _ALIGNED) * _ALIGNED for weight in group]
        counts = [1 + weight.state.arrays for weight in group]
        arena = handle.comm.shared(sum(map(int.__mul__, sizes, counts)), group[0].param.detach().numpy().dtype)
        start = 0
        for weight, size, count in zip(group, sizes, counts, strict=True):
            arrays = []
            for _ in range(count):
                arrays.append(arena[start : start + weight.param.numel()].reshape(weight.shape))
                start += size
            _move(handle, weight, arrays)
    handle.comm.node.Barrier()
    return weights


def _move(handle: Handle, weight: FusedWeight, arrays: list[np.ndarray]) -> None:
    param = weight.param
    np.copyto(arrays[0], param.detach().numpy())  # all ranks of the node write the same
    param.data = torch.from_numpy(arrays[0])
    weight.state.bind(arrays[0], arrays[1:])

    def restore() -> None:
        param.data = param.data.clone()
        weight.state.release()

    handle.at_detach(restore)


def _average(handle: Handle, named: list[tuple[str, nn.Parameter]]) -> list[MeanWeight]:
    """Prepare weights whose gradients become means; the ranks of a node form them in memory that they share."""
    weights = []
    staging: dict[Any, np.ndarray] = {}
    if handle.comm.allreduce(handle.comm.node.size, MPI.MAX) > 1:  # nodes differ, and `shared` is collective
        for dtype in dict.fromkeys(param.dtype for _, param in named):
            most = max(param.numel() for _, param in named if param.dtype == dtype)
            staging[dtype] = handle.comm.shared(most, torch.empty(0, dtype=dtype).numpy().dtype)
    for name, param in named:
        weights.append(MeanWeight(name, param, handle.arrived, staging.get(param.dtype)))
    return weights


def _follow(handle: Handle, parts: Model, *, count: bool) -> None:
    """Let the handle know what the program calls: step, zero_grad, load_state_dict, and the model itself."""
    model, optimizer = parts.module, parts.optimizer
    for owner in (optimizer, *model.modules()):
        _attached[owner] = handle
        handle.at_detach(partial(_attached.pop, owner, None))
        _set(handle, owner, "zero_grad", MethodType(_zero_grad, owner))
    handle.at_detach(optimizer.register_step_pre_hook(_before_step).remove)
    if handle.fused:
        fused = [weight for weight in parts.weights if isinstance(weight, FusedWeight)]

        def adopt(optimizer: torch.optim.Optimizer) -> None:
            for weight in fused:
                weight.state.adopt()

        handle.at_detach(optimizer.register_load_state_dict_post_hook(adopt).remove)
        # GradScaler then leaves the scale to the step, which refuses it: these gradients are never formed.
        _set(handle, optimizer, "_step_supports_amp_scaling", True)
    if count:
        handle.at_detach(model.register_forward_pre_hook(_count_samples, with_kwargs=True).remove)
    if handle.comm.size > 1:
        end_job_on_error()


def _set(handle: Handle, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of one object, in front of that of its class, until the handle is detached."""
    setattr(owner, name, value)
    handle.at_detach(partial(delattr, owner, name))


def _zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
    type(self).zero_grad(self, *args, **kwargs)
    handle = _attached.get(self)
    if handle is not None:
        everything = self is handle.optimizer or self is handle.model
        handle.zero_grad(None if everything else self.parameters())


_zero_grad.__name__ = "zero_grad"  # pickle finds a bound method by its name


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    handle = _attached.get(optimizer)
    if handle is None:
        return
    if any(argument is not None for argument in (*args[1:], *kwargs.values())):
        raise TypeError("step(closure) evaluates the model within the step; call backward(), then step()")
    handle.step()


def _count_samples(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    handle = _attached.get(model)
    if handle is not None and model.training and torch.is_grad_enabled():
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)), None)
        if first is None:
            raise TypeError('weight="samples" counts the samples of the first tensor passed to the model, got none')
        handle.count_samples(len(first))
