"""What ranks tell of themselves while a run goes on, and what sfb watch shows of it."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("mpi4py.MPI")

from sfb import cli
from sfb.runtime.processes import this_process
from sfb.training.config import Config
from sfb.training.live import Live
from sfb.training.progress import Progress
from sfb.training.status import FILE, Row, Status, StatusError, line, load, save, table
from sfb.training.sync import Totals

ROWS = [
    Row(0, "n1", 20, 0.0105, 0.5, 2e6, 0, 10**8),
    Row(1, "n1", 21, 0.0100, 0.05, 3e6, 2, 3 * 10**8),
    Row(2, "n2", 22, 0.0100, 0.25, 2e6, 1, 2 * 10**8),
]


@pytest.fixture
def watch(monkeypatch, capsys):
    """Return a function that runs sfb watch, and returns its output."""

    def watch(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["sfb", "watch", *map(str, arguments)])
        found = cli.run()
        out, err = capsys.readouterr()
        assert found == code, out + err
        return out, err

    return watch


def status(**more):
    return Status("training mlp on mnist", total=100, loss=0.25, rows=ROWS, **more)


def test_a_status_is_read_as_it_was_written(tmp_path):
    written = status(state="ended by a signal")
    save(tmp_path, written)
    assert load(tmp_path) == written
    assert written.clock == 20


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "holds no run of sfb train: there is no status.json"),
        ("{", "is no status of sfb train"),
        ("[1]", "is no status of sfb train"),
        ('{"program": "other", "format": 1}', "is no status of sfb train"),
        ('{"program": "sfb train", "format": 9}', "is of format 9, this sfb reads format 1"),
        ('{"program": "sfb train", "format": 1, "process": [1], "loss": 1}', "is no status of sfb train"),
    ],
)
def test_other_folders_are_refused(tmp_path, watch, content, said):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(StatusError, match=said):
        load(tmp_path)
    assert said in watch(tmp_path, code=1)[1]


def test_no_folder_and_a_file_are_refused(tmp_path, watch):
    assert f"there is no folder {tmp_path / 'none'}" in watch(tmp_path / "none", code=1)[1]
    (tmp_path / "file").touch()
    assert "is no folder" in watch(tmp_path / "file", code=1)[1]


def test_a_row_that_is_not_finite_is_refused(tmp_path):
    save(tmp_path, replace(status(), rows=[replace(ROWS[0], waiting=float("nan"))]))
    with pytest.raises(StatusError):
        load(tmp_path)


def test_a_line_sums_up_all_ranks():
    text = line(status())
    for part in ("step 20/100", "loss 0.2500", "10.5 ms/step", "waiting 5-50% (least: rank 1)", "3 MB/s",
                 "staleness up to 2", "memory up to 300 MB (rank 1)"):  # fmt: skip
        assert part in text
    assert line(Status("x", total=7)) == "step 0/7"


def shown(found, width=100):
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        console.print(found)
    return [text.split() for text in capture.get().splitlines()]


def test_a_table_has_a_row_for_each_rank():
    rows = shown(table(status(), 10))
    assert rows[0] == ["rank", "host", "clock", "ms/step", "waiting", "received", "stale", "memory"]
    assert rows[2] == ["1", "n1", "21", "10.0", "5%", "3", "MB/s", "2", "300", "MB"]
    assert len(rows) == 4


def test_of_many_ranks_a_table_shows_those_for_which_others_wait():
    rows = shown(table(status(), 2))
    assert [row[0] for row in rows[1:]] == ["1", "…"]
    assert rows[2] == ["…", "2", "more"]


LONG = "node-with-a-rather-long-name-0042.cluster.example.org"
WIDE = [Row(rank, LONG, 123456, 12.5, 0.5, 2.5e9, 12, 3 * 10**11) for rank in range(3)]
NUMBERS = ["123456", "12500.0", "50%", "2.5", "GB/s", "12", "300", "GB"]


@pytest.mark.parametrize("width", [65, 80, 200])
def test_narrow_terminals_cut_names_of_hosts_and_no_numbers(width):
    for text in shown(table(replace(status(), rows=WIDE), 10), width)[1:]:
        assert text[2:] == NUMBERS
        assert text[1] == LONG if width > 100 else text[1].endswith("…")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_file_takes_the_whole_table(tmp_path, encoding):
    save(tmp_path, replace(status(), rows=WIDE, state="complete"))
    out = subprocess.check_output(
        [sys.executable, "-m", "sfb", "watch", tmp_path, "--once"],
        env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "40", "TERM": "xterm"},
        text=True,
    )
    assert "\x1b" not in out
    assert [text.split() for text in out.splitlines()[-3:]] == [[str(rank), LONG, *NUMBERS] for rank in range(3)]


def test_watch_on_a_terminal_ends_with_the_table(tmp_path):
    save(tmp_path, replace(status(), state="complete"))
    out = on_terminal(tmp_path, "xterm")
    assert re.sub(r"\x1b\[[?\d]*[a-zA-Z]", "", out).splitlines()[-1].split()[:3] == ["2", "n2", "22"]
    assert out.endswith("\x1b[?25h")  # the cursor is there again


def test_watch_on_a_terminal_without_commands_prints_lines(tmp_path):
    save(tmp_path, replace(status(), state="complete"))
    out = on_terminal(tmp_path, "dumb").splitlines()
    assert out[0] == "training mlp on mnist"
    assert out[1].startswith("step 20/100  loss 0.2500")
    assert out[2].startswith("complete, ")
    assert len(out) == 3


def on_terminal(folder, kind):
    """Return what sfb watch writes to a terminal of a kind."""
    import pty

    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": kind, "COLUMNS": "150"}
    job = subprocess.Popen([sys.executable, "-m", "sfb", "watch", folder], stdout=theirs, env=environment)
    os.close(theirs)
    out = b""
    with contextlib.suppress(OSError):  # Linux says so that nobody holds the other end any more
        while part := os.read(ours, 1 << 16):
            out += part
    os.close(ours)
    assert job.wait() == 0, out
    return out.decode()


def test_watch_shows_a_run_that_is_complete(tmp_path, watch):
    save(tmp_path, status(state="complete"))
    out, _ = watch(tmp_path)
    assert out.startswith("training mlp on mnist\nstep 20/100")
    assert "\ncomplete, 20" in out
    assert out.count("step 20/100") == 1
    out, _ = watch(tmp_path, "--once")
    assert "n2" in out


def test_watch_says_that_a_run_has_failed(tmp_path, watch):
    save(tmp_path, status(state="failed: rank 2 (host n2, pid 7) is gone"))
    assert "failed: rank 2 (host n2, pid 7) is gone" in watch(tmp_path, code=1)[0]


def test_watch_says_that_a_run_has_no_news(tmp_path, watch):
    own = this_process()
    gone = own._replace(start=own.start - 1)
    save(tmp_path, status(process=gone))
    assert f"the process of rank 0 (host {own.host}, pid {own.pid}) is gone" in watch(tmp_path, code=1)[1]
    elsewhere = status(process=own._replace(space="elsewhere"))
    save(tmp_path, elsewhere)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(content | {"written": time.time() - 7200}))
    assert "no news for 2 h" in watch(tmp_path, code=1)[1]
    assert elsewhere.trouble(elsewhere.written + 10, 60) is None


def test_watch_follows_a_run_to_its_end(tmp_path, watch, monkeypatch):
    save(tmp_path, status())
    looks = []

    def look(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            save(tmp_path, status(state="complete"))

    monkeypatch.setattr(time, "sleep", look)
    out, _ = watch(tmp_path, "-n", 5)
    assert looks == [5, 5, 5]
    assert "complete" in out


def live(world, folder, clock):
    return Live(world, "training mlp", folder, lambda: clock[0])


def test_a_run_writes_its_status_seldom(tmp_path):
    from mpi4py import MPI

    now = [0.0]
    with live(MPI.COMM_SELF, tmp_path / "run", now) as ranks:
        assert not (tmp_path / "run").exists()
        ranks.begin()
        news = 0
        for step in range(1000):
            now[0] += 0.01
            news += ranks.tick(0, 1000, 0.5, 1000 * step, Totals(0.004 * step), 0)
        assert 9 <= news <= 11
        found = load(tmp_path / "run")
        assert found.state == "running"
        row = found.rows[0]
        assert row.step_seconds == pytest.approx(0.01)
        assert row.waiting == pytest.approx(0.4)
        assert row.received == pytest.approx(1e5)
        assert row.memory > 10**6
        assert row.clock < 1000
    found = load(tmp_path / "run")
    assert (found.state, found.clock) == ("complete", 1000)


def test_a_run_that_fails_says_why(tmp_path):
    from mpi4py import MPI

    ranks = live(MPI.COMM_SELF, tmp_path, [0.0])
    ranks.begin()
    with pytest.raises(OSError, match="disk"), ranks:
        raise OSError("the disk is gone")
    assert load(tmp_path).state == "failed: the disk is gone"


def test_a_run_that_has_not_begun_leaves_the_status_of_another_alone(tmp_path):
    from mpi4py import MPI

    save(tmp_path, status(state="complete"))
    with pytest.raises(OSError, match="other"), live(MPI.COMM_SELF, tmp_path, [0.0]):
        raise OSError("the folder is that of an other run")
    assert load(tmp_path).state == "complete"


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path, caplog):
    from mpi4py import MPI

    (tmp_path / "file").touch()
    with live(MPI.COMM_SELF, tmp_path / "file" / "run", [0.0]) as ranks:
        ranks.begin()
        ranks.tick(0, 1, 0.5, 0, Totals(), 0)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["sfb watch will show nothing"]


@pytest.mark.mpi
def test_rank_0_hears_of_all_ranks(world, tmp_path):
    now = [0.0]
    with live(world, tmp_path, now) as ranks:
        ranks.begin()
        for _ in range(3 + world.rank):
            now[0] += 2.0
            ranks.tick(10, 100, float("nan"), 0, Totals(), world.rank)
    if world.rank == 0:
        found = load(tmp_path)
        assert [row.rank for row in found.rows] == [*range(world.size)]
        assert [row.clock for row in found.rows] == [13 + rank for rank in range(world.size)]
        assert [row.staleness for row in found.rows] == [*range(world.size)]
        assert found.loss is None


def test_a_line_each_minute_without_a_terminal(capsys, monkeypatch):
    from mpi4py import MPI

    from sfb.training import progress as module

    now = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    position = SimpleNamespace(taken=0, epoch=1)
    sync = SimpleNamespace(totals=Totals(), staleness=0)
    trainer = SimpleNamespace(
        model=SimpleNamespace(measure="accuracy"), position=position, total=1000, steps=10, sync=sync, rank=0
    )
    world = MPI.COMM_SELF
    with live(world, None, now) as ranks, Progress(Config(), ranks) as progress:
        tick = progress.begin(trainer)
        for _ in range(150):
            now[0] += 1.0
            tick(0.5, 10, 0)
    out = capsys.readouterr().out.splitlines()
    assert [text.split("  ")[0] for text in out[1:]] == ["step 60/1000", "step 120/1000"]
