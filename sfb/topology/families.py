"""Well-known graphs, and graphs of networkx."""

from __future__ import annotations

from math import isqrt
from typing import Any

from sfb.topology.graph import Circulant, Digraph, Topology, check_size

__all__ = [
    "chord",
    "complete",
    "exponential",
    "from_networkx",
    "hypercube",
    "random_regular",
    "ring",
    "torus",
]


def exponential(size: int) -> Circulant:
    """Return the graph of the offsets 1, 2, 4, … below ``size``.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    >>> import sfb
    >>> sfb.topology.exponential(10).offsets
    (1, 2, 4, 8)
    """
    check_size(size)
    return Circulant("exponential", size, [1 << k for k in range((size - 1).bit_length())])


def ring(size: int) -> Circulant:
    """Return the graph in which every rank sends to the next.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    >>> import sfb
    >>> sfb.topology.ring(4).out_neighbours(3)
    (0,)
    """
    check_size(size)
    return Circulant("ring", size, [1])


def complete(size: int) -> Circulant:
    """Return the graph in which every rank sends to every other.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    >>> import sfb
    >>> sfb.topology.complete(4).out_neighbours(1)
    (2, 3, 0)
    """
    check_size(size)
    return Circulant("complete", size, range(1, size))


def chord(size: int) -> Circulant:
    """Return the fingers of Chord for ranks spread evenly: the offsets ⌈N/2⌉, ⌈N/4⌉, … 1.

    Stoica et al., "Chord: A Scalable Peer-to-peer Lookup Service", SIGCOMM 2001, section 4.3. Where N is a power of two
    it is the exponential graph.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    >>> import sfb
    >>> sfb.topology.chord(10).offsets
    (5, 3, 2, 1)
    """
    check_size(size)
    return Circulant("chord", size, [-(-size >> k) for k in range(1, (size - 1).bit_length() + 1)])


def hypercube(size: int) -> Topology:
    """Return the graph in which ranks whose numbers differ in one bit send to each other.

    Args:
        size: The number of ranks N, a power of two.

    Raises:
        ValueError: ``size`` is no power of two.

    >>> import sfb
    >>> sfb.topology.hypercube(8).out_neighbours(5)
    (1, 4, 7)
    """
    import networkx

    check_size(size)
    if size & (size - 1):
        raise ValueError(f"a hypercube needs a power of two of ranks, got {size}")
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(size))
    graph.add_edges_from((rank, rank ^ 1 << bit) for rank in range(size) for bit in range(size.bit_length() - 1))
    return Digraph("hypercube", graph, transitive=True)


def torus(size: int) -> Topology:
    """Return the grid, as square as ``size`` allows, whose rows and columns close to rings.

    Args:
        size: The number of ranks N, ≥ 1.

    Raises:
        ValueError: ``size`` is below 1.

    >>> import sfb
    >>> sfb.topology.torus(12).out_neighbours(0)  # 3 rows of 4
    (1, 3, 4, 8)
    """
    import networkx

    check_size(size)
    rows = next(rows for rows in range(isqrt(size), 0, -1) if size % rows == 0)
    columns = size // rows
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(size))
    for rank in range(size):
        row, column = divmod(rank, columns)
        for other in (
            row * columns + (column + 1) % columns,
            row * columns + (column - 1) % columns,
            (row + 1) % rows * columns + column,
            (row - 1) % rows * columns + column,
        ):
            if other != rank:
                graph.add_edge(rank, other)
    return Digraph("torus", graph, transitive=True)


def random_regular(size: int, degree: int | None = None, seed: int = 0) -> Topology:
    """Return a random connected graph whose ranks each exchange with ``degree`` others, by default ⌈log2 N⌉.

    Args:
        size: The number of ranks N, ≥ 1.
        degree: The number of neighbours of each rank.
        seed: The seed, the same on all ranks.

    Raises:
        ValueError: There is no such graph: size·degree is odd, or the degree is not below the size.

    >>> import sfb
    >>> sfb.topology.random_regular(16, degree=3)
    <random_regular, 16 ranks, degree 3>
    """
    import networkx

    check_size(size)
    if degree is None:
        degree = (size - 1).bit_length()
        degree += size * degree % 2  # no graph has an odd number of ends of edges
    if degree >= size or size * degree % 2:
        if size <= 3 and degree >= size - 1:
            return Circulant("random_regular", size, range(1, size))
        raise ValueError(f"no graph of {size} ranks has degree {degree}")
    for attempt in range(100):
        graph = networkx.random_regular_graph(degree, size, seed=seed + attempt)
        if networkx.is_connected(graph):
            return _from_edges("random_regular", graph)
    raise ValueError(f"found no connected graph of {size} ranks and degree {degree}")


def from_networkx(graph: Any) -> Topology:
    """Return a networkx graph as a topology; edges of an undirected one go both ways.

    Parallel edges count once. Weights and other attributes do not count.

    Args:
        graph: A Graph, DiGraph, MultiGraph or MultiDiGraph of the nodes 0 to N−1, or a view of one.

    Raises:
        TypeError: ``graph`` is no networkx graph.
        ValueError: The graph has other nodes or an edge from a rank to itself, or is not (strongly) connected.

    >>> import networkx, sfb
    >>> sfb.topology.from_networkx(networkx.star_graph(3)).out_neighbours(0)
    (1, 2, 3)
    """
    import networkx

    if not isinstance(graph, networkx.Graph):
        raise TypeError(f"expected a networkx graph, got {type(graph).__name__}")
    if not len(graph):
        raise ValueError("the graph has no nodes; a graph needs at least 1 rank")
    strange = set(graph) - set(range(len(graph)))
    if strange:
        raise ValueError(
            f"the nodes of the graph must be the ranks 0 to {len(graph) - 1}, got {min(map(repr, strange))}; "
            "networkx.convert_node_labels_to_integers(graph) numbers them"
        )
    loop = next(iter(networkx.nodes_with_selfloops(graph)), None)
    if loop is not None:
        raise ValueError(f"the graph has an edge from rank {loop} to itself")
    topology = _from_edges("networkx", graph)
    _ = topology.diameter
    return topology


def _from_edges(name: str, graph: Any) -> Digraph:
    import networkx

    directed = networkx.DiGraph()
    directed.add_nodes_from(range(len(graph)))
    edges = [(int(a), int(b)) for a, b in graph.edges()]  # of a multigraph, without keys
    directed.add_edges_from(edges)
    if not graph.is_directed():
        directed.add_edges_from((b, a) for a, b in edges)
    return Digraph(name, directed)
