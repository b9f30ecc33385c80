"""The collectives of a process group, by an `sfb.Comm` and by MPI."""

# PyTorch does not export to type checkers all that it exports; its signatures are sets of overloads.
# mypy: disable-error-code="attr-defined, name-defined, override, assignment"

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from mpi4py import MPI

import sfb
from sfb.arrays.ops import op_for_mpi
from sfb.torch.distributed.arguments import expect, fits, lists, options, overlap, parts, single, split
from sfb.torch.distributed.lane import Lane
from sfb.torch.distributed.tensors import Reduction, check, flat, joined, raw, restore
from sfb.torch.distributed.work import Collective, Together

__all__ = ["Collectives"]

Steps = Iterator[MPI.Request]

# Bytes from which arrays go to `sfb.Comm`, after all ranks have come; and the types and operations that it is fast for.
_LARGE = 1 << 16
_FAST_TYPES = tuple(np.dtype(name) for name in ("f4", "f8", "i4", "i8"))
_FAST_OPS = (MPI.SUM, MPI.PROD, MPI.MIN, MPI.MAX)


class Collectives(dist.ProcessGroup):
    """A process group with collectives; lists of one tensor are PyTorch's way to pass a tensor.

    Args:
        comm: The ranks.
        timeout: How long collectives wait for other ranks.
        label: The group, for messages.
        crowded: Whether ranks share cores.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: timedelta, label: str, crowded: bool) -> None:
        super().__init__(comm.rank, comm.size)  # type: ignore[call-arg]
        self._mpi: MPI.Intracomm | None = comm
        self._comm = sfb.Comm(comm, progress="poll")
        self._rank, self._size = comm.rank, comm.size
        self._timeout = timeout
        self._label = label
        self._lane = Lane(label, crowded)
        self._coalesced: list[dist.Work] | None = None
        self._sequence = 0

    def allreduce(self, tensors: Any, opts: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Reduce a tensor to all ranks, in place."""
        tensor, opts = single(tensors, "all_reduce"), options(opts, c10d.AllreduceOptions, timeout)
        reduction = self._reduction(tensor.dtype, opts, "all_reduce")

        def steps() -> Steps:
            given = reduction.before(flat(tensor))
            yield from self._reduce(given, reduction.op)
            restore(tensor, reduction.after(given))

        return self._begin("all_reduce", opts, steps, [tensor])

    def allreduce_coalesced(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        """Reduce several tensors to all ranks, those of one type together."""
        check(tensors, "all_reduce_coalesced")
        opts = options(opts, c10d.AllreduceCoalescedOptions)
        parts = []
        for dtype, group in groupby(tensors, lambda tensor: tensor.dtype):
            parts.append((self._reduction(dtype, opts, "all_reduce_coalesced"), list(group)))

        def steps() -> Steps:
            for reduction, own in parts:
                given = reduction.before(joined(own))
                yield from self._reduce(given, reduction.op)
                split(reduction.after(given), own)

        return self._begin("all_reduce_coalesced", opts, steps, tensors)

    def broadcast(self, tensors: Any, opts: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Send a tensor from one rank to all."""
        tensor, opts = single(tensors, "broadcast"), options(opts, c10d.BroadcastOptions, timeout)
        root = opts.rootRank

        def steps() -> Steps:
            vector = flat(tensor)
            yield self._intracomm.Ibcast(raw(vector), root)
            restore(tensor, vector)

        return self._begin("broadcast", opts, steps, [tensor])

    def reduce(self, tensors: Any, opts: Any = None, op: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Reduce a tensor to one rank, in place; those of other ranks stay."""
        tensor, opts = single(tensors, "reduce"), options(opts, c10d.ReduceOptions, timeout)
        if op is not None:
            opts.reduceOp = op
        root, reduction = opts.rootRank, self._reduction(tensor.dtype, opts, "reduce")

        def steps() -> Steps:
            given = reduction.before(flat(tensor))
            array = given.numpy()
            op = op_for_mpi(reduction.op, array)
            if self._rank != root:
                yield self._intracomm.Ireduce(array, None, op, root)
                return
            yield self._intracomm.Ireduce(MPI.IN_PLACE, array, op, root)
            restore(tensor, reduction.after(given))

        return self._begin("reduce", opts, steps, [tensor])

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Gather a tensor of each rank on all ranks; the sizes may differ."""
        (outputs,), tensor = lists(outputs), single(inputs, "all_gather")
        check(outputs, "all_gather")
        expect(outputs, tensor.dtype, self._size, "all_gather", "output")
        if outputs[self._rank].numel() != tensor.numel():
            raise ValueError(
                f"all_gather: output {self._rank} must be as large as this rank's input, {tensor.numel()} elements, "
                f"got {outputs[self._rank].numel()}"
            )

        def steps() -> Steps:
            gathered = torch.empty(sum(output.numel() for output in outputs), dtype=tensor.dtype)
            yield from self._gather(flat(tensor), gathered, [output.numel() for output in outputs])
            split(gathered, outputs)

        return self._begin("all_gather", options(opts, c10d.AllgatherOptions), steps, outputs)

    def allgather_coalesced(self, outputs: Any, inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        """Gather several tensors of each rank on all ranks: ``outputs[rank][i]`` is ``inputs[i]`` of a rank."""
        check(inputs, "all_gather_coalesced")
        opts = options(opts, c10d.AllgatherOptions)
        if len(outputs) != self._size:
            raise ValueError(f"all_gather_coalesced: expected {self._size} lists of outputs, got {len(outputs)}")
        return Together([self.allgather([[own[i] for own in outputs]], [x], opts) for i, x in enumerate(inputs)])

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> dist.Work:
        """Gather a tensor of each rank on all ranks, in one tensor."""
        opts = options(opts, c10d.AllgatherOptions)
        fits(output, tensor, self._size, "all_gather_into_tensor", "output", "input")
        return self._begin("all_gather_into_tensor", opts, self._gather_into([(output, tensor)]), [output])

    def all_gather_single_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        """Gather several tensors of each rank on all ranks, each in one tensor."""
        opts, pairs = options(opts, c10d.AllgatherOptions), list(zip(outputs, inputs, strict=True))
        for output, tensor in pairs:
            fits(output, tensor, self._size, "all_gather_into_tensor", "output", "input")
        return self._begin("all_gather_into_tensor", opts, self._gather_into(pairs), outputs)

    def gather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Gather a tensor of each rank on one rank."""
        tensor, opts = single(inputs, "gather"), options(opts, c10d.GatherOptions)
        root = opts.rootRank
        own = self._list_of_root(outputs, root, tensor, "gather", "output")

        def steps() -> Steps:
            if self._rank != root:
                yield self._intracomm.Igather(raw(flat(tensor)), None, root)
                return
            gathered = torch.empty(tensor.numel() * self._size, dtype=tensor.dtype)
            yield self._intracomm.Igather(raw(flat(tensor)), raw(gathered), root)
            split(gathered, own)

        return self._begin("gather", opts, steps, own)

    def scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Send a tensor of one rank's list to each rank."""
        tensor, opts = single(outputs, "scatter"), options(opts, c10d.ScatterOptions)
        root = opts.rootRank
        own = self._list_of_root(inputs, root, tensor, "scatter", "input")

        def steps() -> Steps:
            vector = flat(tensor)
            given = raw(joined(own)) if self._rank == root else None
            yield self._intracomm.Iscatter(given, raw(vector), root)
            restore(tensor, vector)

        return self._begin("scatter", opts, steps, [tensor])

    def reduce_scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Reduce a list of tensors, one to each rank; their sizes may differ."""
        tensor, (own,) = single(outputs, "reduce_scatter"), lists(inputs)
        opts = options(opts, c10d.ReduceScatterOptions)
        check(own, "reduce_scatter")
        expect(own, tensor.dtype, self._size, "reduce_scatter", "input")
        if own[self._rank].numel() != tensor.numel():
            raise ValueError(
                f"reduce_scatter: input {self._rank} must be as large as this rank's output, {tensor.numel()} "
                f"elements, got {own[self._rank].numel()}"
            )
        steps = self._reduce_scatter([(tensor, own)], opts)
        return self._begin("reduce_scatter", opts, steps, [tensor])

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> dist.Work:
        """Reduce a tensor, a part of it to each rank."""
        opts = options(opts, c10d.ReduceScatterOptions)
        fits(tensor, output, self._size, "reduce_scatter_tensor", "input", "output")
        steps = self._reduce_scatter([(output, list(flat(tensor).chunk(self._size)))], opts)
        return self._begin("reduce_scatter_tensor", opts, steps, [output])

    def reduce_scatter_single_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        """Reduce several tensors, a part of each to each rank."""
        opts, pairs = options(opts, c10d.ReduceScatterOptions), []
        for output, tensor in zip(outputs, inputs, strict=True):
            fits(tensor, output, self._size, "reduce_scatter_tensor", "input", "output")
            pairs.append((output, list(flat(tensor).chunk(self._size))))
        return self._begin("reduce_scatter_tensor", opts, self._reduce_scatter(pairs, opts), outputs)

    def alltoall(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        """Send a tensor to each rank, and receive one from each."""
        check([*outputs, *inputs], "all_to_all")
        expect(outputs, inputs[0].dtype, self._size, "all_to_all", "output")
        expect(inputs, inputs[0].dtype, self._size, "all_to_all", "input")

        def steps() -> Steps:
            taken = torch.empty(sum(output.numel() for output in outputs), dtype=inputs[0].dtype)
            sizes = [x.numel() for x in inputs], [output.numel() for output in outputs]
            yield self._exchange(joined(inputs), taken, *sizes)
            split(taken, outputs)

        return self._begin("all_to_all", options(opts, c10d.AllToAllOptions), steps, outputs)

    def all_to_all_single(
        self,
        output: torch.Tensor,
        tensor: torch.Tensor,
        output_split_sizes: list[int] | None = None,
        input_split_sizes: list[int] | None = None,
        opts: Any = None,
    ) -> dist.Work:
        """Send some rows of a tensor to each rank, and receive rows from each; equally many without split sizes."""
        check([output, tensor], "all_to_all_single")
        if output.dtype != tensor.dtype:
            raise ValueError(
                f"all_to_all_single: output and input must be of one type, got {output.dtype} and {tensor.dtype}"
            )
        taken = parts(output, output_split_sizes, self._size, "output")
        given = parts(tensor, input_split_sizes, self._size, "input")

        def steps() -> Steps:
            result = flat(output)
            yield self._exchange(flat(tensor), result, given, taken)
            restore(output, result)

        return self._begin("all_to_all_single", options(opts, c10d.AllToAllOptions), steps, [output])

    def barrier(self, opts: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Wait for all ranks."""

        def steps() -> Steps:
            yield self._intracomm.Ibarrier()

        return self._begin("barrier", options(opts, c10d.BarrierOptions, timeout), steps, [])

    def monitored_barrier(self, timeout: timedelta | None = None, wait_all_ranks: bool = False) -> None:
        """Wait for all ranks; if some do not come, name the first of them, or all, on rank 0.

        Raises:
            DistBackendError: Not all ranks come within ``timeout``, by default that of the group.
        """
        store, seconds = self.get_group_store(), timeout or self._timeout
        self._sequence += 1
        prefix = f"monitored/{self._sequence}"
        store.set(f"{prefix}/{self._rank}", "")
        try:
            store.wait([f"{prefix}/{rank}" for rank in range(self._size)], seconds)
        except dist.DistStoreError:
            missing = [rank for rank in range(self._size) if not store.check([f"{prefix}/{rank}"])]
            named = missing if wait_all_ranks else missing[:1]
            raise dist.DistBackendError(
                f"Timed out: ranks {', '.join(map(str, named))} of {self._label} did not come to monitored_barrier "
                f"within {seconds.total_seconds():g} s"
            ) from None

    # The names before PyTorch 2.13.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    # What the operations share.

    @property
    def _intracomm(self) -> MPI.Intracomm:
        if self._mpi is None:
            raise dist.DistBackendError(f"{self._label} has been destroyed")
        return self._mpi

    def _begin(self, name: str, opts: Any, steps: Callable[[], Steps], tensors: Sequence[torch.Tensor]) -> dist.Work:
        """Begin a collective: do it now, or leave it to the thread of the group."""
        work = Collective(self._lane, name, self._seconds(opts), steps, tensors)
        self._sequence += 1
        if opts.asyncOp or self._coalesced is not None:
            self._lane.submit(work)
        else:
            self._lane.run(work)
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work

    def _seconds(self, opts: Any) -> float:
        """Return the time-out of an operation: PyTorch passes a negative one for that of the group."""
        given = opts.timeout
        return (given if given > timedelta(0) else self._timeout).total_seconds()

    def _reduction(self, dtype: torch.dtype, opts: Any, what: str) -> Reduction:
        return Reduction(dtype, opts.reduceOp, self._size, what)

    def _reduce(self, vector: torch.Tensor, op: MPI.Op) -> Steps:
        """Reduce a vector to all ranks, in place."""
        array = vector.numpy()
        if array.nbytes >= _LARGE and array.dtype in _FAST_TYPES and op in _FAST_OPS:
            yield self._intracomm.Ibarrier()
            self._comm.Allreduce(MPI.IN_PLACE, array, op)
        else:
            yield self._intracomm.Iallreduce(MPI.IN_PLACE, array, op_for_mpi(op, array))

    def _gather(self, vector: torch.Tensor, gathered: torch.Tensor, sizes: list[int]) -> Steps:
        """Gather vectors of so many elements on all ranks."""
        given, taken = raw(vector), raw(gathered)
        wide = taken.size // max(1, gathered.numel())
        if len(set(sizes)) > 1:
            counts = [wide * size for size in sizes]
            yield self._intracomm.Iallgatherv(given, (taken, counts))
        elif given.nbytes >= _LARGE and given.dtype in _FAST_TYPES:
            yield self._intracomm.Ibarrier()
            self._comm.Allgather(given, taken)
        else:
            yield self._intracomm.Iallgather(given, taken)

    def _gather_into(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], Steps]:
        def steps() -> Steps:
            for output, tensor in pairs:
                gathered, vector = flat(output), flat(tensor)
                if overlap(gathered, vector):  # PyTorch allows the input to be a part of the output
                    vector = vector.clone()
                yield from self._gather(vector, gathered, [vector.numel()] * self._size)
                restore(output, gathered)

        return steps

    def _reduce_scatter(self, pairs: list[tuple[torch.Tensor, list[torch.Tensor]]], opts: Any) -> Callable[[], Steps]:
        reductions = [self._reduction(output.dtype, opts, "reduce_scatter") for output, _ in pairs]

        def steps() -> Steps:
            for (output, own), reduction in zip(pairs, reductions, strict=True):
                vector = joined(own)
                given = reduction.before(vector)
                wide = given.numel() // max(1, vector.numel())
                sizes = [part.numel() * wide for part in own]
                sizes += [0] * (self._size - len(sizes))  # of an empty tensor there are no parts
                taken = torch.empty(sizes[self._rank], dtype=given.dtype)
                send, recv = given.numpy(), taken.numpy()
                op = op_for_mpi(reduction.op, recv)
                if len(set(sizes)) > 1:
                    yield self._intracomm.Ireduce_scatter(send, recv, sizes, op)
                elif recv.nbytes >= _LARGE and recv.dtype in _FAST_TYPES and reduction.op in _FAST_OPS:
                    yield self._intracomm.Ibarrier()
                    self._comm.Reduce_scatter_block(send, recv, reduction.op)
                else:
                    yield self._intracomm.Ireduce_scatter_block(send, recv, op)
                restore(output, reduction.after(taken))

        return steps

    def _exchange(
        self, given: torch.Tensor, taken: torch.Tensor, given_sizes: list[int], taken_sizes: list[int]
    ) -> MPI.Request:
        """Begin to send and receive so many elements to and from each rank."""
        send, recv = raw(given), raw(taken)
        wide = 2 if given.dtype == torch.complex128 else 1
        counts = [[wide * size for size in sizes] for sizes in (given_sizes, taken_sizes)]
        return self._intracomm.Ialltoallv((send, counts[0]), (recv, counts[1]))

    def _list_of_root(self, given: Any, root: int, tensor: torch.Tensor, what: str, role: str) -> list[torch.Tensor]:
        """Return the tensors that the root passes, and none on other ranks."""
        if self._rank != root:
            return []
        (own,) = lists(given)
        check(own, what)
        expect(own, tensor.dtype, self._size, what, role)
        for each in own:
            if each.numel() != tensor.numel():
                raise ValueError(
                    f"{what}: {role}s must have {tensor.numel()} elements on all ranks, got {each.numel()}"
                )
        return own
