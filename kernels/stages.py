"""The modules of kernels, in the order in which several processes compile them together."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

__all__ = ["ARRAY_STAGES", "STAGES", "compiled", "load"]

# Modules of a stage do not need each other; they take about as long from both ends.
STAGES = (("sync",), ("_blocks", "rounds"), ("_updates", "arrays", "_reductions", "_half", "ops"), ("fused", "eager"))
# What collectives of plain arrays need.
ARRAY_STAGES = (("sync",), ("arrays", "rounds"))


def load(module: str) -> None:
    """Compile the kernels of a module, or load them from Numba's cache."""
    compiled(module)


@functools.cache
def compiled(module: str) -> ModuleType:
    """Return a module of kernels; the first use imports Numba, and compiles or loads the kernels."""
    return import_module(f"sfb.kernels.{module}")
