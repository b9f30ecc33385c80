"""What SLURM or PBS has granted, beside what the ranks use; needs no MPI."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfb.doctor.finding import Finding, ok, warning

__all__ = ["facts", "judge"]

_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NUM_NODES",
    "SLURM_CPUS_PER_TASK",
)
_PBS = ("PBS_JOBID", "PBS_NP", "NCPUS")


def facts(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the variables of the scheduler, and the lines of the file of nodes that PBS names."""
    seen: dict[str, Any] = {name: environment[name] for name in (*_SLURM, *_PBS) if name in environment}
    with suppress(KeyError, OSError):
        seen["nodefile"] = Path(environment["PBS_NODEFILE"]).read_text().split()
    return seen


def judge(seen: Mapping[str, Any], hosts: Sequence[str], cores: Sequence[int], threads: int) -> list[Finding]:
    """Return whether the ranks use what the scheduler has granted.

    Args:
        seen: What `facts` returned on rank 0.
        hosts: The host of each rank.
        cores: The number of cores on which each rank may run.
        threads: The threads that a rank of sfb takes.
    """
    if "SLURM_JOB_ID" in seen:
        return _slurm(seen, hosts, cores, threads)
    if "PBS_JOBID" in seen:
        return _pbs(seen, hosts)
    return [ok("scheduler", "no job of SLURM or PBS")]


def _number(seen: Mapping[str, Any], name: str) -> int | None:
    text = str(seen.get(name, "")).partition("(")[0]  # SLURM writes "4(x2)"
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _slurm(seen: Mapping[str, Any], hosts: Sequence[str], cores: Sequence[int], threads: int) -> list[Finding]:
    topic, size, used = "SLURM", len(hosts), len(set(hosts))
    found = []
    step, tasks = _number(seen, "SLURM_STEP_NUM_TASKS"), _number(seen, "SLURM_NTASKS")
    nodes, per_task = _number(seen, "SLURM_JOB_NUM_NODES"), _number(seen, "SLURM_CPUS_PER_TASK")
    if tasks is not None and tasks != size and (size > 1 or step in (None, 1)):  # else the launcher does not fit
        found.append(
            warning(
                topic,
                f"the job has {tasks} tasks (SLURM_NTASKS), MPI has {size} rank{'s' * (size != 1)}",
                "start the ranks with srun, without -n, or with mpirun -n $SLURM_NTASKS",
            )
        )
    if nodes is not None and nodes != used:
        found.append(
            warning(
                topic,
                f"the job has {nodes} nodes, the ranks are on {used}",
                "srun --ntasks-per-node=, or a list of hosts for mpirun, spreads the ranks over all nodes",
            )
        )
    if per_task is not None and size > 1 and min(cores) < per_task:
        found.append(
            warning(
                topic,
                f"a task has {per_task} CPUs (SLURM_CPUS_PER_TASK), but a rank may run on {min(cores)} only",
                f"srun --cpus-per-task={per_task} --cpu-bind=cores: not every srun takes the number from sbatch",
            )
        )
    elif per_task is not None and threads < per_task:
        found.append(
            warning(
                topic,
                f"a task has {per_task} CPUs (SLURM_CPUS_PER_TASK), but sfb takes {threads} thread(s) a rank",
                f"export OMP_NUM_THREADS={per_task} NUMBA_NUM_THREADS={per_task}, or ask for fewer CPUs a task",
            )
        )
    if not found:
        said = [f"job {seen['SLURM_JOB_ID']}"]
        said += [f"{tasks} tasks"] * (tasks is not None) + [f"{nodes} nodes"] * (nodes is not None)
        said += [f"{per_task} CPUs a task"] * (per_task is not None)
        found.append(ok(topic, f"{', '.join(said)}; the ranks use them"))
    return found


def _pbs(seen: Mapping[str, Any], hosts: Sequence[str]) -> list[Finding]:
    topic, size, used = "PBS", len(hosts), len(set(hosts))
    slots: Sequence[str] = seen.get("nodefile") or ()
    found = []
    if slots and len(slots) != size:
        found.append(
            warning(
                topic,
                f"the job has {len(slots)} slots (PBS_NODEFILE), MPI has {size} rank{'s' * (size != 1)}",
                "mpirun -n $(wc -l <$PBS_NODEFILE), and mpiprocs= in qsub -l select=, set the number of ranks",
            )
        )
    if slots and len(set(slots)) != used:
        found.append(
            warning(
                topic,
                f"the job has {len(set(slots))} nodes, the ranks are on {used}",
                "mpirun -f $PBS_NODEFILE (MPICH) or --hostfile $PBS_NODEFILE (Open MPI) uses all nodes",
            )
        )
    return found or [ok(topic, f"job {seen['PBS_JOBID']}, {size} ranks on {used} nodes")]
