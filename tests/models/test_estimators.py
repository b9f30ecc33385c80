"""What scikit-learn expects of an estimator, on one rank."""

import pickle

import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from sfb.models import (
    DictionaryLearning,
    ElasticNet,
    Lasso,
    LatentDirichletAllocation,
    LinearSVC,
    LogisticRegression,
    MatrixFactorization,
    MetricLearning,
    MiniBatchDictionaryLearning,
    MLPClassifier,
    MLPRegressor,
)


class Factors(MatrixFactorization):
    """Without `predict`, which takes users and items, not the rows of a matrix."""

    predict = property()


ESTIMATORS = [
    DictionaryLearning(),
    ElasticNet(),
    Lasso(),
    LinearSVC(),
    LogisticRegression(),
    MLPClassifier(),
    MLPRegressor(),
    MetricLearning(),
    MiniBatchDictionaryLearning(),
    LatentDirichletAllocation(max_iter=20),
    Factors(2),
    Factors(2, solver="sgd", max_iter=5),
]


# What fails by design, and why.
_STOPS_BEFORE = "the solver stops at a gap of tol, of another size with other samples, not at the optimum"
EXPECTED = {
    "LinearSVC": {
        "check_sample_weight_equivalence_on_dense_data": _STOPS_BEFORE,
        "check_sample_weight_equivalence_on_sparse_data": _STOPS_BEFORE,
    }
}


CHECKS = parametrize_with_checks(
    ESTIMATORS, expected_failed_checks=lambda estimator: EXPECTED.get(type(estimator).__name__, {})
)


# scikit-learn 1.7, the last for Python 3.10, makes an iterator of them, which pytest 10 will not take.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_copies_and_communicators(estimator):
    """A copy by `clone` keeps the communicator, one by pickle does not."""
    from mpi4py import MPI

    own = MPI.COMM_SELF.Dup()
    estimator = clone(estimator).set_params(comm=own)
    assert clone(estimator).comm is own
    assert pickle.loads(pickle.dumps(estimator)).comm is None
    own.Free()
