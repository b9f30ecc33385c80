"""Before MPI's Init and after its Finalize, and with fewer threads than MPI_THREAD_MULTIPLE."""

import subprocess
import sys
import textwrap

LIFE = """
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    import numpy as np
    import sfb

    def refuses(call, *arguments, words):
        try:
            call(*arguments)
        except RuntimeError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{call} did not raise")

    refuses(sfb.Comm, MPI.COMM_WORLD, words="MPI has not been initialized: call MPI.Init()")
    MPI.Init_thread()
    comm, checks_nothing, never_used = (sfb.Comm(MPI.COMM_WORLD, check=check) for check in (True, False, True))
    x, g = np.ones(4), np.zeros((4, 3))
    factors = sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))
    comm.Allreduce(x, x.copy())
    comm.Allreduce(factors, g)
    checks_nothing.Allreduce(x, x.copy())
    shared, plan, done = comm.shared(5), comm.Allreduce_init(factors, g), comm.Iallreduce(factors, g)
    copied = comm.Dup()
    done.Wait()
    late = comm.Iallreduce(factors, g)
    while not late.Get_status():
        pass
    comm.Barrier()
    MPI.Finalize()
    late.Wait()
    ended = "MPI has been finalized"
    for one in (comm, checks_nothing, never_used, copied):
        refuses(one.Allreduce, x, x.copy(), words=ended)
        refuses(one.Allreduce, factors, g, words=ended)
        refuses(one.Iallreduce, factors, g, words=ended)
        refuses(one.Allgather, x, x.copy(), words=ended)
        refuses(one.Reduce_scatter_block, x, x.copy(), words=ended)
        refuses(one.shared, 3, words=ended)
        refuses(getattr, one, "node", words=ended)
        one.free()
    refuses(plan.Start, words=ended)
    refuses(sfb.Comm, MPI.COMM_WORLD, words=ended)
    shared[:] = 1
    print("to the end")
"""


def run(script):
    """Run a script in a process of its own, alone; return what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    job = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    return job.stdout, job.stderr


def test_before_init_and_after_finalize():
    assert run(LIFE) == ("to the end\n", "")


LEVELS = """
    import mpi4py
    mpi4py.rc.thread_level = "serialized"
    from mpi4py import MPI
    import numpy as np
    import sfb

    comm = sfb.Comm(MPI.COMM_WORLD)
    g, x, received = np.zeros((4, 3)), np.ones(1), np.zeros(1)
    factors = sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))
    requests = [comm.Iallreduce(factors, g), comm.Iallreduce(x, received)]
    comm.Allreduce(x, x.copy())
    sfb.Request.Waitall(requests)
    assert (g == 2 * comm.size).all() and received[0] == comm.size
    comm.Iallreduce(factors, g).Wait()
    print("threads:", comm._progress.threaded)
    comm.free()
"""


def test_levels_below_multiple_are_named():
    out, said = run(LEVELS)
    if out == "threads: True\n":  # MPI may give more than it is asked for
        assert said == ""
    else:
        assert out == "threads: False\n"
        assert said.startswith("MPI was initialized with MPI_THREAD_SERIALIZED, so no thread takes Iallreduce forward")
        assert said.count("\n") == 1
