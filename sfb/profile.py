"""What a machine can do, in seconds, for the cost model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT", "Cost", "Profile"]


@dataclass(frozen=True)
class Cost:
    """What one rank spends on an exchange, by the formulas of docs/algorithms.md.

    Attributes:
        hops: Messages that follow one another, inside a node.
        far_hops: Messages that follow one another, between nodes.
        nbytes: Bytes received from ranks of the same node.
        far_nbytes: Bytes received from other nodes by the busiest node's link.
        flops: Floating-point operations of the rebuild; one in float64 counts as two.
        touched: Bytes of K×D arrays, and of factors, read and written by the rebuild.
    """

    hops: float = 0.0
    far_hops: float = 0.0
    nbytes: float = 0.0
    far_nbytes: float = 0.0
    flops: float = 0.0
    touched: float = 0.0


@dataclass(frozen=True)
class Profile:
    """Latencies in seconds, rates in bytes per second (memory, links) and float32 flop/s (one core).

    The defaults are round figures of a server core and a 10 Gbit/s network.
    """

    latency: float = 2e-6
    bandwidth: float = 4e9
    far_latency: float = 3e-5
    far_bandwidth: float = 1.2e9
    gemm_rate: float = 1e11
    memory_rate: float = 1e10

    def exchange_seconds(self, cost: Cost, sharing: float) -> float:
        """Return the seconds of communication, with ``sharing`` ranks on a core copying inside a node."""
        near = cost.hops * self.latency + cost.nbytes / self.bandwidth
        return sharing * near + cost.far_hops * self.far_latency + cost.far_nbytes / self.far_bandwidth

    def rebuild_seconds(self, cost: Cost, sharing: float) -> float:
        """Return the seconds of the rebuild and update: bound by the FMA units or by memory."""
        return sharing * (cost.flops / self.gemm_rate + cost.touched / self.memory_rate)


DEFAULT = Profile()
