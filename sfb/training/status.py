"""The status of a training run, rank by rank: the file that `sfb watch` reads, and how it is shown; no MPI."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfb.files import write
from sfb.runtime.processes import Process, state_of, this_process
from sfb.units import format_bytes, format_duration, format_rate, milliseconds

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["FILE", "RUNNING", "Row", "Status", "StatusError", "console", "line", "load", "save", "table"]

FILE = "status.json"
RUNNING = "running"
_FORMAT = 1
# Columns of a file or a pipe, which take lines of any length.
_WIDE = 10_000


class StatusError(Exception):
    """A folder holds no status of a run."""


@dataclass(frozen=True)
class Row:
    """What a rank has last said of itself.

    Attributes:
        rank: The rank.
        host: Its host.
        clock: Steps that it has taken in the whole run.
        step_seconds: Time of a step.
        waiting: Part of the time in exchanges, including the wait for other ranks, 0 to 1.
        received: Bytes that it receives per second.
        staleness: The most clocks that a read of its last step was behind it; 0 where all ranks step together.
        memory: Bytes of memory in use, shared memory included.
    """

    rank: int
    host: str
    clock: int
    step_seconds: float
    waiting: float
    received: float
    staleness: int
    memory: int


@dataclass
class Status:
    """The status of a run.

    Attributes:
        title: What is trained.
        total: Steps of the run.
        loss: Mean loss of the last batch that rank 0 knows of; None if it is not finite.
        state: `RUNNING`, "complete", or what has ended the run.
        began: When the run began, in seconds of `time.time`.
        written: When the status was written.
        process: The process of rank 0.
        rows: The ranks.
    """

    title: str
    total: int = 0
    loss: float | None = None
    state: str = RUNNING
    began: float = field(default_factory=time.time)
    written: float = 0.0
    process: Process = field(default_factory=this_process)
    rows: list[Row] = field(default_factory=list)

    @property
    def clock(self) -> int:
        """The steps that all ranks have taken."""
        return min((row.clock for row in self.rows), default=0)

    def trouble(self, now: float, patience: float) -> str | None:
        """Return why a run that says it is running may not be, else None.

        Args:
            now: Seconds of `time.time`.
            patience: Seconds without news that are no trouble.
        """
        if self.state != RUNNING:
            return None
        silent = f"no news for {format_duration(max(0.0, now - self.written))}"
        own = this_process()
        if own.space and own.space == self.process.space and state_of(self.process) == "gone":
            return f"{silent}: the process of rank 0 ({self.process}) is gone"
        return f"{silent} of rank 0 ({self.process})" if now - self.written > patience else None


def save(folder: Path, status: Status) -> None:
    """Write a status, as a whole.

    Raises:
        OSError: It cannot be written.
    """
    status.written = time.time()
    write(folder / FILE, json.dumps({"format": _FORMAT, "program": "sfb train", **asdict(status)}) + "\n")


def load(folder: Path) -> Status:
    """Return the status in a folder.

    Raises:
        StatusError: There is no such folder, or no status in it.
    """
    path = folder / FILE
    if not folder.exists():
        raise StatusError(f"there is no folder {folder}")
    if not path.is_file():
        what = "is no folder" if not folder.is_dir() else f"holds no run of sfb train: there is no {FILE}"
        raise StatusError(f"{folder} {what}; sfb train writes it to the folder of --checkpoint or --status")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["program"] != "sfb train":
            raise ValueError
        number = content["format"]
        if number != _FORMAT:
            raise StatusError(f"{path} is of format {number}, this sfb reads format {_FORMAT}")
        return _parse(content)
    except OSError as error:
        raise StatusError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise StatusError(f"{path} is no status of sfb train") from error


def _parse(content: dict[str, Any]) -> Status:
    host, pid, start, space = content["process"]
    loss = content["loss"]
    return Status(
        title=str(content["title"]),
        total=int(content["total"]),
        loss=None if loss is None else float(loss),
        state=str(content["state"]),
        began=float(content["began"]),
        written=float(content["written"]),
        process=Process(str(host), int(pid), int(start), str(space)),
        rows=[
            Row(
                rank=int(row["rank"]),
                host=str(row["host"]),
                clock=int(row["clock"]),
                step_seconds=_finite(row["step_seconds"]),
                waiting=_finite(row["waiting"]),
                received=_finite(row["received"]),
                staleness=int(row["staleness"]),
                memory=int(row["memory"]),
            )
            for row in content["rows"]
        ],
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def line(status: Status) -> str:
    """Return a line that sums up all ranks.

    >>> from sfb.training.status import Row, Status, line
    >>> rows = [Row(0, "n1", 20, 0.01, 0.5, 2e6, 0, 10**8), Row(1, "n1", 20, 0.01, 0.05, 2e6, 0, 2 * 10**8)]
    >>> line(Status("mlp on mnist", total=100, loss=0.25, rows=rows))
    'step 20/100  loss 0.2500  10.0 ms/step  waiting 5-50% (least: rank 1)  2 MB/s  memory up to 200 MB (rank 1)'
    """
    rows = status.rows
    parts = [f"step {status.clock}/{status.total}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4f}")
    if rows:
        least = min(rows, key=lambda row: row.waiting)
        most = max(rows, key=lambda row: row.waiting)
        largest = max(rows, key=lambda row: row.memory)
        named = len(rows) > 1
        parts.append(f"{milliseconds(max(row.step_seconds for row in rows), 1)} ms/step")
        share = f"{least.waiting:.0%}" if not named else f"{100 * least.waiting:.0f}-{most.waiting:.0%}"
        parts.append(f"waiting {share}" + (f" (least: rank {least.rank})" if named else ""))
        parts.append(format_rate(max(row.received for row in rows)))
        if any(row.staleness for row in rows):
            parts.append(f"staleness up to {max(row.staleness for row in rows)}")
        parts.append(f"memory up to {format_bytes(largest.memory)}" + (f" (rank {largest.rank})" if named else ""))
    return "  ".join(parts)


def console() -> Console:
    """Return the console of this process's output; in a file or a pipe, tables are as wide as they need to be.

    Its `is_interactive` says whether it is a terminal that can change what it has shown; with ``TERM=dumb`` it cannot.
    """
    from rich.console import Console

    found = Console(highlight=False, markup=False)
    if not found.is_terminal:
        found.width = _WIDE
    return found


def table(status: Status, most: int) -> Table:
    """Return a table with ranks as rows.

    Args:
        status: The status.
        most: Ranks to show; of more, those that wait least, since the others wait for them.
    """
    from rich.table import Table

    shown = status.rows
    if len(shown) > most:
        shown = sorted(sorted(shown, key=lambda row: row.waiting)[: max(1, most - 1)], key=lambda row: row.rank)
    found = Table(box=None, pad_edge=False, header_style="", expand=False)
    found.add_column("rank", justify="right", no_wrap=True)
    found.add_column("host", overflow="ellipsis", min_width=4)  # a narrow terminal cuts names, before numbers
    for name in ("clock", "ms/step", "waiting", "received", "stale", "memory"):
        found.add_column(name, justify="right", no_wrap=True)
    for row in shown:
        found.add_row(
            str(row.rank),
            row.host,
            str(row.clock),
            milliseconds(row.step_seconds, 1),
            f"{row.waiting:.0%}",
            format_rate(row.received),
            str(row.staleness),
            format_bytes(row.memory),
        )
    if len(shown) < len(status.rows):
        found.add_row("…", f"{len(status.rows) - len(shown)} more", *[""] * 6)
    return found
