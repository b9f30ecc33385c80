"""Comparisons of training runs, and their plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from sfb.files import parse_json, write
from sfb.training.progress import show_measure
from sfb.training.status import console
from sfb.units import format_bytes, milliseconds

__all__ = ["ReportError", "compare_runs", "draw", "summary"]


class ReportError(Exception):
    """A file does not hold a training run."""


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that `compare_runs` compares: medians over epochs, per step."""
    steps = run["steps_per_epoch"]
    return {
        "comm": run["config"]["comm"] if run["config"]["sync"] == "bsp" else run["config"]["sync"],
        "ranks": run["environment"]["ranks"],
        "measure": run["measure"],
        "score": run["epochs"][-1]["score"],
        "seconds_per_step": median(e["seconds"] for e in run["epochs"]) / steps,
        "exchange_seconds_per_step": median(e["exchange_seconds"] for e in run["epochs"]) / steps,
        "wire_bytes_per_step": median(e["wire_bytes"] for e in run["epochs"]) / steps,
        "replicas_identical": run["replicas_identical"],
    }


def compare_runs(paths: Sequence[Path], json_file: Path | None, plot: Path | None) -> None:
    """Write training runs to JSON and a plot, and print a table of them.

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
    if plot is not None:
        _draw(runs, rows, labels, plot)
    _print(rows, labels)


def _read(path: Path) -> dict[str, Any]:
    try:
        run = parse_json(path.read_bytes())
        if run["format"] != 1 or not run["epochs"]:
            raise ReportError(f"{path}: expected format 1 with epochs")
        for name, value in summary(run).items():
            if not isinstance(value, str if name in ("comm", "measure") else (int, float)):
                raise TypeError(f"{name} is {value!r}")
            if isinstance(value, int):
                float(value)  # or too large
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

    measure = first["measure"]
    line(f"test {measure}", "score", lambda score: show_measure(measure, score), ratios=False)
    line("time per step", "seconds_per_step", _milliseconds)
    line("exchange per step", "exchange_seconds_per_step", _milliseconds)
    line("bytes per step and rank", "wire_bytes_per_step", format_bytes)
    line("replicas identical", "replicas_identical", lambda same: "yes" if same else "NO", ratios=False)
    console().print(table)


def _milliseconds(seconds: float) -> str:
    return f"{milliseconds(seconds, 1)} ms"


def draw(run: dict[str, Any], path: Path) -> None:
    """Draw loss and measure of one run, against seconds and against epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    epochs = [epoch["epoch"] for epoch in run["epochs"]]
    for column, (label, at) in enumerate((("seconds of training", _elapsed(run)), ("epochs", epochs))):
        for row, (key, name) in enumerate((("loss", "training loss"), ("score", f"test {run['measure']}"))):
            panel = panels[row, column]
            panel.plot(at, [epoch[key] for epoch in run["epochs"]], "o-", color=f"C{row}")
            panel.grid(alpha=0.3, which="both")
            if column == 0:
                panel.set_ylabel(name)
            if row == 1:
                panel.set_xlabel(label)
    if all(epoch["loss"] > 0 for epoch in run["epochs"]):
        panels[0, 0].set_yscale("log")
    figure.suptitle(_title(run))
    figure.savefig(path, dpi=120)


def _elapsed(run: dict[str, Any]) -> list[float]:
    """Return the seconds of training at the end of each epoch."""
    return list(accumulate(epoch["seconds"] for epoch in run["epochs"]))


def _title(run: dict[str, Any]) -> str:
    config, environment = run["config"], run["environment"]
    return (
        f"{config['model']} on {config['data']}, {environment['ranks']} ranks on "
        f"{environment['cores_per_node']} cores per node"
    )


def _draw(runs: list[dict[str, Any]], rows: list[dict[str, Any]], labels: Sequence[str], path: Path) -> None:
    """Draw loss against seconds, and the bytes of a step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    colours = [f"C{i}" for i in range(len(runs))]
    for run, label, colour in zip(runs, labels, colours, strict=True):
        left.plot(_elapsed(run), [epoch["loss"] for epoch in run["epochs"]], "o-", color=colour, label=label)
    left.set_xlabel("seconds of training")
    left.set_ylabel("training loss")
    left.set_yscale("log")
    left.set_xlim(left=0)
    left.grid(alpha=0.3, which="both")
    left.legend(title="--comm")
    left.set_title(_title(runs[0]))
    bars = right.bar(labels, [row["wire_bytes_per_step"] for row in rows], color=colours)
    right.bar_label(bars, [format_bytes(row["wire_bytes_per_step"]) for row in rows])
    if all(row["wire_bytes_per_step"] > 0 for row in rows):
        right.set_yscale("log")
    right.set_ylabel("bytes received per rank and step")
    right.set_title("exchange")
    right.margins(y=0.15)
    figure.savefig(path, dpi=120)
