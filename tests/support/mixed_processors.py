"""Exchange among ranks whose kernels are compiled for different processors, and compare bits.

    mpirun -n 2 python -m mpi4py tests/support/mixed_processors.py [CACHE]

Rank 1 compiles for the oldest processor of the architecture, into the folder CACHE, which takes a minute; without one,
into a folder that is removed at the end.
"""

import atexit
import os
import shutil
import sys
import tempfile

RANK = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
if RANK == 1:
    if sys.argv[1:]:
        CACHE = sys.argv[1]
    else:
        CACHE = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ.update(NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="", NUMBA_CACHE_DIR=CACHE)

from hashlib import blake2b  # noqa: E402

import numpy as np  # noqa: E402
from mpi4py import MPI  # noqa: E402
from numba.core.registry import cpu_target  # noqa: E402

import sfb  # noqa: E402

world, rng = MPI.COMM_WORLD, np.random.default_rng(0)
seen = world.allgather(cpu_target.target_context.codegen().magic_tuple())
assert len(set(seen)) == 2, "all ranks compile for the same processor"
node = world.Split(world.rank)
with sfb.Comm(world, node=node) as far, sfb.Comm(world) as near:
    for name, comm in (("nodes of one", far), ("one node", near)):
        for algorithm in ("broadcast", "pipelined", "dense", "sharded", "node"):
            for samples in (3, 300):
                u, v = rng.standard_normal((2, world.size, samples, 200)).astype("f4")
                w = np.ones((200, 200), "f4")
                optimizer = sfb.optim.Adam(w, lr=0.1, max_norm=1.0 if algorithm == "broadcast" else None)
                for _ in range(3):
                    comm.Allreduce(sfb.Factors(u[world.rank], v[world.rank]), optimizer, algorithm=algorithm)
                digests = world.allgather(blake2b(w.tobytes()).hexdigest())
                if world.rank == 0:
                    print(f"{name}, {algorithm}, S={samples}: {'equal' if len(set(digests)) == 1 else 'OTHER'} bits")
                assert len(set(digests)) == 1
        for size in (1000, 400_000):
            x = rng.standard_normal((world.size, size)).astype("f4")[world.rank]
            y = np.empty_like(x)
            comm.Allreduce(x, y)
            digests = world.allgather(blake2b(y.tobytes()).hexdigest())
            if world.rank == 0:
                print(f"{name}, array of {size}: {'equal' if len(set(digests)) == 1 else 'OTHER'} bits")
            assert len(set(digests)) == 1
node.Free()
