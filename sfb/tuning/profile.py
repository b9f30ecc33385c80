"""What a machine can do, in seconds: stated rates, or times measured on the ranks they are for."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sfb.runtime.errors import as_reported

__all__ = ["EXCHANGES", "Place", "Profile", "ProfileError", "Use"]

EXCHANGES = ("sync", "copy", "allgather", "across", "alltoall", "allreduce", "arrays")
Table = Sequence[tuple[float, float]]

# What the tables of work were measured on: elements of a matrix that stays in cache, and of one that does not.
SMALL, LARGE = 128_000, 8_000_000


@as_reported
class ProfileError(ValueError):
    """A file that is no profile."""


class Use(NamedTuple):
    """One thing that an algorithm does with a machine.

    Attributes:
        kind: "sync", the ranks of a node waiting for each other; "copy" into a node's memory; a collective,
            "allgather", "alltoall" or "allreduce" of all ranks, "arrays", this library's own allreduce, or "across",
            an allgather among the ranks that have the same place on their nodes; "rebuild", uᵀv formed by the kernels;
            "pass", reading or writing what is neither.
        amount: Bytes that the busiest rank copies, gives to an allgather, sends, reduces or touches; for work the
            elements formed, those of float64 counted twice.
        depth: Samples, for work.
        times: How often.
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


@dataclass(frozen=True)
class Profile:
    """Rates by which a cost is priced, and measured times that stand in for them.

    Rates are seconds, bytes per second (memory, links) and float32 flop per second (one core); the
    defaults are round figures of a server core and a 10 Gbit/s network.

    Attributes:
        latency: Of a message inside a node.
        bandwidth: Of messages inside a node.
        far_latency: Of a message between nodes.
        far_bandwidth: Of a node's link.
        gemm_rate: Of a deep product.
        memory_rate: Of a core reading or writing memory.
        place: Where the tables were measured.
        tables: Seconds by bytes, a rising list of (bytes, seconds) for each of `EXCHANGES`; for "rebuild/small"
            and "rebuild/large" seconds of an element by depth. May lack some or all.
        overheads: Seconds that an exchange takes beside what its cost names, by algorithm.
        identity: What the profile was measured on: hosts, MPI, threads, versions.
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
        """Whether there is anything measured in it."""
        return bool(self.tables)

    def seconds(self, use: Use, place: Place) -> float:
        """Return the seconds of ``use`` by ranks that lie as ``place`` says."""
        if use.kind == "across" and place.ranks_per_node == 1:
            use = use._replace(kind="allgather")  # of the same ranks then
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
        """Return the seconds of an exchange of nothing."""
        return self.overheads.get(algorithm, 0.0)

    def _per_element(self, use: Use) -> float:
        """Return the seconds of an element of work, between those of small and of large matrices."""
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

    def to_json(self) -> str:
        """Return the profile as a JSON object."""
        return json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, name: str = "profile") -> Profile:
        """Return the profile that ``text`` holds.

        Raises:
            ProfileError: It is not JSON, of another format, or has absent or impossible numbers.
        """
        from jsonschema import Draft202012Validator

        try:
            data = json.loads(text, parse_constant=lambda constant: constant)
        except ValueError as error:
            raise ProfileError(f"{name} is not JSON: {error}") from error
        problems = sorted(Draft202012Validator(_SCHEMA).iter_errors(data), key=lambda problem: list(problem.path))
        if problems:
            at = "/".join(map(str, problems[0].path))
            raise ProfileError(f"{name} is no profile of format 1: {at + ': ' if at else ''}{problems[0].message}")
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
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ProfileError(f"{path}: {error}") from error
        return Profile.from_json(text, str(path))


_POSITIVE = {"type": "number", "exclusiveMinimum": 0}
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
                **{name: {"type": "integer", "minimum": 1} for name in ("ranks", "ranks_per_node", "nodes")},
                "sharing": {"type": "number", "minimum": 1},
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
                    "prefixItems": [{"type": "number", "minimum": 0}, _POSITIVE],
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
        },
        "overheads": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
        "identity": {"type": "object"},
    },
}


def _interpolate(table: Table, x: float) -> float:
    """Return the value at ``x``: constant below the table, between its points a power law, beyond it a line."""
    if x <= table[0][0] or len(table) == 1:
        return table[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(table):
        if x <= x1:
            return y0 * (y1 / y0) ** (math.log(x / x0) / math.log(x1 / x0)) if x0 > 0 else y0 + (y1 - y0) * x / x1
    (x0, y0), (x1, y1) = table[-2:]
    slope = max((y1 - y0) / (x1 - x0), 0.5 * y1 / x1)
    return y1 + slope * (x - x1)


def _linear(table: Table, x: float) -> float:
    """Return the value at ``x``, by the line through the nearest two points."""
    if len(table) == 1:
        return table[0][1]
    pairs = list(itertools.pairwise(table))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if x <= pair[1][0]), pairs[-1])
    return max(y0 + (y1 - y0) * (x - x0) / (x1 - x0), 0.1 * min(y0, y1))
