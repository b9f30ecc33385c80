"""Plots of benchmark rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw milliseconds against S, one panel a shape and one line an algorithm."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys((row["K"], row["D"]) for row in rows))
    figure = Figure(figsize=(1 + 5 * len(shapes), 4.5), layout="constrained")
    panels = figure.subplots(1, len(shapes), squeeze=False)[0]
    for panel, shape in zip(panels, shapes, strict=True):
        of_shape = [row for row in rows if (row["K"], row["D"]) == shape]
        for name in dict.fromkeys(row["algorithm"] for row in of_shape):
            line = [row for row in of_shape if row["algorithm"] == name]
            style = {"auto": "k--", "mpi": "s-"}.get(name, "o-")
            panel.plot([r["S"] for r in line], [r["seconds"] * 1e3 for r in line], style, label=name, markersize=4)
        panel.set_xscale("symlog", linthresh=1)
        panel.set_yscale("log")
        panel.set_title(f"K={shape[0]}, D={shape[1]}")
        panel.set_xlabel("S, samples per rank")
        panel.set_ylabel("time per exchange (ms)")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    figure.savefig(path, dpi=120)
