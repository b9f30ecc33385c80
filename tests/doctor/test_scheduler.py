import pytest

from sfb.doctor import Level, scheduler

SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "2"}


def judge(environment, hosts=("a", "a", "b", "b"), cores=(2, 2, 2, 2), threads=2):
    return scheduler.judge(scheduler.facts(environment), hosts, cores, threads)


def test_no_job():
    (finding,) = judge({"HOME": "/"})
    assert finding.level is Level.OK


def test_a_job_that_fits():
    (finding,) = judge(SLURM)
    assert finding.level is Level.OK
    assert "4 tasks, 2 nodes, 2 CPUs a task" in finding.found


@pytest.mark.parametrize(
    ("changed", "arguments", "said"),
    [
        ({"SLURM_NTASKS": "8"}, {}, "8 tasks (SLURM_NTASKS), MPI has 4 ranks"),
        ({"SLURM_JOB_NUM_NODES": "3"}, {}, "3 nodes, the ranks are on 2"),
        ({}, {"cores": (2, 1, 2, 2)}, "a rank may run on 1 only"),
        ({}, {"threads": 1}, "sfb takes 1 thread(s) a rank"),
    ],
)
def test_what_does_not_fit_a_job_of_slurm(changed, arguments, said):
    (finding,) = judge({**SLURM, **changed}, **arguments)
    assert finding.level is Level.WARNING
    assert said in finding.found
    assert finding.advice


def test_a_step_whose_ranks_are_alone_is_the_launchers_error():
    alone = {**SLURM, "SLURM_JOB_NUM_NODES": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    (finding,) = judge(alone, hosts=("a",), cores=(2,))
    assert finding.level is Level.OK


def test_pbs(tmp_path):
    nodes = tmp_path / "nodes"
    nodes.write_text("a\na\nb\nb\n")
    job = {"PBS_JOBID": "9.server", "PBS_NODEFILE": str(nodes)}
    (finding,) = judge(job)
    assert finding.level is Level.OK
    few, one = judge(job, hosts=("a", "a"), cores=(2, 2))
    assert "4 slots (PBS_NODEFILE), MPI has 2 ranks" in few.found
    assert "2 nodes, the ranks are on 1" in one.found
    nodes.unlink()
    (finding,) = judge(job)
    assert finding.level is Level.OK
