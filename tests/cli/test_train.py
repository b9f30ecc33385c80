"""sfb train: options, config files, signals, and runs that are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import click
import numpy as np
import pytest
from click.testing import CliRunner
from jobs import MPIRUN, mpirun, needs_mpirun
from kill_and_resume import Trials

pytest.importorskip("sklearn")

from sfb.cli import train as module
from sfb.training.checkpoint import Folder, read

SMALL = ("--data", "digits", "--epochs", 2, "--hidden", "20,20")


@pytest.fixture
def parse(monkeypatch):
    """Return a function that returns what the options of a command line become."""

    def parse(*arguments):
        context = module.train.make_context("train", list(map(str, arguments)))
        return context.params

    return parse


def test_the_help_has_groups_and_examples():
    text = CliRunner().invoke(module.train, ["--help"], terminal_width=100).output
    groups = re.findall(r"^(\w[\w ]+):$", text, re.MULTILINE)
    assert groups == [
        "Data", "Model", "Optimization", "Communication", "Checkpoints", "Restarts",
        "Input and output", "Other options",
    ]  # fmt: skip
    for word in ("mpirun -n 4 sfb train", "75, it has stopped", "SLURM_JOB_END_TIME", "(mlp)", "Examples:"):
        assert word in " ".join(text.split())


def test_a_config_file_gives_what_the_command_line_does_not(parse, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        'model = "mlp"\ndata = "digits"\nepochs = 7\nlr = 0.25\nhidden = [30, 20]\nbatch-size = 10\n'
        'warmup_steps = 3\noverlap = true\nsync = "bsp"\ntime-limit = "1h30m"\njson = "run.json"\n'
    )
    found = parse("--config", path, "--lr", 0.5, "--no-overlap")
    assert (found["model"], found["data"], found["epochs"], found["lr"]) == ("mlp", "digits", 7, 0.5)
    assert (found["hidden"], found["batch_size"], found["warmup_steps"]) == ([30, 20], 10, 3)
    assert found["overlap"] is False
    assert found["time_limit"] == 5400
    assert found["json_file"] == Path("run.json")
    assert found["momentum"] == 0.9
    assert found["model_file"] is None
    path.write_text('model-file = "m.npz"')
    assert parse("mlr", "--config", path)["model_file"] == Path("m.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "no option is called 'epoch'; did you mean epochs"),
        ("batchsize = 3", "did you mean batch-size"),
        ("quux = 3", "no option is called 'quux'"),
        ("epochs = 5.5", "'5.5' is not a valid integer"),
        ("epochs = true", "epochs must not be true or false"),
        ("overlap = 1", "overlap must be true or false"),
        ("epochs = 0", "0 is not in the range"),
        ("[train]\nepochs = 1", "no option is called 'train'"),
        ("epochs = {a = 1}", "must be a number, a text, a list"),
        ("epochs = ", "Invalid value"),
        ('optimizer = "lbfgs"', "'lbfgs'"),
        ('config = "other.toml"', "no option is called 'config'"),
    ],
)
def test_a_wrong_config_file(parse, tmp_path, content, message):
    path = tmp_path / "run.toml"
    path.write_text(content)
    with pytest.raises(click.UsageError) as caught:
        parse("mlr", "--config", path)
    text = caught.value.format_message()
    assert message in text
    assert "run.toml" in text or "range" in text or "lbfgs" in text or "valid integer" in text
    with pytest.raises(click.UsageError, match=r"none\.toml"):
        parse("mlr", "--config", tmp_path / "none.toml")


def test_a_run_with_plot_and_json(sfb, tmp_path):
    pytest.importorskip("matplotlib")
    out, _ = sfb(
        "train", "mlp", *SMALL, "-J", tmp_path / "r.json", "--plot", tmp_path / "r.png", "--time-limit", "10m",
        "--optimizer", "adam", "--lr", 0.01,
    )  # fmt: skip
    lines = [line for line in out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for word in ("loss", "test accuracy", "samples/s", "B/s", "exchange"):
        assert word in lines[0]
    assert "left" in lines[0]
    run = json.loads((tmp_path / "r.json").read_text())
    assert run["epochs"][1]["examples"] == 1438
    assert run["config"]["options"] == {"hidden": [20, 20]}
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_has_stopped_goes_on(sfb, tmp_path):
    run = ("train", "mlr", "--data", "digits", "--checkpoint", tmp_path / "c")
    out, _ = sfb(*run, "--time-limit", "0.000001s", code=module.STOPPED)
    assert "ended by the limit of time; --resume goes on from here" in out
    assert "of another run" in sfb(*run, code=1)[1]
    out, _ = sfb(*run, "--resume")
    assert "going on from the checkpoint of step 1, in epoch 1" in out
    assert "epoch 5/5" in out
    assert "Traceback" not in sfb(*run, "--resume", "--lr", 1, code=1)[1]
    # Without a checkpoint a limit of time is an end like any other.
    assert "ended by the limit of time\n" in sfb("train", "mlr", "--data", "digits", "--time-limit", "0.000001")[0]


def test_resume_without_checkpoints(sfb, tmp_path):
    err = sfb("train", "mlr", "--data", "digits", "--checkpoint", tmp_path / "none", "--resume", code=1)[1]
    assert "there is no checkpoint in" in err
    assert "--resume needs --checkpoint" in sfb("train", "mlr", "--data", "digits", "--resume", code=1)[1]


def test_an_unwritable_folder_is_found_before_training(sfb, tmp_path):
    (tmp_path / "file").touch()
    out, err = sfb("train", "mlr", "--data", "missing.npz", "--checkpoint", tmp_path / "file" / "c", code=1)
    assert "cannot write checkpoints" in err
    assert "missing" not in err
    assert not out


def at_work(*command):
    """Start a command, and return it once it has printed an epoch."""
    job = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    for line in job.stdout:
        if line.startswith("epoch"):
            return job
    pytest.fail(f"the run ended with {job.wait()}")


def test_a_signal_ends_a_run_with_a_checkpoint(tmp_path):
    run = ("train", "mlr", "--data", "digits", "--checkpoint", tmp_path / "c", "--epochs", 100_000)
    job = at_work(sys.executable, "-m", "sfb", *run)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == module.STOPPED, out
    assert "ended by a signal; --resume goes on from here" in out
    folder = Folder(tmp_path / "c", 2)
    header, _ = read(folder.file(folder.steps()[-1]))
    assert header["position"]["taken"] == folder.steps()[-1] > 0


@needs_mpirun
@pytest.mark.parametrize("sync", ["bsp", "ssp:2"])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(tmp_path, sync):
    """And the others take part in the exchange under way."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\n"
        "from threading import Timer\n"
        "from mpi4py import MPI\n"
        "from sfb import cli\n"
        "from sfb.training.progress import Progress\n"
        "report = Progress.report\n"
        "def look(self, epoch):\n"
        "    report(self, epoch)\n"
        "    if epoch.epoch == 2 and MPI.COMM_WORLD.rank == 1:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "Progress.report = look\n"
        "sys.argv = ['sfb', *sys.argv[1:]]\n"
        "sys.exit(cli.run())\n"
    )
    run = ("train", "mlr", "--data", "digits", "--checkpoint", tmp_path / "c", "--epochs", 100_000, "--sync", sync)
    code, out = mpirun(2, sys.executable, script, *run)
    assert code == module.STOPPED, out
    assert "ended by a signal" in out
    assert "epoch 2/" in out
    folder = Folder(tmp_path / "c", 2)
    assert folder.steps()[-1] > 2 * 23


@needs_mpirun
@pytest.mark.parametrize(("ranks", "model"), [(1, "mlp"), (2, "mlr")])
def test_killed_and_resumed(tmp_path, ranks, model):
    seed = int(os.environ.get("SFB_TEST_SEED", 0))
    print(f"SFB_TEST_SEED={seed}")
    trials = Trials(tmp_path, ranks, MPIRUN, model, epochs=3)
    step, different = trials.trial(0, Random(seed))
    assert step > 0
    assert not different


def test_learning_rates_and_rules_depend_on_the_model(parse):
    text = " ".join(CliRunner().invoke(module.train, ["--help"], terminal_width=200).output.split())
    assert "Learning rate. [default: 0.05; 0.005 of dml, 0.1 of dictionary]" in text
    assert "Update rule. [default: momentum; sgd of dml and dictionary; sgd with --l1]" in text
    assert parse("dml")["lr"] is None


@pytest.mark.parametrize("model", ["mlr", "svm", "dml", "dictionary"])
def test_the_model_file_of_each_model(sfb, tmp_path, model):
    """It predicts by `sfb predict`, or maps the samples."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    file, values = tmp_path / "m.npz", tmp_path / "v.npy"
    sfb("train", model, "--data", "digits", "--epochs", 3, "--model", file)
    out, _ = sfb("predict", file, "digits", "-o", values)
    assert out.startswith("1797 samples")
    found = np.load(values)
    x, y = load_digits(return_X_y=True)
    x /= 16
    with np.load(file) as arrays:
        if model in ("mlr", "svm"):
            assert float(re.search(r"accuracy ([\d.]+)", out)[1]) == pytest.approx(np.mean(found == y), abs=1e-4)
            assert np.mean(found == y) > 0.9
            np.testing.assert_array_equal(found, (x @ arrays["coef"].T + arrays["intercept"]).argmax(axis=1))
        elif model == "dml":
            np.testing.assert_allclose(found, x @ arrays["components"].T, rtol=1e-4, atol=1e-5)
            assert KNeighborsClassifier(1).fit(found[::2], y[::2]).score(found[1::2], y[1::2]) > 0.95
        else:
            rest = x - found @ arrays["components"]
            assert np.sum(rest**2) < 0.2 * np.sum(x**2)
            assert np.mean(found != 0) < 0.3


def test_the_model_file(sfb, tmp_path):
    files = pytest.importorskip("sfb.models.saved.files")
    out, _ = sfb("train", "mlp", *SMALL, "--model", tmp_path / "m.npz")
    assert out.endswith(f"written: {tmp_path / 'm.npz'}\n")
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    assert np.mean(files.load(tmp_path / "m.npz").predict(x / 16) == y) > 0.8
