"""Ranks that are gone or do not answer: each is named, on all ranks, and nobody waits for ever."""

import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
from jobs import mpirun, needs_mpirun
from kill_ranks import STAY

import sfb
from sfb.runtime.errors import RankFailedError
from sfb.runtime.limits import FAILURE_TAG, NO_TAG, TAGS, TIMEOUT, array_tag, timeout_or_default
from sfb.runtime.processes import Process, state_of, this_process


@pytest.fixture
def child():
    """A process that sleeps, and what others know of it."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"],
                               stdout=subprocess.PIPE)  # fmt: skip
    process.stdout.read(1)
    own = this_process()
    with open(f"/proc/{process.pid}/stat", "rb") as file:
        start = int(file.read().rpartition(b")")[2].split()[19])
    yield process, Process(own.host, process.pid, start, own.space)
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_process_is_alive_then_stopped_then_gone(child):
    process, known = child
    assert state_of(known) == "alive"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert state_of(known) == "stopped"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert state_of(known) == "gone"  # though nobody has waited for it yet
    process.wait()
    assert state_of(known) == "gone"


def test_another_process_with_the_same_number_is_not_taken_for_the_one_that_is_gone(child):
    _, known = child
    assert state_of(known._replace(start=known.start - 1)) == "gone"


def test_a_process_knows_itself():
    own = this_process()
    assert own.pid == os.getpid()
    assert state_of(own) == "alive"
    assert str(own) == f"host {own.host}, pid {own.pid}"


def test_an_error_of_mpi_is_explained_by_a_rank_that_is_gone(child, monkeypatch):
    from mpi4py import MPI

    from sfb.runtime import guard
    from sfb.runtime.inquiry import Inquiry

    monkeypatch.setattr(guard, "_leaving", None)  # this process is not to end by what it finds
    process, known = child
    failures = Inquiry(MPI.Intracomm(MPI.COMM_SELF.Dup()), 60.0)
    failures.peers, failures._near = [this_process(), known], [1]
    failures.find()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RankFailedError, match=r"rank 1 \(host .* is gone"):
        failures.find()
    failures.free()


def test_a_job_ends_if_mpi_does_not_tell_a_rank_that_waits_of_a_death(child, monkeypatch):
    from mpi4py import MPI

    from sfb.runtime import failures as module

    said = []
    monkeypatch.setattr(module, "end_job", said.append)
    process, known = child
    failures = module.UlfmFailures(MPI.Intracomm(MPI.COMM_SELF.Dup()), 1e9)
    failures.peers, failures._near = [this_process(), known], [1]

    def look(waited):
        monkeypatch.setattr(failures, "_due", 0.0)
        failures.look(list, "Allreduce", waited)
        failures.find()

    look(61.0)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    look(59.0)
    assert not said  # MPI may tell yet
    look(61.0)
    (text,) = said
    assert text.startswith(f"rank 1 ({known}) is gone, of which MPI has not told rank 0, after 61 s in Allreduce")
    failures.free()


def test_a_job_ends_if_mpi_does_not_tell_a_rank_in_one_of_its_calls_of_a_death(child, monkeypatch):
    from mpi4py import MPI

    from sfb.arrays import collectives
    from sfb.runtime import failures as module

    said, at = [], SimpleNamespace(second=0, call=0)
    monkeypatch.setattr(module, "end_job", said.append)
    monkeypatch.setattr(module, "monotonic", lambda: at.second)
    process, known = child
    failures = module.UlfmFailures(MPI.Intracomm(MPI.COMM_SELF.Dup()), 1e9)
    failures.peers, failures._near = [this_process(), known], [1]
    failures.number = lambda: at.call
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    monkeypatch.setitem(collectives._MPI, "Allreduce", lambda *arguments: sys._getframe(1))
    inside = [collectives.by_mpi("Allreduce", MPI.COMM_SELF, None, None)]  # the stack of a rank in MPI's call

    outside = [sys._getframe()]
    for second, call, frames in [(0, 3, inside), (50, 4, inside), (109, 4, inside), (200, 4, outside),
                                 (201, 4, inside), (261, 4, inside)]:  # fmt: skip
        at.second, at.call = second, call
        failures.watch("train.py:7 (step)", frames)
        assert not said
    at.second = 262
    failures.watch("train.py:7 (step)", inside)
    assert "after 61 s in train.py:7 (step)" in said[0]
    failures.free()


def test_the_stack_of_a_thread_is_that_of_its_frames():
    from sfb.trace.stack import stack_from

    frame, expected = sys._getframe(), []
    walked = frame
    while walked is not None:
        expected.append(walked)
        walked = walked.f_back
    assert stack_from(frame) == expected
    assert stack_from(None) == []
    assert stack_from(SimpleNamespace(f_back=7)) == []


def test_the_limit_comes_from_the_argument_the_environment_or_the_default(monkeypatch):
    monkeypatch.delenv("SFB_TIMEOUT", raising=False)
    assert timeout_or_default(None) == TIMEOUT
    monkeypatch.setenv("SFB_TIMEOUT", "7.5")
    assert timeout_or_default(None) == 7.5
    assert timeout_or_default(3) == 3.0
    monkeypatch.setenv("SFB_TIMEOUT", "soon")
    with pytest.raises(ValueError, match=r"SFB_TIMEOUT must be a number of seconds > 0, got 'soon'"):
        timeout_or_default(None)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "soon"])
def test_a_limit_that_is_none_is_refused(timeout):
    from mpi4py import MPI

    with pytest.raises(ValueError, match="timeout must be a number of seconds > 0"):
        sfb.Comm(MPI.COMM_SELF, timeout=timeout)


def test_no_message_of_an_array_has_a_tag_that_is_kept():
    lanes = 4
    tags = {array_tag(number, lane, lanes) for number in range(TAGS) for lane in range(lanes)}
    assert max(tags) < NO_TAG < FAILURE_TAG <= 32767
    # A lane keeps its tags to itself.
    assert not {array_tag(n, 0, lanes) for n in range(TAGS)} & {array_tag(n, 1, lanes) for n in range(TAGS)}


def job(ranks, text, *prefix, seconds=180):
    """Run a script on ranks, and return its exit code and output."""
    head = """
        import itertools, os, signal, sys, time
        import numpy as np
        from mpi4py import MPI
        import sfb
        world = MPI.COMM_WORLD
        rank = world.rank
        g = sfb.Factors(np.ones((2, 30), np.float32), np.ones((2, 40), np.float32))
        G = np.empty((30, 40), np.float32)
    """
    script = textwrap.dedent(head) + textwrap.dedent(text)
    return mpirun(ranks, *prefix, sys.executable, "-c", script, seconds=seconds)


@needs_mpirun
@pytest.mark.parametrize(
    "step",
    [
        "comm.Allreduce(g, G)",
        "store.push('w', np.ones(3)); store.clock(); store['w']",
        "replicas.push('w', np.ones(3)); replicas.clock(); replicas.consensus_error()",
        "replicas.push('w', np.ones(3)); replicas.clock(); replicas['w']",
    ],
    ids=["factors", "store", "averaging", "averaging without waits"],
)
def test_a_rank_that_is_killed_is_named_by_all_others(step):
    script = f"""
        comm = sfb.Comm(world)
        store = sfb.Store(world, {{"w": np.zeros(3)}}, sfb.optim.SGD(lr=0.1))
        replicas = sfb.AveragingStore(world, {{"w": np.zeros(3)}}, sfb.optim.SGD(lr=0.1))
        for i in itertools.count():
            if i == 10 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                {step}
            except sfb.RankFailedError as error:
                assert error.ranks == (1,)
                print(f"rank {{rank}} says: {{error}}", flush=True)
                raise
    """
    code, out = job(3, script, *STAY)
    assert code != 0, out
    assert out.count("says: rank 1 (host ") == 2, out
    assert ") is gone" in out


@needs_mpirun
def test_ranks_that_do_not_come_are_named_with_their_places():
    script = """
        sfb.Comm(world, reproducible=True).Allreduce(g, G)  # so that kernels are loaded
        comm = sfb.Comm(world, reproducible=True, timeout=2)
        comm.Allreduce(g, G)

        def dream():
            while True:
                time.sleep(0.1)

        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 2:
            dream()
        try:
            comm.Allreduce(g, G)
        except sfb.RankFailedError as error:
            assert error.ranks == (1, 2)
            print(f"rank {rank} says: {error}", flush=True)
            raise
    """
    code, out = job(4, script)
    assert code != 0, out
    assert out.count("says: rank 1 (host ") == 2, out
    assert out.count(") is stopped; rank 2 (host ") >= 2, out
    assert "does not come, it is at <string>:" in out
    assert "(dream)" in out
    assert "s in Allreduce" in out


@needs_mpirun
def test_ranks_that_do_not_come_to_the_end_of_a_store_of_replicas_are_named():
    script = """
        store = sfb.AveragingStore(world, {"w": np.zeros(3)}, sfb.optim.SGD(lr=0.1), timeout=2)
        store.consensus_error()

        def dream():
            while True:
                time.sleep(0.1)

        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 2:
            dream()
        try:
            store.push("w", np.ones(3))
            store.clock()
            store.close()
        except sfb.RankFailedError as error:
            assert error.ranks == (1, 2)
            print(f"rank {rank} says: {error}", flush=True)
            raise
    """
    code, out = job(4, script)
    assert code != 0, out
    assert out.count("says: rank 1 (host ") == 2, out
    assert out.count(") is stopped; rank 2 (host ") >= 2, out
    assert "does not come, it is at <string>:" in out
    assert "(dream)" in out
    assert "s in close at clock 1" in out


@needs_mpirun
def test_a_rank_that_waits_in_mpi_is_ended():
    script = """
        comm = sfb.Comm(world)
        comm.Allreduce(g, G)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        world.Barrier()
    """
    code, out = job(3, script, *STAY)
    assert code != 0, out
    assert "sfb: error: rank 1 (host " in out
    assert "and does not hear of it; ending all ranks" in out


@needs_mpirun
@pytest.mark.parametrize("aborts", [True, False], ids=["abort ends", "abort does not end"])
def test_a_rank_is_ended_though_calls_of_mpi_do_not(aborts, tmp_path):
    """The other rank may have died in the midst of a message; calls of MPI then wait for its end."""
    script = f"""
        import ctypes, threading
        from sfb.runtime import inquiry
        comm = sfb.Comm(world)
        comm.Allreduce(g, G)
        pipe = {str(tmp_path / "pipe")!r}

        def hear(self):
            open(pipe, "w").close()
            threading.Event().wait()  # with the lock that other threads wait for

        if rank == 1:
            open(pipe).read()
            os.kill(os.getpid(), signal.SIGKILL)
        inquiry.Inquiry._hear = hear
        if not {aborts}:

            class Stuck(MPI.Intracomm):
                def Abort(self, code):
                    ctypes.PyDLL(None).sleep(100)  # no other thread of Python runs meanwhile

            MPI.COMM_WORLD = Stuck(world)
        comm.Allreduce(g, G)
    """
    os.mkfifo(tmp_path / "pipe")
    code, out = job(2, script, *STAY)
    assert code != 0, out
    assert "sfb: error: rank 1 (host " in out
    assert "and does not hear of it; ending all ranks" in out
    assert aborts or "in Abort" in out, out  # where it was as it ended


@needs_mpirun
def test_a_checkpoint_is_written_and_others_wait_for_it(tmp_path):
    """A rank dies before a step has changed anything; the first that is left writes what is to be saved."""
    pytest.importorskip("sklearn")
    script = """
        from sfb import cli
        from sfb.training import bulk
        step, taken = bulk.Bulk._step, []

        def last(*args):
            taken.append(1)
            if len(taken) == 8 and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args)

        bulk.Bulk._step = last
        sys.argv = ["sfb", "train", "mlr", "--data", "digits", "--checkpoint", "FOLDER", "--epochs", "3"]
        sys.exit(cli.run())
    """.replace("FOLDER", str(tmp_path / "run"))
    code, out = job(3, script, *STAY)
    assert code != 0, out
    assert "sfb: error: rank 0 (host " in out
    assert "the checkpoint of step 7 has been written" in out
    assert (tmp_path / "run" / "checkpoint-0000000007.sfb").exists()


@needs_mpirun
def test_a_rank_that_dies_while_it_writes_a_checkpoint_is_named(tmp_path):
    """The others wait for its word that the checkpoint has been written."""
    pytest.importorskip("sklearn")
    script = """
        from sfb import cli
        from sfb.training.checkpoint import Folder
        Folder.save = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        sys.argv = ["sfb", "train", "mlr", "--data", "digits", "--checkpoint", "FOLDER", "--epochs", "3"]
        sys.exit(cli.run())
    """.replace("FOLDER", str(tmp_path / "run"))
    code, out = job(3, script, *STAY)
    assert code != 0, out
    assert "sfb: error: rank 0 (host " in out


@pytest.mark.mpi
def test_errors_of_ranks_that_have_failed_are_raised_as_they_are(world):
    """No collective would end, so none is entered."""
    from sfb.runtime.agreement import compare, on_all_ranks

    if world.rank == 0:
        with pytest.raises(RankFailedError, match="rank 9"):
            compare(world, "Allreduce", error=RankFailedError("rank 9 is gone", [9]))
        with pytest.raises(RankFailedError, match="rank 9"), on_all_ranks(world, "Allreduce"):
            raise RankFailedError("rank 9 is gone", [9])
    world.Barrier()


@pytest.mark.mpi
def test_ranks_that_are_late_are_waited_for(world):
    """The limit is that of a wait, not of many."""
    with sfb.Comm(world, timeout=30) as comm:
        for _ in range(50):
            x = np.ones(10)
            comm.Allreduce(x.copy(), x)
            assert (x == comm.size).all()
