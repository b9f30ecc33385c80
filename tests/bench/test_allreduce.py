import json

import pytest

from sfb.bench import allreduce
from sfb.bench.engine import Timing, _orders, measure
from sfb.collectives import ALGORITHMS
from sfb.tuning import calibrate

pytestmark = pytest.mark.mpi

SMALL = {"shapes": [(40, 30)], "samples": [0, 3], "iterations": 3, "warmups": 1}


@pytest.mark.parametrize("receiver", ["array", "sgd", "momentum"])
@pytest.mark.parametrize("memory", ["shared", "private"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_candidate_is_right(world, capfd, receiver, memory, dtype):
    config = allreduce.Config(**SMALL, receiver=receiver, memory=memory, dtype=dtype)
    rows = allreduce.run(world, config)
    assert [(row["S"], row["algorithm"]) for row in rows] == [(s, a) for s in (0, 3) for a in allreduce.CANDIDATES]
    assert all(row["wrong"] == 0 for row in rows)
    assert all(0 < row["min"] <= row["seconds"] <= row["p99"] for row in rows)
    lines = capfd.readouterr().out.splitlines()
    if world.rank == 0:
        data = [line.split() for line in lines if not line.startswith("#")]
        assert len(data) == len(rows)
        assert {len(line) for line in data} == {len(allreduce.COLUMNS)}
    else:
        assert not lines


def test_a_wrong_result_is_counted(world, capfd, monkeypatch):
    monkeypatch.setattr(allreduce._Oracle, "wrong", lambda *args: 5)
    rows = allreduce.run(world, allreduce.Config(**SMALL))
    assert all(row["wrong"] == 5 for row in rows)
    if world.rank == 0:
        assert f"# wrong: {5 * len(rows)}" in capfd.readouterr().out


def test_the_oracle_sees_an_element_that_is_off(world):
    import numpy as np

    import sfb

    factors = sfb.Factors(np.ones((2, 6)), np.ones((2, 5)))
    oracle = allreduce._Oracle(world, factors)
    got = np.full((6, 5), 2.0 * world.size)
    assert oracle.wrong(got, 0) == 0
    got[0, 0] += 1e-9
    got[5, 4] = np.nan
    assert oracle.wrong(got, 0) == 2


def test_all_estimates_rest_on_what_has_been_measured(world, monkeypatch, tmp_path):
    monkeypatch.setattr(calibrate, "_measured", {})
    monkeypatch.setattr(calibrate, "cache_file", lambda who: tmp_path / "none.json")
    rows = allreduce.run(world, allreduce.Config(shapes=[(40, 30)] * 2, samples=[2], iterations=1))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    estimates = [{row["algorithm"]: row["predicted"] for row in half} for half in (first, second)]
    for name in ALGORITHMS:
        assert estimates[0][name] == estimates[1][name] > 0
    for half, estimate in zip((first, second), estimates, strict=True):
        taken = {row["algorithm"]: row["taken"] for row in half}["auto"]
        assert estimate["auto"] == estimate[taken]


def test_json(world, capfd, tmp_path):
    path = tmp_path / "out.json"
    rows = allreduce.run(world, allreduce.Config(**SMALL, algorithms=["auto"]), json_file=path, as_csv=True)
    assert {row["algorithm"] for row in rows} == {"mpi", "auto"}
    if world.rank == 0:
        content = json.loads(path.read_text())
        assert content["format"] == 1
        assert content["results"] == rows
        assert content["environment"]["ranks"] == world.size
        table = [line for line in capfd.readouterr().out.splitlines() if not line.startswith("#")]
        assert table[0].startswith("K,D,S,algorithm")
        assert len(table) == len(rows) + 1


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_every_candidate_follows_every_other_equally_often(count):
    from collections import Counter
    from itertools import islice, pairwise

    names = [str(i) for i in range(count)]
    design = count * (1 + count % 2)
    orders = list(islice(_orders(names), 3 * design))
    assert all(sorted(order[1:]) == names for order in orders)
    assert len({order[0] for order in orders[:design]}) == 1
    assert set(Counter(order[1] for order in orders[:design]).values()) == {1 + count % 2}
    orders = [order[1:] for order in orders]
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(follows) == count * (count - 1)
    assert len(set(follows.values())) <= 1


class Clock:
    """A clock that only `sleep` moves on: alike on all ranks, however busy the machine is."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("sfb.bench.engine.perf_counter", clock)
    return clock


def test_candidates_take_turns_and_time_is_bounded(world, clock):
    calls = []

    def candidate(name):
        def call():
            calls.append(name)
            clock.sleep(0.01)

        return call

    times = measure(world, {n: candidate(n) for n in "ab"}, Timing(iterations=1000, warmups=1, seconds=0.2))
    assert sorted(calls[:2]) == sorted(calls[2:4]) == ["a", "b"]
    assert 1 <= times["a"].iterations < 1000
    assert times["a"].iterations == times["b"].iterations
    assert all(calls.count(name) > times[name].iterations for name in "ab")
    assert 0.1 < clock.now <= 0.2 + 0.02  # the first calls are not of the time
    assert [times["a"].median, times["b"].p99] == pytest.approx([0.01, 0.01])


def test_what_is_far_slower_is_timed_less_often(world, clock):
    def candidate(milliseconds):
        return lambda: clock.sleep(milliseconds * 1e-3)

    calls = {"close": candidate(1), "closest": candidate(1), "far": candidate(30)}
    times = measure(world, calls, Timing(iterations=1000, warmups=1, seconds=0.4))
    assert 1 <= times["far"].iterations < times["close"].iterations == times["closest"].iterations < 1000
    calls = {"a": candidate(0), "far": candidate(5)}
    times = measure(world, calls, Timing(iterations=3, warmups=1, seconds=20))
    assert [t.iterations for t in times.values()] == [3, 3]
