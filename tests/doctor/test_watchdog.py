import signal
import subprocess
import sys
import textwrap


def run(script):
    """Run a script in a process of its own; return its exit code and its error output."""
    done = subprocess.run(
        [sys.executable, "-c", "from sfb.doctor.watchdog import Watchdog\n" + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_a_block_that_ends():
    assert run("with Watchdog(30, 'x') as dog: dog.phase('work', 'nothing')") == (0, "")


def test_a_block_that_does_not_end():
    code, said = run(
        """
        import ctypes
        with Watchdog(0.3, 'the test') as dog:
            dog.phase('one')
            dog.phase('waiting in C')
            ctypes.PyDLL(None).pause()  # holds the interpreter's lock, as MPI may
        """
    )
    assert code == -signal.SIGKILL
    assert "the test: no end after 0.3 s; it was at: waiting in C" in said
    assert "to do: " in said


def test_a_process_that_ends_by_itself():
    script = "import os\nwith Watchdog(30, 'x') as dog:\n    dog.phase('loading', {!r})\n    os._exit(3)"
    code, said = run(script.format("take another mpirun"))
    assert code == 3
    assert "x: the process has ended at: loading" in said
    assert "to do: take another mpirun" in said
    assert run(script.format("")) == (3, "")


def test_an_exception_passes():
    code, said = run("with Watchdog(30, 'x') as dog:\n    dog.phase('work', 'lost')\n    raise ValueError('why')")
    assert code == 1
    assert "ValueError: why" in said
    assert "lost" not in said


def test_a_silent_one(monkeypatch):
    from sfb.doctor import watchdog

    ends = []
    monkeypatch.setattr(watchdog.select, "select", lambda *args: ([], [], []))
    monkeypatch.setattr(watchdog.os, "write", lambda fd, data: ends.append(data) if fd == 2 else len(data))
    monkeypatch.setattr(watchdog.os, "kill", lambda pid, number: ends.append((pid, number)))
    watchdog._watch(7, 0.0, "")
    assert ends == [(7, signal.SIGKILL)]
