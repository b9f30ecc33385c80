"""Folders and files that are not what they should be: said clearly, and never the end of a program."""

import logging
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from traces import MS, Ranks, recording

from sfb.cli import cli
from sfb.trace import settings
from sfb.trace.files import TraceError, load, read
from sfb.trace.now import NOW
from sfb.trace.recorder import DTYPE


@pytest.fixture
def ranks(tmp_path):
    ranks = Ranks(tmp_path, 3)
    for start in range(0, 50, 10):
        ranks.exchange([start * MS, (start + 1) * MS, (start + 2) * MS], MS)
    return ranks


@pytest.fixture
def warnings(caplog):
    with caplog.at_level(logging.WARNING, "sfb"):
        yield lambda: [record.getMessage() for record in caplog.records]


def refused(folder):
    result = CliRunner().invoke(cli, ["trace", "report", str(folder)])
    assert result.exit_code == 1
    return result.output


def test_what_was_recorded_is_read(ranks, tmp_path):
    ranks.save()
    run = load(tmp_path)
    assert (list(run.ranks), run.size, run.notes) == ([0, 1, 2], 3, [])
    assert run.ranks[1].texts("name") == ["Allreduce"] * 5
    assert run.ranks[1].events["start"].tolist() == [MS * (1 + 10 * i) for i in range(5)]


def test_no_folder_and_no_trace(tmp_path):
    assert "is no folder; a run with SFB_TRACE=" in refused(tmp_path / "none")
    (tmp_path / "other.txt").write_text("")
    assert "holds no trace; a run with SFB_TRACE=" in refused(tmp_path)


def test_a_missing_rank(ranks, tmp_path):
    ranks.save(but=[1])
    run = load(tmp_path)
    assert list(run.ranks) == [0, 2]
    assert run.notes == ["of 3 ranks 1 is missing"]
    result = CliRunner().invoke(cli, ["trace", "report", str(tmp_path)])
    assert result.exit_code == 0
    assert "note: of 3 ranks 1 is missing" in result.output


def test_files_of_another_run_are_left_out(ranks, tmp_path):
    other = Ranks(tmp_path, 5)
    for recorder in other.recorders:
        recorder.run = 0, "other"
        recorder.began -= 100
    other.save()
    ranks.save()
    run = load(tmp_path)
    assert list(run.ranks) == [0, 1, 2]
    (note,) = run.notes
    assert "2 files of 1 other run, which are left out" in note


@pytest.mark.parametrize("left", [0, DTYPE.itemsize // 2, 3 * DTYPE.itemsize])
def test_truncated_files(ranks, tmp_path, left):
    path = ranks.save()[2]
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\n") + 1 + left])
    run = load(tmp_path)
    assert len(run.ranks[2].events) == left // DTYPE.itemsize
    assert run.notes == [f"rank-00002.sfbtrace is truncated: it has {left // DTYPE.itemsize} of 5 events"]


def test_a_file_cut_in_its_first_line_is_left_out(ranks, tmp_path):
    path = ranks.save()[2]
    path.write_bytes(path.read_bytes()[:40])
    run = load(tmp_path)
    assert list(run.ranks) == [0, 1]
    assert "is truncated: it ends within its first line; it is left out" in run.notes[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no trace of this version"),
        (b"\xff\xfe\n", "no trace of this version"),
        (b"[1]\n", "no trace of this version"),
        (b'{"format": "sfb trace 9"}\n', "no trace of this version"),
        (b'{"format": "sfb trace 1", "run": 3}\n', "damaged: 'run' is 3"),
    ],
)
def test_other_files(tmp_path, content, said):
    path = tmp_path / "rank-00000.sfbtrace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=said):
        read(path)
    assert said in refused(tmp_path)


def test_events_that_make_no_sense_are_left_out(ranks, tmp_path):
    path = ranks.save()[0]
    data = bytearray(path.read_bytes())
    at = data.index(b"\n") + 1 + DTYPE.itemsize + DTYPE.fields["name"][1]
    data[at : at + 4] = (1 << 20).to_bytes(4, "little")
    path.write_bytes(data)
    run = load(tmp_path)
    assert len(run.ranks[0].events) == 4
    assert "1 of 5 events make no sense" in run.notes[0]


def test_a_folder_that_cannot_be_made_is_a_problem_to_tell(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(NOW, "problem", "")
    settings.start_trace(tmp_path / "file" / "trace")
    assert NOW.problem.startswith(f"there is no trace: {tmp_path}/file/trace: Not a directory")
    assert NOW.recorder is None
    assert not NOW.on


def test_a_full_disk_is_one_warning(ranks, tmp_path, monkeypatch, warnings):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(settings, "save", full)
    monkeypatch.setattr(NOW, "rank", 0)
    recorder = ranks.recorders[0]
    with recording(recorder):
        assert settings.write_trace("test") is None
        assert settings.write_trace("test") is None
    assert warnings() == [f"the trace of rank 0 is not written: {tmp_path}: No space left on device"]


def test_a_child_process_writes_nothing(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(NOW, "rank", 0)
    recorder = ranks.recorders[0]
    with recording(recorder):
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert settings.write_trace("test") is None


@pytest.mark.parametrize(("text", "seconds"), [("", 300.0), ("90s", 90.0), ("2m", 120.0), ("off", float("inf"))])
def test_the_time_of_the_watchdog(monkeypatch, text, seconds):
    monkeypatch.setenv("SFB_WATCHDOG", text)
    assert settings.patience() == seconds


def test_a_wrong_time_is_a_warning(monkeypatch, warnings):
    monkeypatch.setenv("SFB_WATCHDOG", "soon")
    assert settings.patience() == 300.0
    assert "SFB_WATCHDOG: 'soon' is not a time" in warnings()[0]


def test_a_trace_of_a_program_without_mpi_needs_no_mpi(tmp_path):
    """Importing sfb begins the trace; a process that is no rank writes none."""
    script = "import sys, sfb\nwith sfb.trace.span('x'): pass\nassert 'mpi4py.MPI' not in sys.modules"
    environment = {**os.environ, "SFB_TRACE": str(tmp_path / "t")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "t").iterdir()) == []
