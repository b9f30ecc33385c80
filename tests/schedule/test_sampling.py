"""Schedules: what is chosen together, how often, and that all ranks choose alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfb.schedule import Priority, Random, RoundRobin, StaticBlocks


def correlations(rng, variables, groups):
    """Return correlations of variables, those of the same group highly correlated."""
    group = rng.integers(0, groups, variables)
    points = rng.normal(size=(groups, 200))[group] + 0.3 * rng.normal(size=(variables, 200))
    return np.corrcoef(points).reshape(variables, variables)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 10),
    st.sampled_from([0.05, 0.1, 0.3, 0.9]),
    st.integers(0, 10**6),
)
def test_no_two_chosen_variables_correlate(variables, width, groups, threshold, seed):
    rng = np.random.default_rng(seed)
    matrix = correlations(rng, variables, groups)
    schedule = Priority(variables, width, lambda chosen: matrix[np.ix_(chosen, chosen)], threshold=threshold, seed=seed)
    for _ in range(10):
        chosen = schedule.select()
        assert 1 <= len(chosen) <= min(width, variables)
        assert len(set(chosen)) == len(chosen)
        assert chosen.min() >= 0
        assert chosen.max() < variables
        related = np.abs(matrix[np.ix_(chosen, chosen)])
        np.fill_diagonal(related, 0)
        assert (related < threshold).all()
        schedule.feedback(chosen, rng.exponential(size=len(chosen)))


def none(chosen):
    return np.eye(len(chosen))


def test_all_variables_come_before_any_comes_twice():
    schedule = Priority(20, 4, none)
    seen = []
    for _ in range(5):
        chosen = schedule.select()
        seen += chosen.tolist()
        schedule.feedback(chosen, np.full(len(chosen), 100.0))
    assert sorted(seen) == list(range(20))


def test_probabilities_are_squares_of_changes():
    schedule = Priority(4, 1, none, epsilon=1e-9, seed=1)
    changes = np.array([1.0, 2.0, -3.0, 0.0])
    schedule.feedback(np.arange(4), changes)
    counts = np.bincount(np.concatenate([schedule.select() for _ in range(4000)]), minlength=4)
    # Of two candidates the first is taken.
    expected = 4000 * changes**2 / 14
    assert counts[3] == 0
    assert (np.abs(counts - expected) < 5 * np.sqrt(4000 * 0.25)).all()


def test_epsilon_lets_variables_back_in():
    schedule = Priority(4, 1, none, epsilon=1.0, seed=1)
    schedule.feedback(np.arange(4), np.array([1.0, 0.0, 0.0, 0.0]))
    counts = np.bincount(np.concatenate([schedule.select() for _ in range(2000)]), minlength=4)
    assert counts[1:].min() > 100  # (1/4)/2 of the draws each
    assert counts[0] > 1000


def test_variables_that_no_longer_change_are_all_alike():
    schedule = Priority(3, 1, none)
    schedule.feedback(np.arange(3), np.zeros(3))
    assert {int(schedule.select()[0]) for _ in range(100)} == {0, 1, 2}


def test_tiny_and_huge_changes():
    for scale in (1e-200, 1e200):
        schedule = Priority(3, 1, none, epsilon=1e-6)
        schedule.feedback(np.arange(3), scale * np.array([0.0, 1.0, 0.0]))
        counts = np.bincount(np.concatenate([schedule.select() for _ in range(100)]), minlength=3)
        assert counts[1] > 90


def test_a_correlation_of_nan_keeps_variables_apart():
    """A constant variable has no correlation."""
    schedule = Priority(3, 3, lambda chosen: np.full((len(chosen), len(chosen)), np.nan))
    assert len(schedule.select()) == 1


def test_refusals_are_counted():
    schedule = Priority(4, 4, lambda chosen: np.ones((len(chosen), len(chosen))))
    schedule.select()
    assert schedule.refused == 3


@pytest.mark.parametrize(
    "make",
    [lambda: Random(30, 5, seed=3), lambda: RoundRobin(30, 7), lambda: Priority(30, 5, none, seed=3)],
    ids=["random", "round robin", "priority"],
)
def test_two_ranks_choose_alike(make):
    one, other = make(), make()
    for _ in range(20):
        chosen = one.select()
        np.testing.assert_array_equal(chosen, other.select())
        assert len(set(chosen.tolist())) == len(chosen)
        for schedule in (one, other):
            schedule.feedback(chosen, np.arange(1.0, len(chosen) + 1))


def test_random_is_even():
    schedule = Random(10, 3)
    counts = np.bincount(np.concatenate([schedule.select() for _ in range(2000)]), minlength=10)
    assert (np.abs(counts - 600) < 5 * np.sqrt(600)).all()


def test_a_width_above_the_number_of_variables():
    for schedule in (Random(3, 9), RoundRobin(3, 9), Priority(3, 9, none)):
        assert sorted(schedule.select()) == [0, 1, 2]


@pytest.mark.parametrize("blocks", [[], [[0], [0]], [[1]], [[0], [2]], [[]]], ids=str)
def test_blocks_that_are_no_division(blocks):
    with pytest.raises(ValueError, match="once"):
        StaticBlocks(blocks)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Random(0, 1),
        lambda: RoundRobin(3, 0),
        lambda: Priority(3, 1, none, threshold=0),
        lambda: Priority(3, 1, none, threshold=1.5),
        lambda: Priority(3, 1, none, epsilon=0),
        lambda: Priority(3, 1, lambda chosen: np.ones(2)).select(),
    ],
    ids=["no variables", "no width", "threshold 0", "threshold 1.5", "epsilon", "shape"],
)
def test_bad_arguments(call):
    with pytest.raises(ValueError, match=r"expected|must be|returned shape"):
        call()
