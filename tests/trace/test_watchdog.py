"""The watchdog, SIGUSR2 and SFB_DEBUG: what a rank says of itself. Ranks wait for each other, not for a time."""

import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from mpi4py import MPI

import sfb
from sfb.trace.now import NOW
from sfb.trace.watchdog import Watchdog

# Speaks whenever it looks.
AT_ONCE = 1e-9


def say(*expected):
    """Let a watchdog look until it says what is expected."""
    watchdog = Watchdog(AT_ONCE)
    text = None
    while text is None or not all(part in text for part in expected):
        text = watchdog.look()
    return text


def test_a_rank_that_waits_for_nobody_says_so():
    watchdog = Watchdog(AT_ONCE)
    assert watchdog.look() is None
    state = watchdog.state(1.0)
    assert state.since == 0
    assert "is in no call of sfb that waits; its main thread is at " in state.text
    assert f"{__file__}:" in state.text


def test_it_speaks_after_a_time_then_after_twice_that(monkeypatch):
    from sfb.trace import watchdog as module

    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    watchdog = Watchdog(10.0)
    monkeypatch.setattr(watchdog, "state", lambda now: module.State(0.0 if now < 100 else 100.0, "waits"))
    spoken = []
    for now in range(0, 200, 5):
        if watchdog.look():
            spoken.append(now - 100)
    assert spoken == [10, 20, 40, 80]


@pytest.mark.parametrize("size", [3, 1 << 20], ids=["small", "large"])
@pytest.mark.parametrize("name", ["Allreduce", "Reduce_scatter_block", "Allgather", "factors"])
def test_a_call_that_raises_leaves_no_mark(name, size):
    x, wrong = np.ones(size), np.zeros(size, "datetime64[s]")
    with sfb.Comm(MPI.COMM_SELF) as comm:
        factors = sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))
        call = partial(comm.Allreduce, factors) if name == "factors" else partial(getattr(comm, name), wrong)
        with pytest.raises((BufferError, ValueError)):
            call(x)
        assert NOW.call is None


def calls(comm):
    """Return calls that wait for all ranks, by what the watchdog says of them."""
    x = np.ones(3)
    factors, target = sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.zeros((4, 3))
    return {
        "(3 float64)": lambda: comm.Allreduce(x, np.zeros(3)),
        "(4, 3) float64 Factors into": lambda: comm.Allreduce(factors, target),
    }


@pytest.mark.mpi
@pytest.mark.parametrize("which", ["(3 float64)", "(4, 3) float64 Factors into"])
def test_a_waiting_rank_says_for_what(any_comm, world, which):
    """All ranks come late until the watchdog of rank 0 has said what it waits for."""
    if world.size == 1:
        pytest.skip("needs two ranks")
    call = calls(any_comm)[which]
    for _ in range(2):
        call()
    said = []

    def watch():
        said.append(say(which, *[" for rank"] * (any_comm._team.nodes == 1)))
        for rank in range(1, world.size):
            world.send(None, rank)

    if world.rank == 0:
        thread = threading.Thread(target=watch)
        thread.start()
    else:
        world.recv(source=0)
    call()
    if world.rank == 0:
        thread.join()
        label, number = any_comm._team.label, any_comm._team.agree.number
        (text,) = said
        first = text.splitlines()[0]
        assert re.match(rf"rank 0 of {world.size} on {NOW.host} (is|has (waited|been) \d+ s) in Allreduce #", first)
        assert f" of {label} " in first
        assert f"called at {__file__}:" in first
        if any_comm._team.nodes == 1:
            assert f"#{number} " in first
            others = [str(rank) for rank in range(1, world.size)]
            assert f" for rank{'s' * (len(others) > 1)} {', '.join(others)}; " in first
            assert len(text.splitlines()) == 2 + world.size


@pytest.mark.mpi
def test_a_store_says_for_whom_it_waits(world):
    if world.size == 1:
        pytest.skip("needs two ranks")
    with sfb.Store(world, {"w": np.zeros((2, 2))}, sfb.optim.SGD(lr=1.0)) as store:
        said = []

        def watch():
            said.append(say("a read of 'w' at clock 1"))
            for rank in range(1, world.size):
                world.send(None, rank)

        if world.rank == 0:
            thread = threading.Thread(target=watch)
            thread.start()
            store.clock()
            store["w"]
            thread.join()
            assert f" for rank{'s' * (world.size > 2)} 1" in said[0]
        else:
            world.recv(source=0)
            store.clock()
            store["w"]


@pytest.mark.mpi
def test_every_collective_is_logged(any_comm, world):
    lines = []
    every = calls(any_comm)
    for call in every.values():
        call()
    NOW.log = lines.append
    NOW.switch()
    try:
        for call in every.values():
            call()
        any_comm.Iallreduce(sfb.Factors(np.ones((2, 4)), np.ones((2, 3))), np.zeros((4, 3))).Wait()
        any_comm.Allgather(np.ones(2), np.ones(2 * world.size))
    finally:
        NOW.log = None
        NOW.switch()
    label, number = any_comm._team.label, any_comm._team.agree.number
    begun = [line for line in lines if " begins: " in line]
    ended = [line for line in lines if " ends, by " in line]
    assert [line.split()[0] for line in begun] == ["Allreduce", "Allreduce", "Iallreduce", "Allgather"]
    assert len(ended) == 4
    assert all(f" of {label} " in line for line in lines)
    assert f"#{number} of {label}" in ended[2] or f"#{number} of {label}" in ended[3]
    assert begun[0].endswith("3 float64")
    assert "(4, 3) float64 Factors into array (4, 3) float64" in begun[1]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="needs SIGUSR2")
def test_the_signal_prints_state_and_stack_and_writes_the_trace(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, numpy as np, sfb\n"
        "from mpi4py import MPI\n"
        "comm = sfb.Comm(MPI.COMM_SELF)\n"
        "comm.Allreduce(MPI.IN_PLACE, np.ones(3))\n"
        "def waits_in_c():\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "waits_in_c()\n"
    )
    environment = {**os.environ, "SFB_TRACE": str(tmp_path / "t"), "SFB_DEBUG": str(tmp_path / "log%r")}
    job = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert job.stdout.readline() == "ready\n"
        job.send_signal(signal.SIGUSR2)
        lines = []
        while not lines or "job.py" not in lines[-1] or "<module>" not in lines[-1]:
            line = job.stderr.readline()
            assert line, lines
            lines.append(line)
        _, rest = job.communicate("\n", timeout=60)
    finally:
        job.kill()
    assert job.returncode == 0, rest
    text = "".join(lines)
    assert text.startswith("sfb: rank 0 of 1 on ")
    assert re.search(rf"its main thread is at {script}:[67] in waits_in_c", text)
    assert f"the trace so far is in {tmp_path}/t/rank-00000.sfbtrace" in text
    assert re.search(rf'File "{script}", line [67] in waits_in_c', text)
    assert (tmp_path / "t" / "rank-00000.sfbtrace").exists()
    assert "Allreduce #" in (tmp_path / "log0").read_text()


def test_a_handler_of_the_user_stays(tmp_path):
    script = (
        "import os, signal, sfb\n"
        "from mpi4py import MPI\n"
        "signal.signal(signal.SIGUSR2, lambda *rest: print('mine', flush=True))\n"
        "sfb.Comm(MPI.COMM_SELF)\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine\n", "")
