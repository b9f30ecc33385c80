"""What sfb does not do with what it reads, and what it depends on."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("sfb", "kernels") for path in (ROOT / folder).rglob("*.py"))

# Modules that make objects, and thereby run code, from bytes.
_UNPICKLERS = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def found(tree):
    """Yield what of a module's syntax may run code that comes from a file or a message."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (f"line {node.lineno}: import {a.name}" for a in node.names if a.name in _UNPICKLERS)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in _UNPICKLERS:
                yield f"line {node.lineno}: from {module}"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                yield f"line {node.value.lineno}: allow_pickle=True"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr="load"), keywords=keywords):
                if not any(each.arg == "allow_pickle" for each in keywords):
                    yield f"line {node.lineno}: np.load that leaves allow_pickle to NumPy"
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "np.load(f, allow_pickle=True)", "np.load(f)", "eval(text)"],
)
def test_what_is_looked_for_is_found(line):
    assert list(found(ast.parse(line)))


def test_nothing_is_unpickled_or_evaluated():
    bad = [f"{path.relative_to(ROOT)}: {each}" for path in SOURCES for each in found(ast.parse(path.read_text()))]
    assert not bad


def test_dependencies_are_few_and_bounded():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"\ndependencies = \[\n(.*?)\n\]", text, re.DOTALL)[1]
    wanted = [Requirement(line.strip().strip(",").strip('"')) for line in listed.splitlines()]
    assert len(wanted) <= 11
    for requirement in wanted:
        assert {each.operator for each in requirement.specifier} == {">=", "<"}, str(requirement)
