"""How good the choice of "auto" was, over the rows that `sfb bench allreduce -J` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from sfb.files import parse_json
from sfb.tuning.plan import AUTO

__all__ = ["Cell", "ChoiceError", "draw", "read", "report"]

_CLOSE = 1.05


class ChoiceError(Exception):
    """A file does not hold rows of `sfb bench allreduce` with "auto"."""


@dataclass(frozen=True)
class Cell:
    """One size in one setting.

    Attributes:
        setting: Text that gives ranks and nodes.
        shape: (K, D).
        samples: S of each rank.
        seconds: Time of each algorithm, "mpi" and "auto" among them.
        predicted: Estimate of each algorithm.
        taken: Algorithm that "auto" took.
    """

    setting: str
    shape: tuple[int, int]
    samples: int
    seconds: dict[str, float]
    predicted: dict[str, float]
    taken: str

    @property
    def best(self) -> str:
        """The fastest algorithm beside "auto"."""
        return min((name for name in self.seconds if name != AUTO), key=lambda name: self.seconds[name])

    @property
    def behind(self) -> float:
        """Time of "auto" over that of the best."""
        return self.seconds[AUTO] / self.seconds[self.best]


def read(paths: Sequence[Path]) -> list[Cell]:
    """Return the cells of the files.

    Raises:
        ChoiceError: `sfb bench allreduce -J` did not write a file, or wrote it without "auto".
    """
    cells = []
    for path in paths:
        try:
            data = parse_json(path.read_bytes())
            environment = data["environment"]
            nodes = len(environment["hosts"])
            setting = f"{environment['ranks']} ranks, {nodes} node{'s' * (nodes > 1)}"
            sizes: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
            for row in data["results"]:
                sizes.setdefault((int(row["K"]), int(row["D"]), int(row["S"])), []).append(row)
            for (rows, columns, samples), of_size in sizes.items():
                cells.append(
                    Cell(
                        setting,
                        (rows, columns),
                        samples,
                        {str(row["algorithm"]): _seconds(row["seconds"]) for row in of_size},
                        {str(row["algorithm"]): _seconds(row["predicted"]) for row in of_size if row["predicted"]},
                        next(str(row["taken"]) for row in of_size if row["algorithm"] == AUTO),
                    )
                )
                if not cells[-1].seconds.keys() - {AUTO}:
                    raise ValueError("nothing to compare auto with")
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError, StopIteration, AttributeError) as error:
            raise ChoiceError(f"{path}: not what sfb bench allreduce -J wrote, with auto ({error!r})") from error
    return cells


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 < seconds < inf:
        raise ValueError(f"{value!r} is no time")
    return seconds


def report(cells: Sequence[Cell]) -> str:
    """Return a Markdown table of milliseconds, and below it a summary of the choices and predictions."""
    names = [name for name in dict.fromkeys(name for cell in cells for name in cell.seconds) if name != AUTO]
    lines = [
        f"| setting | K×D | S | {' | '.join(names)} | auto | took | auto/best |",
        "|---" * (len(names) + 6) + "|",
    ]
    for cell in cells:
        times = [_milliseconds(cell.seconds.get(name), name == cell.best) for name in names]
        lines.append(
            f"| {cell.setting} | {cell.shape[0]}×{cell.shape[1]} | {cell.samples} | {' | '.join(times)} "
            f"| {_milliseconds(cell.seconds[AUTO])} | {cell.taken} | {cell.behind:.2f} |"
        )
    close = sum(cell.behind <= _CLOSE for cell in cells)
    worst = max(cells, key=lambda cell: cell.behind)
    lines += [
        "",
        f"auto within 5 % of the best in {close} of {len(cells)} cells ({close / len(cells):.0%}); at worst "
        f"{worst.behind - 1:.0%} behind ({worst.setting}, {worst.shape[0]}×{worst.shape[1]}, S={worst.samples})",
    ]
    errors = _errors(cells)
    if errors:
        lines.append(f"predicted against measured, {len(errors)} times: median error {median(errors):.0%}")
    return "\n".join(lines)


def _milliseconds(seconds: float | None, bold: bool = False) -> str:
    text = "" if seconds is None else f"{seconds * 1e3:.3g}"
    return f"**{text}**" if bold else text


def _errors(cells: Sequence[Cell]) -> list[float]:
    """Return the relative error of each prediction."""
    return [
        abs(cell.predicted[name] / cell.seconds[name] - 1) for cell in cells for name in cell.predicted if name != AUTO
    ]


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw where each algorithm wins, a panel a setting, and predicted against measured times."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    settings = list(dict.fromkeys(cell.setting for cell in cells))
    names = list(dict.fromkeys(name for cell in cells for name in cell.seconds if name != AUTO))
    figure = Figure(figsize=(3.2 * len(settings) + 5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(settings) + 1, width_ratios=[*[1] * len(settings), 1.5], squeeze=False)[0]
    for panel, setting in zip(panels, settings, strict=False):
        here = [cell for cell in cells if cell.setting == setting]
        shapes = list(dict.fromkeys(cell.shape for cell in here))
        samples = sorted({cell.samples for cell in here})
        grid = [[float("nan")] * len(samples) for _ in shapes]
        for cell in here:
            row, column = shapes.index(cell.shape), samples.index(cell.samples)
            grid[row][column] = names.index(cell.best)
            gain = cell.seconds["mpi"] / cell.seconds[AUTO] if "mpi" in cell.seconds else 0.0
            text = f"{gain:.0f}×" if gain >= 10 else f"{gain:.1f}×" if gain else ""
            panel.text(column, row, text, ha="center", va="center", fontsize=8)
        colours = ListedColormap([f"C{i}" for i in range(len(names))])
        panel.imshow(grid, cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, alpha=0.6, aspect="auto")
        panel.set_xticks(range(len(samples)), [str(n) for n in samples])
        panel.set_yticks(
            range(len(shapes)), [f"{k}×{d}" for k, d in shapes] if panel is panels[0] else [""] * len(shapes)
        )
        panel.set_title(setting, fontsize=10)
        panel.set_xlabel("S")
    figure.legend(
        handles=[Patch(color=f"C{i}", alpha=0.6, label=name) for i, name in enumerate(names)],
        title="fastest; numbers: mpi/auto",
        loc="outside lower left",
        ncols=len(names),
        fontsize=8,
        title_fontsize=8,
    )
    scatter = panels[-1]
    for i, name in enumerate(names):
        pairs = [(c.seconds[name] * 1e3, c.predicted[name] * 1e3) for c in cells if name in c.predicted]
        if pairs:
            scatter.plot(*zip(*pairs, strict=True), "o", color=f"C{i}", label=name, markersize=4, alpha=0.7)
    low, high = scatter.get_xlim()
    ends = [max(low, 1e-3), high]
    scatter.set_xscale("log")
    scatter.set_yscale("log")
    scatter.plot(ends, ends, "k-", linewidth=0.8)
    scatter.fill_between(ends, [0.75 * x for x in ends], [1.25 * x for x in ends], color="k", alpha=0.08)
    scatter.set_xlabel("measured (ms)")
    scatter.set_ylabel("predicted (ms)")
    scatter.set_title("the cost model; grey: ±25 %", fontsize=10)
    scatter.legend(fontsize=8)
    scatter.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
