"""Which kernels Numba's cache holds; needs no MPI."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import sfb.kernels as kernels

__all__ = ["cache_folder", "missing"]


def cache_folder() -> Path:
    """Return the folder in which Numba keeps the compiled kernels; imports Numba, and compiles nothing.

    Raises:
        KernelError: Numba cannot be imported, or finds no folder that it can write.
    """
    try:
        from numba.core.caching import FunctionCache
    except Exception as error:  # Numba that does not fit NumPy or llvmlite raises others than ImportError
        raise kernels.KernelError(f"the kernels need Numba, which cannot be imported: {error}") from error
    try:
        # Numba chooses a folder by that of the file in which a function lies. Any function of the kernels serves.
        return Path(FunctionCache(kernels.load).cache_path)
    except RuntimeError as error:
        raise kernels.KernelError(f"no folder for compiled kernels: {error}") from error


def missing(folder: Path, stages: Sequence[Sequence[str]]) -> list[str]:
    """Return the modules of kernels of which the folder holds nothing that fits these sources and this processor.

    Modules without functions marked as kernels are not looked for.

    Args:
        folder: What `cache_folder` returned.
        stages: The names of the modules.
    """
    from numba.core.caching import IndexDataCacheFile
    from numba.core.registry import cpu_target

    from sfb.kernels._compile import _SOURCES

    processor = cpu_target.target_context.codegen().magic_tuple()

    def holds(path: Path) -> bool:
        try:
            index = IndexDataCacheFile(str(folder), path.stem, _SOURCES)._load_index()
        except Exception:  # what a damaged pickle raises is not known beforehand
            return False
        return any(key[1] == processor for key in index)

    def compiles(module: str) -> bool:
        return "\n@kernel(" in (resources.files(kernels) / f"{module}.py").read_text(encoding="utf-8")

    return [
        module
        for stage in stages
        for module in stage
        if compiles(module) and not any(map(holds, folder.glob(f"{module}.*.nbi")))
    ]
