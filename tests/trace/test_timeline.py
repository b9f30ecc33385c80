"""Traces of made-up ranks: their clocks, nesting, waits, stragglers, critical path; and the files that viewers read."""

import json

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from traces import MS, US, Ranks

from sfb.cli import cli
from sfb.trace.files import load
from sfb.trace.merge import chrome
from sfb.trace.recorder import ASYNC, BLOCKING, INSTANT
from sfb.trace.report import analyse, lines
from sfb.trace.timeline import align

S = 1000 * MS


def aligned(ranks, tmp_path):
    ranks.save()
    return align(load(tmp_path))


@pytest.fixture
def ranks(tmp_path):
    return Ranks(tmp_path, 3)


def test_clocks_with_an_offset_and_drift(tmp_path):
    """Rank 1 is 5 ms ahead and gains 20 ppm; rank 2 is a day ahead and loses 30 ppm: within 50 µs over 100 s."""
    clocks = [
        lambda true: true,
        lambda true: true + 5 * MS + true * 20 // 1_000_000,
        lambda true: true + 86400 * S - true * 30 // 1_000_000,
    ]
    ranks = Ranks(tmp_path, 3, clocks)
    ranks.measure(10 * S)
    trues = range(9 * S, 111 * S, S // 2)
    for true in trues:
        for rank in range(3):
            ranks.add(rank, "span", "moment", true, true + MS)
    ranks.measure(110 * S)
    timeline = aligned(ranks, tmp_path)
    assert timeline.notes == []
    assert timeline.unsure == 2 * US
    for rank in range(3):
        found = timeline.events["start"][timeline.rank == rank]
        assert np.abs(found - (np.array(trues) - trues[0])).max() < 50 * US


def test_a_clock_measured_against_another_than_the_root(tmp_path):
    ranks = Ranks(tmp_path, 3, [lambda true: true, lambda true: true + 7 * MS, lambda true: true - 3 * MS])
    first, second, third = ranks.recorders
    first.clocks = [(0, S, 0, 0)]
    second.clocks = [(0, S + 7 * MS, 7 * MS, US), (1, S + 7 * MS, 0, 0)]
    third.clocks = [(1, S - 3 * MS, -10 * MS, US)]
    for rank in range(3):
        ranks.add(rank, "span", "moment", S, S + MS)
    timeline = aligned(ranks, tmp_path)
    assert timeline.events["start"].tolist() == [0, 0, 0]
    assert "2 clocks were measured once only" in timeline.notes[0]


def test_a_clock_that_nobody_has_measured(tmp_path):
    ranks = Ranks(tmp_path, 2, [lambda true: true, lambda true: true + 7 * MS])
    for rank in range(2):
        ranks.add(rank, "span", "moment", S, S + MS)
    assert "the clock of rank 1 was not measured" in aligned(ranks, tmp_path).notes[0]


def test_of_two_measurements_at_a_time_the_surer_counts(tmp_path):
    ranks = Ranks(tmp_path, 2, [lambda true: true, lambda true: true])
    ranks.recorders[1].clocks = [(0, S, 900 * US, MS), (0, S + MS, 0, US), (0, 5 * S, 0, US)]
    ranks.add(0, "span", "moment", S, S + MS)
    ranks.add(1, "span", "moment", S, S + MS)
    assert aligned(ranks, tmp_path).events["start"].tolist() == [0, 0]


def test_times_of_a_rank_add_up(ranks, tmp_path):
    """Two steps of 100 ms: forward 30, an exchange of 40 of which 10 wait and 5 rebuild, compilation 8 within it."""
    for step in range(2):
        start = step * 200 * MS
        ranks.add(0, "phase", "forward", start, start + 30 * MS)
        ranks.add(0, "compile", "plan", start + 45 * MS, start + 53 * MS)
        ranks.add(
            0, "exchange", "Allreduce", start + 35 * MS, start + 75 * MS,
            waited=10 * MS, rebuild=5 * MS, flags=BLOCKING, label="0.1", number=step,
        )  # fmt: skip
        ranks.add(0, "step", "step", start, start + 100 * MS, number=step)
        ranks.add(0, "exchange", "Iallreduce", start, start + 99 * MS, flags=ASYNC)
        ranks.add(0, "phase", "evaluation", start + 110 * MS, start + 150 * MS)
    for rank in (1, 2):
        ranks.add(rank, "span", "x", 0, MS)
    found = analyse(aligned(ranks, tmp_path))["ranks"][0]
    assert (found["steps"], found["seconds"]) == (2, 0.2)
    expected = {"compute": 0.12, "rebuild": 0.01, "exchange": 0.034, "wait": 0.02, "compile": 0.016}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["unnamed"] == pytest.approx(0.06)
    assert found["outside"] == pytest.approx(0.15)


def test_the_report_names_the_slow_rank(ranks, tmp_path):
    """Rank 2 computes for 30 ms, the others for 10."""
    time = 0
    for _ in range(10):
        starts = [time + 10 * MS, time + 11 * MS, time + 30 * MS]
        for rank in range(3):
            ranks.add(rank, "span", "forward", time, starts[rank])
        time = ranks.exchange(starts, 2 * MS, detail="8×4 float32", algorithm="node", predicted=MS)
    timeline = aligned(ranks, tmp_path)
    found = analyse(timeline)
    assert found["stragglers"] == [{"rank": 2, "last": 10, "of": 10, "caused": pytest.approx(0.39)}]
    assert found["ranks"][0]["wait"] == pytest.approx(0.2)
    assert found["ranks"][2]["wait"] == 0
    assert found["critical_path"] == [
        {"rank": 2, "compute": pytest.approx(0.3), "exchange": pytest.approx(0.02)},
    ]
    (row,) = found["predictions"]
    assert row["measured"] == pytest.approx(2e-3)
    assert row["predicted"] == pytest.approx(1e-3)
    assert found["costliest"][0]["seconds"] == pytest.approx(0.39 + 30 * 2e-3)
    text = "\n".join(lines(found))
    assert "for rank 2 100.0%; it came last in 10 of 10 collectives" in text
    assert "critical path, 0.320 s: rank 2 100.0% (6.2% of that exchanging)" in text


def test_the_critical_path_goes_from_rank_to_rank(ranks, tmp_path):
    time = ranks.exchange([30 * MS, 10 * MS, 10 * MS], MS)
    time = ranks.exchange([time + MS, time + 20 * MS, time + MS], MS)
    ranks.add(2, "span", "last", time, time + 5 * MS)
    found = {entry["rank"]: entry for entry in analyse(aligned(ranks, tmp_path))["critical_path"]}
    assert {rank: round(1e3 * (entry["compute"] + entry["exchange"])) for rank, entry in found.items()} == {
        0: 30 - 10, 1: 21, 2: 6,
    }  # fmt: skip


def test_what_a_store_waits_for(ranks, tmp_path):
    ranks.add(0, "wait", "a read of 'W'", 0, 30 * MS, peer=2, number=4, label="0.2")
    for rank in (1, 2):
        ranks.add(rank, "span", "x", 0, MS)
    found = analyse(aligned(ranks, tmp_path))
    assert found["stragglers"] == [{"rank": 2, "last": 0, "of": 0, "caused": pytest.approx(0.03)}]
    assert found["ranks"][0]["wait"] == pytest.approx(0.03)


def test_ranks_without_events(ranks, tmp_path):
    found = analyse(aligned(ranks, tmp_path))
    assert lines(found)[-1] == "no events were recorded"


# The trace-event format, as its description says of the events that are written here.
SCHEMA = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "ph", "pid", "tid"],
                "properties": {
                    "name": {"type": "string"},
                    "cat": {"type": "string"},
                    "pid": {"type": "integer"},
                    "tid": {"type": "integer"},
                    "ts": {"type": "number", "minimum": 0},
                    "dur": {"type": "number", "minimum": 0},
                    "args": {"type": "object"},
                },
                "oneOf": [
                    {"properties": {"ph": {"const": "X"}}, "required": ["ts", "dur", "cat"]},
                    {"properties": {"ph": {"enum": ["b", "e"]}}, "required": ["ts", "cat", "id"]},
                    {"properties": {"ph": {"const": "i"}, "s": {"enum": ["g", "p", "t"]}}, "required": ["ts", "s"]},
                    {
                        "properties": {
                            "ph": {"const": "M"},
                            "name": {"enum": ["process_name", "process_sort_index", "thread_name"]},
                        },
                        "required": ["args"],
                    },
                ],
            },
        },
    },
}


def test_the_merged_file_is_of_the_trace_event_format(ranks, tmp_path):
    end = ranks.exchange([0, MS, 2 * MS], MS, nbytes=64, samples=4, rebuild=MS // 2)
    ranks.add(0, "span", 'odd "name" ✓', end, end + MS)
    ranks.add(0, "exchange", "Iallreduce", end, end + MS, flags=ASYNC)
    ranks.add(0, "message", "relay out", end, end, peer=2, nbytes=9, flags=INSTANT)
    ranks.save()
    result = CliRunner().invoke(cli, ["trace", "merge", str(tmp_path)])
    assert result.exit_code == 0, result.output
    merged = json.loads((tmp_path / "trace.json").read_text())
    jsonschema.validate(merged, SCHEMA)
    assert f"{len(merged['traceEvents'])} events of 3 ranks" in result.output
    first = next(e for e in merged["traceEvents"] if e["ph"] == "X" and e["pid"] == 0)
    assert (first["ts"], first["dur"]) == (0.0, 3000.0)
    assert first["args"] == {
        "number": 0, "communicator": "0.1", "bytes": 64, "samples": 4, "wait us": 2000.0, "rebuild us": 500.0,
        "waited for rank": 2,
    }  # fmt: skip


def test_nested_events_end_within_each_other(ranks, tmp_path):
    """Clocks are read at different moments: an event may seem to end after the one that it lies in."""
    ranks.add(0, "phase", "inner", MS, 10 * MS + 3)
    ranks.add(0, "step", "step", 0, 10 * MS)
    timeline = aligned(ranks, tmp_path)
    chrome(timeline, tmp_path / "t.json")
    spans = {e["name"]: e["ts"] + e["dur"] for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"]
             if e["ph"] == "X"}  # fmt: skip
    assert spans["inner"] == spans["step"]


def test_report_writes_json_and_draws(ranks, tmp_path):
    pytest.importorskip("matplotlib")
    for step in range(7):
        start = step * 10 * MS
        for rank in range(3):
            ranks.add(rank, "step", "step", start, start + 9 * MS, number=step)
        ranks.exchange([start + MS, start + 2 * MS, start + 5 * MS], MS)
    ranks.save()
    arguments = ["trace", "report", str(tmp_path), "-J", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["stragglers"][0]["rank"] == 2
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
