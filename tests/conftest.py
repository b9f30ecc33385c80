import os
import sys
from threading import Event, Thread

import numpy as np
import pytest
from nodes import comm_of_nodes


@pytest.fixture(scope="session", autouse=True)
def heartbeat():
    """Wake up twice a second.

    Where more ranks than cores spin in MPI, virtual machines have been seen to run only some of them for a minute,
    until a timer went off.
    """
    end = Event()

    def beat():
        while not end.wait(0.5):
            pass

    thread = Thread(target=beat, daemon=True)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.fixture
def world():
    from mpi4py import MPI

    return MPI.COMM_WORLD


@pytest.fixture
def comm(world):
    """A Comm over the real nodes."""
    with comm_of_nodes(world, None) as comm:
        yield comm


@pytest.fixture(params=[None, 2, 1], ids=["one node", "nodes of two", "nodes of one"])
def any_comm(request, world):
    """A Comm over the real nodes, then over nodes of two ranks, then over nodes of one rank."""
    with comm_of_nodes(world, request.param) as comm:
        yield comm


@pytest.fixture
def lone_comm(world):
    """A Comm with one rank per node."""
    with comm_of_nodes(world, 1) as comm:
        yield comm


@pytest.fixture
def unwatched(monkeypatch):
    """Let no thread of the library look at the stack of another, and so hold its variables for that moment."""
    monkeypatch.setattr(sys, "_current_frames", dict)


@pytest.fixture
def rng(request):
    """A generator of random numbers, the same on every rank. pytest prints the seed of a failing test."""
    seed = int(os.environ.get("SFB_TEST_SEED", 0))
    print(f"SFB_TEST_SEED={seed}")
    return np.random.default_rng([seed, *request.node.nodeid.encode()])
