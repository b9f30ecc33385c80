"""Numba kernels that turn sufficient factors into matrices and updates; no MPI.

Every element of uᵀv is a chain of fused multiply-adds over the samples in their order, put aside and taken up again
every 256 samples. So its bits do not depend on which rows a call works, on how many threads share them, or on the
processor's vectors: ranks may divide the rows as they like.

Numba is imported, and the kernels are compiled or loaded from its cache, on the first call.
"""

from sfb.kernels._arguments import states_of
from sfb.kernels._scratch import drop_scratch, room_for, scratch, scratch_for
from sfb.kernels._threads import partition
from sfb.kernels.codes import sparse_codes, update_atoms
from sfb.kernels.matrices import (
    accumulate,
    norm,
    norm_dense,
    project_rows,
    rebuild,
    reduce,
    shrink_rows,
    update,
    update_dense,
)
from sfb.kernels.rules import Rule, adagrad, adam, assign, proximal, sgd
from sfb.kernels.stages import ARRAY_STAGES, HALF_STAGES, SPARSE_STAGES, STAGES, KernelError, load

__all__ = [
    "ARRAY_STAGES",
    "HALF_STAGES",
    "SPARSE_STAGES",
    "STAGES",
    "KernelError",
    "Rule",
    "accumulate",
    "adagrad",
    "adam",
    "assign",
    "drop_scratch",
    "load",
    "norm",
    "norm_dense",
    "partition",
    "project_rows",
    "proximal",
    "rebuild",
    "reduce",
    "room_for",
    "scratch",
    "scratch_for",
    "sgd",
    "shrink_rows",
    "sparse_codes",
    "states_of",
    "update",
    "update_atoms",
    "update_dense",
]
