"""Exchanges of factors: exact algorithms, one a module, and what runs them."""

from __future__ import annotations

from sfb.collectives.algorithms import ALGORITHMS, check_algorithm, what_if
from sfb.collectives.problem import Problem, spread

__all__ = ["ALGORITHMS", "Problem", "check_algorithm", "spread", "what_if"]
