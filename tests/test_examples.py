"""The programs in docs/examples, as users run them."""

import re
import sys
from pathlib import Path

import pytest
from jobs import mpirun, needs_mpirun

pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def digits(ranks, *arguments):
    """Run the example, and return its accuracies."""
    script = EXAMPLES / "pytorch_digits.py"
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", script, *arguments)
    assert code == 0, out
    assert "fused update" in out
    return [float(value) for value in re.findall(r"accuracy (\S+)", out)]


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2])
def test_estimators(ranks):
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "estimators.py")
    assert code == 0, out
    accuracies = dict(re.findall(r"(\w+): accuracy (\S+)", out))
    assert set(accuracies) == {"LogisticRegression", "LinearSVC", "MLPClassifier"}
    assert min(map(float, accuracies.values())) > 0.9


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2])
def test_topics(ranks):
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "topics.py")
    assert code == 0, out
    themes = [{"sail", "wave", "harbour", "tide", "anchor", "storm", "island", "captain"}]
    themes += [{"oven", "flour", "butter", "recipe", "spoon", "onion", "garlic", "soup"}]
    themes += [{"violin", "cello", "conductor", "concert", "melody", "tempo", "flute", "choir"}]
    topics = [set(words.split()) for words in re.findall(r"topic \d: (.+)", out)]
    assert sorted(next(i for i, theme in enumerate(themes) if topic <= theme) for topic in topics) == [0, 1, 2]


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2])
def test_ratings(ranks):
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "ratings.py")
    assert code == 0, out
    errors = dict(re.findall(r"(\w+): \d+ epochs, RMSE of unseen ratings (\S+),", out))
    assert set(errors) == {"als", "sgd"}
    assert max(map(float, errors.values())) < 0.54


@needs_mpirun
def test_digits_resume_bit_for_bit(tmp_path):
    torch = pytest.importorskip("torch")
    one, other = tmp_path / "one.pt", tmp_path / "other.pt"
    whole = digits(2, "--epochs", 4, "--checkpoint", one)
    parts = digits(2, "--epochs", 2, "--checkpoint", other)
    parts += digits(2, "--epochs", 4, "--checkpoint", other, "--resume")
    assert parts == whole
    assert whole[-1] > 0.9
    expected, got = torch.load(one), torch.load(other)
    assert expected["epoch"] == got["epoch"] == 4
    for name, tensor in expected["model"].items():
        assert torch.equal(tensor, got["model"][name]), name
    assert len(expected["optimizer"]["state"]) == len(got["optimizer"]["state"]) == 8
    for index, state in expected["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], got["optimizer"]["state"][index]["momentum_buffer"]), index
    (last,) = digits(3, "--epochs", 5, "--checkpoint", other, "--resume")  # on another number of ranks
    assert last > 0.9
