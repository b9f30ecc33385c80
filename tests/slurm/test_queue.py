"""The job script, and srun, on a Slurm cluster that the tests set up; run by hand, since it takes minutes.

SFB_TEST_SLURM=1 .venv-mpich/bin/python -m pytest -s -o faulthandler_timeout=0 tests/slurm
"""

import os
import re
import sys
from pathlib import Path

import pytest

from sfb.training.checkpoint import Folder, read

if not os.environ.get("SFB_TEST_SLURM"):
    pytest.skip("takes minutes; SFB_TEST_SLURM=1 runs it", allow_module_level=True)

ROOT = Path(__file__).parents[2]
# Says what a script is told by Comm.
TOLD = """
import warnings
from mpi4py import MPI
import sfb
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    sfb.Comm(MPI.COMM_SELF).free()
    assert not caught
    sfb.Comm(MPI.COMM_WORLD).free()
told = [str(each.message) for each in caught if "believes it is alone" in str(each.message)]
print(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}, told {len(told)}", flush=True)
"""
WHERE = """
from mpi4py import MPI
print(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size} on {MPI.Get_processor_name()}", flush=True)
"""
# What becomes of ranks of a wheel that srun starts in a way: they meet, are told that they are alone, or MPI aborts.
OUTCOMES = {
    ("mpich", "none"): "told",
    ("mpich", "pmi2"): "meet",
    ("mpich", "pmix"): "unsupported PMI version PMIx",
    ("openmpi", "none"): "told",
    ("openmpi", "pmi2"): "told",
    ("openmpi", "pmix"): "meet",
}
TRAIN = ("sfb", "train", "mlp", "--data", "digits", "--hidden", "48,24", "--optimizer", "adam", "--lr", "0.003")


def final(folder):
    """Return the arrays of the last checkpoint of a folder."""
    own = Folder(folder, 1)
    return read(own.file(own.steps()[-1]))[1]


@pytest.mark.parametrize("protocol", ["none", "pmi2", "pmix"])
def test_ranks_meet_or_are_told(cluster, mpi, protocol):
    out = cluster("srun", f"--mpi={protocol}", "-N2", "-n4", "-t2", sys.executable, "-c", TOLD, code=None)
    outcome = OUTCOMES[mpi, protocol]
    if outcome == "meet":
        assert sorted(re.findall("rank .*", out)) == [f"rank {rank} of 4, told 0" for rank in range(4)], out
    elif outcome == "told":
        assert out.count("rank 0 of 1, told 1") == 4, out
    else:
        assert outcome in out


def test_a_step_of_one_rank_is_not_told(cluster):
    """With srun and without, in a job of four tasks."""
    for launcher in (("srun", "-n1", "-N1"), ()):
        out = cluster("salloc", "-N2", "-n4", "-t2", *launcher, sys.executable, "-c", TOLD)
        assert "rank 0 of 1, told 0" in out


def test_a_job(cluster, submit, tmp_path):
    """With --ntasks-per-node alone, and options for srun: labels, and ranks dealt out to the nodes in turn."""
    job = submit("python", "-c", WHERE, SFB_SRUN="--label --distribution=cyclic")
    state = cluster.wait(job, "COMPLETED", "FAILED")
    out = (tmp_path / f"sfb-{job}.out").read_text()
    assert state["JobState"] == "COMPLETED", out
    expected = [f"{rank}: rank {rank} of 4 on n{rank % 2 + 1}" for rank in range(4)]
    assert sorted(re.findall(r"\d: rank . of . on n\d", out)) == expected, out


def test_a_job_without_the_environment(cluster, tmp_path):
    """With --export=NONE and nothing but the folder."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "mpirun_scripts").symlink_to(ROOT / "mpirun_scripts")
    (clone / ".venv-system").symlink_to(sys.prefix)
    job = cluster(
        "sbatch", "--parsable", "--export=NONE", "-N2", "--ntasks-per-node=2", "-c1",
        "mpirun_scripts/slurm.sbatch", "sfb", "info", cwd=clone,
    ).strip()  # fmt: skip
    state = cluster.wait(job, "COMPLETED", "FAILED")
    out = (clone / f"sfb-{job}.out").read_text()
    assert state["JobState"] == "COMPLETED", out
    assert out.count("4 ranks") >= 2


def test_an_array_of_jobs(cluster, submit, tmp_path):
    command = " ".join((*TRAIN, "--epochs 2 --seed $SLURM_ARRAY_TASK_ID --checkpoint run$SLURM_ARRAY_TASK_ID"))
    job = submit("bash", "-c", f"exec {command}", options=["--array=0-1"])
    for task in (0, 1):
        state = cluster.wait(f"{job}_{task}", "COMPLETED", "FAILED")
        assert state["JobState"] == "COMPLETED", (tmp_path / f"sfb-{state['JobId']}.out").read_text()
    first, second = (final(tmp_path / f"run{task}") for task in (0, 1))
    assert any(first[name].tobytes() != second[name].tobytes() for name in first)


def stopped_and_whole(cluster, submit, folder, limit, stop=lambda job: None):
    """Train in a job that is stopped once and goes on, and in one that is not.

    How many epochs both take is known only once the first has stopped, so that it depends on no machine's speed.

    Args:
        cluster: The cluster.
        submit: The fixture.
        folder: Where both run.
        limit: Minutes that the first job may take.
        stop: Function to call with the number of the first job, once it has written a checkpoint.

    Returns:
        What the controller says of the first job, what it has printed, and the last checkpoints of both.
    """
    config = folder / "run.toml"
    config.write_text("epochs = 1_000_000\n")
    command = (*TRAIN, "--config", config, "--checkpoint")
    job = submit(*command, "parts", options=[f"--time={limit}"], SFB_REQUEUE=9)
    parts, printed = folder / "parts", folder / f"sfb-{job}.out"
    cluster.until(lambda: begun(parts), 900, lambda: printed.read_text())
    stop(job)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 900, lambda: printed.read_text())
    header, _ = read(Folder(parts, 1).file(Folder(parts, 1).steps()[-1]))
    config.write_text(f"epochs = {header['position']['epoch'] + 1}\n")
    state = cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
    out = printed.read_text()
    assert state["JobState"] == "COMPLETED", out
    print(f"\nstopped in epoch {header['position']['epoch']} after {header['position']['taken']} steps")
    print(*re.findall(r".*going on from.*|.*ended by.*", out), f"the last start took {state['RunTime']}", sep="\n")

    job = submit(*command, "whole", options=["--time=30"])
    ended = cluster.wait(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", seconds=1800)
    assert ended["JobState"] == "COMPLETED", (folder / f"sfb-{job}.out").read_text()
    assert ended["Restarts"] == "0"
    return state, out, final(parts), final(folder / "whole")


def same(expected, found):
    """Return whether two sets of arrays are equal bit for bit."""
    return {name: array.tobytes() for name, array in expected.items()} == {
        name: array.tobytes() for name, array in found.items()
    }


def begun(folder):
    """Return whether a run has written a checkpoint after a step."""
    return any(Folder(folder, 1).steps())


def test_a_job_longer_than_its_limit_ends_with_the_same_model(cluster, submit, tmp_path):
    state, out, parts, whole = stopped_and_whole(cluster, submit, tmp_path, limit=3)
    assert int(state["Restarts"]) > 0
    assert out.count("ended by the limit of time; --resume goes on from here") == int(state["Restarts"])
    assert same(whole, parts)


def test_a_job_that_is_signalled_goes_on_by_itself(cluster, submit, tmp_path):
    def signal(job):
        cluster("scancel", "--signal=USR1", job)

    state, out, parts, whole = stopped_and_whole(cluster, submit, tmp_path, limit=30, stop=signal)
    assert state["Restarts"] == "1"
    assert out.count("ended by a signal; --resume goes on from here") == 1
    assert same(whole, parts)


def test_scancel_ends_a_run_with_a_checkpoint(cluster, submit, tmp_path):
    """And the job is not queued again, although it may be."""
    job = submit(*TRAIN, "--epochs", 100_000, "--checkpoint", "run", options=["--time=30"], SFB_REQUEUE=9)
    cluster.until(lambda: begun(tmp_path / "run"), 400)
    cluster("scancel", job)
    state = cluster.wait(job, "CANCELLED", "COMPLETED", "FAILED", "PENDING")
    cluster.until(lambda: not cluster("squeue", "-h").strip(), 60)
    out = (tmp_path / f"sfb-{job}.out").read_text()
    assert state["JobState"] == "CANCELLED", out
    assert cluster.job(job)["Restarts"] == "0"
    assert "ended by a signal; --resume goes on from here" in out
    assert final(tmp_path / "run")
