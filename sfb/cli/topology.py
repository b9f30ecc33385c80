"""The command sfb topology."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from sfb.cli.common import Failure, Names, Single, Sizes, examples, json_option, plot_option
from sfb.files import write

__all__ = ["topology"]


@click.command(
    cls=Single,
    epilog=examples(
        "sfb topology halton 64 --plot halton.png", "sfb topology halton,exponential,ring 8:1024 -J graphs.json"
    ),
)
@click.argument("names", metavar="NAME[,NAME...]", type=Names())
@click.argument("sizes", metavar="RANKS", type=Sizes(1))
@json_option
@plot_option
def topology(names: tuple[str, ...], sizes: list[int], json_file: Path | None, plot: Path | None) -> None:
    """Show how fast updates travel over graphs of RANKS ranks; needs no MPI.

    RANKS is a number, a list 8,16 or a range 8:1024, whose sizes double. The plot shows the edges of a single graph,
    or the diameters and second eigenvalues of several.
    """
    from rich.table import Table

    from sfb import topology as topologies
    from sfb.topology.plot import draw_graph, draw_quality
    from sfb.training.status import console

    unknown = [name for name in names if name not in topologies.NAMES]
    if unknown:
        raise Failure(f"no graph is called {unknown[0]!r}; there are {', '.join(topologies.NAMES)}")
    rows: list[dict[str, Any]] = []
    graphs = []
    for name in names:
        for size in sizes:
            row: dict[str, Any] = {"topology": name, "ranks": size, "problem": None}
            try:
                graph = topologies.create(name, size)
                row |= {
                    "degree": graph.degree,
                    "diameter": graph.diameter,
                    "mean_distance": graph.mean_distance,
                    "second_eigenvalue": graph.second_eigenvalue,
                    "spectral_gap": graph.spectral_gap,
                    "offsets": list(getattr(graph, "offsets", ())) or None,
                }
                graphs.append(graph)
            except ValueError as error:
                row["problem"] = str(error)
            rows.append(row)
    if not graphs:
        raise Failure(rows[0]["problem"])
    table = Table(box=None, pad_edge=False)
    for heading in ("topology", "ranks", "degree", "diameter", "mean distance", "λ2", "gap", "offsets"):
        table.add_column(heading, justify="left" if heading in ("topology", "offsets") else "right", overflow="fold")
    screen = console()
    most = 12 if screen.is_terminal else None  # offsets of a large graph
    for row in rows:
        if row["problem"]:
            table.add_row(row["topology"], str(row["ranks"]), "", "", "", "", "", row["problem"].split(": ")[0])
            continue
        offsets = row["offsets"] or []
        shown = " ".join(map(str, offsets[:most])) + (" …" if len(offsets[:most]) < len(offsets) else "")
        numbers = f"{row['mean_distance']:.2f}", f"{row['second_eigenvalue']:.3f}", f"{row['spectral_gap']:.3f}"
        table.add_row(*(str(row[key]) for key in ("topology", "ranks", "degree", "diameter")), *numbers, shown)
    if json_file is not None:
        write(json_file, json.dumps({"format": 1, "results": rows}, indent=1) + "\n")
    if plot is not None:
        if len(rows) == 1:
            draw_graph(graphs[0], plot)
        else:
            draw_quality([row for row in rows if not row["problem"]], plot)
    screen.print(table)
