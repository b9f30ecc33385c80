"""How functions become kernels: what is compiled on its own, what into its callers, and what Numba's cache keeps."""

import copy
import hashlib
import logging
from contextlib import suppress
from importlib import resources

from llvmlite import binding
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

__all__ = ["inner", "kernel"]

_log = logging.getLogger("sfb")

# Options of Numba. No C function calls a kernel; and only kernels call the others, so they need no wrapper for Python.
# Without "fastmath" a·b + c is rounded twice on every processor; kernels ask for fused multiply-adds by name.
_KERNEL = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_INNER = {**_KERNEL, "no_cpython_wrapper": True}


def kernel(signatures, *, python=True):
    """Compile a function for these signatures, or load it from Numba's cache.

    Other kernels call it by a symbol, like a function of a C library. Numba would link its code into each caller and
    let LLVM optimise both together: a product of some thousand instructions once more in every kernel that forms one.
    Behind a symbol LLVM sees a call, which takes a few nanoseconds.

    Args:
        signatures: Numba's signatures, results included.
        python: Whether Python calls it, too.
    """

    def compiled(function):
        dispatcher = njit(**(_KERNEL if python else _INNER))(function)
        dispatcher._cache = _Cache(function)
        for signature in signatures:
            dispatcher.compile(signature)
        dispatcher.disable_compile()
        for overload in dispatcher.overloads.values():
            _call_by_symbol(dispatcher, overload)
        return dispatcher

    return compiled


def inner(function):
    """Compile a function into the kernels that call it, for whatever types they pass."""
    return njit(**_INNER)(function)


def _call_by_symbol(dispatcher, overload):
    """Let LLVM find the machine code of a signature by its name, and Numba emit calls of that name."""
    function, context = dispatcher.py_func, dispatcher.targetctx
    symbol = copy.copy(overload.fndesc)
    symbol.mangled_name = f"{function.__module__}.{function.__qualname__}{overload.signature}"
    address = overload.library.get_pointer_to_function(overload.fndesc.mangled_name)
    assert address, f"Numba has no machine code of {symbol.mangled_name}"
    binding.add_symbol(symbol.mangled_name, address)
    context.remove_user_function(overload.entry_point)
    context.insert_user_function(overload.entry_point, symbol)


def _sources():
    """Return a digest of all sources of the kernels."""
    digest = hashlib.sha256()
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


_SOURCES = _sources()


class _Cache(FunctionCache):
    """Numba's cache, which forgets a kernel when any source of the kernels has changed.

    Numba itself looks at the file of the kernel only: not at those of the functions that are compiled into it, nor at
    those of the kernels whose symbols and signatures its machine code holds.
    """

    def __init__(self, function):
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self.cache_path, self._impl.filename_base, _SOURCES)

    def load_overload(self, sig, target_context):
        """Return a compiled signature, or None if the cache does not have it or is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # what a cut-off pickle raises is not known beforehand
            _log.warning("a damaged kernel in Numba's cache %s is compiled again: %r", self.cache_path, error)
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig, data):
        """Keep a compiled signature, unless the disk is full."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _log.warning("Numba's cache does not keep a kernel, each process compiles it: %s", error)
