from sfb.tuning.trial import Trial


def test_a_trial_ends_with_the_fastest():
    trial = Trial(["a", "b"])
    while not trial.over:
        name = trial.next
        first = not trial.seconds[name]
        trial.add(name, 9.0 if first else {"a": 1.2, "b": 1.0}[name])  # the first call of each does not count
    assert trial.best == "b"
    assert trial.measured == {"a": 1.2, "b": 1.0}


def test_a_trial_of_short_calls_goes_on_until_they_are_steady():
    """A network at rest takes the first messages faster than those that follow."""
    trial = Trial(["a", "b"], min_seconds=2e-3)
    calls = 0
    while not trial.over:
        seconds = {"a": 70e-6, "b": 80e-6} if calls < 16 else {"a": 170e-6, "b": 140e-6}
        trial.add(trial.next, seconds[trial.next])
        calls += 1
    assert 20 < calls < 40
    assert trial.best == "b"


def test_a_trial_tells_what_follows_a_call_under_way():
    trial = Trial(["a", "b"])
    assert trial.after("a") == "b"
    trial.add("a", 1.0)
    assert trial.next == "b"
    assert trial.after("b") == "b"  # every second round has the opposite order
    trial.add("b", 1.0)
    assert trial.next == "b"
    assert trial.after("b") == "a"


def test_a_trial_gives_up_what_is_far_behind():
    trial = Trial(["a", "b", "c"])
    seconds = {"a": 1.0, "b": 50.0, "c": 1.1}
    taken = []
    while not trial.over:
        taken.append(trial.next)
        trial.add(taken[-1], seconds[taken[-1]])
    assert taken.count("b") == 2
    assert trial.best == "a"


def test_a_trial_does_not_give_up_short_calls_for_one_lucky_call():
    trial = Trial(["a", "b"], min_seconds=1e-1)
    for calls in range(128):
        name = trial.next
        trial.add(name, 80e-6 if calls == 7 else {"a": 170e-6, "b": 250e-6}[name])
        assert trial.over == (calls >= 63)
        if trial.over:
            break
    assert trial.best == "a"
