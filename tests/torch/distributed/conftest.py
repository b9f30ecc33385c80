from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def default_group() -> Iterator[Any]:
    """The default process group over the backend "sfb"."""
    dist = pytest.importorskip("torch.distributed")
    import sfb.torch  # noqa: F401

    dist.init_process_group("sfb")
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def gloo(default_group: Any) -> Any:
    """A group of all ranks over gloo, to compare with."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    return dist.new_group(backend="gloo")
