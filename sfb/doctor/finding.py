"""What a check finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum

__all__ = ["Finding", "Level", "error", "ok", "ranks", "several", "warning", "worst"]


class Level(str, Enum):
    """How grave a finding is."""

    OK = "OK"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What a check finds, and what to do.

    >>> from sfb.doctor import warning
    >>> finding = warning("cores", "node0: 4 ranks share 2 cores", "start 2 ranks a node")
    >>> print(*finding.lines(), sep="\\n")
    warning  cores         node0: 4 ranks share 2 cores
                           to do: start 2 ranks a node

    Attributes:
        level: How grave it is.
        topic: What the check looked at.
        found: What it found.
        advice: What to do; "" if nothing is to be done.
    """

    level: Level
    topic: str
    found: str
    advice: str = ""

    def lines(self) -> list[str]:
        """Return the lines of a report."""
        indent = " " * 23
        first = f"{self.level.value:<7}  {self.topic:<12}  {self.found}"
        return [first, *([f"{indent}to do: {self.advice}"] if self.advice else [])]

    def to_json(self) -> dict[str, str]:
        """Return the finding as a JSON object."""
        return {**asdict(self), "level": self.level.value}


def ok(topic: str, found: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(Level.OK, topic, found)


def warning(topic: str, found: str, advice: str) -> Finding:
    """Return a finding that costs speed or may cause errors later."""
    return Finding(Level.WARNING, topic, found, advice)


def error(topic: str, found: str, advice: str) -> Finding:
    """Return a finding because of which programs fail, or take many times as long as they should."""
    return Finding(Level.ERROR, topic, found, advice)


def worst(findings: Iterable[Finding]) -> Level:
    """Return the gravest level among the findings.

    >>> from sfb.doctor import ok, warning, worst
    >>> worst([ok("clocks", "equal"), warning("cores", "shared", "start fewer ranks")])
    <Level.WARNING: 'warning'>
    """
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)


def ranks(numbers: Iterable[int]) -> str:
    """Return numbers of ranks as text, runs of three and more joined.

    >>> from sfb.doctor.finding import ranks
    >>> ranks([3]), ranks([0, 1, 2, 3, 7])
    ('rank 3', 'ranks 0-3, 7')
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"rank{'s' * (sum(map(len, runs)) != 1)} {', '.join(parts)}"


def several(names: Iterable[str], most: int = 4) -> str:
    """Return names as text, at most ``most`` of them.

    >>> from sfb.doctor.finding import several
    >>> several(f"node{i}" for i in range(9))
    'node0, node1, node2, node3 and 5 more'
    """
    all_names = list(names)
    more = len(all_names) - most
    return ", ".join(all_names[:most]) + (f" and {more} more" if more > 0 else "")
