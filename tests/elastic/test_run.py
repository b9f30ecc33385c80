"""Runs that go on when ranks die; the test at length is tests/support/kill_survivors.py."""

import subprocess
from random import Random

import pytest
from jobs import MPIRUN, needs_mpirun

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
        kills, _ = kill_training(MPIRUN, work, 3, 1, Random(0), folder, train_alone(tmp_path / "alone"))
    else:
        kills, _ = kill_work(MPIRUN, work, 3, 2, Random(0), folder)
    assert kills
