"""The findings as they come: rank 0 prints them and writes them into a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sfb.doctor.finding import Finding, Level, worst
from sfb.files import write

__all__ = ["Report"]


class Report:
    """Findings that rank 0 shows; other ranks keep theirs to themselves.

    Args:
        show: Prints a line; None on other ranks.
        path: The file to write, on rank 0.

    Attributes:
        findings: The findings so far.
        environment: What `sfb info -J` writes, or {}.
        measured: What checks have measured, by topic.
    """

    def __init__(self, show: Callable[[str], object] | None, path: Path | None = None) -> None:
        self._show = show
        self._path = path
        self.findings: list[Finding] = []
        self.environment: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Show findings, and write the file, so that it holds them whatever happens later."""
        new = list(findings)
        self.findings += new
        self._write(complete=False)
        for line in (line for finding in new for line in finding.lines()):
            self.say(line)

    def say(self, line: str) -> None:
        """Show a line."""
        if self._show is not None:
            self._show(line)

    def end(self) -> Level:
        """Write the file, show how many findings of each level there are, and return the gravest."""
        self._write(complete=True)
        counts = Counter(finding.level for finding in self.findings)
        errors, warnings = counts[Level.ERROR], counts[Level.WARNING]
        if errors or warnings:
            self.say(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
        else:
            self.say("no errors, no warnings")
        return worst(self.findings)

    def _write(self, *, complete: bool) -> None:
        if self._show is None or self._path is None:
            return
        content = {
            "format": 1,
            "complete": complete,
            "level": worst(self.findings).value,
            "environment": self.environment,
            "findings": [finding.to_json() for finding in self.findings],
            "measured": self.measured,
        }
        write(self._path, json.dumps(content, indent=1) + "\n")
