"""Traces that ranks record: of exchanges, arrays, stores, schedules and trainings."""

from pathlib import Path
from time import perf_counter_ns

import numpy as np
import pytest
from mpi4py import MPI
from traces import recording

import sfb
from sfb.schedule import BlockProgram, Rotation
from sfb.trace.files import load
from sfb.trace.recorder import Recorder
from sfb.trace.report import analyse
from sfb.trace.timeline import align

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(world, tmp_path):
    """A folder that all ranks share."""
    return Path(world.bcast(str(tmp_path)))


def read(world, folder, but=None):
    """Return the timeline of all ranks on rank 0, without the call of a number, and None on others; collective."""
    world.Barrier()
    timeline = None
    if world.rank == 0:
        run = load(folder)
        for trace in run.ranks.values():
            trace.events = trace.events[trace.events["number"] != but] if but else trace.events
        timeline = align(run)
    world.Barrier()
    return timeline


def test_the_report_names_the_rank_that_comes_last(world, folder):
    """One rank computes until all others wait for it."""
    slow = world.size - 1
    x = np.ones(1000)
    with recording(Recorder(folder)), sfb.Comm(world) as comm:
        comm.Allreduce(MPI.IN_PLACE, x)  # ranks load kernels first, one later than the other
        first = comm._team.agree.number
        for _ in range(5):
            number = comm._team.agree.number + 1
            with sfb.trace.span("forward"):
                while world.rank == slow and comm._team.board.missing(number, 1) != [slow]:
                    pass
            comm.Allreduce(MPI.IN_PLACE, x)
    timeline = read(world, folder, but=first)
    if timeline is not None:
        found = analyse(timeline)
        assert timeline.notes == []
        assert [rank["rank"] for rank in found["ranks"]] == list(range(world.size))
        assert {(span["name"], span["count"]) for span in found["spans"] if span["kind"] == "span"} == {
            ("forward", 5 * world.size)
        }
        if world.size > 1:
            (straggler,) = found["stragglers"]
            assert (straggler["rank"], straggler["last"], straggler["of"]) == (slow, 5, 5)


def test_clocks_of_ranks_are_aligned(world, folder):
    """Rank r is r · 5 ms ahead and gains r · 20 ppm: events are as far off as the measurements are unsure."""
    recorder = Recorder(folder)
    begin = perf_counter_ns()
    recorder.clock = lambda: (now := perf_counter_ns()) + world.rank * (5_000_000 + (now - begin) // 50_000)
    recorder.clock_name = str(world.rank)
    begin = world.bcast(begin)
    trues = []
    with recording(recorder), sfb.Comm(world) as comm:
        comm.Allreduce(MPI.IN_PLACE, np.ones(3))
        for _ in range(20):
            true = perf_counter_ns()
            recorder.add("span", "moment", recorder.clock(), recorder.clock())
            trues.append(true)
    trues = world.gather(trues)
    unsure = world.gather(max((unsure for *_, unsure in recorder.clocks), default=0))
    timeline = read(world, folder)
    if timeline is not None:
        moments = timeline.is_kind("span")
        first = None
        for rank in range(world.size):
            found = timeline.events["start"][moments & (timeline.rank == rank)] - np.array(trues[rank])
            first = found if first is None else first
            # Between the reading of the true time and that of the clock the rank may lose its core: hence the median.
            assert abs(np.median(found) - np.median(first)) <= unsure[rank] + 10_000
        assert len(unsure) == 1 or max(unsure) > 0


def test_every_kind_of_exchange_is_recorded(any_comm, world, folder):
    factors = sfb.Factors(np.ones((2, 4)), np.ones((2, 3)))
    target = np.zeros((4, 3))
    any_comm.Allreduce(factors, target)
    with recording(Recorder(folder)) as recorder:
        any_comm.Allreduce(factors, target)
        any_comm.Allreduce(np.ones(3), np.zeros(3))
        any_comm.Iallreduce(factors, target).Wait()
        with any_comm.Allreduce_init(factors, target) as plan:
            plan.Start()
            plan.Wait()
    header, events = recorder.snapshot()
    names = header["names"]
    rows = [(names[e["kind"]], names[e["name"]], names[e["detail"]]) for e in events]
    shape = "4×3 float64"
    for row in (
        ("exchange", "Allreduce", shape),
        ("exchange", "Allreduce", "3 float64"),
        ("exchange", "Iallreduce", shape),
        ("exchange", "Start", shape),
        ("exchange", "Wait", ""),
    ):
        assert row in rows
    first = events[rows.index(("exchange", "Allreduce", shape))]
    assert names[first["label"]] == any_comm._team.label
    assert first["samples"] == 2
    assert 0 <= first["rebuild"] <= first["end"] - first["start"]
    assert first["predicted"] > 0
    exchange = any_comm.last_exchange
    assert first["nbytes"] == exchange.wire_bytes


def test_a_store_is_recorded(world, folder):
    tables, rule = {"w": np.zeros((2, 2))}, sfb.optim.SGD(lr=1.0)
    with recording(Recorder(folder)) as recorder, sfb.Store(world, tables, rule) as store:
        for _ in range(3):
            store.push("w", np.ones((2, 2)))
            store.clock()
            store["w"]
    header, events = recorder.snapshot()
    names = header["names"]
    rows = [(names[e["kind"]], names[e["name"]], int(e["number"])) for e in events]
    for clock in range(3):
        assert ("store", "push", clock) in rows
        assert ("store", "clock", clock) in rows
    assert (("message", "relay out", -1) in rows) == (world.size > 1)


class Count(BlockProgram):
    summand = None

    def push(self, block):
        block.arrays[0][:] += 1


def test_a_schedule_is_recorded(world, folder):
    with recording(Recorder(folder)) as recorder, Rotation(world, {world.rank: [np.zeros(2)]}) as rotation:
        rotation.sweep(Count())
    header, events = recorder.snapshot()
    names = header["names"]
    work = {names[e["name"]] for e in events if names[e["kind"]] == "work"}
    assert work == {f"block {number}" for number in range(world.size)}


def test_a_training_is_recorded(world, folder):
    pytest.importorskip("sklearn")
    from sfb.training.train import Config, train

    with recording(Recorder(folder)):
        run = train(world, Config(data="digits", epochs=1, options={"hidden": (8,)}))
    timeline = read(world, folder)
    if timeline is not None:
        found = analyse(timeline)
        assert {rank["steps"] for rank in found["ranks"]} == {run["steps_per_epoch"]}
        phases = {span["name"] for span in found["spans"]}
        assert {"step", "forward", "backward", "update", "data", "evaluation", "plan"} <= phases
        for rank in found["ranks"]:
            parts = sum(rank[name] for name in ("compute", "rebuild", "exchange", "wait", "compile"))
            assert parts == pytest.approx(rank["seconds"])


def test_a_trace_of_some_ranks_only(world, folder, caplog):
    """No rank hangs, and what there is can be read."""
    with recording(Recorder(folder) if world.rank == 0 else None), sfb.Comm(world) as comm:
        comm.Allreduce(MPI.IN_PLACE, np.ones(3))
    timeline = read(world, folder)
    if timeline is not None:
        assert list(timeline.run.ranks) == [0]
        assert len(timeline.notes) == (world.size > 1)


def test_one_rank_tells_why_there_is_no_trace(world, folder, caplog):
    from sfb.trace.now import NOW

    NOW.problem = "there is no trace: of the test"
    with sfb.Comm(world) as comm:
        comm.Allreduce(MPI.IN_PLACE, np.ones(3))
    texts = [record.getMessage() for record in caplog.records]
    more = f" and {world.size - 1} more" if world.size > 1 else ""
    assert texts == ([f"rank 0{more}: there is no trace: of the test"] if world.rank == 0 else [])
