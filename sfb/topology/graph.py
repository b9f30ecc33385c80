"""Graphs over ranks and their quality: circulant ones, and any that networkx describes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Circulant", "Network", "Topology", "check_size"]

_DENSE = 1024  # ranks up to which all eigenvalues are computed


def check_size(size: int) -> None:
    """Raise ValueError if there is no graph of so few ranks."""
    if size < 1:
        raise ValueError(f"a graph needs at least 1 rank, got {size}")


class Topology:
    """A directed graph over the ranks 0 to ``size`` − 1; immutable.

    Attributes:
        name: Of its family.
        size: Number of ranks.
    """

    name: str
    size: int

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _init(self, **values: object) -> None:
        self.__dict__.update(values)

    def __repr__(self) -> str:
        return f"<{self.name}, {self.size} ranks, degree {self.degree}>"

    def out_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that ``rank`` sends to."""
        raise NotImplementedError

    def in_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank``."""
        raise NotImplementedError

    @property
    def degree(self) -> int:
        """The largest number of out-neighbours."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """Whether every rank can be reached from every other, that is, strongly."""
        raise NotImplementedError

    @property
    def diameter(self) -> int:
        """The most edges on a shortest path; the depth of the deepest relay tree.

        Raises:
            ValueError: The graph is disconnected.
        """
        raise NotImplementedError

    @property
    def mean_distance(self) -> float:
        """Edges on a shortest path, averaged over pairs of different ranks; raises as `diameter` does."""
        raise NotImplementedError

    @property
    def second_eigenvalue(self) -> float:
        """λ2, the second largest modulus of an eigenvalue of averaging over a rank and its out-neighbours.

        A step of averaging shrinks the distance from consensus by about this factor.
        """
        raise NotImplementedError

    @property
    def spectral_gap(self) -> float:
        """1 − λ2."""
        return 1 - self.second_eigenvalue

    def mixing_weights(self) -> csr_array:
        """Return doubly stochastic weights, size×size: row i is what rank i keeps and takes from in-neighbours.

        Raises:
            ValueError: There are none of this kind for the graph.
        """
        raise NotImplementedError

    def children(self, origin: int, rank: int) -> tuple[int, ...]:
        """Return whom ``rank`` passes on what comes from ``origin``: a tree of shortest paths reaches every rank once.

        Raises:
            ValueError: The graph is disconnected.
        """
        raise NotImplementedError

    def relay_tree(self, origin: int) -> dict[int, tuple[int, ...]]:
        """Return the children of every rank in the tree of ``origin``; raises as `children` does."""
        return {rank: self.children(origin, rank) for rank in range(self.size)}

    def peer(self, rank: int, step: int) -> int:
        """Return the one out-neighbour that ``rank`` sends to in a step, of a schedule that visits all in turn.

        In a regular graph every rank is sent to by one in each step.
        """
        raise NotImplementedError

    def _disconnected(self, reason: str) -> ValueError:
        return ValueError(f"the {self.name} graph of {self.size} ranks is disconnected: {reason}")


class Circulant(Topology):
    """Every rank sends to those at the same distances ahead of it, modulo the number of ranks.

    Its eigenvalues are the Fourier transform of its weights, and one breadth-first tree of displacements serves every
    origin.

    Args:
        name: Of its family.
        size: Number of ranks.
        offsets: The distances, from 1 to ``size`` − 1.
    """

    offsets: tuple[int, ...]

    def __init__(self, name: str, size: int, offsets: Sequence[int]) -> None:
        distinct = tuple(dict.fromkeys(int(offset) % size for offset in offsets))
        self._init(name=name, size=size, offsets=tuple(offset for offset in distinct if offset))

    def out_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that ``rank`` sends to, in the order of the offsets."""
        return tuple((rank + offset) % self.size for offset in self.offsets)

    def in_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank``, likewise."""
        return tuple((rank - offset) % self.size for offset in self.offsets)

    @property
    def degree(self) -> int:
        """The number of offsets."""
        return len(self.offsets)

    @property
    def connected(self) -> bool:
        """Whether the offsets and the size have no common divisor but 1."""
        return gcd(self.size, *self.offsets) == 1

    @functools.cached_property
    def _tree(self) -> tuple[np.ndarray, np.ndarray]:
        """The distance of each displacement from the origin, and the offset by which the tree reaches it."""
        divisor = gcd(self.size, *self.offsets)
        if divisor != 1:
            raise self._disconnected(f"{divisor} divides the number of ranks and every offset of {self.offsets}")
        distance = np.full(self.size, -1, np.int32)
        reached_by = np.full(self.size, -1, np.int64)
        distance[0] = level = 0
        frontier = np.zeros(1, np.int64)
        used = dict.fromkeys(self.offsets, 0)
        while frontier.size and self.offsets:
            level += 1
            following = []
            # Offsets that have served least come first, so that all edges carry about as much.
            for offset in sorted(self.offsets, key=lambda offset: (used[offset], offset)):
                found = (frontier + offset) % self.size
                found = found[distance[found] < 0]
                distance[found] = level
                reached_by[found] = offset
                used[offset] += found.size
                following.append(found)
            frontier = np.concatenate(following)
        return distance, reached_by

    @property
    def diameter(self) -> int:
        """The most edges on a shortest path."""
        return int(self._tree[0].max())

    @property
    def mean_distance(self) -> float:
        """Edges on a shortest path, averaged over pairs of different ranks."""
        return float(self._tree[0].sum()) / max(1, self.size - 1)

    @functools.cached_property
    def second_eigenvalue(self) -> float:
        """λ2, by one Fourier transform."""
        weights = np.zeros(self.size)
        weights[[0, *self.offsets]] = 1 / (self.degree + 1)
        return float(np.abs(np.fft.rfft(weights)[1:]).max(initial=0.0))

    def mixing_weights(self) -> csr_array:
        """Return equal weights of a rank and its in-neighbours; doubly stochastic, as the graph is regular."""
        return _weights(self, np.full(self.size, 1 / (self.degree + 1)))

    def children(self, origin: int, rank: int) -> tuple[int, ...]:
        """Return whom ``rank`` passes on what comes from ``origin``."""
        reached_by, displacement = self._tree[1], rank - origin
        return tuple(
            (rank + offset) % self.size
            for offset in self.offsets
            if reached_by[(displacement + offset) % self.size] == offset
        )

    def peer(self, rank: int, step: int) -> int:
        """Return the rank at the next of the offsets."""
        return (rank + self.offsets[step % self.degree]) % self.size if self.offsets else rank


class Network(Topology):
    """A graph of networkx; made by `sfb.topology.from_networkx`.

    Args:
        name: Of its family.
        graph: A DiGraph of the nodes 0 to N−1.
        transitive: Whether it looks the same from every rank.
    """

    def __init__(self, name: str, graph: Any, *, transitive: bool = False) -> None:
        out = tuple(tuple(sorted(graph.successors(rank))) for rank in range(len(graph)))
        into = tuple(tuple(sorted(graph.predecessors(rank))) for rank in range(len(graph)))
        self._init(name=name, size=len(graph), _out=out, _into=into, _graph=graph, _transitive=transitive)

    _out: tuple[tuple[int, ...], ...]
    _into: tuple[tuple[int, ...], ...]
    _graph: Any
    _transitive: bool

    def out_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that ``rank`` sends to, ascending."""
        return self._out[rank]

    def in_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank``, ascending."""
        return self._into[rank]

    @property
    def degree(self) -> int:
        """The largest number of out-neighbours."""
        return max(map(len, self._out))

    @functools.cached_property
    def connected(self) -> bool:
        """Whether every rank can be reached from every other."""
        import networkx

        return networkx.is_strongly_connected(self._graph)

    def _distances(self, origin: int) -> np.ndarray:
        from scipy.sparse.csgraph import dijkstra

        distances = dijkstra(self._adjacency, indices=origin, unweighted=True)
        if not np.isfinite(distances).all():
            rank = np.flatnonzero(~np.isfinite(distances))[0]
            raise self._disconnected(f"no path leads from rank {origin} to rank {rank}")
        return distances

    @functools.cached_property
    def _eccentricity(self) -> tuple[int, float]:
        """The largest distance of two ranks, and the sum of distances from a rank, averaged over ranks."""
        origins = range(1 if self._transitive else self.size)
        largest, total = zip(*((d.max(), d.sum()) for d in map(self._distances, origins)), strict=True)
        return int(max(largest)), sum(total) / len(origins)

    @functools.cached_property
    def _adjacency(self) -> csr_array:
        from scipy.sparse import csr_array

        rows = np.repeat(np.arange(self.size), [len(out) for out in self._out])
        columns = np.array([rank for out in self._out for rank in out], np.int64)
        return csr_array((np.ones(len(rows)), (rows, columns)), shape=(self.size, self.size))

    @property
    def diameter(self) -> int:
        """The most edges on a shortest path."""
        return self._eccentricity[0]

    @property
    def mean_distance(self) -> float:
        """Edges on a shortest path, averaged over pairs of different ranks."""
        return self._eccentricity[1] / max(1, self.size - 1)

    @functools.cached_property
    def second_eigenvalue(self) -> float:
        """λ2, by all eigenvalues of up to 1024 ranks, by the largest few of more."""
        from scipy.sparse import diags_array, eye_array
        from scipy.sparse.linalg import eigs

        averaging = self._adjacency + eye_array(self.size)
        averaging = diags_array(1 / averaging.sum(axis=1)) @ averaging
        if self.size <= _DENSE:
            values = np.linalg.eigvals(averaging.toarray())
        else:
            values = eigs(averaging, k=3, which="LM", v0=np.ones(self.size), return_eigenvectors=False)
        return float(np.sort(np.abs(values))[-2]) if self.size > 1 else 0.0

    def mixing_weights(self) -> csr_array:
        """Return equal weights in a regular graph, and Metropolis-Hastings weights where all edges go both ways.

        These are 1/(1 + the larger degree) of an edge's ends (Xiao and Boyd, "Fast linear iterations for distributed
        averaging", Systems & Control Letters 2004, section 4.2).

        Raises:
            ValueError: The graph is neither.
        """
        degrees = np.array([len(out) for out in self._out])
        if (degrees == degrees[0]).all() and all(len(into) == degrees[0] for into in self._into):
            return _weights(self, 1 / (degrees + 1))
        if self._out != self._into:
            raise ValueError(f"{self.name}: doubly stochastic weights need a regular graph, or edges both ways")
        from scipy.sparse import csr_array, diags_array

        edges = self._adjacency.tocoo()
        rows, columns = edges.coords
        values = 1 / (1 + np.maximum(degrees[rows], degrees[columns]))
        weights = csr_array((values, (rows, columns)), shape=(self.size, self.size))
        return (weights + diags_array(1 - weights.sum(axis=1))).tocsr()

    @functools.cached_property
    def _trees(self) -> dict[int, list[list[int]]]:
        return {}

    def children(self, origin: int, rank: int) -> tuple[int, ...]:
        """Return whom ``rank`` passes on what comes from ``origin``."""
        tree = self._trees.get(origin)
        if tree is None:
            distances = self._distances(origin)
            tree = [[] for _ in range(self.size)]
            for child in range(self.size):
                if child != origin:
                    parents = (p for p in self._into[child] if distances[p] == distances[child] - 1)
                    tree[min(parents, key=lambda p: (len(tree[p]), p))].append(child)
            self._trees[origin] = tree
        return tuple(tree[rank])

    @functools.cached_property
    def _rounds(self) -> list[dict[int, int]] | None:
        """Permutations that make up a regular graph, each along its edges; None for another graph."""
        import networkx

        degree = len(self._out[0])
        if any(len(of) != degree for of in (*self._out, *self._into)):
            return None
        # A regular bipartite graph has a perfect matching, and is regular without it (König 1916).
        left = networkx.Graph()
        left.add_edges_from((rank, self.size + other) for rank, out in enumerate(self._out) for other in out)
        rounds = []
        for _ in range(degree):
            matching = networkx.bipartite.hopcroft_karp_matching(left, range(self.size))
            rounds.append({rank: matching[rank] - self.size for rank in range(self.size)})
            left.remove_edges_from((rank, self.size + other) for rank, other in rounds[-1].items())
        return rounds

    def peer(self, rank: int, step: int) -> int:
        """Return the one out-neighbour of a step."""
        if not self._out[rank]:
            return rank
        if self._rounds is None:
            return self._out[rank][step % len(self._out[rank])]
        return self._rounds[step % len(self._rounds)][rank]


def _weights(graph: Topology, own: np.ndarray) -> csr_array:
    """Return the matrix that gives a rank and its in-neighbours the weight ``own`` of that rank."""
    from scipy.sparse import csr_array

    sources = [(rank, *graph.in_neighbours(rank)) for rank in range(graph.size)]
    rows = np.repeat(np.arange(graph.size), [len(its) for its in sources])
    columns = np.array([rank for its in sources for rank in its])
    return csr_array((own[rows], (rows, columns)), shape=(graph.size, graph.size))
