import json

from sfb.doctor import Level, error, ok
from sfb.doctor.report import Report


def test_what_is_shown_and_written(tmp_path):
    lines = []
    report = Report(lines.append, tmp_path / "r.json")
    report.environment = {"ranks": 1}
    report.add([ok("a", "fine")])
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is False
    report.measured["a"] = [1.5]
    report.add([error("b", "broken", "mend it")])
    assert report.end() is Level.ERROR
    assert lines[0] == "OK       a             fine"
    assert lines[-1] == "1 error, 0 warnings"
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["format"], written["complete"], written["level"]) == (1, True, "error")
    assert written["findings"][1] == {"level": "error", "topic": "b", "found": "broken", "advice": "mend it"}
    assert written["measured"] == {"a": [1.5]}
    assert written["environment"] == {"ranks": 1}


def test_nothing_to_say():
    lines = []
    report = Report(lines.append)
    report.add([ok("a", "fine")])
    assert report.end() is Level.OK
    assert lines[-1] == "no errors, no warnings"


def test_other_ranks_are_silent(tmp_path):
    report = Report(None, tmp_path / "r.json")
    report.add([ok("a", "fine")])
    assert report.end() is Level.OK
    assert not list(tmp_path.iterdir())
