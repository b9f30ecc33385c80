"""The choice among algorithms, with algorithms whose seconds the tests set."""

from dataclasses import dataclass

import pytest

from sfb.tuning.plan import choose
from sfb.tuning.profile import Place, Profile, Use
from sfb.tuning.trial import Trial


@dataclass(frozen=True)
class Exchange:
    ranks: int = 4
    nodes: int = 1
    shape: tuple = (100, 50)
    dtype: str = "float32"
    depth: int = 40
    shared: bool = False

    @property
    def place(self):
        return Place(self.ranks, self.ranks // self.nodes, self.nodes)


@dataclass(frozen=True)
class Algorithm:
    """One that takes these seconds by the stated rates, and suits what the test says."""

    exchange: float = 0.0
    rebuild: float = 0.0
    received: int = 0
    suited: bool = True

    def suits(self, problem):
        return self.suited

    def cost(self, problem):
        rate = Profile().memory_rate
        return [Use("copy", self.exchange * rate / 2), Use("pass", self.rebuild * rate)]

    def wire_bytes(self, problem, rank=0):
        return self.received


class Hiding(Algorithm):
    def hides(self, problem):
        return 0.5


def test_the_cheapest_is_taken_and_ties_go_to_the_first():
    algorithms = {"a": Algorithm(2e-3, 1e-3), "b": Algorithm(1e-3, 1e-3), "c": Algorithm(1e-3, 1e-3)}
    plan = choose(Exchange(), algorithms)
    assert plan.algorithm == "b"
    assert [e.algorithm for e in plan.estimates] == ["b", "c", "a"]
    assert [e.total for e in plan.estimates] == pytest.approx([2e-3, 2e-3, 3e-3])
    assert "the cheapest estimate" in plan.explain()


def test_what_does_not_suit_is_taken_only_by_name():
    algorithms = {"a": Algorithm(2e-3), "b": Algorithm(1e-3, suited=False)}
    assert [e.algorithm for e in choose(Exchange(), algorithms).estimates] == ["a"]
    named = choose(Exchange(), algorithms, "b", trials=True)
    assert (named.algorithm, named.trial) == ("b", None)
    assert {e.algorithm for e in named.estimates} == {"a", "b"}
    assert "named by the caller" in named.explain()


def test_the_exchange_hides_behind_the_rebuild_as_far_as_there_is_one():
    algorithms = {"long": Hiding(4e-3, 5e-3), "short": Hiding(4e-3, 1e-3)}
    seconds = {e.algorithm: e.exchange for e in choose(Exchange(), algorithms).estimates}
    assert seconds == pytest.approx({"long": 2e-3, "short": 3e-3})


def time_call(plan, seconds):
    """Time a call of the algorithm that is next in a plan's trial, on a single rank."""
    trial = plan.trial
    if trial.record(trial.next, seconds[trial.next], 0.0):
        plan.end_round(trial.times())


def test_measured_overheads_count():
    algorithms = {"a": Algorithm(1e-3), "b": Algorithm(2e-3)}
    assert choose(Exchange(), algorithms, profile=Profile(overheads={"a": 2e-3})).algorithm == "b"


class InBlocks(Algorithm):
    def calls(self, problem):
        return 1000


def test_each_block_takes_the_overhead():
    profile = Profile(overheads={"a": 1e-5, "b": 1e-5})
    plan = choose(Exchange(), {"a": InBlocks(1e-3), "b": Algorithm(2e-3)}, profile=profile)
    assert [e.exchange for e in plan.estimates] == pytest.approx([2.01e-3, 11e-3])
    assert plan.algorithm == "b"


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_tie_goes_to_the_cheaper_estimate_or_between_nodes_to_what_receives_less(nodes):
    algorithms = {"a": Algorithm(1e-3, received=9), "b": Algorithm(2e-3, received=1), "c": Algorithm(3e-3, received=5)}
    plan = choose(Exchange(nodes=nodes), algorithms)
    first, *_, last = sorted(plan.estimates, key=lambda e: e.total if nodes == 1 else e.wire_bytes)
    tie, slower = (1.04, 1.06) if nodes == 1 else (1.01, 1.03)
    for times, taken in (((tie, 1.0), first), ((slower, 1.0), last)):
        plan.trial = Trial([last.algorithm, first.algorithm])
        while plan.trial is not None:
            time_call(plan, {last.algorithm: times[1], first.algorithm: times[0]})
        assert plan.algorithm == taken.algorithm


def test_a_trial_times_the_best_three_and_all_that_are_close():
    seconds = {"a": 1.0, "b": 1.5, "c": 1.5, "d": 1.5, "e": 1.7, "f": 5.0}
    algorithms = {name: Algorithm(1e-3 * factor) for name, factor in seconds.items()}
    assert choose(Exchange(), algorithms, trials=True).trial.algorithms == ["a", "b", "c", "d"]
    far = {name: algorithms[name] for name in "aef"}
    assert choose(Exchange(), far, trials=True).trial.algorithms == ["a", "e"]
    assert choose(Exchange(), {name: algorithms[name] for name in "af"}, trials=True).trial is None
    assert choose(Exchange(), algorithms).trial is None
    assert choose(Exchange(ranks=1), algorithms, trials=True).trial is None


def test_a_plan_explains_its_trial():
    plan = choose(Exchange(), {"a": Algorithm(1e-3), "b": Algorithm(1.1e-3)}, trials=True)
    assert plan.algorithm in plan.trial.algorithms
    assert "time it against b" in plan.explain()
    while plan.trial is not None:
        time_call(plan, {"a": 1e-3, "b": 1e-3})
    assert "the fastest of those timed" in plan.explain()
    assert "1.000" in plan.explain()
