import numpy as np
import pytest

from sfb.tuning.trial import Trial


def call(trial, seconds):
    """Time a call of the algorithm that is next, on a single rank; return its name."""
    name = trial.next
    if trial.record(name, seconds(name), 0.0):
        trial.end_round(trial.times())
    return name


def test_a_trial_ends_with_the_fastest():
    trial = Trial(["a", "b"])
    while not trial.over:
        # The first call of each does not count.
        call(trial, lambda name: {"a": 1.2, "b": 1.0}[name] if trial.seconds[name] else 9.0)
    assert trial.best == "b"
    assert trial.measured == {"a": 1.2, "b": 1.0}


def test_a_trial_of_short_calls_goes_on_until_they_are_steady():
    """A network at rest takes the first messages faster than those that follow."""
    trial = Trial(["a", "b"], min_seconds=2e-3)
    calls = 0
    while not trial.over:
        seconds = {"a": 70e-6, "b": 80e-6} if calls < 16 else {"a": 170e-6, "b": 140e-6}
        call(trial, seconds.get)
        calls += 1
    assert 20 < calls < 40
    assert trial.best == "b"


def test_every_second_round_has_the_opposite_order():
    trial = Trial(["a", "b", "c"])
    assert [call(trial, lambda name: 1.0) for _ in range(9)] == list("abccbaabc")


def test_a_round_counts_once_all_algorithms_have_been_timed():
    trial = Trial(["a", "b"])
    assert not trial.record("a", 1.0, 0.5)
    assert trial.seconds == {"a": [], "b": []}
    assert trial.record("b", 2.0, 0.25)
    np.testing.assert_array_equal(trial.times(), [[1.0, -0.5, 1.5], [2.0, -0.25, 2.25]])


@pytest.mark.parametrize("late", [0.0, 0.1, 100.0])
def test_a_rank_that_waits_for_a_late_one_does_not_count_its_wait(late):
    ranks = [Trial(["a"]) for _ in range(2)]
    for trial, (worked, waited) in zip(ranks, [(5e-6, 90e-6 + late), (7e-6, 1.6e-6)], strict=True):
        assert trial.record("a", worked, waited)
    most = np.maximum(*(trial.times() for trial in ranks))
    for trial in ranks:
        trial.end_round(most)
        assert trial.seconds["a"] == pytest.approx([8.6e-6])


def test_between_nodes_the_slowest_rank_counts_with_its_wait():
    ranks = [Trial(["a"], far=True) for _ in range(3)]
    for trial, (worked, waited) in zip(ranks, [(5e-6, 95e-6), (30e-6, 0.0), (0.0, 20e-6)], strict=True):
        trial.record("a", worked, waited)
    most = np.max([trial.times() for trial in ranks], axis=0)
    for trial in ranks:
        trial.end_round(most)
        assert trial.seconds["a"] == pytest.approx([100e-6])


def test_a_trial_gives_up_what_is_far_behind():
    trial = Trial(["a", "b", "c"])
    taken = []
    while not trial.over:
        taken.append(call(trial, {"a": 1.0, "b": 50.0, "c": 1.1}.get))
    assert taken.count("b") == 2
    assert trial.best == "a"


def test_a_trial_does_not_give_up_short_calls_for_one_lucky_call():
    trial = Trial(["a", "b"], min_seconds=1e-1)
    for calls in range(128):
        call(trial, lambda name: 80e-6 if calls == 7 else {"a": 170e-6, "b": 250e-6}[name])  # noqa: B023
        assert trial.over == (calls >= 63)
        if trial.over:
            break
    assert trial.best == "a"
