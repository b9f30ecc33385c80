"""How functions become kernels: what is compiled on its own, what into its callers, and what Numba's cache keeps."""

import copy
import hashlib
from importlib import resources

from llvmlite import binding
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

__all__ = ["inner", "kernel"]

# Options of Numba. No C function calls a kernel; and only kernels call the others, so they need no wrapper for Python.
_KERNEL = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_INNER = {**_KERNEL, "no_cpython_wrapper": True}
# a·b + c may become one fused multiply-add; nothing is reordered, and NaN and Inf keep their meaning.
_CONTRACT = {"fastmath": {"contract"}}


def kernel(signatures, *, python=True, contract=False):
    """Compile a function for these signatures, or load it from Numba's cache.

    Other kernels call it by a symbol, like a function of a C library. Numba would link its code into each caller and
    let LLVM optimise both together: a product of some thousand instructions once more in every kernel that forms one.
    Behind a symbol LLVM sees a call, which takes a few nanoseconds.

    Args:
        signatures: Numba's signatures, results included.
        python: Whether Python calls it, too.
        contract: Whether a·b + c may become one fused multiply-add.
    """

    def compiled(function):
        dispatcher = njit(**(_KERNEL if python else _INNER), **(_CONTRACT if contract else {}))(function)
        dispatcher._cache = _Cache(function)
        for signature in signatures:
            dispatcher.compile(signature)
        dispatcher.disable_compile()
        for overload in dispatcher.overloads.values():
            _call_by_symbol(dispatcher, overload)
        return dispatcher

    return compiled


def inner(function=None, *, contract=False):
    """Compile a function into the kernels that call it, for whatever types they pass."""
    compiled = njit(**_INNER, **(_CONTRACT if contract else {}))
    return compiled if function is None else compiled(function)


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
