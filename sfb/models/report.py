"""Reports on training: its progress, and comparisons of runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from mpi4py import MPI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from sfb.environment import header
from sfb.files import write
from sfb.models.train import Config, Epoch
from sfb.units import format_bytes, milliseconds

__all__ = ["Progress", "ReportError", "compare_runs", "summary"]


class ReportError(Exception):
    """A file does not hold a training run."""


class Progress(AbstractContextManager["Progress"]):
    """Reports epochs on rank 0: a bar on a terminal, plain lines elsewhere.

    Args:
        config: What the run trains, and how.
        world: The ranks that train.
    """

    def __init__(self, config: Config, world: MPI.Intracomm) -> None:
        self._config = config
        self._active = world.rank == 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self._active:
            c = self._config
            print(f"training {c.model} on {c.data}, --comm {c.comm}, {c.epochs} epochs", flush=True)
            # Open MPI gives a rank a terminal as output even when that goes to a file; as input it gives none.
            if sys.stdout.isatty() and sys.stdin.isatty():
                self._bar = Bar(TextColumn("step"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self._task = self._bar.add_task("step", total=None)
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tick(self, steps: int) -> None:
        """Advance the bar by one of ``steps`` steps."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=steps, advance=1)

    def report(self, epoch: Epoch) -> None:
        """Print one epoch."""
        if not self._active:
            return
        line = (
            f"epoch {epoch.epoch}/{self._config.epochs}  loss {epoch.loss:.4f}  test accuracy {epoch.accuracy:.2%}  "
            f"{epoch.seconds:.2f} s (exchange {epoch.exchange_seconds:.2f} s, {format_bytes(epoch.wire_bytes)}"
            f"{f', overlap {epoch.overlap:.0%}' if self._config.overlap else ''})"
        )
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def finish(self, result: dict[str, Any]) -> None:
        """Print the layers and the environment of the run."""
        for layer in result["layers"]:
            print(
                f"{layer['name']}  {layer['K']}×{layer['D']}  {layer['algorithm']}  "
                f"{format_bytes(layer['wire_bytes_per_step'])} per step"
            )
        print(f"replicas identical: {'yes' if result['replicas_identical'] else 'NO'}")
        for line in header(result["environment"]):
            print(f"# {line}")


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that `compare_runs` compares: medians over epochs, per step."""
    steps = run["steps_per_epoch"]
    return {
        "comm": run["config"]["comm"],
        "ranks": run["environment"]["ranks"],
        "accuracy": run["epochs"][-1]["accuracy"],
        "seconds_per_step": median(e["seconds"] for e in run["epochs"]) / steps,
        "exchange_seconds_per_step": median(e["exchange_seconds"] for e in run["epochs"]) / steps,
        "wire_bytes_per_step": median(e["wire_bytes"] for e in run["epochs"]) / steps,
        "replicas_identical": run["replicas_identical"],
    }


def compare_runs(paths: Sequence[Path], json_file: Path | None, plot: Path | None) -> None:
    """Print a table of training runs, and write them to JSON and a plot.

    Args:
        paths: Files that `sfb train -J` wrote.
        json_file: File for the table and the runs, if any.
        plot: File for the plot, if any.

    Raises:
        ReportError: `sfb train -J` did not write a file.
    """
    runs = [_read(path) for path in paths]
    rows = [summary(run) for run in runs]
    comms = [row["comm"] for row in rows]
    # A run is labelled by its exchange, or by its file where two runs have the same exchange.
    labels = comms if len(set(comms)) == len(comms) else [str(path) for path in paths]
    if json_file is not None:
        keyed = dict(zip(labels, runs, strict=True))
        write(json_file, json.dumps({"format": 1, "summary": rows, "runs": keyed}, indent=1) + "\n")
    _print(rows, labels)
    if plot is not None:
        _draw(runs, rows, labels, plot)


def _read(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text())
        if run["format"] != 1 or not run["epochs"]:
            raise ReportError(f"{path}: expected format 1 with epochs")
        if not all(isinstance(value, (int, float, str)) for value in summary(run).values()):
            raise TypeError("figures are not numbers")
        run["config"]["model"], run["config"]["data"], run["environment"]["cores_per_node"]
    except (OSError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{path}: not a run that `sfb train -J` wrote ({error!r})") from error
    return run


def _print(rows: list[dict[str, Any]], labels: Sequence[str]) -> None:
    first = rows[0]
    table = Table(title=f"--comm, on {first['ranks']} ranks", title_justify="left")
    table.add_column("", overflow="fold")
    for label in labels:
        table.add_column(label, justify="right", overflow="fold")
    ratio = len(rows) == 2
    if ratio:
        table.add_column("ratio", justify="right")

    def line(label: str, key: str, show: Any, ratios: bool = True) -> None:
        cells = [show(row[key]) for row in rows]
        if ratio:
            cells.append(f"{rows[1][key] / first[key]:.3f}" if ratios and first[key] else "")
        table.add_row(label, *cells)

    line("test accuracy", "accuracy", "{:.2%}".format, ratios=False)
    line("time per step", "seconds_per_step", _milliseconds)
    line("exchange per step", "exchange_seconds_per_step", _milliseconds)
    line("bytes per step and rank", "wire_bytes_per_step", format_bytes)
    line("replicas identical", "replicas_identical", lambda same: "yes" if same else "NO", ratios=False)
    # A file takes lines of any length; a terminal folds them.
    Console(width=None if Console().is_terminal else 10_000, highlight=False, markup=False).print(table)


def _milliseconds(seconds: float) -> str:
    return f"{milliseconds(seconds, 1)} ms"


def _draw(runs: list[dict[str, Any]], rows: list[dict[str, Any]], labels: Sequence[str], path: Path) -> None:
    """Draw loss against seconds, and the bytes of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    colours = [f"C{i}" for i in range(len(runs))]
    for run, label, colour in zip(runs, labels, colours, strict=True):
        elapsed, losses = [], []
        total = 0.0
        for epoch in run["epochs"]:
            total += epoch["seconds"]
            elapsed.append(total)
            losses.append(epoch["loss"])
        left.plot(elapsed, losses, "o-", color=colour, label=label)
    left.set_xlabel("seconds of training")
    left.set_ylabel("training loss")
    left.set_yscale("log")
    left.set_xlim(left=0)
    left.grid(alpha=0.3, which="both")
    left.legend(title="--comm")
    config, environment = runs[0]["config"], runs[0]["environment"]
    left.set_title(
        f"{config['model']} on {config['data']}, {environment['ranks']} ranks on "
        f"{environment['cores_per_node']} cores per node"
    )
    bars = right.bar(labels, [row["wire_bytes_per_step"] for row in rows], color=colours)
    right.bar_label(bars, [format_bytes(row["wire_bytes_per_step"]) for row in rows])
    if all(row["wire_bytes_per_step"] > 0 for row in rows):
        right.set_yscale("log")
    right.set_ylabel("bytes received per rank and step")
    right.set_title("exchange")
    right.margins(y=0.15)
    figure.savefig(path, dpi=120)
