import json

import numpy as np
import pytest

from sfb.schedule import Span, Trace


def test_shares_and_seconds():
    trace = Trace()
    trace.spans += [Span(0, "work", "a", 0.0, 3.0), Span(0, "wait", "", 3.0, 4.0), Span(1, "work", "b", 0.0, 4.0)]
    assert trace.seconds() == {"work": 7.0, "wait": 1.0}
    assert trace.shares() == {"work": 7 / 8, "wait": 1 / 8}
    assert Trace().shares() == {}


def test_a_span_ends_with_an_error():
    trace = Trace()
    with pytest.raises(KeyError), trace.span("work", 3):
        raise KeyError
    assert [(span.kind, span.name) for span in trace.spans] == [("work", "3")]
    assert trace.spans[0].end >= trace.spans[0].start >= 0


def test_a_file_for_viewers(tmp_path):
    trace = Trace()
    trace.spans.append(Span(2, "wait", "block 1", 0.5, 0.75))
    trace.chrome(tmp_path / "t.json")
    (event,) = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert (event["ph"], event["tid"], event["ts"], event["dur"]) == ("X", 2, 5e5, 2.5e5)
    assert event["name"] == "wait block 1"


def test_a_chart(tmp_path):
    pytest.importorskip("matplotlib")
    trace = Trace()
    trace.spans += [
        Span(rank, kind, "", t, t + 1) for rank in (0, 1) for t, kind in enumerate(["work", "wait", "mine"])
    ]
    trace.plot(tmp_path / "t.png", title="two ranks", until=2.5)
    assert (tmp_path / "t.png").stat().st_size > 5000
    Trace().plot(tmp_path / "empty.png")


@pytest.mark.mpi
def test_rank_0_has_the_spans_of_all(world):
    trace = Trace(world)
    with trace.span("work", world.rank):
        np.ones(10).sum()
    trace.gather(world)
    if world.rank == 0:
        assert sorted(span.rank for span in trace.spans) == list(range(world.size))
        assert [span.start for span in trace.spans] == sorted(span.start for span in trace.spans)
    else:
        assert [span.rank for span in trace.spans] == [world.rank]
