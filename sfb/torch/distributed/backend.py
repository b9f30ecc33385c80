"""The names under which `torch.distributed` finds the backend; importing this starts no MPI."""

# PyTorch does not export to type checkers all that it exports.
# mypy: disable-error-code="attr-defined, name-defined"

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, urlparse

import torch.distributed as dist

__all__ = ["BACKEND", "SCHEME", "register"]

BACKEND, SCHEME = "sfb", "mpi"


def register() -> None:
    """Register the backend "sfb", and MPI as what tells the ranks of a job about each other; once.

    ``init_method="mpi://"`` asks for MPI. `init_process_group` without ``init_method`` reads environment variables;
    where RANK, WORLD_SIZE, MASTER_ADDR or MASTER_PORT is missing it asks MPI, too, for any backend.
    """
    if BACKEND in dist.Backend.backend_list:
        return
    dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])
    dist.register_rendezvous_handler(SCHEME, _by_mpi)
    # PyTorch's table has no public way to replace an entry. A version without it still has "mpi://".
    handlers = getattr(import_module("torch.distributed.rendezvous"), "_rendezvous_handlers", {})
    by_environment = handlers.get("env")
    if by_environment is None:
        return

    def by_environment_or_mpi(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
        given = parse_qs(urlparse(url).query).keys() | {name.lower() for name, value in os.environ.items() if value}
        complete = {"rank", "world_size", "master_addr", "master_port"} <= given
        return (by_environment if complete else _by_mpi)(url, **options)

    handlers["env"] = by_environment_or_mpi


def _create(options: Any, backend_options: Any) -> Any:
    """Make a process group, as `torch.distributed.Backend.register_backend` asks for with ``extended_api``."""
    from sfb.torch.distributed.process_group import ProcessGroup

    return ProcessGroup.create(
        options.store,
        options.group_rank,
        options.group_size,
        timeout=options.timeout,
        name=options.group_id,
    )


def _by_mpi(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
    from sfb.torch.distributed.rendezvous import rendezvous

    return rendezvous(url, **options)
