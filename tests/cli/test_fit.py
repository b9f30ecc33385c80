"""sfb train lasso, mf and lda: options, reports, model files."""

from __future__ import annotations

import json
import re
import sys

import click
import numpy as np
import pytest
from click.testing import CliRunner
from jobs import mpirun, needs_mpirun

pytest.importorskip("sklearn")

from sfb.cli import train as module
from sfb.cli.fit import FITS
from sfb.models import load

RATINGS = "".join(f"{u},{i},{1 + (u * i) % 5}\n" for u in range(9) for i in range(7) if (u + i) % 3)


@pytest.mark.parametrize("name", FITS)
def test_the_help_of_a_model_has_its_options_alone(name):
    text = CliRunner().invoke(module.train, [name, "--help"], prog_name="sfb train", terminal_width=100).output
    assert text.startswith(f"Usage: sfb train {name} [OPTIONS]")
    groups = re.findall(r"^(\w[\w ]+):$", text, re.MULTILINE)
    assert groups[:4] == ["Data", "Model", "Optimization", "Input and output"]
    for other in ("--hidden", "--batch-size", "--checkpoint", "--topology"):
        assert other not in text
    assert f"sfb train {name:5} --help" in CliRunner().invoke(module.train, ["--help"], terminal_width=100).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lasso", "--data", "x", "--batch-size", 3), "No such option.*--batch-size"),
        (("lasso",), "Missing option '--data'"),
        (("lasso", "--data", "x", "--targets", "classes"), "'classes' is not 'numbers'"),
        (("mf", "--data", "x", "--lr", 1), "--lr is an option of --solver sgd, not of --solver als"),
        (("mf", "--data", "x", "--solver", "sgd", "--subproblem", "cg"), "--subproblem is an option of --solver als"),
        (("mf", "--data", "x", "--confidence", 3), "--confidence is an option of --feedback implicit"),
        (("mf", "--data", "x", "--feedback", "implicit", "--no-biases"), "--no-biases is an option of --feedback expl"),
        (("mf", "--data", "x", "--feedback", "implicit", "--solver", "sgd"), "takes explicit feedback only"),
        (("lda", "--data", "x", "--tol", 1), "No such option.*--tol"),
        (("lda", "--data", "x", "--components", 0), "0 is not in the range"),
        (("--data", "x", "lda"), "lda has options of its own and comes first: sfb train lda"),
    ],
)
def test_wrong_options(sfb, arguments, words):
    assert re.search(words, " ".join(sfb("train", *arguments, code=2)[1].split()))


def test_a_config_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('data = "ratings.csv"\ncomponents = 7\nmodel = "m.npz"\nrating-range = [0.5, 5]\n')
    found = module.train.make_context("train", ["mf", "--config", str(path), "--epochs", "3"])
    assert (found.params["data"], found.params["n_components"], found.params["max_iter"]) == ("ratings.csv", 7, 3)
    assert found.params["rating_range"] == (0.5, 5.0)
    assert found.params["model_file"].name == "m.npz"
    path.write_text("hidden = 3\n")
    with pytest.raises(click.UsageError, match="no option is called 'hidden'"):
        module.train.make_context("train", ["mf", "--config", str(path)])


def test_lasso(sfb, tmp_path, rng):
    x = rng.standard_normal((50, 6))
    np.savez(tmp_path / "a.npz", x=x, y=x[:, 1] + 3)
    out, err = sfb(
        "train", "lasso", "--data", tmp_path / "a.npz", "--targets", "numbers", "--alpha", 0.1, "--tol", 1e-6,
        "--model", tmp_path / "m.npz", "-J", tmp_path / "r.json",
    )  # fmt: skip
    for words in ("40 samples, 6 features", "duality gap", "1 coefficients are not 0", "test R²", "of 10 samples"):
        assert words in out
    assert not err
    run = json.loads((tmp_path / "r.json").read_text())
    assert (run["model"], run["nonzeros"], run["settings"]["alpha"]) == ("lasso", 1, 0.1)
    assert run["relative_gap"] <= 1e-6
    out, _ = sfb("predict", tmp_path / "m.npz", tmp_path / "a.npz")
    assert "50 samples, R² 0.9" in out
    assert "expected" not in sfb("train", "lasso", "--data", tmp_path / "none.npz", code=1)[0]


def test_mf(sfb, tmp_path):
    (tmp_path / "r.csv").write_text(RATINGS)
    out, err = sfb(
        "train", "mf", "--data", tmp_path / "r.csv", "--components", 2, "--epochs", 2, "--rating-range", 1, 5,
        "--model", tmp_path / "m.npz",
    )  # fmt: skip
    assert re.search(r"ratings of 9 users for 7 items: RMSE 0\.\d{4}\ntest RMSE", out)
    assert "2 epochs in" in out
    assert "has not converged: raise --epochs or --tol" in err
    assert 1 <= load(tmp_path / "m.npz").predict(3, 5) <= 5
    assert "predicts ratings of users for items" in sfb("predict", tmp_path / "m.npz", tmp_path / "r.csv", code=1)[1]
    out, err = sfb("train", "mf", "--data", tmp_path / "r.csv", "--solver", "sgd", "--tol", 0, "--epochs", 2)
    assert "2 epochs in" in out
    assert "rating" in sfb("train", "mf", "--data", tmp_path / "r.csv", "--rating-range", 2, 5, code=1)[1]


def test_lda(sfb, tmp_path):
    (tmp_path / "docword.txt").write_text("4\n3\n6\n1 1 4\n1 2 3\n2 1 2\n2 2 9\n3 3 4\n4 3 5\n")
    (tmp_path / "vocab.txt").write_text("sun\nmoon\nsea\n")
    out, _ = sfb(
        "train", "lda", "--data", tmp_path / "docword.txt", "--vocabulary", tmp_path / "vocab.txt", "--epochs", 20,
        "--components", 2, "--test-fraction", 0, "--model", tmp_path / "m.npz",
    )  # fmt: skip
    assert re.search(r"sweep 10: .* -\d.*\nsweep 20: log-likelihood per token -\d", out)
    assert "4 documents, 3 words, 27 tokens" in out
    assert re.search(r"topic 1: (sun|moon|sea) (sun|moon|sea) (sun|moon|sea)\n", out)
    assert load(tmp_path / "m.npz").vocabulary_.tolist() == ["sun", "moon", "sea"]


@needs_mpirun
def test_ranks(tmp_path):
    (tmp_path / "r.csv").write_text(RATINGS)
    command = (sys.executable, "-m", "sfb", "train", "mf", "--data", tmp_path / "r.csv", "--components", 2)
    code, out = mpirun(2, *command, "--model", tmp_path / "m.npz")
    assert code == 0, out
    assert out.count("ratings of 9 users for 7 items") == 1
    assert load(tmp_path / "m.npz").users_.tolist() == [*range(9)]
    code, out = mpirun(2, *command, "--lr", 1)
    assert code == 2
    assert "--lr is an option of --solver sgd" in out
    code, out = mpirun(2, *command, "--rating-range", 3, 4)
    assert code == 1
    assert "from 3 to 4" in out
