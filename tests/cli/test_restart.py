"""sfb train --restarts: a run goes on after a rank has been killed."""

import re
import sys

import numpy as np
import pytest
from jobs import MPIRUN, mpirun, needs_mpirun

pytest.importorskip("sklearn")

from sfb import cli
from sfb.training.checkpoint import Folder, read

RUN = ("train", "mlr", "--data", "digits", "--epochs", "3", "--checkpoint-every", "5")


@pytest.fixture
def sfb(monkeypatch, capfd):
    """Return a function that runs the command in this process, and returns its exit code and its output."""
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)

    def sfb(*arguments):
        monkeypatch.setattr(sys, "argv", ["sfb", *map(str, arguments)])
        code = cli.run()
        return code, "".join(capfd.readouterr())

    return sfb


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--restarts", "2", "--ranks", "2"), "--restarts needs --checkpoint DIR"),
        (("--restarts", "2", "--checkpoint", "run"), "--restarts needs --ranks"),
        (("--ranks", "2"), "--ranks and --shrink are for --restarts"),
        (("--restarts", "1", "--ranks", "2", "--checkpoint", "run", "--launcher", "mpirun -n 2"), "needs {ranks}"),
        (("--restarts", "1", "--ranks", "2", "--checkpoint", "run", "--launcher", "'{ranks}"), "No closing quotation"),
    ],
)
def test_what_is_missing_is_said(sfb, options, said):
    code, out = sfb(*RUN, *options)
    assert code == 2
    assert said in " ".join(out.split())


def test_a_launcher_that_is_not_there(sfb, tmp_path):
    code, out = sfb(*RUN, "--restarts", 1, "--ranks", 2, "--checkpoint", tmp_path, "--launcher", "nosuch -n {ranks}")
    assert code == 1
    assert "no program nosuch" in out


def test_mpirun_is_not_started_by_ranks(sfb, tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    code, out = sfb(*RUN, "--restarts", 1, "--ranks", 2, "--checkpoint", tmp_path)
    assert code == 2
    assert "run sfb train without mpirun" in " ".join(out.split())


def launcher(folder, codes):
    """Return a launcher that ends with codes, one after another, and notes its arguments."""
    path = folder / "launch"
    path.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        f"log = pathlib.Path({str(folder / 'log')!r})\n"
        "before = log.read_text().splitlines() if log.exists() else []\n"
        "log.write_text('\\n'.join([*before, ' '.join(sys.argv[1:])]))\n"
        f"sys.exit({codes!r}[len(before)])\n"
    )
    path.chmod(0o755)
    return f"{path} -n {{ranks}}", lambda: (folder / "log").read_text().splitlines()


@pytest.mark.parametrize(
    ("codes", "code", "runs"),
    [((137, 9, 0), 0, 3), ((76, 1), 1, 2), ((2,), 2, 1), ((75,), 75, 1), ((9, 9, 9, 0), 9, 3)],
    ids=str,
)
def test_only_failures_of_ranks_start_a_run_again(sfb, tmp_path, codes, code, runs):
    command, log = launcher(tmp_path, codes)
    options = ("--restarts", 2, "--ranks", 3, "--checkpoint", tmp_path / "run", "--launcher", command)
    found, out = sfb(*RUN, *options)
    assert found == code, out
    assert len(log()) == runs
    assert all(line.startswith(f"-n 3 {sys.executable} -m sfb train mlr") for line in log())
    assert all(line.endswith("--restarts 0") for line in log())
    assert ("failed again after 2 restarts" in out) == (code == 9)


def test_shrinking_leaves_out_a_rank_each_time(sfb, tmp_path):
    command, log = launcher(tmp_path, (9, 137, 0))
    options = ("--restarts", 2, "--ranks", 2, "--shrink", "--checkpoint", tmp_path / "run", "--launcher", command)
    code, out = sfb(*RUN, *options)
    assert code == 0, out
    assert [line.split()[1] for line in log()] == ["2", "1", "1"]
    assert "restart 1 of 2 from the beginning, on 1 rank\n" in out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Header and arrays of the last checkpoint of a run on 2 ranks that nobody kills."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, out = mpirun(2, sys.executable, "-m", "sfb", *RUN, "--checkpoint", folder, seconds=180)
    assert code == 0, out
    return last(folder)


def last(folder):
    own = Folder(folder, 1)
    return read(own.file(own.steps()[-1]))


@needs_mpirun
@pytest.mark.parametrize("shrink", [False, True], ids=["as many ranks", "a rank less"])
def test_a_run_goes_on_after_a_rank_is_killed(sfb, tmp_path, monkeypatch, whole, shrink):
    """With the same bits on as many ranks, within rounding on fewer."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from pathlib import Path\n"
        f"done = Path({str(tmp_path / 'killed')!r})\n"
        "rank = os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK'))\n"
        "if rank == '1' and not done.exists():\n"
        "    import sfb.training.bulk as bulk\n"
        "    step, taken = bulk.Bulk._step, []\n"
        "    def kill(*args):\n"
        "        taken.append(1)\n"
        "        if len(taken) == 33:\n"
        "            done.touch()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return step(*args)\n"
        "    bulk.Bulk._step = kill\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ("--ranks", 2, "--launcher", f"{MPIRUN} -n {{ranks}}", *(["--shrink"] if shrink else []))
    code, out = sfb(*RUN, "--restarts", 2, *options, "--checkpoint", tmp_path / "run")
    assert code == 0, out
    assert "a rank has failed" in out
    assert re.search(r"restart 1 of 2 from the checkpoint of step 3\d, on", out)
    header, arrays = last(tmp_path / "run")
    expected_header, expected = whole
    assert header["position"]["taken"] == expected_header["position"]["taken"] == 3 * 23
    for name, array in expected.items():
        if shrink:
            np.testing.assert_allclose(arrays[name], array, rtol=1e-3, atol=1e-5)
        else:
            assert arrays[name].tobytes() == array.tobytes()
