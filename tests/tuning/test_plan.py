import subprocess
import sys

import numpy as np
import pytest

from sfb.collectives import ALGORITHMS, Problem, spread
from sfb.tuning.plan import Trial, choose, what_if
from sfb.tuning.profile import EXCHANGES, Place, Profile


def problem(shape, samples, ranks, nodes=1, shared=False, sharing=1.0, **options):
    return Problem(
        shape=shape,
        dtype=np.dtype("f4"),
        counts=np.full(ranks, samples, np.int64),
        node_of=spread(ranks, nodes),
        passes=1,
        shared=shared,
        sharing=sharing,
        **options,
    )


def test_factors_where_few_samples_meet_a_large_matrix():
    assert choose(problem((4096, 4096), 1, 4, nodes=4)).algorithm == "broadcast"
    assert choose(problem((4096, 4096), 10, 4, shared=True)).algorithm == "node"


def test_dense_where_many_samples_meet_a_small_matrix():
    assert choose(problem((10, 784), 512, 16, nodes=16)).algorithm == "dense"
    assert choose(problem((600, 780), 4096, 8, nodes=8)).algorithm == "dense"


def test_the_cheapest_estimate_is_taken():
    for samples in (0, 1, 100, 10_000):
        plan = choose(problem((1000, 1000), samples, 8, nodes=2))
        assert plan.algorithm == min(plan.estimates, key=lambda e: e.total).algorithm
        assert {e.algorithm for e in plan.estimates} <= set(ALGORITHMS)


def test_a_named_algorithm_is_taken_whatever_it_costs():
    for name in ALGORITHMS:
        plan = choose(problem((10, 10), 1000, 4), name)
        assert plan.algorithm == name
        assert "named by the caller" in plan.explain()
        assert name in {e.algorithm for e in plan.estimates}


def amounts(name, problem):
    return {use.kind: use.amount * use.times for use in ALGORITHMS[name].cost(problem)}


def test_dense_reduces_the_matrix():
    cost = amounts("dense", problem((640, 32), 5, 4, nodes=4))
    assert cost["allreduce"] == 640 * 32 * 4
    assert cost["rebuild"] == 640 * 32


def test_small_exchanges_of_ranks_that_are_nodes_cost_bytes_and_no_message():
    profile = Profile()
    for name, received in (("broadcast", 3 * 5 * (64 + 32) * 4), ("dense", 2 * 64 * 32 * 4)):
        exchange = [use for use in ALGORITHMS[name].cost(problem((64, 32), 5, 4, nodes=4)) if use.kind in EXCHANGES]
        seconds = sum(profile.seconds(use, Place(4, 1, 4)) for use in exchange)
        assert seconds == pytest.approx(received / profile.far_bandwidth)
    assert "allgather" in amounts("broadcast", problem((64, 32), 5, 4, nodes=2))
    assert "allreduce" in amounts("dense", problem((64, 32), 5, 4, nodes=2))


def test_node_rebuilds_a_share_and_brings_each_sample_into_a_node_once():
    flat, shared = (amounts("node", problem((4096, 64), 5, 8, 2, shared)) for shared in (False, True))
    assert shared["rebuild"] == pytest.approx(flat["rebuild"] / 4)
    eight = problem((4096, 64), 5, 8, 2)
    received = ALGORITHMS["broadcast"].wire_bytes(eight), ALGORITHMS["node"].wire_bytes(eight)
    assert received == (7 * 5 * 4160 * 4, 4 * 5 * 4160 * 4)  # three of its own node, and one of the other


def test_sharded_rebuilds_a_part():
    whole, part = (amounts(name, problem((4096, 64), 5, 8, 8))["rebuild"] for name in ("broadcast", "sharded"))
    assert part == whole / 8


def test_counts():
    uneven = problem((4, 3), 2, 3)
    assert uneven.uniform
    assert uneven.depth == 6
    np.testing.assert_array_equal(uneven.offsets, [0, 2, 4])


def test_blocks_stay_below_the_ceiling():
    assert problem((100, 50), 10, 4).row_blocks == [(0, 100)]
    tight = problem((400, 50), 10, 4, max_bytes=40 * 50 * 4 * 2)
    assert tight.sample_blocks == 1
    assert len(tight.row_blocks) > 1
    assert tight.row_blocks[0][0] == 0
    assert tight.row_blocks[-1][1] == 400
    tighter = problem((400, 50), 100, 4, max_bytes=1000)
    assert tighter.sample_blocks > 1
    assert tighter.sample_edges[0].sum() == 0
    assert tighter.sample_edges[-1].sum() == 400


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
    trial = Trial(["a", "b"], brief=2e-3)
    calls = 0
    while not trial.over:
        seconds = {"a": 70e-6, "b": 80e-6} if calls < 16 else {"a": 170e-6, "b": 140e-6}
        trial.add(trial.next, seconds[trial.next])
        calls += 1
    assert 20 < calls < 40
    assert trial.best == "b"


@pytest.mark.parametrize("nodes", [1, 4])
def test_a_tie_goes_to_the_cheaper_estimate_or_between_nodes_to_what_receives_less(nodes):
    plan = choose(problem((100, 100), 10, 4, nodes=nodes))
    first, *_, last = sorted(plan.estimates, key=lambda e: e.total if nodes == 1 else e.wire_bytes)
    tie, slower = (1.04, 1.06) if nodes == 1 else (1.01, 1.03)
    for times, taken in (((tie, 1.0), first), ((slower, 1.0), last)):
        plan.trial = Trial([last.algorithm, first.algorithm])
        while plan.trial is not None:
            turn = plan.trial.next
            plan.note(turn, times[turn == last.algorithm])
        assert plan.algorithm == taken.algorithm


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
    trial = Trial(["a", "b"], brief=1e-1)
    for calls in range(128):
        name = trial.next
        trial.add(name, 80e-6 if calls == 7 else {"a": 170e-6, "b": 250e-6}[name])
        assert trial.over == (calls >= 63)
        if trial.over:
            break
    assert trial.best == "a"


def test_trials_only_where_estimates_are_close():
    assert choose(problem((4096, 4096), 0, 1), trials=True).trial is None
    close = choose(problem((1000, 1000), 100, 4), trials=True)
    assert close.trial is not None
    assert close.algorithm in close.trial.algorithms
    assert "time it against" in close.explain()
    while close.trial is not None:
        close.note(close.trial.next, 1e-3)
    assert "the fastest of those timed" in close.explain()
    assert "1.000" in close.explain()


def test_what_if_needs_no_mpi():
    code = (
        "import sys; sys.modules['mpi4py.MPI'] = None\n"
        "from sfb.tuning.plan import what_if\n"
        "print(what_if(rows=4096, columns=4096, samples=8, ranks=64, nodes=8).explain())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "64 ranks on 8 nodes" in done.stdout
    assert "taken: node" in done.stdout


def test_what_if_momentum_costs_more():
    plain, momentum = (
        what_if(rows=4096, columns=4096, samples=1, ranks=4, nodes=1, receiver=name) for name in ("sgd", "momentum")
    )
    assert momentum.estimates[0].total > plain.estimates[0].total
