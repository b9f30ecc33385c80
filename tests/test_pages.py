"""The programs of the tutorial and of explanations, on any number of ranks; on four they print what the pages say."""

import re
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [path for part in ("tutorial", "explanation") for path in sorted((DOCS / part).glob("*.md"))
         if "```python" in path.read_text(encoding="utf-8")]  # fmt: skip


def blocks(page, language):
    """Return the code of a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.mpi
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_programs_print_what_the_page_says(page, world, capsys):
    exec("\n".join(blocks(page, "python")), {"__name__": "__main__"})
    out = capsys.readouterr().out
    if world.rank == 0 and world.size == 4 and blocks(page, "text"):
        assert out == "".join(blocks(page, "text"))
