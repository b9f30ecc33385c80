from itertools import combinations

import pytest

from sfb.doctor import Level, pairs


@pytest.mark.parametrize("nodes", range(1, 12))
def test_rounds_join_each_pair_once(nodes):
    plan = pairs.rounds(nodes)
    assert sorted(pair for each in plan for pair in each) == list(combinations(range(nodes), 2))
    assert len(plan) <= nodes
    for each in plan:
        busy = [node for pair in each for node in pair]
        assert len(busy) == len(set(busy))


def cluster(nodes, slow=None, rate=100e6, **others):
    """Return what is measured where the links of some pairs, or one way of them, are slower."""
    rates = [[None if a == b else (slow or {}).get((a, b), rate) for b in range(nodes)] for a in range(nodes)]
    latencies = [[None if a == b else 2e-5 for b in range(nodes)] for a in range(nodes)]
    return {"rates": rates, "latencies": latencies, "done": 1, "rounds": 1, **others}


def both_ways(pairs_of_nodes, rate):
    return {way: rate for a, b in pairs_of_nodes for way in ((a, b), (b, a))}


def judge(measured, stated=None):
    nodes = len(measured["rates"])
    return pairs.judge([f"node{i}" for i in range(nodes)], measured, stated or [0.0] * nodes)


def test_equal_links():
    (finding,) = judge(cluster(4))
    assert finding.level is Level.OK
    assert "slowest pair node0 - node1 has 100 MB/s, median of 6 pairs 100 MB/s" in finding.found
    assert "takes 20.0 µs" in finding.found


@pytest.mark.parametrize("nodes", [3, 4, 7])
@pytest.mark.parametrize(("rate", "level"), [(10e6, Level.ERROR), (50e6, Level.WARNING)])
def test_a_node_with_a_slow_link(nodes, rate, level):
    slow = both_ways([(1, node) for node in range(nodes) if node != 1], rate)
    finding, summary = judge(cluster(nodes, slow))
    assert finding.level is level
    assert finding.found.startswith("node1: ")
    assert "node1" in finding.advice
    assert "node1" in summary.found


def test_a_pair_with_a_slow_link():
    finding, summary = judge(cluster(4, both_ways([(1, 3)], 10e6)))
    assert finding.level is Level.ERROR
    assert "node1 - node3 10 MB/s" in finding.found
    assert "slowest pair node1 - node3 has 10 MB/s" in summary.found


def test_a_link_that_is_slow_one_way():
    finding, _ = judge(cluster(2, {(1, 0): 10e6}))
    assert finding.level is Level.WARNING
    assert "node1 to node0 10 MB/s, back 100 MB/s" in finding.found


def test_two_nodes_beside_what_their_interfaces_state():
    (finding,) = judge(cluster(2), [125e6, 125e6])
    assert finding.level is Level.OK
    (finding,) = judge(cluster(2), [1.25e9, 1.25e9])
    assert finding.level is Level.WARNING
    assert "node0 - node1 has 100 MB/s" in finding.found
    assert "both nodes have 100 MB/s at best, where interfaces state 1.25 GB/s" in finding.found
    some, _ = judge(cluster(3), [125e6, 125e6, 1.25e9])
    assert some.found == "node2 has 100 MB/s at best of 1.25 GB/s stated"


def test_rounds_that_time_did_not_allow():
    measured = cluster(4, done=1, rounds=3)
    for a, b in combinations(range(4), 2):
        if (a, b) not in pairs.rounds(4)[0]:
            measured["rates"][a][b] = measured["rates"][b][a] = None
    (finding,) = judge(measured)
    assert "median of 2 pairs" in finding.found
    assert "1 of 3 rounds" in finding.found


@pytest.mark.mpi
def test_measuring(world):
    measured = pairs.measure(world, 0.5)
    assert bool(measured) == (world.rank == 0)
    if world.rank > 0:
        return
    for a, row in enumerate(measured["rates"]):
        assert row[a] is None
    found = {(a, b) for a, row in enumerate(measured["rates"]) for b, rate in enumerate(row) if rate is not None}
    done = {pair for each in pairs.rounds(world.size)[: measured["done"]] for pair in each}
    assert found == done | {(b, a) for a, b in done}
    assert all(measured["rates"][a][b] > 0 and measured["latencies"][a][b] > 0 for a, b in found)
    assert all(moved > 0 for node, moved in enumerate(measured["moved"]) if any(node in pair for pair in done))
    if world.size > 1:
        assert judge(measured)[-1].found
