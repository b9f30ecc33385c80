"""The imports of a source tree, read from its syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_BY_NAME = ("import_module", "__import__")


@dataclass(frozen=True)
class Import:
    """An import anywhere in a module, also in a function or under TYPE_CHECKING.

    Attributes:
        module: The module that imports.
        target: The module imported. ``from sfb import Name`` refers to the module that defines the name.
        names: The names that the import takes from the target.
        line: The file, the number and the text of its line.
    """

    module: str
    target: str
    names: tuple[str, ...]
    line: str

    def __str__(self) -> str:
        return self.line


class Tree:
    """The modules below ``root`` in sfb/ and in kernels/, which installs as sfb.kernels, and their imports.

    sfb/__init__.py is not one of the modules: it names all layers.

    Attributes:
        files: The file of each module.
        imports: All imports of the modules.
    """

    def __init__(self, root: Path) -> None:
        self.files: dict[str, Path] = {}
        for folder, package in (("sfb", ("sfb",)), ("kernels", ("sfb", "kernels"))):
            for path in sorted((root / folder).rglob("*.py")):
                parts = path.relative_to(root / folder).with_suffix("").parts
                self.files[".".join((*package, *parts)).removesuffix(".__init__")] = path
        self._public: dict[str, str] = {}
        for node in ast.walk(ast.parse(self.files.pop("sfb").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                self._public |= {alias.name: self._target(node.module, alias.name) for alias in node.names}
        self.imports = [
            Import(name, target, names, f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}")
            for name, path in self.files.items()
            for node, target, names in self._imports(name, path)
        ]

    @cached_property
    def targets(self) -> dict[str, set[str]]:
        """The modules that each module imports, without itself."""
        found: dict[str, set[str]] = {name: set() for name in self.files}
        for item in self.imports:
            if item.target != item.module:
                found[item.module].add(item.target)
        return found

    def reachable(self, start: str) -> set[str]:
        """Return the modules that ``start`` imports, directly or not; ``start`` is one of them on a circle."""
        found: set[str] = set()
        ahead = [start]
        while ahead:
            new = self.targets.get(ahead.pop(), set()) - found
            found |= new
            ahead.extend(new)
        return found

    def _imports(self, module: str, path: Path) -> Iterator[tuple[ast.expr | ast.stmt, str, tuple[str, ...]]]:
        """Yield each import of a module: its node, its target, and the names it takes."""
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import():
                    # `import sfb` is judged by the names that follow it.
                    yield from ((node, self._target(a.name), ()) for a in node.names if a.name != "sfb" or a.asname)
                case ast.ImportFrom():
                    source = _source(module, path, node)
                    yield from ((node, self._target(source, a.name), (a.name,)) for a in node.names)
                case ast.Attribute(value=ast.Name(id="sfb"), attr=name):
                    yield node, self._target("sfb", name), (name,)
                case ast.Call(args=[ast.Constant(value=str(name)), *_]):
                    if ast.unparse(node.func).split(".")[-1] in _BY_NAME:
                        yield node, self._target(name), ()

    def _target(self, source: str, name: str = "") -> str:
        """Return the module that ``from source import name``, or ``import source``, refers to."""
        if f"{source}.{name}" in self.files:
            return f"{source}.{name}"
        return self._public.get(name, source) if source == "sfb" else source


def _source(module: str, path: Path, node: ast.ImportFrom) -> str:
    """Return the module that ``from … import`` names; it may be relative to the importing module."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    package = parts[: len(parts) - node.level + (path.name == "__init__.py")]
    return ".".join([*package, *([node.module] if node.module else [])])
