import subprocess
import sys

import pytest
from problems import even

from sfb.collectives import ALGORITHMS, check_algorithm, what_if
from sfb.tuning.plan import choose
from sfb.tuning.profile import EXCHANGES, Place, Profile


def test_factors_for_few_samples_of_a_large_matrix():
    assert choose(even((4096, 4096), 1, 4, nodes=4), ALGORITHMS).algorithm == "broadcast"
    assert choose(even((4096, 4096), 10, 4, shared=True), ALGORITHMS).algorithm == "node"


def test_dense_for_many_samples_of_a_small_matrix():
    assert choose(even((10, 784), 512, 16, nodes=16), ALGORITHMS).algorithm == "dense"
    assert choose(even((600, 780), 4096, 8, nodes=8), ALGORITHMS).algorithm == "dense"


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_many_blocks_are_dear(nodes):
    roomy, tight = (even((300, 400), 5, 4, nodes=nodes, max_bytes=limit) for limit in (1 << 20, 4096))
    plans = [choose(problem, ALGORITHMS) for problem in (roomy, tight)]
    assert plans[0].algorithm in ("node", "broadcast")
    assert plans[1].algorithm == "dense"
    for name in ("node", "broadcast"):
        algorithm = ALGORITHMS[name]
        assert algorithm.calls(roomy) == 1
        assert algorithm.calls(tight) == len(tight.row_blocks) * tight.sample_blocks == 1500
        uses = [use for use in algorithm.cost(tight) if use.kind in ("allgather", "across")]
        assert [use.times for use in uses] == ([1500, 1500] if uses else [])
        # Each block of rows gathers v anew.
        sent = [use.amount * use.times for use in uses]
        assert sent == pytest.approx([5 * 300 * 4, 300 * 5 * 400 * 4][: len(uses)])
    assert ALGORITHMS["dense"].calls(tight) == (1 if nodes == 1 else 150)


@pytest.mark.parametrize("name", ["node", "broadcast"])
def test_v_travels_once_where_only_rows_come_in_blocks(name):
    problem = even((400, 50), 10, 4, nodes=2, max_bytes=40 * 50 * 4 * 2)
    blocks = len(problem.row_blocks)
    assert problem.sample_blocks == 1 < blocks
    u, v = (use for use in ALGORITHMS[name].cost(problem) if use.kind in ("allgather", "across"))
    assert (u.times, v.times) == (blocks, 1)
    assert (u.amount * u.times, v.amount) == pytest.approx((10 * 400 * 4, 10 * 50 * 4))


def test_the_cheapest_estimate_is_taken():
    for samples in (0, 1, 100, 10_000):
        plan = choose(even((1000, 1000), samples, 8, nodes=2), ALGORITHMS)
        assert plan.algorithm == min(plan.estimates, key=lambda e: e.total).algorithm
        assert {e.algorithm for e in plan.estimates} <= set(ALGORITHMS)


def test_a_named_algorithm_is_taken_whatever_it_costs():
    for name in ALGORITHMS:
        plan = choose(even((10, 10), 1000, 4), ALGORITHMS, name)
        assert plan.algorithm == name
        assert "named by the caller" in plan.explain()
        assert name in {e.algorithm for e in plan.estimates}


@pytest.mark.parametrize("name", [*ALGORITHMS, "auto"])
def test_known_names(name):
    check_algorithm(name)


@pytest.mark.parametrize("name", ["fastest", "", None, 3])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="one of auto, node, broadcast"):
        check_algorithm(name)


def test_close_estimates_of_one_exchange_are_timed():
    assert choose(even((4096, 4096), 0, 1), ALGORITHMS, trials=True).trial is None
    close = choose(even((1000, 1000), 100, 4), ALGORITHMS, trials=True)
    assert close.trial is not None
    assert close.algorithm in close.trial.algorithms


def amounts(name, problem):
    return {use.kind: use.amount * use.times for use in ALGORITHMS[name].cost(problem)}


def test_dense_reduces_the_matrix():
    cost = amounts("dense", even((640, 32), 5, 4, nodes=4))
    assert cost["allreduce"] == 640 * 32 * 4
    assert cost["rebuild"] == 640 * 32


def test_eager_exchanges_cost_bytes_and_no_messages():
    profile = Profile()
    for name, received in (("broadcast", 3 * 5 * (64 + 32) * 4), ("dense", 2 * 64 * 32 * 4)):
        exchange = [use for use in ALGORITHMS[name].cost(even((64, 32), 5, 4, nodes=4)) if use.kind in EXCHANGES]
        seconds = sum(profile.seconds(use, Place(4, 1, 4)) for use in exchange)
        assert seconds == pytest.approx(received / profile.far_bandwidth)
    assert "allgather" in amounts("broadcast", even((64, 32), 5, 4, nodes=2))
    assert "allreduce" in amounts("dense", even((64, 32), 5, 4, nodes=2))


def test_node_rebuilds_a_share_and_brings_each_sample_into_a_node_once():
    flat, shared = (amounts("node", even((4096, 64), 5, 8, 2, shared)) for shared in (False, True))
    assert shared["rebuild"] == pytest.approx(flat["rebuild"] / 4)
    eight = even((4096, 64), 5, 8, 2)
    received = ALGORITHMS["broadcast"].wire_bytes(eight), ALGORITHMS["node"].wire_bytes(eight)
    assert received == (7 * 5 * 4160 * 4, 4 * 5 * 4160 * 4)  # from three ranks of its own node, and one of the other


def test_sharded_rebuilds_a_part():
    whole, part = (amounts(name, even((4096, 64), 5, 8, 8))["rebuild"] for name in ("broadcast", "sharded"))
    assert part == whole / 8


def test_what_if_needs_no_mpi():
    code = (
        "import sys; sys.modules['mpi4py.MPI'] = None\n"
        "from sfb.collectives import what_if\n"
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
