"""The process group of the backend "sfb": how it is made, described and ended, and its messages."""

# PyTorch does not export to type checkers all that it exports; its signatures are sets of overloads.
# mypy: disable-error-code="attr-defined, name-defined, override, assignment"

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from mpi4py import MPI

import sfb
from sfb.launch import LaunchError, end_job_on_error
from sfb.torch.distributed.arguments import single
from sfb.torch.distributed.collectives import Collectives
from sfb.torch.distributed.lane import wait_until
from sfb.torch.distributed.tensors import flat, raw, restore
from sfb.torch.distributed.work import Message, Together

__all__ = ["ProcessGroup", "all_come"]

_log = logging.getLogger("sfb")

# Bytes of a message from which a thread takes it forward beside the caller's work.
_LONG = 1 << 16
# Seconds to wait for the other ranks when a group is destroyed.
_FAREWELL = 10.0
# What rank 0 says of whether all have come. MPI may read them late, so they live as long as this module.
_VERDICTS = b"\0", b"\1"


class ProcessGroup(Collectives):
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
        super().__init__(comm, timeout, f"process group {name!r} of {comm.size} ranks", crowded)
        self._store = store
        self._name, self._description = name, ""

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

    # Messages.

    def send(self, tensors: Any, rank: int, tag: int = 0) -> dist.Work:
        """Send a tensor to a rank; the messages of two ranks with one tag arrive in order."""
        tensor = single(tensors, "send")
        request = self._intracomm.Isend(raw(flat(tensor)), rank, self._tag(tag))
        return self._message(f"send to rank {rank}", request, lambda: None, tensor)

    def recv(self, tensors: Any, rank: int, tag: int = 0) -> dist.Work:
        """Receive a tensor from a rank."""
        tensor = single(tensors, "recv")
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
        seconds = self._timeout.total_seconds()
        if all_come(comm, min(_FAREWELL, seconds), seconds):
            self._comm.free()
            comm.Free()
        else:
            _log.warning("%s is not freed: not all of its ranks destroy it", self._label)

    def abort(self) -> None:
        """Let all operations that have not begun fail."""
        self._lane.abort("it is aborted")

    def _message(self, what: str, request: MPI.Request, then: Callable[[], None], tensor: torch.Tensor) -> dist.Work:
        seconds = self._timeout.total_seconds()
        work = Message(self._lane, what, self._label, seconds, request, then, [tensor])
        if tensor.nbytes >= _LONG:
            self._lane.watch(work)
        if self._coalesced is not None:
            self._coalesced.append(work)
        return work

    def _tag(self, tag: int) -> int:
        most = int(_tag_of_farewell()) - 1
        if not 0 <= tag <= most:
            raise ValueError(f"expected a tag from 0 to {most}, got {tag}")
        return tag


def all_come(comm: MPI.Intracomm, seconds: float, limit: float) -> bool:
    """Return whether all ranks call this within some ``seconds``, the same on all ranks that do.

    They tell by messages: a barrier could not be taken back, and would end that of a rank that waits in one. When all
    have come, rank 0 asks whether they are still there, and says what holds. A rank gives up only before it is asked.

    Args:
        comm: The ranks, which do not use the last tag otherwise.
        seconds: The time for which a rank waits for the next message.
        limit: The time after which a rank that has been asked takes rank 0 for dead.
    """
    tag, others = _tag_of_farewell(), range(1, comm.size)
    if comm.rank == 0:
        come = _arrive(comm, others, tag, seconds)
        if come:
            _tell(comm, others, tag, b"")
            come = _arrive(comm, others, tag, seconds)
            _tell(comm, others, tag, _VERDICTS[come])
        return come
    _tell(comm, [0], tag, b"")
    if not _arrive(comm, [0], tag, seconds):
        return False
    verdict = bytearray(1)
    request = comm.Irecv(verdict, 0, tag)
    _tell(comm, [0], tag, b"")
    if not wait_until(request.Test, limit):
        _give_up(request)
    return bool(verdict[0])


def _arrive(comm: MPI.Intracomm, ranks: Sequence[int], tag: int, seconds: float) -> bool:
    """Return whether an empty message of each rank arrives in time; give up the others."""
    requests = [comm.Irecv(bytearray(), rank, tag) for rank in ranks]
    if wait_until(lambda: MPI.Request.Testall(requests), seconds):
        return True
    came = [_give_up(request) for request in requests]
    return all(came)


def _give_up(request: MPI.Request) -> bool:
    """Take back a receive; return whether its message has arrived all the same."""
    status = MPI.Status()
    request.Cancel()
    request.Wait(status)
    return not status.Is_cancelled()


def _tell(comm: MPI.Intracomm, ranks: Sequence[int], tag: int, message: bytes) -> None:
    for rank in ranks:
        comm.Isend(message, rank, tag).Free()


def _tag_of_farewell() -> int:
    """Return the tag that users may not use."""
    return MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or 0
