"""Files that name the version."""

from pathlib import Path

import sfb

ROOT = Path(__file__).parents[1]


def test_citation_and_changelog_name_this_version():
    assert f"\nversion: {sfb.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {sfb.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
