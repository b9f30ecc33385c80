"""The programs in docs/models/ that stand on their own."""

import re
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

PAGES = Path(__file__).parents[1] / "docs" / "models"


@pytest.mark.parametrize("page", ["logistic_regression", "linear_svc", "mlp"])
def test_programs(page):
    programs = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert programs
    for program in programs:
        exec(program, {"__name__": "__main__"})


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_figures_exist(page):
    for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / figure).is_file(), figure
