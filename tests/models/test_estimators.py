"""What scikit-learn expects of an estimator, on one rank."""

import pickle

import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from sfb.models import LogisticRegression, MLPClassifier, MLPRegressor

ESTIMATORS = [LogisticRegression(), MLPClassifier(), MLPRegressor()]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(ESTIMATORS)
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
