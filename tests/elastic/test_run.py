"""Runs that go on when ranks die; the test at length is tests/support/kill_survivors.py."""

import subprocess
import sys
import textwrap
from random import Random

import pytest
from jobs import MPIRUN, mpirun, needs_mpirun

import sfb.elastic
from sfb.runtime import ulfm


def _has_ulfm():
    return "Open MPI" in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, check=True).stdout


@pytest.mark.mpi
def test_without_ulfm_every_rank_learns_how_to_start(world):
    if ulfm.enabled():
        pytest.skip("this job goes on when a rank dies")
    with pytest.raises(RuntimeError, match=r"sfb\.elastic\.run needs ULFM: .*mpirun --with-ft ulfm"):
        sfb.elastic.run(lambda number: None, lambda comm: {}, 3)


@pytest.mark.mpi
def test_training_without_ulfm_every_rank_learns_how_to_start(world):
    pytest.importorskip("sklearn")
    from sfb.training.train import Config, TrainingError, train

    if ulfm.enabled():
        pytest.skip("this job goes on when a rank dies")
    with pytest.raises(TrainingError, match=r"--elastic needs ULFM: .*mpirun --with-ft ulfm"):
        train(world, Config(data="digits", elastic=True))


@pytest.mark.mpi
def test_wrong_numbers_are_an_error_on_every_rank(world):
    for arguments, options in (((-1,), {}), ((3,), {"every": 0})):
        with pytest.raises(ValueError, match="must be a whole number ≥"):
            sfb.elastic.run(lambda number: None, lambda comm: {}, *arguments, **options)


ULFM = ("--with-ft", "ulfm", "--mca", "async_mpi_finalize", "1")


@needs_mpirun
@pytest.mark.parametrize("kind", ["private", "sfb.Comm"])
def test_a_rank_gets_out_of_a_reduction_of_objects_when_another_has_left(kind):
    if not _has_ulfm():
        pytest.skip("mpirun is not that of Open MPI")
    script = f"""
        from mpi4py import MPI
        import sfb
        from sfb.runtime.ulfm import private
        from sfb.runtime.windows import Block

        comm = {kind}(MPI.Intracomm(MPI.COMM_WORLD.Dup()))
        rank = comm.rank
        assert comm.allreduce([rank]) == [0, 1, 2]
        assert comm.allreduce(rank, MPI.MAX) == 2
        assert comm.reduce([rank], root=1) == ([0, 1, 2] if rank == 1 else None)
        assert comm.scan([rank]) == [0, 1, 2][: rank + 1]
        assert comm.exscan([rank]) == ([0, 1, 2][:rank] or None)
        block = Block(comm, 100)
        block.bytes[rank] = rank + 1
        comm.Barrier()
        assert block.bytes[:3].tolist() == [1, 2, 3]
        for reduction in (comm.allreduce, comm.scan):
            own = {kind}(MPI.Intracomm(comm.Dup()))
            getattr(own, reduction.__name__)(1)
            comm.Barrier()
            try:
                if rank == 0:
                    own.Revoke()
                else:
                    getattr(own, reduction.__name__)(1)
            except Exception:  # Open MPI may end a revoked collective without an error of its own
                assert own.Is_revoked()
            print("is out", flush=True)
    """
    code, out = mpirun(3, *ULFM, sys.executable, "-m", "mpi4py", "-c", textwrap.dedent(script))
    assert code == 0, out
    assert out.count("is out") == 6, out


@needs_mpirun
@pytest.mark.parametrize("work", ["collectives", "train"])
def test_ranks_that_are_left_go_on(work, tmp_path):
    if not _has_ulfm():
        pytest.skip("mpirun is not that of Open MPI")
    from kill_survivors import kill_training, kill_work, train_alone

    folder = tmp_path / "job"
    folder.mkdir()
    if work == "train":
        pytest.importorskip("sklearn")
        kills, *_ = kill_training(MPIRUN, work, 3, 1, Random(0), folder, train_alone(tmp_path / "alone"))
    else:
        kills, *_ = kill_work(MPIRUN, work, 3, 2, Random(0), folder)
    assert kills
