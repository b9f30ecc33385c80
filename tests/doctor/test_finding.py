from sfb.doctor import Finding, Level, error, ok, warning, worst
from sfb.doctor.finding import ranks, several


def test_lines_and_json():
    finding = error("topic", "found", "advice")
    assert finding.lines() == ["error    topic         found", " " * 23 + "to do: advice"]
    assert ok("topic", "found").lines() == ["OK       topic         found"]
    assert finding.to_json() == {"level": "error", "topic": "topic", "found": "found", "advice": "advice"}


def test_worst():
    assert worst([]) is Level.OK
    assert worst([ok("a", "b")]) is Level.OK
    assert worst([error("a", "b", "c"), warning("a", "b", "c"), ok("a", "b")]) is Level.ERROR
    assert isinstance(warning("a", "b", "c"), Finding)


def test_ranks_and_names():
    assert ranks([5, 0, 1, 2]) == "ranks 0-2, 5"
    assert ranks([4, 5]) == "ranks 4, 5"
    assert several(["a", "b"]) == "a, b"
    assert several("abcdef", most=2) == "a, b and 4 more"
