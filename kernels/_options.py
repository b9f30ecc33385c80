"""How the kernels are compiled; names are Numba's."""

__all__ = ["INNER", "KERNEL"]

# What Python calls; no C function calls a kernel.
KERNEL = {"cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
# What only other kernels call: its wrapper for Python would take a tenth of its compilation.
INNER = {**KERNEL, "no_cpython_wrapper": True}
