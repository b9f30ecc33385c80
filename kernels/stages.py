"""The modules of kernels, in the order in which several processes compile them together."""

from __future__ import annotations

import functools
from importlib import import_module
from types import ModuleType

__all__ = ["ARRAY_STAGES", "HALF_STAGES", "SPARSE_STAGES", "STAGES", "KernelError", "compiled", "load"]

# Modules of a stage do not need each other; they take about as long from both ends.
STAGES = (("sync", "checksum"), ("_blocks", "rounds"), ("_updates", "arrays", "_reductions", "ops"), ("fused", "eager"))
# What collectives of plain arrays need.
ARRAY_STAGES = (("sync", "checksum"), ("arrays", "rounds"))
# What 16 bits on the wire need beside `STAGES`.
HALF_STAGES = (("_half",),)
# What sparse factors need beside `STAGES`.
SPARSE_STAGES = (("_sparse",),)


class KernelError(ImportError):
    """Numba is missing, or cannot compile here; the text says what to change.

    >>> from sfb.kernels import KernelError
    >>> issubclass(KernelError, ImportError)
    True
    """


def load(module: str) -> None:
    """Compile the kernels of a module, or load them from Numba's cache.

    Raises:
        KernelError: Numba is missing, or cannot compile here.

    Args:
        module: Name of a module, as in `STAGES`.

    >>> from sfb.kernels import load
    >>> load("_reductions")
    """
    compiled(module)


@functools.cache
def compiled(module: str) -> ModuleType:
    """Return a module of kernels; the first use imports Numba, and compiles or loads the kernels.

    Raises:
        KernelError: As `load` does.
    """
    try:
        from numba import config
    except Exception as error:  # an ImportError; Numba that does not fit NumPy or llvmlite raises others, too
        raise KernelError(f"the kernels need Numba, which cannot be imported: {error}") from error
    if config.DISABLE_JIT:
        raise KernelError("NUMBA_DISABLE_JIT keeps Numba from compiling the kernels; unset that variable")
    try:
        return import_module(f"sfb.kernels.{module}")
    except RuntimeError as error:
        if "locator" not in str(error):
            raise
        raise KernelError(
            "Numba can write compiled kernels neither beside the installed files nor in the user's cache; set "
            f"NUMBA_CACHE_DIR to a folder that can be written ({error})"
        ) from error
