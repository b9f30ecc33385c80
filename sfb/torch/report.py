"""How the exchanges of a model went, as text."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

import sfb
from sfb.torch.weights import FusedWeight, MeanWeight, TableWeight
from sfb.units import format_bytes

__all__ = ["table"]


def table(weights: Sequence[FusedWeight | MeanWeight | TableWeight], others: Sequence[nn.Parameter], ranks: int) -> str:
    """Return a table with a line for each weight, and one for all other parameters.

    Args:
        weights: The weights whose gradients are collected.
        others: The other trainable parameters.
        ranks: The number of ranks.
    """
    lines: list[tuple[str, ...]] = [
        ("parameter", "shape", "takes", "algorithm", "received", "exchange(ms)", "rebuild(ms)")
    ]
    for weight in weights:
        last = weight.last
        kind = {FusedWeight: "fused update", MeanWeight: "mean", TableWeight: "rows"}[type(weight)]
        shape = "×".join(map(str, weight.param.shape))
        if isinstance(last, sfb.Exchange):
            times = [f"{seconds * 1e3:.3f}" for seconds in (last.exchange_seconds, last.rebuild_seconds)]
            lines.append((weight.name, shape, kind, last.algorithm, format_bytes(last.wire_bytes), *times))
        else:
            lines.append((weight.name, shape, kind, last or "-", "-", "-", "-"))
    if others:
        nbytes = sum(param.numel() * max(4, param.element_size()) for param in others)
        received = format_bytes(2 * nbytes * (ranks - 1) // ranks)
        lines.append((f"{len(others)} others", f"{format_bytes(nbytes)}", "mean", "buckets", received, "-", "-"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
