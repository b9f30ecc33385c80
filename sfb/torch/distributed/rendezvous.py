"""A store of key-value pairs for the ranks of an MPI job, where `torch.distributed` keeps what it needs to begin."""

# PyTorch does not export to type checkers all that it exports.
# mypy: disable-error-code="attr-defined, name-defined"

from __future__ import annotations

import fcntl
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

import numpy as np
import torch.distributed as dist
from mpi4py import MPI

from sfb.launch import check_launcher
from sfb.torch.distributed.lane import abandon, timed_out, wait_until

__all__ = ["interfaces", "rendezvous"]

_TIMEOUT = timedelta(minutes=30)
_MESSAGE = 1 << 14  # bytes in which the first rank tells where its store is
_LONG = 1000  # characters of an error
_TRY = 3.0  # seconds for which a rank tries one address
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def rendezvous(url: str, timeout: timedelta = _TIMEOUT, **_: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """Yield a store that rank 0 serves, this rank and the number of ranks, by MPI; collective over COMM_WORLD.

    Args:
        url: ``mpi://``, or ``env://`` without what that needs; with ``rank`` or ``world_size`` these must be MPI's.
        timeout: How long to wait for the other ranks.

    Raises:
        ValueError: The rank or number of ranks asked for is not MPI's.
        RuntimeError: The store cannot be served or reached, or other ranks do not come within ``timeout``.
        LaunchError: The launcher belongs to another MPI than the library.
    """
    world = MPI.COMM_WORLD
    check_launcher(world.size)
    query = parse_qs(urlparse(url).query)
    for name, own in (("rank", world.rank), ("world_size", world.size)):
        given = int(query.get(name, [own])[0])
        if given != own:
            raise ValueError(f"init_process_group: {name} must be MPI's, {own}, or be left out, got {given}")
    yield _serve(world, timeout) if world.rank == 0 else _connect(world, timeout), world.rank, world.size
    raise RuntimeError("init_process_group: MPI starts all ranks at once; none can join later")


def _serve(world: MPI.Intracomm, timeout: timedelta) -> dist.Store:
    """Begin to serve the store and tell the other ranks where it is."""
    store: dist.Store | None = None
    error = ""
    try:
        if world.size == 1:
            return dist.HashStore()
        store = dist.TCPStore("0.0.0.0", 0, None, True, timeout, wait_for_workers=False)
        places = [(address, store.port) for address in own_addresses()]
    except Exception as caught:  # the other ranks wait to hear of it
        error, places = f"rank 0 cannot serve a store: {caught}"[:_LONG], []
    _tell(world, (socket.gethostname(), places, error), timeout)
    if store is None:
        raise RuntimeError(error)
    return store


def _connect(world: MPI.Intracomm, timeout: timedelta) -> dist.Store:
    """Hear from rank 0 where the store is, and connect with the first of its addresses that can be reached."""
    host, places, error = _tell(world, None, timeout)
    if error:
        raise RuntimeError(error)
    if host == socket.gethostname():
        places = [("127.0.0.1", places[0][1]), *places]
    for address, port in places:
        try:
            socket.create_connection((address, port), timeout=_TRY).close()
            return dist.TCPStore(address, port, None, False, timeout, wait_for_workers=False)
        except (OSError, RuntimeError):
            continue
    tried = ", ".join(f"{address}:{port}" for address, port in places)
    raise RuntimeError(
        f"rank {world.rank} on {socket.gethostname()} reaches rank 0 on {host} at none of {tried}; "
        "set MASTER_ADDR to an address of rank 0's host, MASTER_PORT to a free port there, and RANK and WORLD_SIZE"
    )


def _tell(world: MPI.Intracomm, message: Any, timeout: timedelta) -> Any:
    """Return rank 0's message, or raise if it does not come in time."""
    data = np.zeros(_MESSAGE, np.uint8)
    if world.rank == 0:
        packed = np.frombuffer(json.dumps(message).encode(), np.uint8)
        data[: packed.size] = packed
    request, seconds = world.Ibcast(data), timeout.total_seconds()
    if not wait_until(request.Test, seconds):
        abandon(request)
        raise timed_out("init_process_group", f"the {world.size} ranks of COMM_WORLD", seconds)
    return json.loads(data.tobytes().rstrip(b"\0"))


def own_addresses() -> list[str]:
    """Return addresses at which other hosts may reach this one: those of its interfaces, then its name."""
    outside = [address for address in interfaces().values() if not address.startswith("127.")]
    return [*outside, socket.getfqdn(), socket.gethostname()]


def interfaces() -> dict[str, str]:
    """Return the IPv4 address of each network interface that has one, by the interface's name; on Linux.

    >>> from sfb.torch.distributed.rendezvous import interfaces
    >>> "127.0.0.1" in interfaces().values()
    True
    """
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # without an IPv4 address
                entry = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(entry[20:24])
    return found
