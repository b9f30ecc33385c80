"""Pictures of graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sfb.topology.graph import Topology

__all__ = ["draw_graph", "draw_quality"]

_FEW = 40  # points of a family up to which a line joins them
_ALL_EDGES = 128  # ranks up to which all edges are drawn and all ranks numbered


def draw_graph(graph: Topology, path: Path) -> None:
    """Draw the ranks on a circle, coloured by their depth in the relay tree of rank 0, whose edges lie in front."""
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    angles = np.pi / 2 - 2 * np.pi * np.arange(graph.size) / graph.size
    points = np.column_stack([np.cos(angles), np.sin(angles)])
    depth = np.zeros(graph.size, int)
    line = [0]
    for rank in line:
        for child in graph.children(0, rank):
            depth[child] = depth[rank] + 1
            line.append(child)
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    if graph.size <= _ALL_EDGES:
        edges = [(points[rank], points[other]) for rank in range(graph.size) for other in graph.out_neighbours(rank)]
        axes.add_collection(LineCollection(edges, colors="0.85", linewidths=0.6, zorder=1))
    for other in graph.out_neighbours(0):
        axes.annotate("", points[other], points[0], arrowprops={"arrowstyle": "->", "color": "C3"}, zorder=3)
    shown = axes.scatter(points[:, 0], points[:, 1], c=depth, cmap="viridis_r", s=max(4, 1500 / graph.size), zorder=4)
    if graph.size <= _ALL_EDGES:
        for rank, (x, y) in enumerate(points):
            axes.text(1.07 * x, 1.07 * y, str(rank), ha="center", va="center", fontsize=7)
    figure.colorbar(shown, ax=axes, shrink=0.7, label="edges from rank 0", ticks=range(depth.max() + 1))
    axes.set_title(
        f"{graph.name}, {graph.size} ranks: degree {graph.degree}, diameter {graph.diameter}, "
        f"λ2 {graph.second_eigenvalue:.3f}"
    )
    axes.set_aspect("equal")
    axes.set_axis_off()
    figure.savefig(path, dpi=120)


def draw_quality(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw diameter and second eigenvalue against the number of ranks, a line for each family."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, key, label in zip(panels, ("diameter", "second_eigenvalue"), ("diameter", "λ2"), strict=True):
        for name in dict.fromkeys(row["topology"] for row in rows):
            line = [(row["ranks"], row[key]) for row in rows if row["topology"] == name]
            style = "o-" if len(line) <= _FEW else "."
            panel.plot(*zip(*line, strict=True), style, label=name, markersize=4, linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("ranks")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_yscale("log")
    panels[1].set_ylim(0.3, 1.02)
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    figure.savefig(path, dpi=120)
