"""`sfb soak` finds nothing where nothing is wrong, and what is planted where something is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mpi4py import MPI

import sfb
from sfb.cli.main import cli
from sfb.runtime.buffers import Staging
from sfb.soak import arrays, factors, lives, run, stores
from sfb.soak.dice import Dice
from sfb.soak.round import Round
from sfb.soak.run import Config, SoakError, soak
from sfb.soak.usage import usage


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Two communicators that last, of stated rates, which take memory for exchanges that are not large."""
    monkeypatch.setattr(run, "_LASTING", ((None, {"profile": sfb.Profile()}), (1, {"profile": sfb.Profile()})))
    monkeypatch.setattr(run, "LARGEST", 60)


def everywhere(world, error):
    """Assert that all ranks have raised an error, and return the message of this one."""
    assert all(world.allgather(error is not None))
    return str(error.value)


@pytest.mark.mpi
def test_nothing_is_found_where_nothing_is_wrong(world):
    lines = []
    result = soak(world, Config(minutes=5, seed=world.size, rounds=12), lines.append)
    assert (result["rounds"], result["errors"], result["leaks"], result["memory_grew"]) == (12, 0, None, None)
    assert result["calls"] >= 12
    assert sum(result["calls_by_kind"].values()) == result["calls"]
    assert len(result["end"]) == world.size


CALLS = [call for module in (factors, arrays, stores, lives) for call in module.CALLS]


@pytest.mark.mpi
@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.__module__.rpartition('.')[2]}.{call.__name__}")
def test_every_call(any_comm, world, call):
    made = Round(world.size, 0, world.rank)
    made.comm = any_comm
    call(made)
    assert made.calls > 0
    run._compare(made)


@pytest.mark.mpi
def test_a_wrong_sum_is_found(world, monkeypatch):
    right = factors.oracle.total
    monkeypatch.setattr(factors.oracle, "total", lambda parts, shape: right(parts, shape) + 1)
    monkeypatch.setattr(run, "_CALLS", {factors.into_array: 1.0})
    with pytest.raises(SoakError) as caught:
        soak(world, Config(seed=5, first=3, rounds=40), print)
    text = everywhere(world, caught)
    assert "seed 5, round " in text
    assert "elements; at (0, 0)" in text
    number = text.partition("round ")[2].partition(",")[0]
    assert f"sfb soak --seed 5 --first {number} --rounds 1" in text
    with pytest.raises(SoakError) as again:
        soak(world, Config(seed=5, first=int(number), rounds=1), print)
    assert str(again.value) == text


@pytest.mark.mpi
def test_different_bits_are_found(world, monkeypatch):
    note = Round.same
    other = lambda self, array: note(self, array + (self.rank == 0))  # noqa: E731
    monkeypatch.setattr(Round, "same", other)
    monkeypatch.setattr(run, "_FRESH", 0.0)
    monkeypatch.setattr(run, "_CALLS", {factors.into_array: 1.0})
    if world.size == 1:
        soak(world, Config(rounds=3), print)
        return
    with pytest.raises(SoakError, match="ranks hold different bits after call 1 ") as caught:
        soak(world, Config(seed=world.size, rounds=40), print)
    everywhere(world, caught)


@pytest.mark.mpi
def test_a_mistake_that_nobody_hears_of_is_found(world, monkeypatch):
    monkeypatch.setattr(sfb.Comm, "Allreduce", lambda self, send, recv, *rest, **more: None)
    made = Round(0, 0, world.rank)
    with sfb.Comm(world) as made.comm:
        for _ in range(9):  # until the dice give one that ranks find by themselves
            with pytest.raises(Exception, match=r"no error was raised|elements; at"):
                lives.mistake(made)


def test_dice_are_the_same_for_the_same_seed():
    one, two, other = Dice(1, 2), Dice(1, 2), Dice(1, 3)
    draw = lambda dice: [(dice.shape(), dice.size(), dice.counts(3), dice.order(4)) for _ in range(9)]  # noqa: E731
    first = draw(one)
    assert first == draw(two)
    assert first != draw(other)


def test_what_is_left_over_is_counted(tmp_path):
    usage()  # what is made once
    before = usage()
    comms = [MPI.COMM_SELF.Dup() for _ in range(3)]
    window = MPI.Win.Create(None, comm=MPI.COMM_SELF)
    file = (tmp_path / "file").open("wb")
    grown = usage().grown(before)
    assert grown["communicators"] >= 3
    assert grown["windows"] == 1
    assert grown["descriptors"] >= 1
    file.close()
    window.Free()
    for comm in comms:
        comm.Free()
    assert not usage().grown(before)


def test_requests_are_counted_after_many_were_in_use():
    buffer = np.empty(1)
    usage()
    before = usage()
    many = [MPI.COMM_SELF.Irecv(buffer, 0, tag) for tag in range(700)]
    for number in np.random.default_rng(0).permutation(len(many)):
        many[number].Cancel()
        many[number].Wait()
    assert not usage().grown(before)
    held = [MPI.COMM_SELF.Recv_init(buffer, 0, tag) for tag in range(3)]
    assert usage().grown(before).get("requests", 0) == (0 if "Open MPI" in MPI.Get_library_version() else 3)
    for request in held:
        request.Free()


def test_a_file_of_proc_is_no_descriptor_that_stays(tmp_path):
    """A thread of the library looks at other processes once a second."""
    before = usage()
    with open("/proc/self/stat", "rb"):
        assert "descriptors" not in usage().grown(before)
    with (tmp_path / "file").open("wb"):
        assert usage().grown(before)["descriptors"] == 1


def test_memory_that_grows_shows():
    before = usage().memory
    kept = np.ones(1 << 20)
    assert usage().memory - before > kept.nbytes // 2


@pytest.mark.mpi
def test_memory_of_a_node_is_no_rank_s_own(world):
    """Not even that of the rank that has given its pages memory, before others touch them."""
    if world.size == 1:
        pytest.skip("needs ranks of one node")
    with sfb.Comm(world) as comm:
        staging = Staging(comm.node)
        staging.grow(1)
        before = usage().memory
        staging.grow(1 << 24)
        grown = usage().memory - before
        staging.drop()
    assert max(world.allgather(grown)) < 1 << 23


@pytest.fixture
def hoard(monkeypatch):
    """Let each call keep 2 MiB; the first round is the warm-up."""
    kept = []
    monkeypatch.setattr(run, "_CALLS", {lambda made: kept.append(np.ones(1 << 18)): 1.0, lives.again: 1.0})
    monkeypatch.setattr(run, "_WARM", (0.0, 1.0))
    monkeypatch.setattr(run, "_WARM_ROUNDS", 1)
    monkeypatch.setattr(run, "_FRESH", 0.0)


@pytest.mark.mpi
@pytest.mark.parametrize("bound", [4 << 20, 1 << 30])
def test_memory_that_grows_beyond_its_bound_is_an_error(world, hoard, bound):
    result = soak(world, Config(seed=1, rounds=12, growth=bound), print)
    assert result["leaks"] == {}, [result["start"], result["end"]]
    assert 4 << 20 < result["memory_growth_bytes"] < 1 << 30
    assert result["memory_grew"] == (bound < 1 << 30)
    assert result["config"]["growth"] == bound


@pytest.mark.mpi
def test_buffers_that_a_communicator_keeps_are_no_growth(world, hoard, monkeypatch):
    begun = []

    def exchange(made):
        begun.append(made)
        samples = 2 if len(begun) < 20 else 10_000
        factors = sfb.Factors(np.ones((samples, 60)), np.ones((samples, 60)))
        made.comm.Allreduce(factors, np.empty((60, 60)), algorithm="broadcast")

    monkeypatch.setattr(run, "_CALLS", {exchange: 1.0, lives.again: 1.0})
    result = soak(world, Config(seed=1, rounds=12, growth=5 << 20), print)
    assert (result["leaks"], result["memory_grew"]) == ({}, False), result


@pytest.mark.mpi
def test_messages_of_ranks_that_have_looked_before_are_not_counted(world, hoard, monkeypatch, tmp_path):
    """MPI holds a request for each message that has come and that nobody waits for."""
    folder, looks = Path(world.bcast(str(tmp_path))), []

    def late(*, handles):
        looks.append(1)
        number = len(looks)
        if world.rank > 0:
            found = usage(handles=handles)
            (folder / f"{number}.{world.rank}").touch()
            return found
        if number > 1:
            while len([*folder.glob(f"{number}.*")]) < world.size - 1:
                pass
            for _ in range(50_000):
                world.Iprobe()
        return usage(handles=handles)

    monkeypatch.setattr(run, "usage", late)
    assert soak(world, Config(seed=1, rounds=4), print)["leaks"] == {}


def test_the_command_ends_with_an_error_where_memory_has_grown(hoard):
    arguments = ["soak", "--minutes", "5", "--rounds", "12", "--seed", "1"]
    done = CliRunner().invoke(cli, [*arguments, "--growth", "4MiB"], standalone_mode=False)
    assert done.return_value == 1
    assert "beyond the bound of 4 MiB" in done.output
    assert " MiB of memory" in done.output
    done = CliRunner().invoke(cli, [*arguments, "--growth", "1GiB"], standalone_mode=False)
    assert done.return_value == 0
    assert "within the bound of 1024 MiB" in done.output


_HANG = """
import time
from sfb.soak.patience import Patience
with Patience(0.1, lambda: "seed 7, round 3") as patience:
    time.sleep(60)
"""


def test_a_round_that_hangs_ends_the_job():
    done = subprocess.run([sys.executable, "-c", _HANG], capture_output=True, text=True, timeout=50)
    assert done.returncode != 0
    assert "no end after 0.1 s: seed 7, round 3" in done.stderr
    assert "time.sleep" in done.stderr or 'File "<string>"' in done.stderr


def test_the_command(tmp_path):
    file = tmp_path / "s.json"
    done = CliRunner().invoke(cli, ["soak", "--minutes", "1", "--rounds", "3", "--seed", "2", "-J", str(file)])
    assert done.exit_code == 0, done.output
    assert "errors     0" in done.output
    assert '"rounds": 3' in file.read_text()
    assert "Usage" in CliRunner().invoke(cli, ["soak", "--minutes", "0"]).output
