import functools
import json
import math

import networkx
import numpy as np
import pytest
from click.testing import CliRunner

from sfb import topology
from sfb.cli import cli

SIZES = [1, 2, 3, 4, 5, 7, 8, 12, 16, 31]
DISCONNECTED = [12, *range(8, 129, 8)]


def graphs(sizes=SIZES):
    for name, make in topology.NAMES.items():
        for size in sizes:
            try:
                yield make(size)
            except ValueError:
                assert name in ("halton_published", "hypercube", "random_regular")
    yield topology.from_networkx(networkx.path_graph(6))
    yield topology.from_networkx(networkx.DiGraph([(0, 1), (1, 2), (2, 0), (2, 1), (2, 3), (3, 0)]))


GRAPHS = list(graphs())
KINDS = networkx.Graph, networkx.DiGraph, networkx.MultiGraph, networkx.MultiDiGraph


@pytest.mark.parametrize("sizes", [range(2, 130), range(130, 1025, 61), [1000, 1024]], ids=["small", "more", "large"])
def test_halton_is_at_least_as_good_as_the_exponential_graph(sizes):
    for size in sizes:
        graph, reference = topology.halton(size), topology.exponential(size)
        assert graph.connected
        assert graph.degree <= math.ceil(math.log2(size))
        assert graph.diameter <= reference.diameter
        assert graph.second_eigenvalue <= min(0.65, reference.second_eigenvalue + 1e-9)


@pytest.mark.parametrize(("size", "offsets"), [(8, (4, 3, 5)), (64, (46, 22, 41, 8, 37, 25))])
def test_halton_is_the_same_everywhere(size, offsets):
    assert topology.halton(size).offsets == offsets


def test_the_published_rule_is_disconnected_at_known_sizes():
    found = []
    for size in range(2, 129):
        try:
            topology.halton_published(size)
        except ValueError as error:
            assert "disconnected" in str(error)  # noqa: PT017 - most sizes do not raise
            found.append(size)
    assert found == sorted(DISCONNECTED)


def test_the_published_rule_and_its_repair_have_the_known_properties():
    assert topology.halton_published(10).offsets == (5, 2, 7)
    known = [(8, 3, 0.5), (16, 4, 0.825), (64, 9, 0.963), (128, 17, 0.992)]
    for size, diameter, second in known:
        graph = topology.halton_malt2(size)
        assert graph.offsets[0] == 1
        assert graph.diameter == diameter
        assert graph.second_eigenvalue == pytest.approx(second, abs=5e-4)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: f"{g.name}-{g.size}")
def test_properties_equal_those_that_networkx_finds(graph):
    size = graph.size
    reference = networkx.DiGraph()
    reference.add_nodes_from(range(size))
    reference.add_edges_from((rank, other) for rank in range(size) for other in graph.out_neighbours(rank))
    assert all(sorted(graph.in_neighbours(rank)) == sorted(reference.predecessors(rank)) for rank in range(size))
    assert graph.degree == max(degree for _, degree in reference.out_degree)
    assert graph.connected
    if size > 1:
        assert graph.diameter == networkx.diameter(reference)
        assert graph.mean_distance == pytest.approx(networkx.average_shortest_path_length(reference))
    averaging = networkx.to_numpy_array(reference, nodelist=range(size)) + np.eye(size)
    averaging /= averaging.sum(axis=1, keepdims=True)
    values = np.sort(np.abs(np.linalg.eigvals(averaging)))
    assert graph.second_eigenvalue == pytest.approx(values[-2] if size > 1 else 0, abs=1e-6)
    assert graph.spectral_gap == 1 - graph.second_eigenvalue


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: f"{g.name}-{g.size}")
def test_a_tree_reaches_every_rank_once_by_shortest_paths(graph):
    for origin in range(graph.size):
        tree, depth, line = graph.relay_tree(origin), {origin: 0}, [origin]
        for rank in line:
            for child in tree[rank]:
                assert child in graph.out_neighbours(rank)
                assert child not in depth
                depth[child] = depth[rank] + 1
                line.append(child)
        assert sorted(line) == list(range(graph.size))
        assert max(depth.values()) <= graph.diameter
    assert max(depth.values(), default=0) <= graph.diameter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [int, np.int64, float])
def test_every_class_of_networkx_gives_the_same_graph(kind, number):
    edges = [(number(i), number((i + 1) % 6)) for i in range(6)]
    plain = kind(edges)
    weighted = kind(plain)
    weighted.add_weighted_edges_from((a, b, 0.5) for a, b in edges)  # parallel edges in a multigraph
    larger = kind(edges)
    larger.add_edges_from([(0, 6), (6, 3)])
    for graph in (
        plain,
        weighted,
        networkx.freeze(plain),
        larger.subgraph(range(6)),
        larger.edge_subgraph(plain.edges),
    ):
        made = topology.create(graph, 6)
        for rank in range(6):
            back = () if graph.is_directed() else ((rank - 1) % 6,)
            assert made.out_neighbours(rank) == tuple(sorted({(rank + 1) % 6, *back}))
            assert all(type(other) is int for other in made.out_neighbours(rank))
        assert made.diameter == (5 if graph.is_directed() else 3)


def test_graphs_are_immutable():
    for graph in (topology.ring(4), topology.torus(4)):
        with pytest.raises(AttributeError, match="immutable"):
            graph.size = 5


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: topology.ring(0), ValueError, "at least 1 rank"),
        (lambda: topology.halton(0), ValueError, "at least 1 rank"),
        (lambda: topology.hypercube(6), ValueError, "power of two"),
        (lambda: topology.random_regular(5, 3), ValueError, "degree 3"),
        (lambda: topology.from_networkx([1]), TypeError, "networkx graph"),
        (lambda: topology.from_networkx(np.eye(3)), TypeError, "networkx graph, got ndarray"),
        (lambda: topology.from_networkx(networkx.Graph()), ValueError, "no nodes"),
        (lambda: topology.from_networkx(networkx.Graph([(1, 2)])), ValueError, "ranks 0 to 1, got 2; .*to_integers"),
        (lambda: topology.from_networkx(networkx.Graph([("a", 0)])), ValueError, "ranks 0 to 1, got 'a'"),
        (lambda: topology.from_networkx(networkx.path_graph(3).subgraph([1, 2])), ValueError, "got 2"),
        *(
            (lambda kind=kind: topology.from_networkx(kind([(0, 1), (1, 0), (1, 1)])), ValueError, "rank 1 to itself")
            for kind in KINDS
        ),
        (lambda: topology.from_networkx(networkx.MultiGraph([(0, 1), (2, 3)])), ValueError, "disconnected"),
        (lambda: topology.from_networkx(networkx.MultiDiGraph([(0, 1)])), ValueError, "from rank 1 to rank 0"),
        (lambda: topology.from_networkx(networkx.DiGraph([(0, 1)])), ValueError, "no path leads from rank 1 to rank 0"),
        (lambda: topology.create("star", 4), ValueError, "halton"),
        (lambda: topology.create(topology.ring(3), 4), ValueError, "3 ranks, the communicator 4"),
        (lambda: topology.create(3, 4), TypeError, "networkx"),
        (lambda: topology.create("halton_published", 16), ValueError, "2 divides"),
    ],
)
def test_errors(make, kind, text):
    with pytest.raises(kind, match=text):
        make()


run = functools.partial(CliRunner().invoke, cli)


def test_command_prints_and_writes_a_table(tmp_path):
    result = run(["topology", "halton,halton_published", "8,10", "-J", str(tmp_path / "t.json")])
    assert result.exit_code == 0
    assert "disconnected" in result.output
    rows = json.loads((tmp_path / "t.json").read_text())["results"]
    assert [row["diameter"] for row in rows if not row["problem"]] == [2, 2, 4]
    assert rows[2]["problem"].startswith("the halton_published graph of 8 ranks is disconnected: 2 divides")


@pytest.mark.parametrize("arguments", [["halton", "16"], ["ring,halton", "8:32"]])
def test_command_plots(tmp_path, arguments):
    pytest.importorskip("matplotlib")
    assert run(["topology", *arguments, "--plot", str(tmp_path / "t.png")]).exit_code == 0
    assert (tmp_path / "t.png").stat().st_size > 5000


def test_command_errors():
    assert "no graph is called 'star'" in str(run(["topology", "star", "8"], standalone_mode=False).exception)
    assert run(["topology", "halton", "0"]).exit_code == 2
