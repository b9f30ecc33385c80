"""Settings of the site; `mpirun_scripts/docs.sh` builds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
# Ranks are started by mpirun, not by the build: one thread, and no launcher of the shell that runs it.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from inventories import write_inventories  # noqa: E402
from reference import write_pages  # noqa: E402

from sfb import __version__  # noqa: E402

project = "sfb"
author = "the sfb authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["examples", "_ext", "_inventories", "_templates"]
templates_path = ["_templates"]
default_role = "py:obj"  # names in single backticks of docstrings

# Markdown
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4

# Reference: a page for each public package, a page for each public name.
write_pages(HERE / "reference")
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # Args: says what arguments are, shapes and dtypes included
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Names of other projects, by inventories in the tree: the build needs no network.
intersphinx_mapping = write_inventories(HERE / "_inventories", HERE.parent / "build" / "inventories")

# Gallery: `docs.sh --examples` runs the programs under mpirun; the build shows what they printed and drew then.
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"(?!)",
    "ignore_pattern": r"models\.py",  # draws the figures of the pages about models
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
}

html_theme = "pydata_sphinx_theme"
html_title = f"sfb {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "sfb"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navigation_depth": 3,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": [], "benchmarks": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# Pictures of gallery programs that other pages show, too.
PICTURES = {
    "dictionary_learning": "models/dictionary_learning.png",
    "metric_learning": "models/metric_learning.png",
    "ratings": "models/matrix_factorization.png",
    "topics": "models/lda.png",
}
# Pages of features that a checkout may lack.
OPTIONAL = ("compatibility", "elastic", "reliability", "slurm", "trace")


def setup(app: Any) -> None:
    """Connect what changes members and tables of contents."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("source-read", _leave_out)
    app.connect("source-read", _show_output)


def _leave_out(app: Any, name: str, source: list[str]) -> None:
    """Leave pages that are not there out of tables of contents."""
    for page in OPTIONAL:
        if not (HERE / f"{page}.md").is_file():
            source[0] = source[0].replace(f"\n/{page}\n", "\n")


def _show_output(app: Any, name: str, source: list[str]) -> None:
    """Show below a program of the gallery what it printed and drew when `docs.sh --examples` last ran it."""
    folder, _, program = name.rpartition("/")
    if folder != "gallery" or not (HERE / "examples" / f"{program}.py").is_file():
        return
    text, picture = f"examples/output/{program}.txt", f"examples/output/{program}.png"
    how, below = "What it drew", ""
    if not (HERE / picture).is_file() and program in PICTURES:
        picture = PICTURES[program]
        how = f"What it drew with the options that :doc:`/{picture.removesuffix('.png')}` names"
    if (HERE / text).is_file():
        below += f".. rubric:: What it printed\n\n.. literalinclude:: /{text}\n   :language: none\n\n"
    if (HERE / picture).is_file():
        below += f".. rubric:: {how}\n\n.. image:: /{picture}\n\n"
    code, mark, links = source[0].partition(f".. _sphx_glr_download_gallery_{program}.py:")
    source[0] = code + below + mark + links


def _skip(app: Any, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Return True for methods of scikit-learn and mpi4py, whose docstrings refer to pages of theirs."""
    module = getattr(member, "__module__", None) or ""
    foreign = module.split(".")[0] in ("sklearn", "mpi4py", "torch")
    return True if foreign or (name.startswith("set_") and name.endswith("_request")) else None
