"""Model files, against the estimators that wrote them and against SciPy."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

import sfb.models
from sfb.models import ModelError, load, save

pytest.importorskip("sklearn")

from sklearn.decomposition import sparse_encode
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SAMPLES, FEATURES = 60, 7
LABELS = {
    "texts": np.array(["eins", "zwei", "drei"]),
    "objects": np.array(["eins", "zwei", "drei"], object),
    "integers": np.array([-5, 3, 40]),
    "two": np.array([False, True]),
}
MAKE = {
    "LogisticRegression": lambda: sfb.models.LogisticRegression(),
    "LinearSVC": lambda: sfb.models.LinearSVC(),
    "relu": lambda: sfb.models.MLPClassifier((5, 4), max_iter=3),
    "tanh": lambda: sfb.models.MLPClassifier((5,), "tanh", max_iter=3),
    "logistic": lambda: sfb.models.MLPClassifier((5,), "logistic", max_iter=3),
}


def samples(rng, dtype=np.float64, fill=0.4):
    """Return samples, two of them and one feature all zeros."""
    x = (rng.standard_normal((SAMPLES, FEATURES)) * (rng.random((SAMPLES, FEATURES)) < fill)).astype(dtype)
    x[[3, SAMPLES - 1]] = 0
    x[:, 2] = 0
    return x


def bare(matrix):
    """Return what a CSR matrix is without SciPy."""
    return SimpleNamespace(indptr=matrix.indptr, indices=matrix.indices, data=matrix.data, shape=matrix.shape)


FORMS = {
    "dense": np.asarray,
    "csr": sparse.csr_matrix,
    "coordinates": sparse.coo_array,
    "bare csr": lambda x: bare(sparse.csr_array(x)),
}


def decided(scores, tolerance):
    """Return which samples have a first class whose score rounding cannot change for that of another.

    The dual solution of LinearSVC puts some samples where two classes tie, and sums of rows in CSR form and of dense
    ones round differently.
    """
    if scores.ndim == 1:
        return np.abs(scores) > tolerance
    first, second = np.sort(scores, axis=1)[:, :-3:-1].T
    return first - second > tolerance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", MAKE)
def test_classifiers(tmp_path, rng, name, labels, dtype):
    x = samples(rng, dtype)
    kinds = LABELS[labels]
    y = kinds[rng.integers(0, len(kinds), SAMPLES)]
    model = MAKE[name]().fit(x, y)
    save(tmp_path / "model", model)
    loaded = load(tmp_path / "model")
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    scores = (model.decision_function if hasattr(model, "decision_function") else model.predict_proba)(x)
    clear = decided(scores, 10 * tolerance)
    assert clear.sum() >= SAMPLES - 10
    for form in FORMS.values():
        assert (loaded.predict(form(x)) == model.predict(x))[clear].all()
        if hasattr(model, "decision_function"):
            np.testing.assert_allclose(
                loaded.decision_function(form(x)), model.decision_function(x), rtol=tolerance, atol=tolerance
            )
        if hasattr(model, "predict_proba"):
            found = loaded.predict_proba(form(x))
            assert found.dtype == dtype
            np.testing.assert_allclose(found, model.predict_proba(x), rtol=tolerance, atol=tolerance)
    assert loaded.n_features_in_ == FEATURES
    assert loaded.classes_.tolist() == model.classes_.tolist()


@pytest.mark.parametrize("targets", [(), (3,)], ids=str)
def test_regressors(tmp_path, rng, targets):
    x = samples(rng)
    model = sfb.models.MLPRegressor((4,), max_iter=2).fit(x, rng.standard_normal((SAMPLES, *targets)))
    save(tmp_path / "model.npz", model)
    found = load(tmp_path / "model.npz").predict(x)
    assert found.shape == model.predict(x).shape
    np.testing.assert_allclose(found, model.predict(x), rtol=1e-12)


def given(**contents):
    """Return a model that has these contents."""
    return SimpleNamespace(save=lambda: contents)


def test_a_metric(tmp_path, rng):
    x, components = samples(rng), rng.standard_normal((3, FEATURES))
    save(tmp_path / "m.npz", given(kind="metric", components=components))
    for form in FORMS.values():
        np.testing.assert_allclose(
            load(tmp_path / "m.npz").transform(form(x)), x @ components.T, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("positive", [False, True])
def test_a_dictionary(tmp_path, rng, positive):
    """The codes are those of scikit-learn's coordinate descent for the same objective."""
    x, atoms = rng.standard_normal((SAMPLES, FEATURES)), rng.standard_normal((10, FEATURES))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    expected = sparse_encode(x, atoms, algorithm="lasso_cd", alpha=0.3, max_iter=10000, positive=positive)
    save(tmp_path / "d.npz", given(kind="dictionary", components=atoms, alpha=0.3, positive_code=positive))
    found = load(tmp_path / "d.npz").transform(x)

    def objective(codes):
        return 0.5 * ((x - codes @ atoms) ** 2).sum() + 0.3 * np.abs(codes).sum()

    assert objective(found) <= objective(expected) * (1 + 1e-6)
    assert not positive or found.min() >= 0
    assert 0.1 < np.mean(found == 0) < 0.95


@pytest.mark.parametrize("scaler", [StandardScaler(), StandardScaler(with_mean=False), MinMaxScaler(), MaxAbsScaler()])
def test_scaled_features(tmp_path, rng, scaler):
    x = 1000 + 3 * samples(rng) if isinstance(scaler, (StandardScaler, MinMaxScaler)) else samples(rng)
    y = rng.integers(0, 3, SAMPLES)
    scaled = scaler.fit_transform(x)
    model = sfb.models.LogisticRegression().fit(scaled, y)
    save(tmp_path / "m.npz", model, scaler)
    loaded = load(tmp_path / "m.npz")
    for form in FORMS.values():
        np.testing.assert_allclose(loaded.predict_proba(form(x)), model.predict_proba(scaled), rtol=1e-9)
    save(tmp_path / "pair.npz", model, (loaded.scaler.offset, loaded.scaler.factor))
    np.testing.assert_array_equal(load(tmp_path / "pair.npz").predict_proba(x), loaded.predict_proba(x))


def test_long_sparse_rows(rng):
    """Rows with more values than are multiplied at a time."""
    from sfb.models.saved import rows

    x = sparse.random_array((40, 3000), density=0.5, rng=rng, format="csr")
    columns = rng.standard_normal((3000, 1500))
    assert 1500 * columns.shape[1] > rows._ELEMENTS
    found = rows.product(rows.check_rows(bare(x), 3000), columns)
    np.testing.assert_allclose(found, x @ columns, rtol=1e-10, atol=1e-10)


def test_no_samples(tmp_path, rng):
    save(tmp_path / "m.npz", sfb.models.LogisticRegression().fit(samples(rng), np.arange(SAMPLES) % 3))
    for form in FORMS.values():
        assert load(tmp_path / "m.npz").predict(form(np.empty((0, FEATURES)))).shape == (0,)


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {allowed} | set(sys.stdlib_module_names) and not name.startswith("__"):
            raise ImportError(f"blocked: {{name}}")

sys.meta_path.insert(0, Blocker())
import numpy as np
import sfb.models

class Rows:
    indptr, indices, data, shape = np.array([0, 1, 2]), np.array([2, 0]), np.array([1.0, 2.0]), (2, 3)

model = sfb.models.load(sys.argv[1])
print(model.predict(np.array([[0, 0, 1.0], [2.0, 0, 0]])).tolist(), model.predict(Rows()).tolist())
print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"mpi4py", "numba", "scipy", "sklearn", "click"}}))
"""


@pytest.mark.parametrize("name", ["LogisticRegression", "relu"])
def test_numpy_alone_predicts(tmp_path, name):
    """A process in which nothing but NumPy and this package can be imported."""
    model = MAKE[name]().fit(np.array([[0, 0, 1.0], [2.0, 0, 0]] * 9), np.array(["a", "b"] * 9))
    save(tmp_path / "m.npz", model)
    script = BLOCKED.format(allowed={"numpy", "sfb", "_distutils_hack"})
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "m.npz"], capture_output=True, text=True, timeout=60, check=False
    )
    expected = model.predict([[0, 0, 1.0], [2.0, 0, 0]]).tolist()
    assert done.stdout == f"{expected} {expected}\n[]\n", done.stderr


def raw(path, header, **arrays):
    """Write an .npz with a header, past the checks of `save`."""
    np.savez(path, header=np.array(json.dumps(header)), **arrays)


MLP = {"format": 1, "kind": "mlp", "activation": "relu", "out_activation": "identity", "sfb": "9.9"}
LINEAR = {"format": 1, "kind": "linear", "out_activation": "softmax", "sfb": "9.9"}
COEF, INTERCEPT, THREE = np.ones((3, 2)), np.zeros(3), np.arange(3)
BROKEN = {
    "text": (lambda path: path.write_text("1 1:2\n"), "no model file"),
    "empty": (lambda path: path.write_bytes(b""), "no model file"),
    "data": (lambda path: np.savez(path, x=COEF, y=INTERCEPT), "no header"),
    "another header": (lambda path: np.savez(path, header=np.array("{")), "no JSON"),
    "a list for a header": (lambda path: raw(path, [1]), "no format"),
    "pickled": (lambda path: np.savez(path, header=np.array([{}], object)), "damaged.*pickle"),
    "a newer version": (lambda path: raw(path, LINEAR | {"format": 2}), "format 2, written by sfb 9.9.*upgrade"),
    "another kind": (lambda path: raw(path, LINEAR | {"kind": "forest"}), "'forest'.*knows linear"),
    "an array missing": (lambda path: raw(path, LINEAR, coef=COEF, classes=THREE), "lacks the array intercept"),
    "another shape": (lambda path: raw(path, LINEAR, coef=COEF, intercept=np.ones(2), classes=THREE), r"\(3\), got"),
    "integers": (lambda path: raw(path, LINEAR, coef=np.ones((3, 2), int), intercept=INTERCEPT), "float32 or float64"),
    "NaN": (lambda path: raw(path, LINEAR, coef=COEF * np.nan, intercept=INTERCEPT, classes=THREE), "NaN"),
    "a class less": (lambda path: raw(path, LINEAR, coef=COEF, intercept=INTERCEPT, classes=THREE[1:]), "3 labels"),
    "an activation": (lambda path: raw(path, MLP | {"activation": "sine"}, weights0=COEF, bias0=INTERCEPT), "sine"),
    "no layer": (lambda path: raw(path, MLP), "lacks the array weights0"),
    "a layer missing": (lambda path: raw(path, MLP, weights1=COEF, bias1=INTERCEPT), "lacks the array weights0"),
    "layers that do not fit": (
        lambda path: raw(path, MLP, weights0=COEF, bias0=INTERCEPT, weights1=COEF, bias1=INTERCEPT),
        r"weights1 must be .*\(any, 3\), got",
    ),
    "half a scaler": (
        lambda path: raw(path, LINEAR, coef=COEF, intercept=INTERCEPT, classes=THREE, scale_offset=np.ones(2)),
        "scale_factor",
    ),
    "no labels of references": (
        lambda path: raw(
            path, LINEAR | {"kind": "nearest"}, components=COEF, references=np.ones((2, 3)), classes=THREE
        ),
        r"integers of shape \(2,\)",
    ),
    "a label beyond the classes": (
        lambda path: raw(
            path, LINEAR | {"kind": "nearest"}, components=COEF, references=np.eye(3), classes=THREE, labels=THREE + 1
        ),
        "from 0 to 2",
    ),
    "a limit": (
        lambda path: raw(
            path, LINEAR | {"kind": "factorization", "mean": 0, "rating_range": [5, 1]}, user_factors=COEF,
            item_factors=COEF, user_biases=INTERCEPT, item_biases=INTERCEPT,
        ),
        "rating_range",
    ),
    "a prior": (
        lambda path: raw(
            path, LINEAR | {"kind": "lda", "mean_change_tol": 0.1, "max_doc_update_iter": 9}, components=COEF,
            doc_topic_prior=INTERCEPT,
        ),
        "doc_topic_prior must be > 0",
    ),
    "a penalty": (lambda path: raw(path, LINEAR | {"kind": "dictionary"}, components=COEF), "alpha"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_model(tmp_path, what):
    write, words = BROKEN[what]
    path = tmp_path / "model.npz"
    write(path)
    with pytest.raises(ModelError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_file_cut_short_or_damaged(tmp_path, rng):
    path = tmp_path / "m.npz"
    save(path, sfb.models.LogisticRegression().fit(samples(rng), np.arange(SAMPLES) % 3))
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"m\.npz"):
            load(path)
    at = whole.index(load_coef(whole))
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ModelError, match="damaged"):
        load(path)


def load_coef(whole):
    """Return the bytes of the coefficients in a file."""
    import io

    with np.load(io.BytesIO(whole)) as archive:
        return archive["coef"].tobytes()


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.npz")


def test_what_cannot_be_saved(tmp_path, rng):
    from sklearn.exceptions import NotFittedError

    path = tmp_path / "m.npz"
    with pytest.raises(NotFittedError):
        save(path, sfb.models.LogisticRegression())
    with pytest.raises(TypeError, match="fitted estimator"):
        save(path, 3)
    with pytest.raises(TypeError, match=r"expected save\(path, model\), .* got 'm.npz'"):
        save(3, "m.npz")
    with pytest.raises(ModelError, match="labels in files"):
        save(
            path, given(**{**LINEAR, "coef": COEF, "intercept": INTERCEPT}), classes=np.array(["a", None, "b"], object)
        )
    with pytest.raises(ModelError, match="NaN"):
        save(path, given(kind="metric", components=COEF * np.nan))
    with pytest.raises(TypeError, match="a scaler is"):
        save(path, given(kind="metric", components=COEF), scaler=3)
    assert not path.exists()


def sparse_with_a_column_too_many():
    x = bare(sparse.csr_array(np.eye(3)))
    x.shape = (3, 2)
    return x


WRONG = {
    "another number of features": (lambda: np.ones((2, 3)), "3 features, but the model is expecting 2"),
    "a vector": (lambda: np.ones(2), "2D"),
    "NaN": (lambda: np.array([[1, 2], [3, np.nan]]), "nan in sample 1 .*, feature 1"),
    "infinity in a sparse matrix": (lambda: sparse.csr_array([[0, 0], [0, np.inf]]), "inf in sample 1 .*, feature 1"),
    "texts": (lambda: np.array([["a", "b"]]), "numbers"),
    "a column too many": (sparse_with_a_column_too_many, "indices 0 to 2"),
    "pointers that do not ascend": (
        lambda: SimpleNamespace(indptr=np.array([0, 2, 1]), indices=THREE, data=INTERCEPT, shape=(2, 2)),
        "not those of a CSR matrix",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_predicted_from(tmp_path, what):
    make, words = WRONG[what]
    save(tmp_path / "m.npz", given(**LINEAR, coef=COEF, intercept=INTERCEPT, classes=THREE))
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "m.npz").predict(make())


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metric_learning(tmp_path, rng, labels, dtype):
    x, kinds = samples(rng, dtype, 1.0), LABELS[labels]
    y = kinds[rng.integers(0, len(kinds), SAMPLES)]
    model = sfb.models.MetricLearning(3, max_iter=2, random_state=0).fit(x, y)
    save(tmp_path / "m.npz", model)
    loaded, new = load(tmp_path / "m.npz"), samples(rng, dtype, 1.0)
    nearest = np.linalg.norm(model.transform(new)[:, np.newaxis] - model.references_[0], axis=2).argmin(axis=1)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for form in FORMS.values():
        np.testing.assert_allclose(loaded.transform(form(new)), model.transform(new), rtol=tolerance, atol=tolerance)
        assert (loaded.predict(form(new)) == model.references_[1][nearest]).all()
    assert np.mean(loaded.predict(new) == y) == pytest.approx(model.score(new, y))
    save(tmp_path / "m.npz", sfb.models.MetricLearning(3, max_iter=1, store_references=False).fit(x, y))
    assert not hasattr(load(tmp_path / "m.npz"), "predict")


@pytest.mark.parametrize(
    "settings", [{}, {"split_sign": True}, {"positive_code": True}, {"transform_alpha": 0.05}], ids=str
)
@pytest.mark.parametrize("name", ["DictionaryLearning", "MiniBatchDictionaryLearning"])
def test_dictionary_learning(tmp_path, rng, name, settings):
    x = samples(rng, fill=1.0)
    model = getattr(sfb.models, name)(5, alpha=0.3, max_iter=3, random_state=0, **settings).fit(x)
    save(tmp_path / "d.npz", model)
    found, expected = load(tmp_path / "d.npz").transform(x, tol=1e-10), model.transform(x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("algorithm", ["omp", "lasso_lars"])
def test_a_dictionary_of_another_algorithm_is_refused(tmp_path, rng, algorithm):
    model = sfb.models.DictionaryLearning(5, max_iter=1, transform_algorithm=algorithm).fit(samples(rng))
    with pytest.raises(ModelError, match=f"lasso_cd.*not by '{algorithm}'"):
        save(tmp_path / "d.npz", model)
    save(tmp_path / "d.npz", model.set_params(transform_algorithm="lasso_cd"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["Lasso", "ElasticNet"])
def test_lasso(tmp_path, rng, name, dtype):
    x = samples(rng, dtype)
    model = getattr(sfb.models, name)(alpha=0.01).fit(x, 7 + x @ np.arange(FEATURES))
    save(tmp_path / "l.npz", model)
    for form in FORMS.values():
        found = load(tmp_path / "l.npz").predict(form(x))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, model.predict(x), rtol=1e-5 if dtype == np.float32 else 1e-12)


def ratings(rng):
    """Return a matrix of ratings from 1 to 5; a user and an item have none."""
    x = rng.integers(1, 6, (12, 9)) * (rng.random((12, 9)) < 0.5)
    x[4], x[:, 5] = 0, 0
    return sparse.csr_matrix(x.astype(float))


@pytest.mark.parametrize(
    "settings", [{}, {"rating_range": (1, 5)}, {"biases": False}, {"feedback": "implicit"}], ids=str
)
def test_matrix_factorization(tmp_path, rng, settings):
    x = ratings(rng)
    model = sfb.models.MatrixFactorization(3, random_state=0, tol=0, max_iter=4, **settings).fit(x)
    save(tmp_path / "f.npz", model)
    loaded = load(tmp_path / "f.npz")
    users, items = np.arange(12)[:, np.newaxis], np.arange(9)
    np.testing.assert_allclose(loaded.predict(users, items), model.predict(users, items), rtol=1e-12)
    for user in range(12):
        found, scores = loaded.recommend(user, 4, exclude=x[user].indices)
        expected, values = model.recommend(user, 4, exclude=x)
        assert found.tolist() == expected[np.isfinite(values)].tolist()
        np.testing.assert_allclose(scores, values[np.isfinite(values)], rtol=1e-12)
    for user, item in ((12, 0), (-1, 0), (0, 9), (0.5, 0)):
        with pytest.raises(ValueError, match="must be a number from 0 to"):
            loaded.predict(user, item)


def test_names_of_users_and_items(tmp_path, rng):
    model = sfb.models.MatrixFactorization(2, random_state=0, tol=0, max_iter=4).fit(ratings(rng))
    users, items = np.array([f"user{i:02}" for i in range(12)]), np.arange(100, 109)
    save(tmp_path / "f.npz", given(**model._contents(), users=users, items=items))
    loaded = load(tmp_path / "f.npz")
    np.testing.assert_allclose(loaded.predict(["user03", "user11"], 107), model.predict([3, 11], [7, 7]), rtol=1e-12)
    found, _ = loaded.recommend("user03", 3, exclude=[100, 101])
    assert set(found.tolist()) <= {*range(102, 109)}
    assert len(found) == 3
    for user, item in (("user12", 100), ("user03", 99), ("user03", 109), (3, 100)):
        with pytest.raises(ValueError, match=r"knows no|the names of users are"):
            loaded.predict(user, item)
    with pytest.raises(ModelError, match="12 names in ascending order"):
        save(tmp_path / "f.npz", given(**model._contents(), users=users[::-1]))


def test_topics(tmp_path, rng):
    counts = rng.poisson(0.7, (SAMPLES, 30))
    counts[3] = 0
    words = [f"word{i}" for i in range(30)]
    model = sfb.models.LatentDirichletAllocation(4, max_iter=15, optimize_interval=5, random_state=0)
    model.fit(counts, vocabulary=words)
    save(tmp_path / "t.npz", model)
    loaded = load(tmp_path / "t.npz")
    for form in FORMS.values():
        np.testing.assert_allclose(loaded.transform(form(counts.astype(float))), model.transform(counts), rtol=1e-9)
    once = sparse.csr_array(counts.astype(float))
    halves = SimpleNamespace(
        indptr=2 * once.indptr, indices=np.repeat(once.indices, 2), data=np.repeat(once.data / 2, 2), shape=once.shape
    )
    np.testing.assert_allclose(loaded.transform(halves), model.transform(counts), rtol=1e-9)
    assert loaded.top_words(3) == model.top_words(3)
    with pytest.raises(ValueError, match="Negative values"):
        loaded.transform(-counts)


def test_a_support_vector_machine_has_no_probabilities(tmp_path, rng):
    save(tmp_path / "m.npz", sfb.models.LinearSVC().fit(samples(rng), np.arange(SAMPLES) % 3))
    with pytest.raises(ModelError, match=r"LinearSVC.* no probabilities"):
        load(tmp_path / "m.npz").predict_proba(samples(rng))
