"""Which names are public, and the pages of the reference that list them."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.util import find_spec
from inspect import isclass, isroutine
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["packages", "public_names", "write_pages"]

# Packages whose names are for the library itself, or for its command.
INTERNAL = ("sfb.cli", "sfb.collectives", "sfb.doctor")
# Public modules that are no packages.
MODULES = ("sfb.optim",)
# What public functions return, beside the names that packages export.
RETURNED = {
    "sfb": ("sfb.tuning.plan.Plan", "sfb.store.store.Stats"),
    "sfb.topology": ("sfb.topology.graph.Circulant",),
}
# Packages that need PyTorch.
OPTIONAL = {"sfb.torch": "torch", "sfb.models": "sklearn"}

# What constants are; autodoc would show the docstring of their type.
CONSTANTS = {
    "sfb.data.SCALES": "The kinds of scale that `fit_scaler` takes.",
    "sfb.data.SOURCES": "What `describe` takes, in words, for messages.",
    "sfb.kernels.ARRAY_STAGES": "Modules that collectives of plain arrays need, as `STAGES`.",
    "sfb.kernels.HALF_STAGES": "Modules that 16 bits on the wire need beside `STAGES`.",
    "sfb.kernels.SPARSE_STAGES": "Modules that sparse factors need beside `STAGES`.",
    "sfb.kernels.STAGES": "Modules to compile, stage by stage; those of a stage do not need each other.",
    "sfb.models.MODELS": "The models of ``sfb train`` by name; ``MODELS.build(name, features, outputs)`` returns one.",
    "sfb.topology.NAMES": "Functions that return a graph of so many ranks, by the names that `create` takes.",
}

TITLES = {"classes": "Classes", "functions": "Functions", "exceptions": "Exceptions", "data": "Constants"}


def packages() -> list[str]:
    """Return the public modules and packages that can be imported here, `sfb` first."""
    import sfb

    found = ["sfb", *MODULES]
    for module in pkgutil.iter_modules(sfb.__path__, "sfb."):
        if module.ispkg and module.name not in INTERNAL and not module.name.rpartition(".")[2].startswith("_"):
            need = OPTIONAL.get(module.name)
            if (need is None or find_spec(need)) and getattr(import_module(module.name), "__all__", ()):
                found.append(module.name)
    return found


def public_names(package: str) -> dict[str, Any]:
    """Return the public objects of a package by name; modules, which have pages of their own, and versions left out."""
    module = import_module(package)
    objects = {name: getattr(module, name) for name in module.__all__ if not name.startswith("__")}
    return {name: value for name, value in objects.items() if not isinstance(value, ModuleType)}


def kind(value: Any) -> str:
    """Return the section of a page that an object belongs to."""
    if isclass(value):
        return "exceptions" if issubclass(value, BaseException) else "classes"
    return "functions" if isroutine(value) or callable(value) else "data"


def write_pages(folder: Path) -> None:
    """Write a page for each package into a folder, and leave pages alone that would not change."""
    for package in packages():
        module = import_module(package)
        title = f"``{package}``"
        lines = [title, "=" * len(title), "", f".. automodule:: {package}", ""]
        sections: dict[str, list[str]] = {}
        for name, value in public_names(package).items():
            sections.setdefault(kind(value), []).append(name)
        for section, heading in TITLES.items():
            if section in sections:
                lines += _table(heading, sorted(sections[section], key=str.lower), section, package)
        for name in RETURNED.get(package, ()):
            home, _, own = name.rpartition(".")
            heading = "What calls return" if name == RETURNED[package][0] else ""
            lines += _table(heading, (own,), "classes", home)
        _write(folder / f"{module.__name__}.rst", "\n".join(lines) + "\n")


def _table(heading: str, names: Any, section: str, module: str) -> list[str]:
    """Return a section that lists names, with a page for each; constants stand on the page itself."""
    lines = [heading, "-" * len(heading), ""] if heading else []
    lines += [f".. currentmodule:: {module}", ""]
    if section == "data":
        for name in names:
            lines += [f".. py:data:: {name}", "", f"   {CONSTANTS[f'{module}.{name}']}", ""]
        return lines
    return [
        *lines,
        ".. autosummary::",
        "   :toctree: generated",
        "   :nosignatures:",
        "",
        *(f"   {n}" for n in names),
        "",
    ]


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
