"""No import points up the layers or lies on a circle, also inside functions and for types."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from imports import Tree

ROOT = Path(__file__).parents[1]

# The modules and packages of sfb/, from the lowest layer up. Modules of one row do not import each other.
LAYERS = (
    ("_version", "files", "kernels", "launch", "topology", "units"),
    ("checks", "data", "trace"),
    ("factors", "receiver"),
    ("optim",),
    ("runtime",),
    ("environment",),
    ("tuning",),
    ("arrays", "collectives"),
    ("comm",),
    ("elastic", "store"),
    ("schedule",),
    ("models",),
    ("mcmc", "torch", "training"),
    ("bench",),
    ("doctor", "soak"),
    ("cli",),
    ("__main__",),
)
HEIGHT = {name: height for height, row in enumerate(LAYERS) for name in row}

# Modules and packages that work where MPI cannot be loaded, like all that they import.
WITHOUT_MPI = (
    "checks",
    "data",
    "doctor.local",
    "doctor.report",
    "factors",
    "kernels",
    "models.saved.files",
    "models.saved.kinds",
    "models.losses",
    "models.model",
    "models.nets.network",
    "models.saved.predictors",
    "models.registry",
    "optim",
    "receiver",
    "runtime.compiled",
    "runtime.errors",
    "runtime.limits",
    "runtime.processes",
    "runtime.steps",
    "soak.dice",
    "soak.oracle",
    "store.consistency",
    "topology",
    "trace",
    "training.checkpoint",
    "training.config",
    "training.rates",
    "training.status",
    "tuning.plan",
    "tuning.profile",
    "tuning.trial",
    "units",
)

# Packages that use only public names of other packages.
OUTSIDERS = ("bench", "doctor", "mcmc", "models", "schedule", "soak", "torch", "training")

# The number of modules in sfb/ itself, beside its packages, at most.
MOST_MODULES = 12


def part(module: str) -> str | None:
    """Return the name in `LAYERS` that a module belongs to, None if it is not of sfb."""
    first, *rest = module.split(".")
    return None if first != "sfb" else rest[0] if rest else "sfb"


def upward(tree: Tree) -> Iterator[str]:
    """Yield the imports of a higher layer, or of a neighbour in the same layer."""
    for item in tree.imports:
        own, other = part(item.module), part(item.target)
        if other is None or own == other:
            continue
        for name in (own, other):
            if name not in HEIGHT:
                yield f"{item}  ({name} is missing in LAYERS)"
                break
        else:
            if HEIGHT[other] >= HEIGHT[own]:
                yield f"{item}  ({other} is {'above' if HEIGHT[other] > HEIGHT[own] else 'beside'} {own})"


def circles(tree: Tree) -> Iterator[str]:
    """Yield the circles of modules, each with its imports."""
    reach = {name: tree.reachable(name) for name in tree.files}
    found = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in reach if a in reach[a]}
    for modules in sorted(map(sorted, found)):
        items = [item for item in tree.imports if {item.module, item.target} <= {*modules}]
        lines = [str(item) for item in items if item.module != item.target]
        yield "\n    ".join([f"{', '.join(modules)}:", *lines])


def to_mpi(tree: Tree, roots: Iterable[str]) -> Iterator[str]:
    """Yield the imports of MPI by ``roots``, modules or packages, and by what they import."""
    own = {name for name in tree.files if any(f"{name}.".startswith(f"sfb.{root}.") for root in roots)}
    needed = own.union(*(tree.reachable(name) for name in own))
    yield from (str(item) for item in tree.imports if item.module in needed and item.target.startswith("mpi4py"))


def private(tree: Tree) -> Iterator[str]:
    """Yield the imports of private names by packages that use public ones only."""
    for item in tree.imports:
        if item.names == ("__version__",):  # public, though its module is not
            continue
        if part(item.module) in OUTSIDERS and part(item.target) is not None:
            names = (*item.target.split("."), *item.names)
            if any(name.startswith("_") and not name.endswith("__") for name in names):
                yield str(item)


@pytest.fixture(scope="module")
def tree():
    return Tree(ROOT)


def none(found: Iterable[str], what: str) -> None:
    """Fail if anything is found, and list it."""
    lines = list(found)
    if lines:
        pytest.fail("\n".join([f"{what}:", *lines]), pytrace=False)


def test_no_import_points_up(tree):
    assert len(tree.imports) > 100
    none(upward(tree), "imports that point up the layers")


def test_no_import_lies_on_a_circle(tree):
    none(circles(tree), "circles of imports")


def test_some_modules_need_no_mpi(tree):
    none(to_mpi(tree, WITHOUT_MPI), "imports of MPI where it may be missing")


def test_outsiders_use_public_names(tree):
    none(private(tree), "imports of private names")


def test_sfb_itself_holds_few_modules():
    names = sorted(path.name for path in (ROOT / "sfb").glob("*.py"))
    assert len(names) <= MOST_MODULES, names


# A tree without faults. Each test adds an import to one of its modules.
GOOD = {
    "sfb/__init__.py": "from sfb.factors import Factors\nif True:\n    from sfb.comm import Comm\n",
    "sfb/checks.py": "",
    "sfb/factors.py": "from sfb import checks\n",
    "sfb/comm.py": "import sfb.kernels as kernels\nfrom sfb.tuning import plan\nfrom mpi4py import MPI\n",
    "sfb/tuning/__init__.py": "from sfb.tuning.plan import choose\n",
    "sfb/tuning/plan.py": "from .trial import Trial\n",
    "sfb/tuning/trial.py": "",
    "sfb/collectives/__init__.py": "",
    "sfb/arrays/__init__.py": "",
    "sfb/models/__init__.py": "import sfb\nsfb.Comm\n",
    "kernels/__init__.py": "from sfb.kernels import _loops\n",
    "kernels/_loops.py": "",
}
POSITIONS = {
    "open": "{}\n",
    "in a function": "def f():\n    {}\n",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}\n",
}
anywhere = pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)


@pytest.fixture
def good(tmp_path):
    """Return a function that makes the tree of `GOOD` with lines added to one file."""

    def make(file: str = "sfb/checks.py", lines: str = "") -> Tree:
        for name, text in GOOD.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + lines * (name == file))
        return Tree(tmp_path)

    return make


def test_a_tree_without_faults(good):
    for found in (upward(good()), circles(good()), to_mpi(good(), WITHOUT_MPI), private(good())):
        assert not list(found)


@anywhere
@pytest.mark.parametrize(
    "line",
    [
        "from sfb.comm import Comm",
        "import sfb.comm",
        "import sfb.comm as c",
        "from sfb import Comm",
        "from sfb import comm",
        "from .. import comm",
        "from ..comm import Comm",
        "import_module('sfb.comm')",
        "sfb.Comm",
    ],
)
def test_an_upward_import_is_found(good, position, line):
    number = position[: position.index("{}")].count("\n") + 1
    found = list(upward(good("sfb/tuning/trial.py", position.format(line))))
    assert found == [f"sfb/tuning/trial.py:{number}: {line}  (comm is above tuning)"]


def test_an_import_of_a_neighbour_is_found(good):
    found = list(upward(good("sfb/arrays/__init__.py", "import sfb.collectives\n")))
    assert found == ["sfb/arrays/__init__.py:1: import sfb.collectives  (collectives is beside arrays)"]


def test_a_kernel_that_imports_the_rest_is_found(good):
    found = list(upward(good("kernels/_loops.py", "from sfb.checks import f\n")))
    assert found == ["kernels/_loops.py:1: from sfb.checks import f  (checks is above kernels)"]


def test_a_module_without_a_layer_is_found(good):
    found = list(upward(good("sfb/comm.py", "import sfb.extras\n")))
    assert found == ["sfb/comm.py:4: import sfb.extras  (extras is missing in LAYERS)"]


def test_another_name_for_sfb_is_found(good):
    found = list(upward(good("sfb/tuning/trial.py", "import sfb as s\n")))
    assert found == ["sfb/tuning/trial.py:1: import sfb as s  (sfb is missing in LAYERS)"]


@anywhere
def test_a_circle_is_found(good, position):
    (found,) = circles(good("sfb/tuning/trial.py", position.format("from sfb.tuning.plan import Plan")))
    assert found.startswith("sfb.tuning.plan, sfb.tuning.trial:")
    assert "sfb/tuning/plan.py:1: from .trial import Trial" in found
    assert "sfb/tuning/trial.py:" in found


def test_a_way_to_mpi_is_found(good):
    tree = good("sfb/checks.py", "def f():\n    from mpi4py import MPI\n")
    assert list(to_mpi(tree, ["factors"])) == ["sfb/checks.py:2: from mpi4py import MPI"]


@pytest.mark.parametrize(
    "line",
    ["from sfb.comm import _hidden", "from sfb.kernels import _loops", "import sfb.kernels._loops", "sfb._hidden"],
)
def test_a_private_name_is_found(good, line):
    assert list(private(good("sfb/models/__init__.py", line))) == [f"sfb/models/__init__.py:3: {line}"]
