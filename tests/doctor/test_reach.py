import sys
import textwrap

import pytest
from jobs import mpirun, needs_mpirun

from sfb.doctor import Level
from sfb.doctor.reach import Reach, judge, reach


@pytest.mark.mpi
def test_all_hear_from_each_other(world):
    found = reach(world, 20.0)
    assert found.whole
    if world.rank == 0:
        assert len(found.hosts) == world.size
        assert all(found.hosts)


@pytest.mark.mpi
def test_hosts_hear_from_each_other(world, monkeypatch):
    from mpi4py import MPI

    from sfb.doctor import reach as module

    class Named:
        def __getattr__(self, name):
            return (lambda: f"host{world.rank}") if name == "Get_processor_name" else getattr(MPI, name)

    monkeypatch.setattr(module, "MPI", Named())
    for most in (module._ALL_PAIRS, 1):  # pairs at distances of powers of two, too
        monkeypatch.setattr(module, "_ALL_PAIRS", most)
        found = reach(world, 20.0)
        assert found.whole
        assert world.rank > 0 or found.hosts == [f"host{rank}" for rank in range(world.size)]


def test_judge():
    (finding,) = judge(Reach(hosts=["a", "b", "b"]), 5.0)
    assert finding.level is Level.OK
    assert "the 2 nodes each other" in finding.found
    (finding,) = judge(Reach(hosts=["a", "", "b", ""], silent=[1, 3]), 5.0)
    assert finding.level is Level.ERROR
    assert finding.found == "rank 0 on a has heard nothing from ranks 1, 3 in 5 s"
    (finding,) = judge(Reach(hosts=["a", "b", "c"], broken=[(1, 2)]), 5.0)
    assert "between b (rank 1) and c (rank 2)" in finding.found
    assert "FI_TCP_IFACE" in finding.advice


SILENT = """
    import sys, time
    from mpi4py import MPI
    from sfb.doctor import reach
    world = MPI.COMM_WORLD
    part, names = sys.argv[1:]
    if names == "different":
        MPI_name = f"host{world.rank}"
        class Named:
            def __getattr__(self, name):
                return (lambda: MPI_name) if name == "Get_processor_name" else getattr(MPI, name)
        reach.MPI = Named()
    if world.rank == 2 and part == "hello":
        time.sleep(60)
    if world.rank > 0 and part == "pair":  # ranks 1 and 2 cannot reach each other
        pairs = reach._pairs
        def cut(world, leaders, seconds):
            return [3 - world.rank] if pairs(world, leaders, seconds) == [] else None
        reach._pairs = cut
    found = reach.reach(world, 2.0)
    if world.rank == 0:
        print(*(finding.found for finding in reach.judge(found, 2.0)), flush=True)
        world.Abort(3)
    assert not found.whole
    time.sleep(60)
"""


@needs_mpirun
@pytest.mark.parametrize(
    ("part", "names", "said"),
    [
        ("hello", "alike", "has heard nothing from rank 2 in 2 s"),
        ("pair", "different", "between host1 (rank 1) and host2 (rank 2)"),
    ],
)
def test_silence_has_a_name(part, names, said):
    code, out = mpirun(3, sys.executable, "-c", textwrap.dedent(SILENT), part, names, seconds=50)
    assert code == 3, out
    assert said in out
