"""Whole jobs under mpirun, with hard time-outs: a rank that fails must not leave the others waiting."""

import os
import subprocess
import sys
import textwrap

import pytest
from jobs import mpirun, needs_mpirun

import sfb as sfb_module
from sfb import launch
from sfb.models.ranks import Ranks
from sfb.runtime.threads import affinity


def sfb(ranks, *arguments):
    return mpirun(ranks, sys.executable, "-m", "sfb", *arguments)


@needs_mpirun
def test_info_shows_the_ranks():
    code, out = sfb(3, "info")
    assert code == 0, out
    assert "3 ranks" in out
    assert out.count("BLAS:") == 1


@needs_mpirun
def test_info_warns_of_ranks_of_a_host_that_share_no_memory(monkeypatch):
    monkeypatch.setenv("MPIR_CVAR_NOLOCAL", "1")  # of MPICH
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code, out = sfb(2, "info")
    assert code == 0, out
    apart = "of 2 ranks on a host at most 1 share memory" in out
    assert apart == ("MPICH" in out)
    if apart:
        assert f"threads per rank that the commands use: {max(1, len(affinity()) // 2)}\n" in out


@needs_mpirun
@pytest.mark.parametrize(
    "arguments",
    [("--data", "missing.npz"), ("--data", "digits", "--comm", "what"), ("--data", "digits", "--lr", "1e9")],
    ids=lambda a: a[-1],
)
def test_a_command_that_cannot_run_ends_everywhere(arguments):
    pytest.importorskip("sklearn")
    code, out = sfb(2, "train", "mlr", *arguments)
    assert code != 0
    assert "Error" in out or "error" in out
    assert "Traceback" not in out


@needs_mpirun
def test_fewer_samples_than_ranks(tmp_path):
    import numpy as np

    np.savez(tmp_path / "few.npz", x=np.eye(2), y=np.array([0, 1]))
    code, out = sfb(3, "train", "mlr", "--data", tmp_path / "few.npz")
    assert code != 0
    assert out.count("cannot be divided among 3 ranks") == 1


@needs_mpirun
def test_one_rank_that_fails_ends_the_job():
    """A disk fails on one node, and no other rank waits for the failed one."""
    script = """
        import sys
        from mpi4py import MPI
        from sfb import cli
        from sfb.training import bulk
        if MPI.COMM_WORLD.rank == 1:
            def fail(*args):
                raise OSError("the disk of rank 1 is gone")
            bulk.Bulk._step = fail
        sys.argv = ["sfb", "train", "mlr", "--data", "digits"]
        sys.exit(cli.run())
    """
    pytest.importorskip("sklearn")
    code, out = mpirun(2, sys.executable, "-c", textwrap.dedent(script))
    assert code != 0
    assert "the disk of rank 1 is gone" in out
    assert "rank 1 failed" in out


@needs_mpirun
def test_an_array_on_one_rank_and_factors_on_another_do_not_hang():
    script = """
        import numpy as np
        from mpi4py import MPI
        import sfb
        comm = sfb.Comm(MPI.COMM_WORLD)
        g = np.zeros((4, 3))
        send = np.ones((4, 3)) if comm.rank else sfb.Factors(np.ones((1, 4)), np.ones((1, 3)))
        try:
            comm.Allreduce(send, g)
        except sfb.MismatchError as error:
            assert not g.any()
            print("refused", error, flush=True)
    """
    code, out = mpirun(3, sys.executable, "-c", textwrap.dedent(script))
    assert code == 0, out
    assert out.count("refused") == 3
    assert "ranks 1, 2: Allreduce with a plain buffer" in out


# Where to interrupt a command, once its ranks are at work.
AT_WORK = {
    "train": (("train", "mlr", "--data", "digits"), "sfb.training.bulk", "Bulk._step"),
    "tune": (("tune", "-t", "0.1"), "sfb.tuning.calibrate", "_products"),
    "bench": (("bench", "allreduce", "-K", "8", "-D", "8", "-S", "1"), "sfb.bench.engine", "_orders"),
    "store": (("bench", "store", "-K", "8", "-D", "8", "-S", "1"), "sfb.store.store", "Store.clock"),
}


@needs_mpirun
@pytest.mark.parametrize(("command", "rank"), [("train", 0), ("train", 1), ("tune", 1), ("bench", 0), ("store", 1)])
def test_ctrl_c_on_one_rank_ends_all(command, rank):
    arguments, module, name = AT_WORK[command]
    script = f"""
        import operator, signal, sys
        from importlib import import_module
        from mpi4py import MPI
        from sfb import cli
        owner, _, name = "{name}".rpartition(".")
        place = import_module("{module}")
        place = operator.attrgetter(owner)(place) if owner else place
        if MPI.COMM_WORLD.rank == {rank}:
            setattr(place, name, lambda *args: signal.raise_signal(signal.SIGINT))
        sys.argv = ["sfb", *{arguments}]
        sys.exit(cli.run())
    """
    pytest.importorskip("sklearn")
    code, out = mpirun(2, sys.executable, "-c", textwrap.dedent(script))
    assert code == 130, out
    assert f"rank {rank} was interrupted; ending all ranks" in out
    assert "Traceback" not in out


@needs_mpirun
def test_ctrl_c_reaches_a_rank_that_waits_in_mpi():
    script = """
        import os, signal, sys
        from threading import Timer
        import numpy as np
        from mpi4py import MPI
        from sfb import cli
        from sfb.training import bulk
        def wait(*args):
            if MPI.COMM_WORLD.rank == 1:
                Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            MPI.COMM_WORLD.Recv(np.empty(1), tag=5)  # nobody sends
        bulk.Bulk._step = wait
        sys.argv = ["sfb", "train", "mlr", "--data", "digits"]
        sys.exit(cli.run())
    """
    pytest.importorskip("sklearn")
    code, out = mpirun(2, sys.executable, "-c", textwrap.dedent(script))
    assert code == 130, out
    assert "rank 1 was interrupted" in out


@needs_mpirun
@pytest.mark.parametrize(("error", "expected"), [("KeyboardInterrupt", 130), ("ValueError", 1)])
def test_what_nobody_catches_in_a_script_ends_all(error, expected):
    script = f"""
        from mpi4py import MPI
        import sfb
        sfb.end_job_on_error()
        if MPI.COMM_WORLD.rank == 1:
            raise {error}
        MPI.COMM_WORLD.Barrier()
    """
    code, out = mpirun(2, sys.executable, "-c", textwrap.dedent(script))
    assert code == expected, out
    assert error in out
    assert "rank 1" in out


@needs_mpirun
def test_an_output_that_nobody_reads_ends_all():
    script = """
        import os, sys
        from mpi4py import MPI
        from sfb import cli
        if MPI.COMM_WORLD.rank == 0:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
        sys.argv = ["sfb", "train", "mlr", "--data", "digits"]
        sys.exit(cli.run())
    """
    pytest.importorskip("sklearn")
    code, out = mpirun(2, sys.executable, "-c", textwrap.dedent(script))
    assert code == 1, out
    assert "rank 0 failed; ending all ranks" in out


def by_rank(arguments):
    """Return a command that runs sfb with the arguments of a rank, which are the values of a dictionary."""
    return (
        sys.executable,
        "-c",
        "import os, sys\nfrom sfb import cli\n"
        "rank = int(os.environ.get('PMI_RANK') or os.environ.get('OMPI_COMM_WORLD_RANK') or 0)\n"
        f"sys.argv = ['sfb', *{arguments!r}[rank]]\n"
        "sys.exit(cli.run())",
    )


@needs_mpirun
@pytest.mark.parametrize("option", ["-J", "--plot"])
def test_files_to_write_concern_rank_0_alone(tmp_path, option):
    pytest.importorskip("matplotlib" if option == "--plot" else "json")
    (tmp_path / "0").mkdir()
    bench = ["bench", "allreduce", "-K", "8", "-D", "8", "-S", "1", "-n", "1", option]
    code, out = mpirun(2, *by_rank({rank: [*bench, str(tmp_path / str(rank) / "b.png")] for rank in (0, 1)}))
    assert code == 0, out
    assert (tmp_path / "0" / "b.png").stat().st_size > 0
    code, out = mpirun(2, *by_rank({rank: [*bench, str(tmp_path / str(1 - rank) / "b.png")] for rank in (0, 1)}))
    assert code == 2, out
    assert out.count("does not exist or cannot be written") == 1


@needs_mpirun
@pytest.mark.parametrize("wrong", [{0}, {1}, {0, 1}], ids=str)
def test_a_wrong_command_line_on_some_ranks_ends_all(wrong):
    lines = {rank: ["train", "mlr", "--data", "digits", "--epochs", "0" if rank in wrong else "1"] for rank in (0, 1)}
    code, out = mpirun(2, *by_rank(lines))
    assert code == 2, out
    assert out.count("0 is not in the range") == 1
    assert ("ending all ranks" in out) == (len(wrong) == 1)


@needs_mpirun
def test_a_shared_array_outlives_mpi():
    script = """
        from mpi4py import MPI
        import sfb
        comm = sfb.Comm(MPI.COMM_WORLD)
        w = comm.shared((100, 1000))
        w[comm.node.rank] = 1
        comm.Barrier()
        MPI.Finalize()
        assert w[:2].sum() == 1000 * MPI_SIZE
        w[2:] = 3
        print("read")
    """
    for ranks in (1, 2):
        text = textwrap.dedent(script).replace("MPI_SIZE", str(ranks))
        code, out = mpirun(ranks, sys.executable, "-c", text)
        assert code == 0, out
        assert out.count("read") == ranks


@needs_mpirun
@pytest.mark.parametrize("ranks", [{1}, {0, 1}], ids=str)
def test_plain_arrays_do_without_compiled_kernels(ranks):
    """Where Numba cannot compile on one rank, all leave plain arrays to MPI, and say so once."""
    script = f"""
        import os
        from mpi4py import MPI
        if MPI.COMM_WORLD.rank in {ranks}:
            os.environ["NUMBA_DISABLE_JIT"] = "1"
        import numpy as np
        import sfb
        comm = sfb.Comm(MPI.COMM_WORLD)
        for _ in range(2):
            x = np.ones(3)
            comm.Allreduce(MPI.IN_PLACE, x)
            assert (x == comm.size).all()
        try:
            comm.Allreduce(sfb.Factors(np.ones((1, 2)), np.ones((1, 3))), np.empty((2, 3)))
        except ImportError as error:
            assert "unset that variable" in str(error)
            print("refused:", error)
    """
    code, out = mpirun(2, sys.executable, "-c", textwrap.dedent(script))
    assert code == 0, out
    assert out.count("refused:") == 2
    assert out.count("plain arrays are left to MPI, unchecked") == 1


@pytest.fixture
def launcher(monkeypatch):
    """Return a function that sets the variables of a launcher, in the place of those that there are."""

    def launcher(**variables):
        for name in (*(name for names in launch._SIZES for name in names), "PMIX_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launcher


def test_a_rank_that_is_alone_is_noticed(launcher):
    launcher()
    assert launch.lone_rank(1) is None
    launcher(PMI_SIZE="4")
    assert launch.lone_rank(4) is None
    assert "4 processes (PMI_SIZE=4)" in launch.lone_rank(1)
    with pytest.raises(launch.LaunchError, match="alone"):
        launch.check_launcher(1)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "3", "PMIX_RANK": "0"}, "3 processes"),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, "4 processes"),
        ({"SLURM_NTASKS": "4"}, None),  # in a job, without srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"}, None),  # srun -n 1
        ({"SLURM_STEP_NUM_TASKS": "2", "PMI_SIZE": "1"}, None),  # mpirun -n 1, whose daemons srun has started
        ({"PMI_SIZE": "4", "MPI_LOCALNRANKS": "1"}, "4 processes (PMI_SIZE=4)"),
        ({"PMIX_RANK": "2"}, "PMIX_RANK=2"),
        ({"PMIX_RANK": "0"}, None),
        ({"PMI_SIZE": ""}, None),
    ],
    ids=str,
)
def test_which_launchers_leave_ranks_alone(launcher, variables, said):
    launcher(**variables)
    assert (launch.lone_rank(1) is None) == (said is None)
    assert (said or "") in (launch.lone_rank(1) or "")


def test_comm_tells_ranks_that_are_alone(launcher, monkeypatch):
    from mpi4py import MPI

    if MPI.COMM_WORLD.size > 1:
        pytest.skip("the ranks have found each other")
    monkeypatch.setattr(launch, "_warned", False)
    launcher(PMI_SIZE="4")
    sfb_module.Comm(MPI.COMM_SELF).free()  # asks for one rank
    with pytest.warns(RuntimeWarning, match=r"alone: .*PMI_SIZE=4") as caught:
        sfb_module.Comm(MPI.COMM_WORLD).free()
    assert caught[0].filename == __file__
    sfb_module.Comm(MPI.COMM_WORLD).free()  # once is enough
    monkeypatch.setattr(launch, "_warned", False)
    with pytest.warns(RuntimeWarning, match="alone"):
        Ranks()  # of an estimator


def alone(*arguments):
    """Run the command in a single process, as if the launcher of another MPI had started four."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "OMPI_", "HYDRA", "PMIX"))}
    return subprocess.run(
        [sys.executable, "-m", "sfb", *arguments],
        env={**environment, "MPI_LOCALNRANKS": "4"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", [["train", "mlr", "--data", "digits"], ["bench", "allreduce"], ["warmup"]])
def test_commands_refuse_to_run_alone_by_mistake(arguments):
    done = alone(*arguments)
    assert done.returncode == 1
    assert "believes it is alone" in done.stderr


@needs_mpirun
def test_plain_arrays_do_without_numba(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            sys.modules["numba"] = None
            import numpy as np
            from mpi4py import MPI
            import sfb
            comm = sfb.Comm(MPI.COMM_WORLD)
            for _ in range(2):
                x = np.ones(3)
                comm.Allreduce(MPI.IN_PLACE, x)
                assert (x == comm.size).all()
            try:
                comm.Allreduce(sfb.Factors(np.ones((1, 2)), np.ones((1, 3))), np.empty((2, 3)))
            except ImportError as error:
                print("refused:", error)
            """
        )
    )
    code, out = mpirun(2, sys.executable, script)
    assert code == 0, out
    assert out.count("refused:") == 2
    assert out.count("plain arrays are left to MPI, unchecked") == 1
