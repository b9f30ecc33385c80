"""Every public name has an entry in the reference of the site, with arguments, errors and an example."""

import ast
import importlib.util
import inspect
import re
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

DOCS = Path(__file__).parents[1] / "docs"


def _reference():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "_ext" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference()
NAMES = {f"{package}.{name}": value for package in reference.packages() for name, value in
         reference.public_names(package).items()}  # fmt: skip
CALLABLES = {name: value for name, value in NAMES.items() if callable(value) and inspect.getmodule(value) is not None}


def sections(value):
    """Return the text of each section of a docstring, by its heading; "" is what stands before."""
    found, heading = {"": ""}, ""
    for line in (inspect.getdoc(value) or "").split("\n"):
        match = re.fullmatch(r"(Args|Attributes|Returns|Yields|Raises):", line)
        if match:
            heading = match[1]
        elif line and not line.startswith(" "):
            heading = ""
        found[heading] = found.get(heading, "") + line + "\n"
    return found


def parameters(value):
    """Return the names of the arguments that a user gives."""
    if inspect.isclass(value):
        if issubclass(value, BaseException) or inspect.isabstract(value):
            return []
        own = value.__dict__.get("__new__") or value.__dict__.get("__init__")
        if own is None and not hasattr(value, "__dataclass_fields__"):
            return []
        value = value if hasattr(value, "__dataclass_fields__") else own
    names = list(inspect.signature(value).parameters)
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def raised(value):
    """Return whether a function, or what makes an object of a class, raises an error itself."""
    if inspect.isclass(value):
        value = value.__dict__.get("__new__") or value.__dict__.get("__init__")
    function = inspect.unwrap(value) if value is not None else None
    if not inspect.isfunction(function) or function.__code__.co_filename.startswith("<"):  # generated
        return False
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree))


@pytest.mark.parametrize("package", reference.packages())
def test_every_public_name_is_in_the_reference(package, tmp_path):
    reference.write_pages(tmp_path)
    page = (tmp_path / f"{package}.rst").read_text(encoding="utf-8")
    for name in reference.public_names(package):
        assert re.search(rf"^   {name}$|:: {name}$", page, re.MULTILINE), name


@pytest.mark.parametrize("name", CALLABLES)
def test_callables_are_documented(name):
    value = CALLABLES[name]
    found = sections(value)
    text = inspect.getdoc(value) or ""
    described = set(
        re.findall(r"^    \*{0,2}(\w+):", found.get("Args", "") + found.get("Attributes", ""), re.MULTILINE)
    )
    assert set(parameters(value)) <= described, "arguments without a description"
    if inspect.isfunction(value) and inspect.signature(value).return_annotation not in (None, "None"):
        assert "Returns" in found or re.match(r"(Return|Yield|Cut|Assign|Move|Send|Sample)", text), "no Returns:"
    assert not raised(value) or "Raises" in found, "no Raises:"
    assert ">>> " in text, "no example"
