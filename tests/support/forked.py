"""Ranks of a job that are forked from a process which has loaded all modules: a start takes seconds of each core.

mpirun starts `_CLIENT` for each rank. It sends its environment and its open files to the process that has called
`start`, which forks the rank. The client then ends as the rank ends, killed if that was killed; or it stays to the end
of mpirun, which then does not notice when a rank is gone.
"""

from __future__ import annotations

import array
import atexit
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module

__all__ = ["Job", "preload", "start"]

_CLIENT = """
import array, json, os, signal, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
fds = [fd for fd in fds if fd != s.fileno() and os.path.exists(f"/proc/self/fd/{fd}")]
text = json.dumps([dict(os.environ), fds]).encode()
s.sendmsg([len(text).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
s.sendall(text)
if sys.argv[2] == "stay":
    time.sleep(200)
code = s.recv(1)  # nothing, if the rank has been killed
if code:
    os._exit(code[0])
os.kill(os.getpid(), signal.SIGKILL)
"""
_FREE = 500  # descriptors from here on are free


def preload(*, torch):
    """Load what ranks need, without starting MPI."""
    import mpi4py

    mpi4py.rc.initialize = False
    from sfb import kernels

    for stage in (*kernels.ARRAY_STAGES, *kernels.STAGES):
        for module in stage:
            kernels.load(module)
    names = [
        "sfb.comm",
        "sfb.store.store",
        "sfb.cli.main",
        "sfb.training.train",
        "sfb.training.progress",
        "sklearn.datasets",
    ]
    for name in (*names, *(["torch", "sfb.torch"] if torch else [])):
        import_module(name)


class Job:
    """A job whose ranks are children of this process.

    Attributes:
        mpirun: The launcher.
        ranks: The process of each rank, by its number.
    """

    def __init__(self, mpirun, ranks):
        self.mpirun, self.ranks = mpirun, ranks


def start(mpirun, ranks, folder, script, arguments, variable, *, options=(), stay=True, log=None, seconds=60):
    """Start a script on ranks, and return the job.

    Args:
        mpirun: The launcher.
        ranks: The number of ranks.
        folder: Folder for a socket.
        script: The script.
        arguments: Its arguments.
        variable: Variables of the environment, the first of which that is set holds the number of a rank.
        options: Options of the launcher.
        stay: Whether the launcher is not to notice when a rank is gone.
        log: An open file for what the job prints; a pipe by default.
        seconds: Most time for the start.
    """
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(ranks)
        server.settimeout(seconds)
        launcher = subprocess.Popen(
            [mpirun, *options, "-n", str(ranks), sys.executable, "-I", "-S", "-c", _CLIENT, path,
             "stay" if stay else "follow"],
            stdin=subprocess.DEVNULL, stdout=log or subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        found = {}
        for _ in range(ranks):
            connection, _ = server.accept()
            environment, numbers, files = _receive(connection)
            rank = int(next(environment[name] for name in variable if name in environment))
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                server.close()
                if launcher.stdout is not None:
                    os.close(launcher.stdout.fileno())
                _become(connection, environment, numbers, files, script, arguments, stay)
            for file in files:
                os.close(file)
            connection.close()
            found[rank] = pid
    return Job(launcher, found)


def _receive(connection):
    header, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(256 * 4))
    files = array.array("i")
    for _, _, data in ancillary:
        files.frombytes(data[: len(data) - len(data) % files.itemsize])
    size, text = int.from_bytes(header, "little"), b""
    while len(text) < size:
        text += connection.recv(size - len(text))
    environment, numbers = json.loads(text)
    return environment, numbers, list(files)


def _become(connection, environment, numbers, files, script, arguments, stay):
    """Be a rank, to the end of this process."""
    code, line = 1, -1
    try:
        line = fcntl.fcntl(connection, fcntl.F_DUPFD, _FREE)  # its end tells the client that this rank is gone
        connection.close()
        spare = [fcntl.fcntl(file, fcntl.F_DUPFD, _FREE) for file in files]
        for file in files:
            os.close(file)
        for file, number in zip(spare, numbers, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["job.py", *arguments]
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
        from mpi4py import MPI

        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        exec(compile(script, "job.py", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        if not stay:
            if code == 0 and not MPI.Is_finalized():
                MPI.Finalize()
            with suppress(OSError):  # the client has been killed
                os.write(line, bytes([code]))
        os._exit(code)


def ended(pid, until):
    """Wait for the end of a child until a time, and return whether it has ended."""
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
