"""The examples in docstrings."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import sfb.kernels


def modules_with_examples():
    """Return the text of each module that has examples, by the module's name."""
    found = {}
    for package in (sfb, sfb.kernels):
        folder = Path(package.__file__).parent
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            text = path.read_text(encoding="utf-8")
            if ">>> " in text:
                found[".".join((package.__name__, *parts))] = text
    return found


EXAMPLES = modules_with_examples()


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_print_what_they_say(name):
    if "import torch" in EXAMPLES[name]:
        pytest.importorskip("torch")
    # Without the module's own names: users can paste an example as it stands.
    results = doctest.testmod(import_module(name), globs={"__name__": "__main__"})
    assert results.failed == 0
    # doctest passes over objects that a decorator hides.
    assert results.attempted == EXAMPLES[name].count(">>> ")
