"""The group of torch.distributed over gloo: started by MPI, on the network by which the ranks reach rank 0."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from mpi4py import MPI

import sfb.torch  # noqa: F401  registers "mpi://"
from sfb.torch.distributed.rendezvous import interfaces

__all__ = ["GlooError", "gloo_group"]

_INTERFACE = "GLOO_SOCKET_IFNAME"
_PROBE = 2.0  # seconds in which a connection to rank 0 must succeed
_TIMEOUT = timedelta(minutes=5)


class GlooError(Exception):
    """No network was found on which all ranks reach rank 0."""


@contextmanager
def gloo_group(world: MPI.Intracomm) -> Iterator[str]:
    """Make a gloo group of all ranks torch.distributed's default group, and destroy it at the end; collective.

    Rank 0 offers the addresses of its interfaces, one after the other, and the ranks take the first by which all of
    them reach it. gloo then uses, on every rank, the interface of that connection. GLOO_SOCKET_IFNAME, where it is set,
    is left as it is, and on rank 0 its interface is the only one to be offered.

    Args:
        world: The ranks of the group, those of COMM_WORLD.

    Yields:
        The name of this rank's interface.

    Raises:
        GlooError: On every rank, if some rank reaches none of the addresses.
    """
    preset = os.environ.get(_INTERFACE)
    interface = _choose(world, preset)
    os.environ[_INTERFACE] = preset or interface
    try:
        dist.init_process_group("gloo", init_method="mpi://", timeout=_TIMEOUT)
        yield interface
        dist.destroy_process_group()  # with an error on the way it would wait for ranks that may never come
    finally:
        if preset is None:
            del os.environ[_INTERFACE]


def _choose(world: MPI.Intracomm, preset: str | None) -> str:
    """Return the interface of this rank's connection to rank 0, on rank 0 that which it offered; collective."""
    own = interfaces()
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    one_node = node.size == world.size
    node.Free()
    # The loopback interface serves the ranks of one node and no others.
    offered = {name: address for name, address in own.items() if address.startswith("127.") == one_node}
    if preset is not None:
        offered = {name: own[name] for name in preset.split(",") if name in own}
    offered = world.bcast(offered)
    with socket.create_server(("", 0), backlog=world.size) as server:
        port = world.bcast(server.getsockname()[1])
        for name, address in offered.items():
            reached = name if world.rank == 0 else _interface_to(address, port, own)
            if world.allreduce(reached is not None, MPI.LAND):
                assert reached is not None
                return reached
    hosts = ", ".join(f"{name} {address}" for name, address in offered.items()) or "none"
    raise GlooError(
        f"gloo: some rank reaches rank 0 by none of its interfaces ({hosts}); set {_INTERFACE} on every rank to the "
        "interface of a network that joins all hosts"
    )


def _interface_to(address: str, port: int, own: dict[str, str]) -> str | None:
    """Return the interface that reaches a port of rank 0, None if none does."""
    try:
        with socket.create_connection((address, port), _PROBE) as connection:
            local = connection.getsockname()[0]
    except OSError:
        return None
    return next((name for name, held in own.items() if held == local), None)
