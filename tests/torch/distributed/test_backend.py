"""How `torch.distributed` finds the backend "sfb" and its ranks."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402


def test_the_import_starts_no_mpi():
    code = "import sys, sfb.torch; assert 'mpi4py.MPI' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_sfb_does_not_import_torch():
    code = "import sys, sfb, sfb.comm; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.mpi
@pytest.mark.parametrize("query", ["rank=1000", "world_size=1000"])
def test_ranks_are_those_of_mpi(query):
    import sfb.torch  # noqa: F401

    with pytest.raises(ValueError, match="must be MPI's"):
        next(dist.rendezvous(f"mpi://?{query}"))


@pytest.mark.mpi
def test_a_store_by_mpi(world, monkeypatch):
    import sfb.torch  # noqa: F401

    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for method in ("mpi://", "env://"):
        store, rank, size = next(dist.rendezvous(method))
        assert (rank, size) == (world.rank, world.size)
        store.set(f"key {rank}", str(rank))
        assert [store.get(f"key {other}") for other in range(size)] == [b"%d" % other for other in range(size)]
        world.barrier()  # rank 0 serves the store


@pytest.mark.mpi
def test_complete_variables_are_obeyed(monkeypatch, tmp_path):
    import sfb.torch  # noqa: F401

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    _, rank, size = next(dist.rendezvous("env://"))
    assert (rank, size) == (0, 1)


@pytest.mark.mpi
def test_a_group_needs_different_ranks_of_mpi(world):
    from datetime import timedelta

    from sfb.launch import LaunchError
    from sfb.torch.distributed.process_group import ProcessGroup

    store = dist.HashStore()
    store.set("mpi/1", f"{world.rank} here")
    with pytest.raises(LaunchError, match="by mpirun or srun, not torchrun"):
        ProcessGroup.create(store, 0, 2, timeout=timedelta(seconds=5), name="two")


@pytest.mark.mpi
def test_ranks_come_to_the_end_of_a_group_together(world):
    from sfb.torch.distributed.process_group import all_come

    comm = world.Dup()
    assert all_come(comm, 600.0, 600.0)
    assert all_come(comm, 600.0, 600.0)
    comm.Free()


@pytest.mark.mpi
@pytest.mark.parametrize("impatient", [0, 1])
def test_ranks_agree_whether_all_have_come_to_the_end_of_a_group(world, impatient):
    """One gives up before the others come."""
    from mpi4py import MPI

    from sfb.torch.distributed.process_group import all_come

    if world.size == 1:
        pytest.skip("needs another rank")
    comm = MPI.Intracomm(world.Dup())
    come = all_come(comm, 0.0, 600.0) if world.rank == impatient else None
    world.Barrier()
    if world.rank != impatient:
        come = all_come(comm, 0.1, 600.0)
    assert world.allgather(come) == [False] * world.size
