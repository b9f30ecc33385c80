import threading
from pathlib import Path

from traces import recording

import sfb
from sfb.trace.now import NOW, describe
from sfb.trace.recorder import THREAD, Recorder
from sfb.trace.spans import each, record, span


def names_of(recorder):
    header, events = recorder.snapshot()
    return [(header["names"][event["kind"]], header["names"][event["name"]]) for event in events]


def test_the_oldest_events_make_room():
    recorder = Recorder(Path(), 4)
    for number in range(6):
        recorder.add("span", f"s{number}", number, number + 1)
    header, events = recorder.snapshot()
    assert (header["count"], header["dropped"]) == (4, 2)
    assert events["start"].tolist() == [2, 3, 4, 5]
    assert names_of(recorder) == [("span", f"s{number}") for number in range(2, 6)]


def test_names_beyond_the_table_become_one(monkeypatch):
    monkeypatch.setattr("sfb.trace.recorder._NAMES", 5)
    recorder = Recorder(Path(), 8)
    for number in range(4):
        recorder.add("span", f"s{number}", 0, 1)
    assert [name for _, name in names_of(recorder)] == ["s0", "s1", "other names", "other names"]


def test_spans_nest_and_note_errors():
    with recording(Recorder(Path(), 8)) as recorder:
        try:
            with span("outer"), span("inner", "phase"):
                raise KeyError
        except KeyError:
            pass
        assert list(each("backward", "ab")) == ["a", "b"]
        record("earlier", "work", 1.0, 2.0)
    assert names_of(recorder) == [
        ("phase", "inner"), ("span", "outer"), *[("phase", "backward")] * 3, ("work", "earlier"),
    ]  # fmt: skip
    _, events = recorder.snapshot()
    inner, outer = events[:2]
    assert outer["start"] <= inner["start"] <= inner["end"] <= outer["end"]
    assert events[-1]["end"] - events[-1]["start"] == 10**9


def test_without_a_trace_spans_do_nothing():
    assert NOW.recorder is None
    assert sfb.trace.span("forward") is sfb.trace.span("backward")
    items = iter("ab")
    assert each("backward", items) is items


def test_events_of_other_threads_are_marked():
    recorder = Recorder(Path(), 8)
    thread = threading.Thread(target=recorder.add, args=("span", "beside", 0, 1))
    thread.start()
    thread.join()
    recorder.add("span", "main", 0, 1)
    assert recorder.snapshot()[1]["flags"].tolist() == [THREAD, 0]


def test_what_a_call_was_given_is_described_whatever_it_is():
    import numpy as np

    class Odd:
        def describe(self):
            raise RuntimeError

    assert describe(np.zeros((), np.int64)) == "scalar int64"
    assert describe([np.zeros(3), 3]) == "3 float64"
    assert describe(None) == ""
    assert describe(Odd()) == "Odd (RuntimeError)"
    assert describe(3.0) == "float"
