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
def test_metric_learning(ranks):
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "metric_learning.py")
    assert code == 0, out
    (margin,) = re.findall(r"32 components: accuracy \S+ better by (\S+)", out)
    assert float(margin) > 0


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
def test_lasso(ranks):
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "lasso.py")
    assert code == 0, out
    assert "the right ten are there: True" in out
    assert float(re.search(r"gap (\S+);", out)[1]) <= 1e-8


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2])
def test_dictionary_learning(ranks, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "atoms.png"
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "dictionary_learning.py", "--plot", plot)
    assert code == 0, out
    explained = dict(re.findall(r"(\w+): objective \S+ (\S+) explained", out))
    assert set(explained) == {"DictionaryLearning", "MiniBatchDictionaryLearning"}
    assert min(map(float, explained.values())) > 0.85
    assert plot.stat().st_size > 10_000


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2])
def test_lasso_schedules(ranks):
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "lasso_schedules.py", "--rounds", 30)
    assert code == 0, out
    objectives = dict(re.findall(r"(.+): objective (\S+)", out))
    least = float(re.search(r"least objective: (\S+)", out)[1])
    assert len(objectives) == 4
    for objective in map(float, objectives.values()):
        assert objective >= least * (1 - 1e-5)


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 3])
def test_rotation(ranks):
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "rotation.py")
    assert code == 0, out
    counts = re.findall(r"up to (\d) extra passes: (\[.*\]) were", out)
    assert [passes for passes, _ in counts] == ["0", "4"]
    assert counts[0][1] == str([0] * ranks)


@needs_mpirun
@pytest.mark.parametrize("ranks", [1, 2])
def test_mcmc(ranks):
    pytest.importorskip("arviz")
    code, out = mpirun(ranks, sys.executable, "-m", "mpi4py", EXAMPLES / "mcmc.py")
    assert code == 0, out
    assert float(re.search(r"R̂ (\S+),", out)[1]) < 1.02
    assert "slopes: [ 1" in out


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
