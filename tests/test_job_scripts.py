"""The script for Slurm, under a srun that only says what it was given."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAKES = {
    "srun": """#!/bin/bash
echo "srun $* [$OPENBLAS_NUM_THREADS]"
echo "end ${SLURM_JOB_END_TIME:-unknown}"
case $* in *" info") exit "${INFO_FAILS:-0}" ;; *" mlr") exit "${TRAIN_ENDS:-0}" ;; esac
""",
    "scontrol": """#!/bin/bash
echo "scontrol $*"
""",
    "squeue": """#!/bin/bash
echo "${JOB_ENDS:-}"
""",
}


@pytest.fixture
def sbatch(tmp_path):
    """Return a function that runs the script as a job on two nodes, with these variables beside the least there is."""
    programs = [(".venv/bin", "sfb", "#!/bin/bash\n"), *(("bin", name, text) for name, text in FAKES.items())]
    for folder, name, text in programs:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(text)
        (tmp_path / folder / name).chmod(0o755)

    def sbatch(*command, **variables):
        least = {
            "PATH": f"{tmp_path / 'bin'}:{os.defpath}",
            "SLURM_JOB_ID": "1",
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS_PER_NODE": "4",
            "SLURM_CPUS_PER_TASK": "3",
            "SFB_VENV": str(tmp_path / ".venv"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        script = ["bash", ROOT / "mpirun_scripts" / "slurm.sbatch", *command]
        done = subprocess.run(script, env=least | variables, capture_output=True, text=True, timeout=60, cwd=ROOT)
        return done.returncode, done.stdout, done.stderr

    return sbatch


def test_a_job_of_which_slurm_says_little(sbatch, tmp_path):
    """Without HOME and SLURM_NTASKS, as after sbatch --export=LIST and with --ntasks-per-node alone."""
    code, out, err = sbatch("sfb", "train", "mlr")
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("srun")]
    assert [line.split()[-2] for line in lines] == ["info", "warmup", "warmup", lines[3].split()[-2], "mlr"]
    for line in lines:
        assert "--export=ALL" in line
        assert f" {tmp_path / '.venv/bin/sfb'} " in line  # not the folder sfb of the clone
        assert line.endswith("[3]")
    assert ["--ntasks=8 " in line for line in lines] == [True, False, True, True, True]


def test_a_job_ends_where_ranks_cannot_work_together(sbatch):
    code, out, err = sbatch("sfb", "train", "mlr", INFO_FAILS="1")
    assert code == 1
    assert out.count("srun") == 1
    assert "docs/troubleshooting.md" in err


def test_a_command_that_does_not_exist(sbatch):
    code, out, err = sbatch("no-such-program")
    assert code == 1
    assert "no program no-such-program on PATH" in err
    assert "srun" not in out


@pytest.mark.parametrize(
    ("variables", "again"),
    [
        ({"TRAIN_ENDS": "75"}, False),
        ({"TRAIN_ENDS": "75", "SFB_REQUEUE": "2", "SLURM_RESTART_COUNT": "1"}, True),
        ({"TRAIN_ENDS": "75", "SFB_REQUEUE": "2", "SLURM_RESTART_COUNT": "2"}, False),
        ({"TRAIN_ENDS": "1", "SFB_REQUEUE": "2"}, False),
    ],
    ids=str,
)
def test_a_job_that_has_stopped_with_a_checkpoint_is_queued_again(sbatch, variables, again):
    code, out, err = sbatch("sfb", "train", "mlr", **variables)
    assert code == int(variables["TRAIN_ENDS"]), err
    assert ("scontrol requeue 1\n" in out) == again


@pytest.mark.parametrize(
    ("variables", "end"),
    [
        ({}, "unknown"),
        ({"JOB_ENDS": "2026-01-02T03:04:05"}, "1767323045"),
        ({"JOB_ENDS": "NONE"}, "unknown"),
        ({"JOB_ENDS": "2026-01-02T03:04:05", "SLURM_JOB_END_TIME": "7"}, "7"),
    ],
    ids=str,
)
def test_the_end_of_a_job(sbatch, variables, end):
    """As squeue says it, where Slurm does not tell the job."""
    code, out, err = sbatch("sfb", "train", "mlr", TZ="UTC", **variables)
    assert code == 0, err
    assert f"end {end}\n" in out
