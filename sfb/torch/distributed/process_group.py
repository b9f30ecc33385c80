"""A process group of PyTorch whose collectives are those of an `sfb.Comm` and MPI."""

from __future__ import annotations

import logging
import os
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
from sfb.launch import LaunchError, end_job_on_error
from sfb.torch.distributed.lane import Lane, wait_until
from sfb.torch.distributed.tensors import Reduction, check, flat, joined, raw, restore
from sfb.torch.distributed.work import Collective, Message, Together

__all__ = ["ProcessGroup"]

_log = logging.getLogger("sfb")

Steps = Iterator[MPI.Request]

# Bytes from which arrays go to `sfb.Comm`, after all ranks have come; and the types and operations that it is fast for.
_LARGE = 1 << 16
_FAST_TYPES = tuple(np.dtype(name) for name in ("f4", "f8", "i4", "i8"))
_FAST_OPS = (MPI.SUM, MPI.PROD, MPI.MIN, MPI.MAX)
# Bytes of a message from which a thread takes it forward beside the caller's work.
_LONG = 1 << 16
# Seconds to wait for the other ranks when a group is destroyed.
_FAREWELL = 10.0


class ProcessGroup(dist.ProcessGroup):
    """The process group of the backend "sfb"; made by `torch.distributed.init_process_group` and `new_group`.

    Collectives are done in the order of the calls, asynchronous ones by a thread of the group. A collective for which
    other ranks do not come within the group's time-out raises `torch.distributed.DistBackendError`, as do all later
    ones of the group: those ranks may still be waited for.

    Args:
        comm: The ranks. The group frees it in `shutdown`.
        timeout: How long collectives and messages wait for other ranks.
        name: Name of the group, for messages.
        store: The store with which the group was made.
        crowded: Whether ranks share cores.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        timeout: timedelta,
        name: str,
        store: dist.Store | None = None,
        crowded: bool = False,
    ) -> None:
        super().__init__(comm.rank, comm.size)
        self._mpi: MPI.Intracomm | None = comm
        self._comm = sfb.Comm(comm, progress="poll")
        self._rank, self._size = comm.rank, comm.size
        self._timeout = timeout
        self._store = store
        self._name, self._description = name, ""
        self._label = f"process group {name!r} of {comm.size} ranks"
        self._lane = Lane(self._label, crowded)
        self._coalesced: list[dist.Work] | None = None
        self._sequence = 0

    @classmethod
    def create(cls, store: dist.Store, rank: int, size: int, *, timeout: timedelta, name: str) -> ProcessGroup:
        """Make a group of ranks that agree by a store which of MPI's ranks they are; collective over these ranks.

        Args:
            store: A store of their own.
            rank: The rank in the group.
            size: The number of ranks.
            timeout: How long to wait for other ranks, now and in collectives.
            name: Name of the group.

        Raises:
            DistStoreError: The other ranks do not come within ``timeout``.
            LaunchError: They are not ranks of one MPI job.
        """
        world = MPI.COMM_WORLD
        store.set(f"mpi/{rank}", f"{world.rank} {MPI.Get_processor_name()}")
        keys = [f"mpi/{other}" for other in range(size)]
        store.wait(keys, timeout)
        values = store.multi_get(keys) if store.has_extended_api() else [store.get(key) for key in keys]
        places = [value.decode().split(" ", 1) for value in values]
        ranks = [int(place) for place, _ in places]
        if len(set(ranks)) < size or max(ranks) >= world.size:
            raise LaunchError(
                f'the backend "sfb" needs {size} ranks of MPI for a group of {size}, got ranks {sorted(set(ranks))} of '
                f"{world.size}; start the program by mpirun or srun, not torchrun"
            )
        group = world.group.Incl(ranks)
        comm = world.Create_group(group)
        group.Free()
        end_job_on_error()
        cls._neighbours = max(cls._neighbours, sum(host == MPI.Get_processor_name() for _, host in places))
        return cls(comm, timeout, name, store, cls._neighbours > len(os.sched_getaffinity(0)))

    _neighbours = 1  # ranks of this host in the largest group so far

    # What PyTorch asks a group about.

    def size(self) -> int:
        """Return the number of ranks."""
        return self._size

    def rank(self) -> int:
        """Return this rank in the group."""
        return self._rank

    getSize, getRank = size, rank

    def name(self) -> str:
        """Return the name of the backend."""
        return "sfb"

    getBackendName = _get_backend_name = name

    @property
    def group_name(self) -> str:
        """Name of the group."""
        return self._name

    @property
    def group_desc(self) -> str:
        """Description of the group."""
        return self._description

    @property
    def comm(self) -> sfb.Comm:
        """The communicator of the group. Collectives on it must not run beside those of the group."""
        return self._comm

    def getGroupName(self) -> str:
        """Return the name of the group."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """Set the name of the group."""
        self._name = name

    def getGroupDesc(self) -> str:
        """Return the description of the group."""
        return self._description

    def setGroupDesc(self, description: str) -> None:
        """Set the description of the group."""
        self._description = description

    _set_group_name, _set_group_desc = setGroupName, setGroupDesc

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def _get_backend(self, device: torch.device) -> ProcessGroup:
        if torch.device(device).type != "cpu":
            raise RuntimeError(f"the backend sfb takes CPU tensors, there is none for {device}")
        return self

    @property
    def supports_splitting(self) -> bool:
        """Whether a group can be made from this one without the store."""
        return False

    def get_group_store(self) -> dist.Store:
        """Return the store with which the group was made."""
        if self._store is None:
            raise RuntimeError(f"{self._label} was made without a store")
        return self._store

    def set_timeout(self, timeout: timedelta) -> None:
        """Set how long collectives and messages wait for other ranks."""
        self._timeout = timeout

    _set_default_timeout = set_timeout

    def _set_sequence_number_for_group(self) -> None:
        self._sequence = 0

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence

    # Collectives. Lists of one tensor are PyTorch's way to pass a tensor.

    def allreduce(self, tensors: Any, opts: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Reduce a tensor to all ranks, in place."""
        tensor, opts = _single(tensors, "all_reduce"), _options(opts, c10d.AllreduceOptions, timeout)
        reduction = self._reduction(tensor.dtype, opts, "all_reduce")

        def steps() -> Steps:
            given = reduction.before(flat(tensor))
            yield from self._reduce(given, reduction.op)
            restore(tensor, reduction.after(given))

        return self._begin("all_reduce", opts, steps, [tensor])

    def allreduce_coalesced(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        """Reduce several tensors to all ranks, those of one type together."""
        check(tensors, "all_reduce_coalesced")
        opts = _options(opts, c10d.AllreduceCoalescedOptions)
        parts = []
        for dtype, group in groupby(tensors, lambda tensor: tensor.dtype):
            parts.append((self._reduction(dtype, opts, "all_reduce_coalesced"), list(group)))

        def steps() -> Steps:
            for reduction, own in parts:
                given = reduction.before(joined(own))
                yield from self._reduce(given, reduction.op)
                _split(reduction.after(given), own)

        return self._begin("all_reduce_coalesced", opts, steps, tensors)

    def broadcast(self, tensors: Any, opts: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Send a tensor from one rank to all."""
        tensor, opts = _single(tensors, "broadcast"), _options(opts, c10d.BroadcastOptions, timeout)
        root = opts.rootRank

        def steps() -> Steps:
            vector = flat(tensor)
            yield self._intracomm.Ibcast(raw(vector), root)
            restore(tensor, vector)

        return self._begin("broadcast", opts, steps, [tensor])

    def reduce(self, tensors: Any, opts: Any = None, op: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Reduce a tensor to one rank, in place; those of other ranks stay."""
        tensor, opts = _single(tensors, "reduce"), _options(opts, c10d.ReduceOptions, timeout)
        if op is not None:
            opts.reduceOp = op
        root, reduction = opts.rootRank, self._reduction(tensor.dtype, opts, "reduce")

        def steps() -> Steps:
            given = reduction.before(flat(tensor))
            if self._rank != root:
                yield self._intracomm.Ireduce(given.numpy(), None, reduction.op, root)
                return
            yield self._intracomm.Ireduce(MPI.IN_PLACE, given.numpy(), reduction.op, root)
            restore(tensor, reduction.after(given))

        return self._begin("reduce", opts, steps, [tensor])

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Gather a tensor of each rank on all ranks; the sizes may differ."""
        (outputs,), tensor = _lists(outputs), _single(inputs, "all_gather")
        check(outputs, "all_gather")
        self._expect(outputs, tensor.dtype, "all_gather", "output")
        if outputs[self._rank].numel() != tensor.numel():
            raise ValueError(
                f"all_gather: output {self._rank} must be as large as this rank's input, {tensor.numel()} elements, "
                f"got {outputs[self._rank].numel()}"
            )

        def steps() -> Steps:
            gathered = torch.empty(sum(output.numel() for output in outputs), dtype=tensor.dtype)
            yield from self._gather(flat(tensor), gathered, [output.numel() for output in outputs])
            _split(gathered, outputs)

        return self._begin("all_gather", _options(opts, c10d.AllgatherOptions), steps, outputs)

    def allgather_coalesced(self, outputs: Any, inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        """Gather several tensors of each rank on all ranks: ``outputs[rank][i]`` is ``inputs[i]`` of a rank."""
        check(inputs, "all_gather_coalesced")
        opts = _options(opts, c10d.AllgatherOptions)
        if len(outputs) != self._size:
            raise ValueError(f"all_gather_coalesced: expected {self._size} lists of outputs, got {len(outputs)}")
        return Together([self.allgather([[own[i] for own in outputs]], [x], opts) for i, x in enumerate(inputs)])

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> dist.Work:
        """Gather a tensor of each rank on all ranks, in one tensor."""
        opts = _options(opts, c10d.AllgatherOptions)
        self._fits(output, tensor, "all_gather_into_tensor", "output", "input")
        return self._begin("all_gather_into_tensor", opts, self._gather_into([(output, tensor)]), [output])

    def all_gather_single_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        """Gather several tensors of each rank on all ranks, each in one tensor."""
        opts, pairs = _options(opts, c10d.AllgatherOptions), list(zip(outputs, inputs, strict=True))
        for output, tensor in pairs:
            self._fits(output, tensor, "all_gather_into_tensor", "output", "input")
        return self._begin("all_gather_into_tensor", opts, self._gather_into(pairs), outputs)

    def gather(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Gather a tensor of each rank on one rank."""
        tensor, opts = _single(inputs, "gather"), _options(opts, c10d.GatherOptions)
        root = opts.rootRank
        own = self._list_of_root(outputs, root, tensor, "gather", "output")

        def steps() -> Steps:
            if self._rank != root:
                yield self._intracomm.Igather(raw(flat(tensor)), None, root)
                return
            gathered = torch.empty(tensor.numel() * self._size, dtype=tensor.dtype)
            yield self._intracomm.Igather(raw(flat(tensor)), raw(gathered), root)
            _split(gathered, own)

        return self._begin("gather", opts, steps, own)

    def scatter(self, outputs: Any, inputs: Any, opts: Any = None) -> dist.Work:
        """Send a tensor of one rank's list to each rank."""
        tensor, opts = _single(outputs, "scatter"), _options(opts, c10d.ScatterOptions)
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
        tensor, (own,) = _single(outputs, "reduce_scatter"), _lists(inputs)
        opts = _options(opts, c10d.ReduceScatterOptions)
        check(own, "reduce_scatter")
        self._expect(own, tensor.dtype, "reduce_scatter", "input")
        if own[self._rank].numel() != tensor.numel():
            raise ValueError(
                f"reduce_scatter: input {self._rank} must be as large as this rank's output, {tensor.numel()} "
                f"elements, got {own[self._rank].numel()}"
            )
        steps = self._reduce_scatter([(tensor, own)], opts)
        return self._begin("reduce_scatter", opts, steps, [tensor])

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> dist.Work:
        """Reduce a tensor, a part of it to each rank."""
        opts = _options(opts, c10d.ReduceScatterOptions)
        self._fits(tensor, output, "reduce_scatter_tensor", "input", "output")
        steps = self._reduce_scatter([(output, list(flat(tensor).chunk(self._size)))], opts)
        return self._begin("reduce_scatter_tensor", opts, steps, [output])

    def reduce_scatter_single_coalesced(
        self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None
    ) -> dist.Work:
        """Reduce several tensors, a part of each to each rank."""
        opts, pairs = _options(opts, c10d.ReduceScatterOptions), []
        for output, tensor in zip(outputs, inputs, strict=True):
            self._fits(tensor, output, "reduce_scatter_tensor", "input", "output")
            pairs.append((output, list(flat(tensor).chunk(self._size))))
        return self._begin("reduce_scatter_tensor", opts, self._reduce_scatter(pairs, opts), outputs)

    def alltoall(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        """Send a tensor to each rank, and receive one from each."""
        check([*outputs, *inputs], "all_to_all")
        self._expect(outputs, inputs[0].dtype, "all_to_all", "output")
        self._expect(inputs, inputs[0].dtype, "all_to_all", "input")

        def steps() -> Steps:
            taken = torch.empty(sum(output.numel() for output in outputs), dtype=inputs[0].dtype)
            sizes = [x.numel() for x in inputs], [output.numel() for output in outputs]
            yield self._exchange(joined(inputs), taken, *sizes)
            _split(taken, outputs)

        return self._begin("all_to_all", _options(opts, c10d.AllToAllOptions), steps, outputs)

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
        taken = self._parts(output, output_split_sizes, "output")
        given = self._parts(tensor, input_split_sizes, "input")

        def steps() -> Steps:
            result = flat(output)
            yield self._exchange(flat(tensor), result, given, taken)
            restore(output, result)

        return self._begin("all_to_all_single", _options(opts, c10d.AllToAllOptions), steps, [output])

    def barrier(self, opts: Any = None, timeout: timedelta | None = None) -> dist.Work:
        """Wait for all ranks."""

        def steps() -> Steps:
            yield self._intracomm.Ibarrier()

        return self._begin("barrier", _options(opts, c10d.BarrierOptions, timeout), steps, [])

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

    # Messages.

    def send(self, tensors: Any, rank: int, tag: int = 0) -> dist.Work:
        """Send a tensor to a rank; the messages of two ranks with one tag arrive in order."""
        tensor = _single(tensors, "send")
        request = self._intracomm.Isend(raw(flat(tensor)), rank, self._tag(tag))
        return self._message(f"send to rank {rank}", request, lambda: None, tensor)

    def recv(self, tensors: Any, rank: int, tag: int = 0) -> dist.Work:
        """Receive a tensor from a rank."""
        tensor = _single(tensors, "recv")
        vector = flat(tensor)
        request = self._intracomm.Irecv(raw(vector), rank, self._tag(tag))
        what = "recv from any rank" if rank == MPI.ANY_SOURCE else f"recv from rank {rank}"
        return self._message(what, request, lambda: restore(tensor, vector), tensor)

    def recv_anysource(self, tensors: Any, tag: int = 0) -> dist.Work:
        """Receive a tensor from the first rank that sends one."""
        return self.recv(tensors, MPI.ANY_SOURCE, tag)

    # Several operations as one.

    def _start_coalescing(self, device: Any = None) -> None:
        self._coalesced = []

    def _end_coalescing(self, device: Any = None) -> dist.Work:
        works, self._coalesced = self._coalesced or [], None
        return Together(works)

    # The end.

    def shutdown(self) -> None:
        """Wait for operations under way, and free the communicator; collective, and harmless when repeated.

        If not all ranks of the group come within seconds, or it has timed out, MPI keeps the communicator.
        """
        comm, self._mpi = self._mpi, None
        if comm is None:
            return
        usable = not self._lane.broken
        self._lane.stop()
        if not usable or self._lane.failed:
            return
        if _all_come(comm, min(_FAREWELL, self._timeout.total_seconds())):
            self._comm.free()
            comm.Free()
        else:
            _log.warning("%s is not freed: not all of its ranks destroy it", self._label)

    def abort(self) -> None:
        """Let all operations that have not begun fail."""
        self._lane.abort("it is aborted")

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

    def _message(self, what: str, request: MPI.Request, then: Callable[[], None], tensor: torch.Tensor) -> dist.Work:
        seconds = self._timeout.total_seconds()
        work = Message(self._lane, what, self._label, seconds, request, then, [tensor])
        if tensor.nbytes >= _LONG:
            self._lane.watch(work)
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
            yield self._intracomm.Iallreduce(MPI.IN_PLACE, array, op)

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
                if _overlap(gathered, vector):  # PyTorch allows the input to be a part of the output
                    vector = vector.clone()
                yield from self._gather(vector, gathered, [vector.numel()] * self._size)
                restore(output, gathered)

        return steps

    def _reduce_scatter(self, pairs: list[tuple[torch.Tensor, list[torch.Tensor]]], opts: Any) -> Callable[[], Steps]:
        reductions = [self._reduction(output.dtype, opts, "reduce_scatter") for output, _ in pairs]

        def steps() -> Steps:
            for (output, parts), reduction in zip(pairs, reductions, strict=True):
                vector = joined(parts)
                given = reduction.before(vector)
                wide = given.numel() // max(1, vector.numel())
                sizes = [part.numel() * wide for part in parts]
                sizes += [0] * (self._size - len(sizes))  # of an empty tensor there are no parts
                taken = torch.empty(sizes[self._rank], dtype=given.dtype)
                send, recv = given.numpy(), taken.numpy()
                if len(set(sizes)) > 1:
                    yield self._intracomm.Ireduce_scatter(send, recv, sizes, reduction.op)
                elif recv.nbytes >= _LARGE and recv.dtype in _FAST_TYPES and reduction.op in _FAST_OPS:
                    yield self._intracomm.Ibarrier()
                    self._comm.Reduce_scatter_block(send, recv, reduction.op)
                else:
                    yield self._intracomm.Ireduce_scatter_block(send, recv, reduction.op)
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

    def _parts(self, tensor: torch.Tensor, sizes: list[int] | None, what: str) -> list[int]:
        """Return how many elements of a tensor belong to each rank."""
        rows = tensor.shape[0] if tensor.dim() else 1
        if not sizes:
            if rows % self._size:
                raise ValueError(
                    f"all_to_all_single: the rows of the {what} must divide by {self._size} ranks, got {rows}; "
                    f"pass {what}_split_sizes"
                )
            sizes = [rows // self._size] * self._size
        if len(sizes) != self._size or sum(sizes) != rows:
            raise ValueError(
                f"all_to_all_single: {what}_split_sizes must be {self._size} numbers of rows with the sum {rows}, "
                f"got {list(sizes)}"
            )
        row = tensor.numel() // rows if rows else 0
        return [size * row for size in sizes]

    def _expect(self, tensors: list[torch.Tensor], dtype: torch.dtype, what: str, role: str) -> None:
        """Raise unless there is a tensor of one type for every rank."""
        if len(tensors) != self._size:
            raise ValueError(f"{what}: expected {self._size} {role}s, one a rank, got {len(tensors)}")
        for tensor in tensors:
            if tensor.dtype != dtype:
                raise ValueError(f"{what}: expected {role}s of one type, {dtype}, got {tensor.dtype}")

    def _fits(self, whole: torch.Tensor, part: torch.Tensor, what: str, name: str, other: str) -> None:
        """Raise unless a tensor has the size of one part for each rank."""
        check([whole, part], what)
        if whole.dtype != part.dtype:
            raise ValueError(f"{what}: {name} and {other} must be of one type, got {whole.dtype} and {part.dtype}")
        if whole.numel() != self._size * part.numel():
            raise ValueError(
                f"{what}: the {name} must have {self._size} times the {part.numel()} elements of the {other}, "
                f"got {whole.numel()}"
            )

    def _list_of_root(self, lists: Any, root: int, tensor: torch.Tensor, what: str, role: str) -> list[torch.Tensor]:
        """Return the tensors that the root passes, and none on other ranks."""
        if self._rank != root:
            return []
        (own,) = _lists(lists)
        check(own, what)
        self._expect(own, tensor.dtype, what, role)
        for each in own:
            if each.numel() != tensor.numel():
                raise ValueError(
                    f"{what}: {role}s must have {tensor.numel()} elements on all ranks, got {each.numel()}"
                )
        return own

    def _tag(self, tag: int) -> int:
        most = _tag_of_farewell() - 1
        if not 0 <= tag <= most:
            raise ValueError(f"expected a tag from 0 to {most}, got {tag}")
        return tag


def _all_come(comm: MPI.Intracomm, seconds: float) -> bool:
    """Return whether all ranks call this within ``seconds``.

    They tell by messages: a barrier could not be taken back, and would end that of a rank that waits in one.
    """
    tag = _tag_of_farewell()
    arrivals = [comm.Irecv(bytearray(), rank, tag) for rank in range(1, comm.size)] if comm.rank == 0 else []
    if comm.rank > 0:
        arrivals = [comm.Irecv(bytearray(), 0, tag)]
        comm.Isend(b"", 0, tag).Free()
    if wait_until(lambda: MPI.Request.Testall(arrivals), seconds):
        for rank in range(1, comm.size if comm.rank == 0 else 0):
            comm.Isend(b"", rank, tag).Free()
        return True
    for request in arrivals:
        if request != MPI.REQUEST_NULL:
            request.Cancel()
            request.Wait()
    return False


def _tag_of_farewell() -> int:
    """Return the tag that users may not use."""
    return MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or 0


def _single(tensors: Any, what: str) -> torch.Tensor:
    """Return the only tensor of a list, or the tensor."""
    if isinstance(tensors, torch.Tensor):
        tensors = [tensors]
    if len(tensors) != 1:
        raise ValueError(f"{what}: expected one tensor, got {len(tensors)}; each process has one device")
    check(tensors, what)
    return tensors[0]


def _lists(tensors: Any) -> list[list[torch.Tensor]]:
    """Return a list of lists of tensors, from one or from a list of tensors."""
    lists = [tensors] if len(tensors) == 0 or isinstance(tensors[0], torch.Tensor) else tensors
    if len(lists) != 1:
        raise ValueError(f"expected one list of tensors, got {len(lists)}; each process has one device")
    return [list(lists[0])]


def _options(given: Any, kind: type, timeout: timedelta | None = None) -> Any:
    """Return the options of a collective; a reduction or a root may be given in their place."""
    if given is None or isinstance(given, (int, dist.ReduceOp, dist.ReduceOp.RedOpType)):
        options = kind()
        if isinstance(given, int):
            options.rootRank = given
        elif given is not None:
            options.reduceOp = given
        if timeout is not None:
            options.timeout = timeout
        return options
    return given


def _split(vector: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy parts of a vector into tensors, unless it is the memory of the only one."""
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, vector.split(sizes), strict=True):
        restore(tensor, part)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    low, high = a.data_ptr(), a.data_ptr() + a.nbytes
    return low < b.data_ptr() + b.nbytes and b.data_ptr() < high
