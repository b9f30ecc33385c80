"""Graphs over ranks and their quality: circulant graphs, and any that networkx describes."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Circulant", "Digraph", "Topology", "check_size"]

_DENSE = 1024  # ranks up to which all eigenvalues are computed


def check_size(size: int) -> None:
    """Raise ValueError if ``size`` is below 1, the smallest number of ranks of a graph."""
    if size < 1:
        raise ValueError(f"a graph needs at least 1 rank, got {size}")


class Topology:
    """A directed graph over the ranks 0 to ``size`` − 1; immutable.

    Attributes:
        name: Name of its family.
        size: Number of ranks.

    >>> import sfb
    >>> sfb.topology.halton(8)
    <halton, 8 ranks, degree 3>
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
        """Return the ranks that ``rank`` sends to.

        >>> import sfb
        >>> sfb.topology.ring(8).out_neighbours(7)
        (0,)
        """
        raise NotImplementedError

    def in_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank``.

        >>> import sfb
        >>> sfb.topology.ring(8).in_neighbours(7)
        (6,)
        """
        raise NotImplementedError

    @property
    def degree(self) -> int:
        """The largest number of out-neighbours of a rank."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """Whether the graph is strongly connected: a path leads from every rank to every other."""
        raise NotImplementedError

    @property
    def _distances(self) -> tuple[int, float]:
        """The largest distance of two ranks, and the sum of the distances from a rank, averaged over ranks."""
        raise NotImplementedError

    @property
    def diameter(self) -> int:
        """The largest distance of two ranks, in edges; the depth of the deepest relay tree.

        Raises:
            ValueError: The graph is disconnected.

        >>> import sfb
        >>> sfb.topology.halton(64).diameter, sfb.topology.exponential(64).diameter
        (4, 6)
        """
        return self._distances[0]

    @property
    def mean_distance(self) -> float:
        """The distance, in edges, averaged over pairs of different ranks.

        Raises:
            ValueError: The graph is disconnected.
        """
        return self._distances[1] / max(1, self.size - 1)

    @property
    def second_eigenvalue(self) -> float:
        """λ2, the second largest modulus of an eigenvalue of averaging over a rank and its out-neighbours.

        A step of averaging shrinks the distance from consensus by about this factor.

        >>> import sfb
        >>> round(sfb.topology.halton(64).second_eigenvalue, 3)
        0.521
        """
        raise NotImplementedError

    @property
    def spectral_gap(self) -> float:
        """1 − λ2; see `second_eigenvalue`."""
        return 1 - self.second_eigenvalue

    def children(self, origin: int, rank: int) -> tuple[int, ...]:
        """Return the ranks to which ``rank`` passes on what comes from ``origin``.

        The edges from ranks to their children are a tree of shortest paths that reaches every rank once.

        Raises:
            ValueError: The graph is disconnected.

        >>> import sfb
        >>> sfb.topology.halton(8).children(0, 5)
        (1, 2)
        """
        raise NotImplementedError

    def relay_tree(self, origin: int) -> dict[int, tuple[int, ...]]:
        """Return the `children` of every rank in the tree of ``origin``.

        Raises:
            ValueError: The graph is disconnected.

        >>> import sfb
        >>> sfb.topology.exponential(4).relay_tree(0)
        {0: (1, 2), 1: (), 2: (3,), 3: ()}
        """
        return {rank: self.children(origin, rank) for rank in range(self.size)}

    def _disconnected(self, reason: str) -> ValueError:
        return ValueError(f"the {self.name} graph of {self.size} ranks is disconnected: {reason}")


class Circulant(Topology):
    """A graph in which every rank sends to the ranks at the same offsets ahead of it, modulo the number of ranks.

    Its eigenvalues are the Fourier transform of its weights, and one breadth-first tree of displacements serves every
    origin.

    Args:
        name: Name of its family.
        size: Number of ranks.
        offsets: The offsets; those that are 0 modulo ``size`` or repeat an earlier one are left out.
    """

    offsets: tuple[int, ...]

    def __init__(self, name: str, size: int, offsets: Iterable[int]) -> None:
        distinct = tuple(dict.fromkeys(int(offset) % size for offset in offsets))
        self._init(name=name, size=size, offsets=tuple(offset for offset in distinct if offset))

    def out_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that ``rank`` sends to, in the order of the offsets."""
        return tuple((rank + offset) % self.size for offset in self.offsets)

    def in_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank``, in the order of the offsets."""
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
            # The offsets used least come first, so that all edges have about the same load.
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
    def _distances(self) -> tuple[int, float]:
        distance = self._tree[0]
        return int(distance.max()), float(distance.sum())

    @functools.cached_property
    def second_eigenvalue(self) -> float:
        """λ2, by one Fourier transform."""
        weights = np.zeros(self.size)
        weights[[0, *self.offsets]] = 1 / (self.degree + 1)
        return float(np.abs(np.fft.rfft(weights)[1:]).max(initial=0.0))

    def children(self, origin: int, rank: int) -> tuple[int, ...]:
        """Return the children of ``rank`` in the tree of displacements, shifted to ``origin``."""
        reached_by, displacement = self._tree[1], rank - origin
        return tuple(
            (rank + offset) % self.size
            for offset in self.offsets
            if reached_by[(displacement + offset) % self.size] == offset
        )


class Digraph(Topology):
    """A graph given by its edges, as networkx holds them.

    Args:
        name: Name of its family.
        graph: A networkx DiGraph of the nodes 0 to N−1.
        transitive: Whether the graph looks the same from every rank, so that distances from one are those from all.
    """

    _out: tuple[tuple[int, ...], ...]
    _into: tuple[tuple[int, ...], ...]
    _graph: Any
    _transitive: bool
    _trees: dict[int, list[list[int]]]

    def __init__(self, name: str, graph: Any, *, transitive: bool = False) -> None:
        ranks = range(len(graph))
        out = tuple(tuple(sorted(graph.successors(rank))) for rank in ranks)
        into = tuple(tuple(sorted(graph.predecessors(rank))) for rank in ranks)
        self._init(name=name, size=len(graph), _out=out, _into=into, _graph=graph, _transitive=transitive, _trees={})

    def out_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that ``rank`` sends to, ascending."""
        return self._out[rank]

    def in_neighbours(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that send to ``rank``, ascending."""
        return self._into[rank]

    @property
    def degree(self) -> int:
        """The largest number of successors of a node."""
        return max(map(len, self._out))

    @functools.cached_property
    def connected(self) -> bool:
        """Whether networkx finds the graph strongly connected."""
        import networkx

        return networkx.is_strongly_connected(self._graph)

    def _distances_from(self, origin: int) -> np.ndarray:
        from scipy.sparse.csgraph import dijkstra

        distances = dijkstra(self._adjacency, indices=origin, unweighted=True)
        if not np.isfinite(distances).all():
            rank = np.flatnonzero(~np.isfinite(distances))[0]
            raise self._disconnected(f"no path leads from rank {origin} to rank {rank}")
        return distances

    @functools.cached_property
    def _distances(self) -> tuple[int, float]:
        origins = range(1 if self._transitive else self.size)
        largest, total = zip(*((d.max(), d.sum()) for d in map(self._distances_from, origins)), strict=True)
        return int(max(largest)), sum(total) / len(origins)

    @functools.cached_property
    def _adjacency(self) -> csr_array:
        from scipy.sparse import csr_array

        rows = np.repeat(np.arange(self.size), [len(out) for out in self._out])
        columns = np.array([rank for out in self._out for rank in out], np.int64)
        return csr_array((np.ones(len(rows)), (rows, columns)), shape=(self.size, self.size))

    @functools.cached_property
    def second_eigenvalue(self) -> float:
        """λ2, from all eigenvalues of up to 1024 ranks, or the largest three of more."""
        from scipy.sparse import diags_array, eye_array
        from scipy.sparse.linalg import eigs

        averaging = self._adjacency + eye_array(self.size)
        averaging = diags_array(1 / averaging.sum(axis=1)) @ averaging
        if self.size <= _DENSE:
            values = np.linalg.eigvals(averaging.toarray())
        else:
            values = eigs(averaging, k=3, which="LM", v0=np.ones(self.size), return_eigenvectors=False)
        return float(np.sort(np.abs(values))[-2]) if self.size > 1 else 0.0

    def children(self, origin: int, rank: int) -> tuple[int, ...]:
        """Return the children of ``rank``; of several possible parents, a rank has the one with the fewest children."""
        tree = self._trees.get(origin)
        if tree is None:
            distances = self._distances_from(origin)
            tree = [[] for _ in range(self.size)]
            for child in range(self.size):
                if child != origin:
                    parents = (p for p in self._into[child] if distances[p] == distances[child] - 1)
                    tree[min(parents, key=lambda p: (len(tree[p]), p))].append(child)
            self._trees[origin] = tree
        return tuple(tree[rank])
