import csv
import json
from collections import Counter
from dataclasses import dataclass
from io import StringIO
from itertools import islice, pairwise

import pytest

from sfb.bench.engine import Benchmark, Column, Timing, _orders, columns, measure

pytestmark = pytest.mark.mpi


@dataclass(frozen=True, kw_only=True)
class Config(Timing):
    wrong: tuple
    names: bool = False


COLUMNS = [*columns("{:.1f}".format, 8, a="A", b="B"), Column("name", "name", when=lambda config: config.names)]


def rows(world, config, heading):
    heading("sfb bench test", "a note", more="facts")
    for number, wrong in enumerate(config.wrong):
        yield {"a": number, "b": 2 * number, "name": f"row{number}", "wrong": wrong}


def draw(rows, path):
    path.write_text(f"{len(rows)} rows")


run = Benchmark(COLUMNS, rows, draw)


@pytest.mark.parametrize("names", [True, False])
def test_only_rank_0_prints_rows_under_their_headings(world, capfd, names):
    assert [row["b"] for row in run(world, Config(wrong=(0, 3), names=names))] == [0, 2]
    lines = capfd.readouterr().out.splitlines()
    if world.rank > 0:
        assert not lines
        return
    headings = ["A", "B", "name"][: 2 + names]
    assert lines[0] == "# sfb bench test"
    assert lines[-4][1:].split() == headings
    assert [line.split() for line in lines[-3:-1]] == [
        ["0.0", "0.0", "row0"][: 2 + names],
        ["1.0", "2.0", "row1"][: 2 + names],
    ]
    assert lines[-1] == "# wrong: 3"
    assert any(f"{world.size} rank" in line for line in lines[:-4])


def test_rows_that_nobody_checked_are_not_called_right(world, capfd):
    run(world, Config(wrong=(0, None)))
    assert world.rank > 0 or capfd.readouterr().out.endswith("# not checked\n")


def test_files(world, capfd, tmp_path):
    config = Config(wrong=(0,), iterations=7)
    results = run(world, config, json_file=tmp_path / "rows.json", plot=tmp_path / "rows.txt", as_csv=True)
    if world.rank > 0:
        assert not list(tmp_path.iterdir())
        return
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["format"] == 1
    assert content["config"]["iterations"] == 7
    assert content["environment"]["ranks"] == world.size
    assert content["environment"]["more"] == "facts"
    assert content["results"] == results
    assert (tmp_path / "rows.txt").read_text() == "1 rows"
    table = "".join(line for line in capfd.readouterr().out.splitlines(keepends=True) if line[0] != "#")
    assert list(csv.DictReader(StringIO(table))) == [{"a": "0", "b": "0", "name": "row0", "wrong": "0"}]


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_every_candidate_follows_every_other_equally_often(count):
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
    """A clock that only `sleep` moves on: the same on all ranks, however busy the machine is."""

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


def test_candidates_are_timed_in_turn_and_time_is_bounded(world, clock):
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
    assert 0.1 < clock.now <= 0.2 + 0.02  # warm-ups do not count
    assert [times["a"].median, times["b"].p99] == pytest.approx([0.01, 0.01])


def test_a_far_slower_candidate_is_timed_less_often(world, clock):
    def candidate(milliseconds):
        return lambda: clock.sleep(milliseconds * 1e-3)

    calls = {"close": candidate(1), "closest": candidate(1), "far": candidate(30)}
    times = measure(world, calls, Timing(iterations=1000, warmups=1, seconds=0.4))
    assert 1 <= times["far"].iterations < times["close"].iterations == times["closest"].iterations < 1000
    calls = {"a": candidate(0), "far": candidate(5)}
    times = measure(world, calls, Timing(iterations=3, warmups=1, seconds=20))
    assert [t.iterations for t in times.values()] == [3, 3]
