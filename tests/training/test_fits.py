"""Fits of sfb train lasso, mf and lda, against estimators on one rank and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("mpi4py.MPI")
pytest.importorskip("sklearn")

from mpi4py import MPI
from sklearn import linear_model
from sklearn.metrics import r2_score

from sfb import MismatchError
from sfb.data import read_ratings
from sfb.models import MatrixFactorization, load
from sfb.training.data import DataError
from sfb.training.fits import fit_lasso, fit_lda, fit_mf

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(world, tmp_path):
    """The folder of rank 0."""
    return world.bcast(tmp_path)


def write(world, path, content):
    """Let rank 0 write a file by a function or a text, and return its path."""
    if world.rank == 0:
        path.write_text(content) if isinstance(content, str) else content(path)
    world.Barrier()
    return str(path)


def regression(rng, samples):
    x = rng.standard_normal((samples, 12)).astype(np.float32)
    return x, x[:, :3].sum(axis=1) + 5 + 0.1 * rng.standard_normal(samples)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_lasso(world, folder, rng, ratio):
    (x, y), (test_x, test_y) = regression(rng, 60), regression(rng, 25)
    data = write(world, folder / "a.npz", lambda path: np.savez(path, x=x, y=y))
    test = write(world, folder / "b.npz", lambda path: np.savez(path, x=test_x, y=test_y))
    settings = {"alpha": 0.1, "l1_ratio": ratio, "tol": 1e-10}
    run = fit_lasso(world, data, settings, reading={"test": test}, model_file=folder / "m.npz")
    expected = linear_model.ElasticNet(alpha=0.1, l1_ratio=ratio, tol=1e-12).fit(x.astype(float), y)
    coef = expected.coef_
    objective = np.mean((y - expected.predict(x)) ** 2) / 2
    objective += 0.1 * (ratio * np.abs(coef).sum() + (1 - ratio) / 2 * coef @ coef)
    assert run["objective"] == pytest.approx(objective, rel=1e-6)
    assert run["relative_gap"] <= 1e-10
    assert (run["nonzeros"], run["features"]) == (np.count_nonzero(coef), 12)
    assert (run["samples"], run["test_samples"], run["converged"]) == (60, 25, True)
    assert run["r2"] == pytest.approx(r2_score(test_y, expected.predict(test_x)), rel=1e-5)
    np.testing.assert_allclose(load(folder / "m.npz").predict(test_x), expected.predict(test_x), rtol=1e-4)


def test_a_scaled_lasso_that_does_not_converge(world, folder, rng):
    x, y = regression(rng, 60)
    data = write(world, folder / "a.npz", lambda path: np.savez(path, x=1000 * x, y=y))
    settings = {"alpha": 0.01, "tol": 0.0, "max_iter": 1}
    run = fit_lasso(world, data, settings, reading={"scale": "standard"}, model_file=folder / "m.npz")
    assert not run["converged"]
    settings = {"alpha": 0.01, "tol": 1e-8}
    run = fit_lasso(world, data, settings, reading={"scale": "standard"}, model_file=folder / "m.npz")
    assert r2_score(y, load(folder / "m.npz").predict(1000 * x)) > 0.98


def test_several_targets(world, folder, rng):
    data = write(
        world, folder / "a.npz", lambda path: np.savez(path, x=rng.standard_normal((30, 3)), y=rng.random((30, 2)))
    )
    with pytest.raises(DataError, match="one target of each sample, the data has 2"):
        fit_lasso(world, data, {})


def ratings(rng):
    """Return lines of ratings, in no order."""
    users, items = rng.random((17, 2)), rng.random((11, 2))
    pairs = [(u, i) for u in range(17) for i in range(11) if rng.random() < 0.7]
    rng.shuffle(pairs)
    return "".join(f"user{u:02}\t{100 + i}\t{1 + 2 * users[u] @ items[i]:.3f}\n" for u, i in pairs)


@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_mf(world, folder, rng, fraction):
    """The factors are those of one rank, and errors those of the model file."""
    data = write(world, folder / "r.txt", ratings(rng))
    settings = {"n_components": 2, "max_iter": 6, "tol": 0.0}
    run = fit_mf(world, data, settings, seed=3, test_fraction=fraction, model_file=folder / "m.npz")
    table = read_ratings(data)
    out = np.random.default_rng(3).random(len(table.values)) < fraction
    kept = table.users[~out], table.items[~out], table.values[~out]
    alone = MatrixFactorization(**settings, random_state=3, comm=MPI.COMM_SELF).fit(kept)
    model = load(folder / "m.npz")
    names = table.user_names[table.users], table.item_names[table.items]
    predicted = model.predict(*names)
    np.testing.assert_allclose(predicted, alone.predict(table.users, table.items), rtol=1e-6)
    squares = (predicted - table.values) ** 2
    assert run["rmse"] == pytest.approx(np.sqrt(squares[~out].mean()))
    assert (run["users"], run["items"], run["epochs"]) == (17, 11, 6)
    assert (run["ratings"], run["test_ratings"]) == (np.sum(~out), np.sum(out))
    if fraction:
        assert run["test_rmse"] == pytest.approx(np.sqrt(squares[out].mean()))
    else:
        assert run["test_rmse"] is None
    items, _ = model.recommend("user03", 2, exclude=[100])
    assert set(items.tolist()) < {*range(101, 111)}


def test_mf_of_other_kinds(world, folder, rng):
    data = write(world, folder / "r.txt", ratings(rng))
    run = fit_mf(world, data, {"solver": "sgd", "n_components": 2, "max_iter": 3})
    assert run["epochs"] == 3
    assert not run["converged"]
    run = fit_mf(world, data, {"feedback": "implicit", "n_components": 2, "max_iter": 3})
    assert 0 < run["rmse"] < 1


def test_lda(world, folder, rng):
    """Documents have words of one half of the vocabulary, so half the words are likely."""
    counts = rng.poisson(2.0, (40, 20))
    counts[::2, :10] = 0
    counts[1::2, 10:] = 0
    data = write(world, folder / "c.npz", lambda path: sparse.save_npz(path, sparse.csr_matrix(counts)))
    words = [f"word{i}" for i in range(20)]
    vocabulary = write(world, folder / "vocab.txt", "\n".join(words))
    settings = {"n_components": 2, "max_iter": 30, "evaluate_every": 10, "topic_word_prior": 0.1}
    run = fit_lda(world, data, settings, seed=1, test_fraction=0.25, vocabulary=vocabulary, model_file=folder / "m.npz")
    out = np.random.default_rng(1).random(40) < 0.25
    assert (run["documents"], run["test_documents"], run["words"]) == (np.sum(~out), np.sum(out), 20)
    assert (run["tokens"], run["sweeps"], len(run["log_likelihoods"])) == (counts[~out].sum(), 30, 3)
    assert run["log_likelihood"] == run["log_likelihoods"][-1]
    assert 8 < run["perplexity"] < 13
    halves = [{*words[:10]}, {*words[10:]}]
    assert [set(each) for each in run["top_words"]] in (halves, halves[::-1])
    topics = load(folder / "m.npz").transform(counts).argmax(axis=1)
    assert (topics[::2] != topics[1::2]).all()


def test_lda_of_a_bag_of_words(world, folder):
    data = write(world, folder / "docword.txt", "3\n4\n4\n1 1 2\n1 2 1\n3 4 5\n3 3 1\n")
    run = fit_lda(world, data, {"n_components": 2, "max_iter": 2}, test_fraction=0.0)
    assert (run["documents"], run["words"], run["tokens"], run["perplexity"]) == (3, 4, 9, None)
    assert sorted(run["top_words"][0]) == [0, 1, 2, 3]


def test_errors(world, folder, rng):
    data = write(world, folder / "docword.txt", "1\n2\n1\n1 1 2\n")
    words = write(world, folder / "vocab.txt", "one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"has 3 words, but .*docword\.txt has 2"):
        fit_lda(world, data, {}, vocabulary=words)
    with pytest.raises(DataError, match="no such file"):
        fit_lda(world, str(folder / "none.npz"), {})
    with pytest.raises(DataError, match="no such file"):
        fit_mf(world, str(folder / "none.txt"), {})
    with pytest.raises(DataError, match="line 1: expected USER ITEM RATING"):
        fit_mf(world, write(world, folder / "r.txt", "a b\n"), {})
    with pytest.raises(ValueError, match="duplicates"):
        fit_mf(world, write(world, folder / "twice.txt", "1 1 3\n1 1 4\n"), {}, test_fraction=0.0)
    if world.size > 1:
        with pytest.raises(MismatchError):
            fit_mf(world, str(folder / "r.txt"), {"n_components": 2 + world.rank})
