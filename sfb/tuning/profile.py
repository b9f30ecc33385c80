"""What a machine can do: stated rates, or times measured on the ranks that use them."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sfb.runtime.errors import as_reported
from sfb.units import format_rate, format_size, microseconds

__all__ = ["EXCHANGES", "LARGE", "SMALL", "Place", "Profile", "ProfileError", "Use"]

EXCHANGES = ("sync", "copy", "allgather", "across", "alltoall", "allreduce", "arrays")
Table = Sequence[tuple[float, float]]

# Elements of the matrices that the tables of work are measured on: one stays in cache, the other does not.
SMALL, LARGE = 128_000, 8_000_000


@as_reported
class ProfileError(ValueError):
    """A file holds no profile.

    >>> import sfb
    >>> sfb.Profile.load("/dev/null")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    sfb.tuning.profile.ProfileError: ...
    """


class Use(NamedTuple):
    """One use that an algorithm makes of a machine.

    Attributes:
        kind: What the busiest rank does.

            - "sync": the ranks of a node wait for each other.
            - "copy": a copy into a node's memory.
            - "allgather", "alltoall", "allreduce": MPI's collective of all ranks.
            - "across": an allgather among the ranks that have the same rank on their nodes.
            - "arrays": this library's own allreduce.
            - "rebuild": the kernels form uᵀv.
            - "pass": other reads and writes of memory.
        amount: The bytes that the rank copies, gives to an allgather, sends, reduces or touches. For "rebuild" the
            elements that it forms; an element of float64 counts twice.
        depth: The number of samples, for "rebuild".
        times: The number of times.
    """

    kind: str
    amount: float = 0.0
    depth: float = 0.0
    times: float = 1.0


@dataclass(frozen=True)
class Place:
    """How ranks lie on nodes and cores: P ranks, up to R on each of N nodes, ``sharing`` to a core."""

    ranks: int = 1
    ranks_per_node: int = 1
    nodes: int = 1
    sharing: float = 1.0

    @staticmethod
    def of(node_of: Sequence[int], sharing: float) -> Place:
        """Return the place of ranks, given the node of each.

        >>> from sfb.tuning.profile import Place
        >>> Place.of([0, 0, 1], 1.0)
        Place(ranks=3, ranks_per_node=2, nodes=2, sharing=1.0)
        """
        return Place(len(node_of), max(Counter(node_of).values()), max(node_of) + 1, sharing)


@dataclass(frozen=True)
class Profile:
    """Rates that price a cost, and measured times that replace them.

    The defaults are round figures of a server core and a 10 Gbit/s network.

    Attributes:
        latency: Seconds of a message inside a node.
        bandwidth: Bytes per second of messages inside a node.
        far_latency: Seconds of a message between nodes.
        far_bandwidth: Bytes per second of a node's link.
        gemm_rate: Float32 flop per second of a deep product on one core.
        memory_rate: Bytes per second that a core reads or writes in memory.
        place: The ranks, nodes and cores that the tables were measured on.
        tables: A rising list of (bytes, seconds) for each of `EXCHANGES`, and a rising list of (depth, seconds of an
            element) for "rebuild/small" and "rebuild/large". Some or all may be missing.
        overheads: Seconds that an exchange takes beyond its cost, by algorithm.
        identity: What the profile was measured on: hosts, ranks per node, MPI, threads and version.

    >>> import sfb
    >>> profile = sfb.Profile(far_bandwidth=1.25e8)  # links of 1 Gbit/s
    >>> profile.measured
    False
    """

    latency: float = 2e-6
    bandwidth: float = 4e9
    far_latency: float = 3e-5
    far_bandwidth: float = 1.2e9
    gemm_rate: float = 1e11
    memory_rate: float = 1e10
    place: Place = Place()
    tables: Mapping[str, Table] = field(default_factory=dict)
    overheads: Mapping[str, float] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether the profile holds measured times."""
        return bool(self.tables)

    def seconds(self, use: Use, place: Place) -> float:
        """Return the seconds of ``use`` on ranks that lie as ``place`` says."""
        if use.kind == "across" and place.ranks_per_node == 1:
            use = use._replace(kind="allgather")  # the same ranks take part
        if use.kind == "pass":
            one = place.sharing * use.amount / self.memory_rate
        elif use.kind == "rebuild":
            measured_sharing = self.place.sharing if "rebuild/large" in self.tables else 1.0
            one = use.amount * self._per_element(use) * place.sharing / measured_sharing
        elif use.kind in self.tables:
            model = self._model(use.kind, use.amount, self.place)
            scale = self._model(use.kind, use.amount, place) / model if model else 1.0
            one = scale * _interpolate(self.tables[use.kind], use.amount)
        else:
            one = self._model(use.kind, use.amount, place)
        return use.times * one

    def overhead(self, algorithm: str) -> float:
        """Return the seconds that an exchange takes beyond its cost."""
        return self.overheads.get(algorithm, 0.0)

    def _per_element(self, use: Use) -> float:
        """Return the seconds of an element, interpolated between small and large matrices."""
        small, large = (self.tables.get(f"rebuild/{size}") for size in ("small", "large"))
        if small is None or large is None:
            return 2 * use.depth / self.gemm_rate + 4 / self.memory_rate
        part = (math.log2(max(1.0, use.amount)) - math.log2(SMALL)) / math.log2(LARGE / SMALL)
        part = min(1.0, max(0.0, part))
        return (1 - part) * _linear(small, use.depth) + part * _linear(large, use.depth)

    def _model(self, kind: str, amount: float, place: Place) -> float:
        """Price one exchange by latencies and rates (Thakur et al., IJHPCA 2005, section 3)."""
        ranks, inside, nodes = place.ranks, place.ranks_per_node, place.nodes
        if kind == "copy":
            return place.sharing * 2 * amount / self.memory_rate
        if kind == "sync":
            return place.sharing * self.latency * math.ceil(math.log2(inside)) if inside > 1 else 0.0
        hops, far_hops = math.log2(inside), math.log2(nodes)
        if kind == "allgather":
            near, far = amount * (inside - 1), amount * (ranks - inside) * inside
        elif kind == "across":
            hops, near, far = 0, 0, amount * (nodes - 1) * inside
        elif kind == "alltoall":
            near, far = amount * (inside - 1) / ranks, amount * (ranks - inside) / ranks * inside
        else:
            hops, far_hops = 2 * hops, 2 * far_hops
            near = 2 * amount * (ranks - 1) / ranks if inside > 1 else 0
            far = 2 * amount * (nodes - 1) / nodes
        return (
            place.sharing * (hops * self.latency + near / self.bandwidth)
            + far_hops * self.far_latency
            + far / self.far_bandwidth
        )

    def describe(self) -> list[str]:
        """Return the lines of a report: what was measured, where, and how long it took."""
        p = self.place
        lines = [
            f"measured on {p.ranks} ranks, up to {p.ranks_per_node} on each of {p.nodes} nodes, "
            f"{p.sharing:g} to a core",
            f"a core: memory {format_rate(self.memory_rate)}, deep products {self.gemm_rate / 1e9:.0f} Gflop/s",
        ]
        for kind, table in self.tables.items():
            if "/" in kind:
                cells = [f"{depth:g}: {1e9 * seconds:.3f}" for depth, seconds in table]
                lines.append(f"{kind:<14} ns an element by depth   " + "  ".join(cells))
            else:
                cells = [f"{format_size(n)}: {microseconds(seconds)}" for n, seconds in table]
                lines.append(f"{kind:<14} µs by bytes             " + "  ".join(cells))
        cells = [f"{name}: {microseconds(seconds)}" for name, seconds in self.overheads.items()]
        lines.append(f"{'overhead':<14} µs of an empty exchange " + "  ".join(cells))
        return lines

    def to_json(self) -> str:
        """Return the profile as a JSON object."""
        return json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, name: str = "profile") -> Profile:
        """Return the profile that ``text`` holds.

        Raises:
            ProfileError: The text is not JSON, has another format, or lacks numbers or has impossible ones.
        """
        from jsonschema import Draft202012Validator

        try:
            data = json.loads(text, parse_constant=lambda constant: constant)
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"{name} is not JSON: {error}") from error
        problems = sorted(Draft202012Validator(_SCHEMA).iter_errors(data), key=lambda problem: list(problem.path))
        if problems:
            at = "/".join(map(str, problems[0].path))
            raise ProfileError(
                f"{name} is no profile of format 1: {at + ': ' if at else ''}{problems[0].message[:_SHOWN]}"
            )
        del data["format"]
        for key, table in data["tables"].items():
            if any(a[0] >= b[0] for a, b in itertools.pairwise(table)):
                raise ProfileError(f"{name}: tables/{key} must rise")
            data["tables"][key] = tuple((float(n), float(s)) for n, s in table)
        return Profile(**{**data, "place": Place(**data["place"])})

    @staticmethod
    def load(path: str | PathLike[str]) -> Profile:
        """Return the profile in the file ``path``.

        Raises:
            ProfileError: The file cannot be read or is no profile.
        """
        try:
            return Profile.from_json(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, ValueError) as error:
            said = error if isinstance(error, ProfileError) else f"{path}: {error}"
            raise ProfileError(f"{said}; sfb tune -o {path} writes a new one") from error


_LARGEST = 1e30  # of a number; products of such do not overflow
_SHOWN = 200  # characters of what is wrong with a file
_POSITIVE = {"type": "number", "exclusiveMinimum": 0, "maximum": _LARGEST}
_RATES = [f.name for f in fields(Profile) if f.type == "float"]
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format", "place", "tables", "overheads", "identity", *_RATES],
    "additionalProperties": False,
    "properties": {
        "format": {"const": 1},
        **dict.fromkeys(_RATES, _POSITIVE),
        "place": {
            "type": "object",
            "required": ["ranks", "ranks_per_node", "nodes", "sharing"],
            "additionalProperties": False,
            "properties": {
                **{
                    name: {"type": "integer", "minimum": 1, "maximum": 1 << 31}
                    for name in ("ranks", "ranks_per_node", "nodes")
                },
                "sharing": {"type": "number", "minimum": 1, "maximum": _LARGEST},
            },
        },
        "tables": {
            "type": "object",
            "propertyNames": {"enum": [*EXCHANGES, "rebuild/small", "rebuild/large"]},
            "additionalProperties": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "array",
                    "prefixItems": [{"type": "number", "minimum": 0, "maximum": _LARGEST}, _POSITIVE],
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
        },
        "overheads": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": _LARGEST}},
        "identity": {"type": "object"},
    },
}


def _interpolate(table: Table, x: float) -> float:
    """Return the value at ``x``: constant below the table, a power law between its points, a line beyond it."""
    if x <= table[0][0] or len(table) == 1:
        return table[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(table):
        if x <= x1:
            return y0 * (y1 / y0) ** (math.log(x / x0) / math.log(x1 / x0)) if x0 > 0 else y0 + (y1 - y0) * x / x1
    (x0, y0), (x1, y1) = table[-2:]
    slope = max((y1 - y0) / (x1 - x0), 0.5 * y1 / x1)
    return y1 + slope * (x - x1)


def _linear(table: Table, x: float) -> float:
    """Return the value at ``x`` on the line through the nearest two points."""
    if len(table) == 1:
        return table[0][1]
    pairs = list(itertools.pairwise(table))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if x <= pair[1][0]), pairs[-1])
    return max(y0 + (y1 - y0) * (x - x0) / (x1 - x0), 0.1 * min(y0, y1))
