"""Exchanges of factors: exact algorithms, one a module, and the engine that runs them."""

from __future__ import annotations

from sfb.collectives.algorithms import ALGORITHMS, SPARSE_ALGORITHMS, check_algorithm, what_if
from sfb.collectives.problem import Problem, fill_nodes

__all__ = ["ALGORITHMS", "SPARSE_ALGORITHMS", "Problem", "check_algorithm", "fill_nodes", "what_if"]
